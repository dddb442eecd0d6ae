"""What the cache counts, and how Prometheus sees it.

State: plain integers, written on the event loop; a scrape reads them. Only the fetch latency is a prometheus object.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prometheus_client import REGISTRY, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from cache.accounts import ReadAccounts, ShowStats
from cache.sources.metrics import source_metrics
from cache.timings import Timings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from prometheus_client.core import Metric
    from prometheus_client.registry import CollectorRegistry

    from cache.sources.measured import Numbers

_LATENCY_BUCKETS_S = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 120)


@dataclass(frozen=True, slots=True)
class FolderStats:
    """One cache folder as ``damfs cache stats`` shows it; docs/STATUS.md describes each field."""

    folder: str
    in_service: bool
    reason: str | None
    used_bytes: int
    size_bytes: int
    bound_bytes: int
    objects: int
    disk_bytes: int | None
    free_bytes: int | None
    free_inodes: int | None
    limits: dict[str, Any]
    set: list[str]


@dataclass(frozen=True, slots=True)
class CacheStats:
    """The cache as ``damfs status`` shows it; docs/STATUS.md describes each field.

    Bytes and counts are of this process, but for used, size and objects.
    """

    folder: str
    used_bytes: int
    size_bytes: int
    objects: int
    hits: int
    misses: int
    hit_bytes: int
    miss_bytes: int
    evicted_bytes: int
    verification_failures: int
    not_stored: int = 0
    disputed: int = 0
    open_objects: int = 0
    inflight: int = 0
    dedup_download_bytes: int = 0
    dedup_disk_bytes: int = 0
    scrubbed_bytes: int = 0
    scrub_bad: int = 0
    passthrough_opens: int = 0
    folders: list[FolderStats] = field(default_factory=list)
    shows: dict[str, ShowStats] = field(default_factory=dict)


@dataclass(slots=True)
class Counters:
    """The counters. A read is a hit when all its bytes were here, and a miss otherwise; bytes are counted apart."""

    hits: int = 0
    misses: int = 0
    hit_bytes: Counter[str] = field(default_factory=Counter)
    """By tier: disk, small, memory."""
    miss_bytes: int = 0
    passthrough_opens: int = 0
    evicted_bytes: int = 0
    evicted_objects: int = 0
    dedup_bytes: Counter[str] = field(default_factory=Counter)
    """What other cached objects had, by what it saved: download, disk."""
    scrubbed_objects: int = 0
    scrubbed_bytes: int = 0
    scrub_bad: int = 0
    """Objects that the disk did not give back as they were written."""
    disputed: int = 0
    doubted: int = 0
    """Files that were found to be wrong while the kernel read them itself."""
    mended: int = 0
    """Times that such a file got its right bytes back."""
    fetched_bytes: Counter[str] = field(default_factory=Counter)
    """By source."""
    sources: dict[str, Numbers] = field(default_factory=dict)
    """What each source did, by its name."""
    verification_failures: Counter[str] = field(default_factory=Counter)
    """By source, and ``disk`` for what the cache disk gave back wrong."""
    not_stored: Counter[str] = field(default_factory=Counter)
    """Chunks that were served and not kept, by reason: full, no_space, error, index."""
    offline_refused: int = 0
    """Objects that no source was asked for, since none may be."""
    by_show: ReadAccounts = field(default_factory=ReadAccounts)
    timings: Timings = field(default_factory=Timings)
    """What is no count, and told by ``damfs explain`` alone."""

    def hit(self, show: str, tier: str, size_bytes: int) -> None:
        """A read of a file of ``show`` was answered with so many bytes, and all of them were here."""
        self.hits += 1
        self.hit_bytes[tier] += size_bytes
        reads = self.by_show.of(show)
        reads.hits += 1
        reads.hit_bytes += size_bytes

    def answered(self, show: str, *, missed: bool) -> None:
        """A read of a file of ``show`` was answered."""
        reads = self.by_show.of(show)
        if missed:
            self.misses += 1
            reads.misses += 1
        else:
            self.hits += 1
            reads.hits += 1

    def served(self, show: str, tier: str, size_bytes: int) -> None:
        """So many bytes of an answer were here."""
        self.hit_bytes[tier] += size_bytes
        self.by_show.of(show).hit_bytes += size_bytes

    def waited_for(self, show: str, size_bytes: int) -> None:
        """So many bytes of an answer had to be fetched."""
        self.miss_bytes += size_bytes
        self.by_show.of(show).miss_bytes += size_bytes

    def opened_past(self, show: str) -> None:
        """A file of ``show`` was opened that the kernel reads itself: nobody counts what of it is read."""
        self.passthrough_opens += 1
        self.by_show.of(show).passthrough_opens += 1

    def fetched(self, show: str, source: str, size_bytes: int) -> None:
        """A source gave so many right bytes."""
        self.fetched_bytes[source] += size_bytes
        self.by_show.of(show).fetched_bytes[source] += size_bytes


class CacheMetrics:
    """The collector of one cache. Registered until ``close``."""

    def __init__(
        self,
        counters: Counters,
        gauges: Callable[[], dict[str, float]],
        shows: Callable[[], dict[str, ShowStats]],
        in_service: Callable[[], dict[str, bool]],
        queue: Callable[[], dict[tuple[str, str], int]],
        registry: CollectorRegistry | None,
    ) -> None:
        self._counters = counters
        self._gauges = gauges
        self._shows = shows
        self._in_service = in_service
        self._queue = queue
        self._registry = REGISTRY if registry is None else registry
        self.latency_s = Histogram(
            "damfs_fetch_seconds",
            "Time a source took to answer, good or bad.",
            ["source"],
            buckets=_LATENCY_BUCKETS_S,
            registry=None,
        )
        self._registry.register(self)

    def close(self) -> None:
        """Take the cache out of the registry."""
        self._registry.unregister(self)

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client's custom collectors."""
        c = self._counters
        yield _counter("damfs_cache_reads", "Reads, by whether all their bytes were in the cache.", "result",
                       {"hit": c.hits, "miss": c.misses})  # fmt: skip
        yield _counter("damfs_cache_hit_bytes", "Bytes served from the cache.", "tier", dict(c.hit_bytes))
        yield CounterMetricFamily("damfs_cache_miss_bytes", "Bytes served that had to be fetched.", value=c.miss_bytes)
        yield CounterMetricFamily(
            "damfs_cache_passthrough_opens", "Opens of files that the kernel reads itself.", value=c.passthrough_opens
        )
        yield CounterMetricFamily("damfs_cache_evicted_bytes", "Bytes evicted.", value=c.evicted_bytes)
        yield CounterMetricFamily("damfs_cache_evicted_objects", "Contents evicted.", value=c.evicted_objects)
        yield CounterMetricFamily(
            "damfs_offline_refused", "Objects that were not fetched, for the mount is switched offline.",
            value=c.offline_refused,
        )  # fmt: skip
        yield _counter("damfs_cache_dedup_bytes", "Bytes that another cached object had, by what that saved.", "saving",
                       dict(c.dedup_bytes))  # fmt: skip
        yield CounterMetricFamily(
            "damfs_cache_scrubbed_bytes", "Bytes of cached objects checked.", value=c.scrubbed_bytes
        )
        yield CounterMetricFamily("damfs_cache_scrubbed_objects", "Cached objects checked.", value=c.scrubbed_objects)
        yield CounterMetricFamily("damfs_cache_scrub_bad", "Checked objects that were wrong.", value=c.scrub_bad)
        yield _counter("damfs_cache_not_stored", "Chunks served and not kept.", "reason", dict(c.not_stored))
        yield _counter("damfs_verification_failures", "Answers that were not what was asked for.", "source",
                       dict(c.verification_failures))  # fmt: skip
        yield CounterMetricFamily(
            "damfs_disputed_files", "Whole files whose chunks are right and whose claimed digest is not.",
            value=c.disputed,
        )  # fmt: skip
        yield CounterMetricFamily(
            "damfs_cache_doubted_files", "Cached files found to be wrong while programs read them past the daemon.",
            value=c.doubted,
        )  # fmt: skip
        yield CounterMetricFamily("damfs_cache_mended_files", "Times that such a file was mended.", value=c.mended)
        yield _counter("damfs_fetched_bytes", "Verified bytes fetched.", "source", dict(c.fetched_bytes))
        errors = CounterMetricFamily("damfs_fetch_errors", "Fetches that failed.", labels=["source", "error"])
        for source, numbers in c.sources.items():
            for error, value in numbers.errors.items():
                errors.add_metric([source, error], value)
        yield errors
        yield from source_metrics(c.sources)
        queue = GaugeMetricFamily(
            "damfs_fetch_queue", "Fetches, by priority and whether they have begun.", labels=["priority", "state"]
        )
        for (priority, state), value in self._queue().items():
            queue.add_metric([priority, state], value)
        yield queue
        for name, gauge in self._gauges().items():
            yield GaugeMetricFamily(f"damfs_cache_{name}", name.replace("_", " ").capitalize() + ".", value=gauge)
        yield from self._of_shows()
        service = GaugeMetricFamily(
            "damfs_cache_folder_in_service", "1 while the folder is in use, 0 after its disk has failed.",
            labels=["folder"],
        )  # fmt: skip
        for folder, is_in_service in self._in_service().items():
            service.add_metric([folder], float(is_in_service))
        yield service
        yield from self.latency_s.collect()

    def _of_shows(self) -> Iterator[Metric]:
        used = GaugeMetricFamily("damfs_cache_show_used_bytes", "Bytes that a show has in the cache.", labels=["show"])
        reads = CounterMetricFamily("damfs_cache_show_reads", "Reads of a show's files.", labels=["show", "result"])
        served = CounterMetricFamily(
            "damfs_cache_show_bytes", "Bytes of a show that were served, by whether they were here.",
            labels=["show", "result"],
        )  # fmt: skip
        fetched = CounterMetricFamily(
            "damfs_cache_show_fetched_bytes", "Verified bytes of a show that were fetched.", labels=["show", "source"]
        )
        for name, show in self._shows().items():
            used.add_metric([name], show.used_bytes)
            reads.add_metric([name, "hit"], show.hits)
            reads.add_metric([name, "miss"], show.misses)
            served.add_metric([name, "hit"], show.hit_bytes)
            served.add_metric([name, "miss"], show.miss_bytes)
            for source, size_bytes in show.fetched_bytes.items():
                fetched.add_metric([name, source], size_bytes)
        yield from (used, reads, served, fetched)

    def describe(self) -> Iterator[Metric]:
        """Nothing: asked before there is anything to collect."""
        return iter(())


def _counter(name: str, text: str, label: str, values: Mapping[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
