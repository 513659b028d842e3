"""Buckets: list, register, import what lies in one."""

from __future__ import annotations

from datas3tfs.api.endpoints import Endpoint, is_named, parse_endpoint, refuse_special
from datas3tfs.api.operations import VERY_LONG, Call, Operation, Scope
from datas3tfs.core.model import BucketSpec
from datas3tfs.core.names import check_label, printable
from datas3tfs.engine.importer import import_bucket
from datas3tfs.errors import Conflict, Forbidden, Invalid, Unavailable
from datas3tfs.wire import answers, requests


async def _list(call: Call, _: requests.Nothing) -> list[answers.BucketInfo]:
    return [
        answers.BucketInfo(
            name=spec.name,
            endpoint=spec.endpoint,
            bucket=spec.bucket,
            use_tls=spec.endpoint_url.startswith("https://"),
            region=spec.region,
        )
        for spec in (bucket.spec for bucket in await call.backend.registry.buckets())
    ]


async def _add(call: Call, given: requests.AddBucket) -> None:
    """Register a bucket: nothing is connected to before its endpoint is known to be allowed."""
    spec = BucketSpec(
        name=check_label("bucket", given.name),
        endpoint=given.endpoint,
        bucket=given.bucket,
        access_key=given.access_key,
        secret_key=given.secret_key,
        use_tls=given.use_tls,
        region=given.region,
    )
    if not spec.endpoint or not spec.bucket:
        raise Invalid(f"bucket {spec.name}: the endpoint or the bucket there is empty")
    await _check_endpoint(call, spec)
    for other in await call.backend.registry.buckets():
        if other.spec.name == spec.name:
            raise Conflict(f"bucket {spec.name}: a bucket of this name is registered already")
    try:
        await call.backend.try_bucket(spec)
    except Unavailable as exc:
        # What was given leads nowhere, more likely than not; whoever gave it is told why.
        raise Invalid(f"bucket {spec.name} cannot be used: {exc}") from exc
    await call.backend.registry.add_bucket(spec)


async def _check_endpoint(call: Call, spec: BucketSpec) -> None:
    """Raise Forbidden if the server may not connect to the bucket's endpoint; Invalid if it is none."""
    endpoint = parse_endpoint(spec.endpoint_url)
    allowed = call.backend.allow_endpoints
    if call.is_trusted or is_named(endpoint, allowed):
        return
    if "*" in allowed or (not allowed and call.is_private):
        await refuse_special(endpoint)
        return
    if not allowed:
        registered = [bucket.spec.endpoint_url for bucket in await call.backend.registry.buckets()]
        if any(_is_at(url, endpoint) for url in (*registered, *call.backend.known_endpoints)):
            return
    raise Forbidden(
        f"endpoint {printable(str(endpoint))}: may not be registered over HTTP; "
        f"start the server with --allow-endpoint {printable(str(endpoint))}, or use `datas3tfs bucket add`"
    )


def _is_at(url: str, endpoint: Endpoint) -> bool:
    """Say whether *url*, which somebody else has registered or set, is that of *endpoint*."""
    try:
        return parse_endpoint(url) == endpoint
    except Invalid:
        return False


async def _import(call: Call, given: requests.ImportBucket) -> answers.Imported:
    backend = call.backend
    report = await import_bucket(
        backend.reader, backend.registry, backend.dataranges, backend.stores, given.bucket_name
    )
    return answers.Imported(
        imported_datas3ts=report.datasets,
        imported_count=len(report.datasets),
        imported_dataranges=report.dataranges,
        skipped=[answers.SkippedObject(object_key=key, reason=reason) for key, reason in report.skipped],
        skipped_count=report.skipped_count,
    )


OPERATIONS = (
    Operation(
        method="GET",
        paths=("/api/v1/buckets",),
        summary="List the registered buckets, without their credentials.",
        takes=requests.Nothing,
        run=_list,
        scope=Scope.ALL,
        gives=list[answers.BucketInfo],
    ),
    Operation(
        method="POST",
        paths=("/api/v1/buckets", "/api/bucket"),
        summary="Register a bucket that S3 says can be used.",
        takes=requests.AddBucket,
        run=_add,
        scope=Scope.ALL,
        changes=True,
        status=201,
        errors=(409,),
    ),
    Operation(
        method="POST",
        paths=("/api/v1/datas3ts/import",),
        summary="Commit what lies in a bucket and the catalog does not know.",
        takes=requests.ImportBucket,
        run=_import,
        scope=Scope.ALL,
        changes=True,
        gives=answers.Imported,
        errors=(404, 409),
        seconds=VERY_LONG,
        is_heavy=True,
    ),
)
