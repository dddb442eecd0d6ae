"""What the daemon itself measures, and the page that Prometheus reads.

Every package declares its own metrics and registers them with the registry that it is handed; this module adds those of
the sync and of the event loop, and serves all of them. docs/METRICS.md describes each one (a test looks).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import trio
from prometheus_client import CONTENT_TYPE_LATEST, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client.core import Metric
    from prometheus_client.registry import CollectorRegistry
    from starlette.requests import Request

    from daemon.status import ShowStatus

LATENCY_PROBE_S = 0.25
_LATENCY_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 5)


class Followed(Protocol):
    """Where the numbers of the shows come from."""

    @property
    def offline(self) -> bool: ...

    @property
    def is_switched_offline(self) -> bool: ...

    def shows(self) -> dict[str, ShowStatus]: ...


class Prefetching(Protocol):
    """Where the numbers of the prefetch come from."""

    @property
    def brought_bytes(self) -> int: ...

    def states(self) -> Mapping[str, int]: ...


class DaemonMetrics:
    """A collector for the shows, and a histogram of how late the event loop is. Read from a worker thread."""

    def __init__(self, followed: Followed, registry: CollectorRegistry) -> None:
        self._followed = followed
        self.loop_latency_s = Histogram(
            "damfs_event_loop_latency_seconds",
            "How much later than asked the event loop woke a task",
            buckets=_LATENCY_BUCKETS_S,
            registry=registry,
        )
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """See ``prometheus_client.registry.Collector``."""
        yield GaugeMetricFamily(
            "damfs_offline", "1 while the library does not answer", value=float(self._followed.offline)
        )
        yield GaugeMetricFamily(
            "damfs_offline_switched",
            "1 while somebody has switched the mount offline",
            value=float(self._followed.is_switched_offline),
        )
        revision = GaugeMetricFamily("damfs_show_revision", "The revision that readers see", labels=["show"])
        lag = GaugeMetricFamily(
            "damfs_sync_lag_seconds", "Time since the show's log was last read to its end", labels=["show"]
        )
        stalled = GaugeMetricFamily("damfs_show_stalled", "1 while the show cannot go on", labels=["show"])
        for name, show in self._followed.shows().items():
            if show.revision is not None:
                revision.add_metric([name], show.revision)
            if show.last_sync_age_s is not None:
                lag.add_metric([name], show.last_sync_age_s)
            if show.loaded:
                stalled.add_metric([name], float(show.stalled is not None))
        yield from (revision, lag, stalled)

    async def watch_loop(self) -> None:
        """Measure the event loop's lateness for ever."""
        while True:
            due = trio.current_time() + LATENCY_PROBE_S
            await trio.sleep_until(due)
            self.loop_latency_s.observe(max(0.0, trio.current_time() - due))


class PrefetchMetrics:
    """A collector for the jobs of ``damfs prefetch``."""

    def __init__(self, prefetch: Prefetching, registry: CollectorRegistry) -> None:
        self._prefetch = prefetch
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """See ``prometheus_client.registry.Collector``."""
        jobs = GaugeMetricFamily("damfs_prefetch_jobs", "Jobs of a prefetch, by their state", labels=["state"])
        for state, count in self._prefetch.states().items():
            jobs.add_metric([state], count)
        brought = self._prefetch.brought_bytes
        yield jobs
        yield CounterMetricFamily("damfs_prefetch_job_bytes", "Bytes that jobs of a prefetch brought", value=brought)


def make_app(registry: CollectorRegistry) -> Starlette:
    """The ASGI application that answers GET /metrics; the text is made in a thread."""
    threads = trio.CapacityLimiter(1)

    async def metrics(request: Request) -> Response:
        del request
        text = await trio.to_thread.run_sync(generate_latest, registry, limiter=threads)
        return PlainTextResponse(text, media_type=CONTENT_TYPE_LATEST)

    return Starlette(routes=[Route("/metrics", metrics, methods=["GET"])])
