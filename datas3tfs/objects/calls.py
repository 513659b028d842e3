"""Run boto3's calls on one bucket in worker threads.

Not for what to call (bucket.py, multipart.py, listing.py), nor for retries (retries.py). Concurrency: the
event loop's; each call waits for one worker thread, and on cancellation returns at once. A thread left
behind ends through its socket's timeouts; what it carries may still arrive.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import trio
from botocore.exceptions import ClientError

from datas3tfs.core.model import BucketSpec
from datas3tfs.errors import Unavailable
from datas3tfs.objects.client import Client
from datas3tfs.objects.settings import S3Settings
from datas3tfs.objects.translate import status_of, translated

Reply = dict[str, Any]  # as boto3 parses an answer: no type says more

# A server says nothing while it puts a large object together; how long to wait for that is decided
# above (upload.py), by the object's size. The socket must only end some time if nobody waits any more.
_ASSEMBLY_SILENCE = 900.0


class Calls:
    """The calls that sign in headers, on one bucket."""

    def __init__(self, spec: BucketSpec, settings: S3Settings, limiter: trio.CapacityLimiter) -> None:
        self._bucket = spec.bucket
        self._limiter = limiter
        self._client = Client(spec, settings, settings.silence)
        self._patient = Client(spec, settings, _ASSEMBLY_SILENCE)

    @property
    def bucket(self) -> str:
        """The bucket's name in S3."""
        return self._bucket

    def close(self) -> None:
        """Close idle connections."""
        self._client.close()
        self._patient.close()

    async def __call__(
        self,
        subject: str,
        method: str,
        *,
        tolerate: Set[int] = frozenset(),
        patient: bool = False,
        **asked: Any,
    ) -> Reply:
        """Run one boto3 *method*; an answer with a status in *tolerate* counts as empty.

        *patient* bears a server that is silent while it works. Raises what translate.py makes of it.
        """
        client = self._patient if patient else self._client

        def work() -> Reply:
            with translated(subject):
                try:
                    answer: Reply = getattr(client(), method)(Bucket=self._bucket, **asked)
                except ClientError as exc:
                    if status_of(exc) not in tolerate:
                        raise
                    return {}
                return answer

        return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._limiter)


def confirmed(subject: str, answer: Reply, word: str) -> str:
    """Return what only S3 itself says when it has done as asked: a page from a proxy with status 200
    must not count as done. Raises Unavailable."""
    value = answer.get(word)
    if not isinstance(value, str) or not value:
        raise Unavailable(f"{subject}: the answer does not confirm what was asked (no {word})")
    return value
