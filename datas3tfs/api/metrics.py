"""Figures for Prometheus: requests by route, and the product's own counters.

Labels are route templates, methods and statuses: never what a client chose. A registry of its own, so that
several applications in one process do not add up. Concurrency: the event loop's.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from datas3tfs.core.counters import Counters

MEDIA_TYPE = CONTENT_TYPE_LATEST
_METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"}
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0)


class Metrics:
    """What one application counts."""

    def __init__(self, counters: Counters) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Product(counters))
        self._requests = Counter(
            "datas3tfs_http_requests",
            "Requests answered.",
            ("route", "method", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "datas3tfs_http_request_seconds",
            "Time from a request's head to the end of its answer.",
            ("route",),
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._running = Gauge(
            "datas3tfs_http_requests_running", "Requests being answered.", registry=self._registry
        )

    def begun(self) -> None:
        """A request has come."""
        self._running.inc()

    def ended(self, route: str | None, method: str, status: int, seconds: float) -> None:
        """It was answered; *route* is None if there is no such path."""
        self._running.dec()
        shown = route or "(none)"
        self._requests.labels(shown, method if method in _METHODS else "(other)", str(status)).inc()
        self._seconds.labels(shown).observe(seconds)

    def text(self) -> bytes:
        """Return all figures in Prometheus' text format."""
        return generate_latest(self._registry)


class _Product(Collector):
    """core.counters as metrics: `s3.get_bytes` becomes `datas3tfs_s3_get_bytes_total`."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Yield a family for each counter."""
        for name, value in self._counters.snapshot().items():
            metric = "datas3tfs_" + name.replace(".", "_").replace("-", "_")
            yield CounterMetricFamily(metric, f"datas3tfs' counter {name}.", value=value)
