"""What the file system counts, on a Prometheus registry. ``docs/METRICS.md`` describes each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric


@dataclass(slots=True)
class AheadStats:
    """What was fetched before it was asked for, as ``damfs status`` shows it; docs/STATUS.md describes each field.

    Bytes since the daemon began, but for what is held now.
    """

    file_bytes: int = 0
    frame_bytes: int = 0
    used_bytes: int = 0
    wasted_bytes: int = 0
    players: int = 0
    held_frames: int = 0
    held_bytes: int = 0


class Metrics:
    """The counters of one mount."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._registry = registry
        self.read_bytes = Counter("damfs_read_bytes", "Bytes answered to reads of the kernel", registry=registry)
        self.reads = Counter(
            "damfs_reads", "Reads of the kernel, by where the answer came from", ["from"], registry=registry
        )
        self.errors = Counter("damfs_errors", "Requests answered with an error, by errno", ["errno"], registry=registry)
        self.handles = Gauge("damfs_open_handles", "Open files and folders", registry=registry)
        self.notices = Counter("damfs_notices", "Invalidations written to the kernel", registry=registry)
        self.notices_failed = Counter(
            "damfs_notices_failed", "Invalidations that the kernel refused", registry=registry
        )
        self.reads_inline = self.reads.labels("page_cache")
        self.reads_waited = self.reads.labels("cache")

    def watch_ahead(self, now: Callable[[], AheadStats]) -> None:
        """Show on the page what ``now`` says."""
        self._registry.register(_AheadCollector(now))


class _AheadCollector:
    """See prometheus_client's custom collectors. Read from a worker thread: plain integers only."""

    def __init__(self, now: Callable[[], AheadStats]) -> None:
        self._now = now

    def collect(self) -> Iterator[Metric]:
        stats = self._now()
        fetched = CounterMetricFamily("damfs_ahead_bytes", "Bytes fetched before they were asked for.", labels=["of"])
        fetched.add_metric(["file"], stats.file_bytes)
        fetched.add_metric(["sequence"], stats.frame_bytes)
        yield fetched
        yield CounterMetricFamily("damfs_ahead_used_bytes", "Those that were read then.", value=stats.used_bytes)
        yield CounterMetricFamily("damfs_ahead_wasted_bytes", "Those that were given up.", value=stats.wasted_bytes)
        yield GaugeMetricFamily("damfs_ahead_players", "Players of sequences that are followed.", value=stats.players)
        yield GaugeMetricFamily("damfs_ahead_held_bytes", "Bytes held for them.", value=stats.held_bytes)

    def describe(self) -> Iterator[Metric]:
        """Nothing: asked before there is anything to collect."""
        return iter(())
