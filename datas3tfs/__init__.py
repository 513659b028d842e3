"""datas3tfs: datasets of numbered files, stored as indexed TARs in S3 and shown as directories.

`from datas3tfs import Client, AsyncClient` works, as __init__.pyi says; they are imported when they are
first asked for, so that the command line starts without them.
"""

from importlib import import_module

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name in ("AsyncClient", "Client"):
        return getattr(import_module("datas3tfs.client"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
