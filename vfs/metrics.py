"""What the file system counts, on a Prometheus registry. ``docs/METRICS.md`` describes each of them."""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge


class Metrics:
    """The counters of one mount."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
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
