"""Fixtures for every test live in tests/harness; this file only names them to pytest."""

import signal

# A shell has what it starts in the background ignore it, and so would all commands tested.
signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["tests.harness.postgres", "tests.harness.s3", "tests.harness.catalogs"]
