"""From services and settings to the HTTP application. It owns nothing; app/server.py runs it."""

from __future__ import annotations

from fastapi import FastAPI

from datas3tfs.api.application import make_application
from datas3tfs.api.backend import Backend
from datas3tfs.api.browsers import is_loopback
from datas3tfs.api.tokens import Access
from datas3tfs.app.services import Services
from datas3tfs.catalog.rows import check_spec
from datas3tfs.config import Settings
from datas3tfs.core.counters import Counters
from datas3tfs.core.model import BucketSpec
from datas3tfs.engine.compactor import Compactor
from datas3tfs.engine.receiving import Receiver
from datas3tfs.objects.settings import S3Settings
from datas3tfs.objects.stores import check_bucket


def build_application(services: Services, settings: Settings, *, trusted: bool = False) -> FastAPI:
    """Return the application over *services*, which must outlive it. *trusted*: it is called by this process
    only, so no token is asked for, and no endpoint refused."""
    catalog, stores, indices = services.catalog, services.stores, services.indices
    backend = Backend(
        reader=catalog.reader,
        registry=catalog.registry,
        uploads=catalog.uploads,
        dataranges=catalog.dataranges,
        tokens=catalog.tokens,
        stores=stores,
        indices=indices,
        receiver=Receiver(catalog.reader, catalog.uploads, stores, indices),
        compactor=Compactor(catalog.reader, catalog.uploads, stores, indices),
        counters=services.counters,
        try_bucket=_BucketTrial(S3Settings(io_timeout=settings.io_timeout), services.counters),
        allow_endpoints=settings.allow_endpoints,
        known_endpoints=() if settings.s3_endpoint is None else (_with_scheme(settings.s3_endpoint),),
    )
    host, _ = settings.listen_at()
    return make_application(backend, Access(settings.auth, is_loopback(host), trusted))


class _BucketTrial:
    """Asks S3 whether a bucket can be used."""

    def __init__(self, settings: S3Settings, counters: Counters) -> None:
        self._settings = settings
        self._counters = counters

    async def __call__(self, spec: BucketSpec) -> None:
        check_spec(spec)
        await check_bucket(spec, self._settings, self._counters)


def _with_scheme(endpoint: str) -> str:
    return endpoint if "://" in endpoint else f"http://{endpoint}"
