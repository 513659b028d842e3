"""Fixtures for every test live in tests/harness; this file only names them to pytest."""

pytest_plugins = ["tests.harness.postgres", "tests.harness.s3", "tests.harness.catalogs"]
