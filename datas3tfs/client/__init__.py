"""The Python library: `Client` and, for programs that wait, `AsyncClient`. docs/CLIENT.md shows both."""

from __future__ import annotations

from datas3tfs.client.aio import AsyncClient
from datas3tfs.client.blocking import Client
from datas3tfs.client.datapoints import Datapoint
from datas3tfs.client.downloading import Downloaded
from datas3tfs.client.scanning import ScannedTar, scan_tar
from datas3tfs.client.sources import Batch, Item
from datas3tfs.client.tuning import Tuning
from datas3tfs.client.verifying import Bad, Read, Verified

__all__ = [
    "AsyncClient",
    "Bad",
    "Batch",
    "Client",
    "Datapoint",
    "Downloaded",
    "Item",
    "Read",
    "ScannedTar",
    "Tuning",
    "Verified",
    "scan_tar",
]
