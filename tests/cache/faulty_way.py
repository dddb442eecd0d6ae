"""A cache behind ways to the store that fail, and what a reader of it may expect.

State of a ``Way``: a proxy in front of a real S3 server, and the library as seen through it. Times are those of the
product, divided by about 15: see ``scaled``.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import pytest
import trio

from cache.sources.breaker import BreakerLimits
from cache.sources.central import CentralSource
from cache.sources.policy import Policy
from cache.sources.protocol import Source
from cache.sources.site import SiteCache
from cache.store import CacheStore
from manifest.errors import DamfsError
from manifest.identity import write_identity
from manifest.library import Library
from tests import stores
from tests.cache.contents import KIB, Sample, open_sample, opened, put, read_all, sample
from tests.nginx import nginx
from tests.proxy import FAULTS, Mode, Proxy, proxy

ATTEMPT_S = 2.0
ARTIST_S = 3.0
FARM_S = 40.0
OUTAGE_S = 3.5
"""How long a fault lasts: an artist gives up before its end, a farm does not."""
LATE_S = 2.0
"""What a busy machine may add to a deadline."""
CACHED_S = 1.5
"""What a read of cached bytes may take as a rule (the median); one that a fault holds up takes OUTAGE_S or more."""
READS_MIN = 2
CACHED_S_MAX = 10.0
"""What a busy machine may take for one of them."""
RECOVERY_S = 15.0
"""What a busy machine may take until reads succeed again."""
BUCKET, PREFIX = "dam", "library"
NAMES = (*FAULTS, "refused", "no such host")
FINAL = {
    "403", "403 page", "404", "truncated, length agrees", "too long", "flipped", "200 page",
}  # fmt: skip
"""What the store itself is believed, or is not asked a third time for: an error at once, whatever the deadline."""


LIMITS = BreakerLimits(slow_s=0.4, silence_s=1.0, pause_s=0.1, pause_s_max=0.5)
ASKING = {
    "artist": Policy(outage_s=0.5, breaker=LIMITS, slow_s=0.4),
    "farm": Policy(breaker=LIMITS, slow_s=0.4),
}
"""By profile, as daemon/config.py makes it."""


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The product's times, shortened as the deadlines are."""
    monkeypatch.setattr("cache.sources.central.ATTEMPT_S_MAX", ATTEMPT_S)
    monkeypatch.setattr("cache.sources.breaker.PROBE_S", 1.0)
    monkeypatch.setattr("cache.fetch.FLIGHT_S_MIN", ATTEMPT_S)


@dataclass(frozen=True)
class Stock:
    """What is in the store; where that listens, and the site's nginx in front of it."""

    endpoints: dict[str, str]
    cached: Sample
    first: Sample
    second: Sample

    def address(self, tier: str) -> tuple[str, int]:
        """Host and port of ``site`` or ``central``."""
        parts = urlsplit(self.endpoints[tier])
        assert parts.hostname
        assert parts.port
        return parts.hostname, parts.port


@contextmanager
def stocked(folder: Path, more: Sequence[Sample] = ()) -> Iterator[Stock]:
    """A real S3 server with a library that has three contents, and ``more``, and nginx before it."""
    (folder / BUCKET / PREFIX).mkdir(parents=True)
    library = Library.open((folder / BUCKET / PREFIX).as_uri())
    write_identity(library)
    contents = [put(library, sample(seed, 150 * KIB, 150 * KIB), recipe_object=True) for seed in range(3)]
    for made in more:
        put(library, made, recipe_object=True)
    with (
        stores.rclone_server(folder) as server,
        nginx(folder / "nginx", central(server.endpoint)) as site,
    ):
        yield Stock({"central": server.endpoint, "site": site.url}, *contents)


class ObjectLibrary(Protocol):
    """What a source needs of a library (``cache/sources/central.py``)."""

    @property
    def url(self) -> str: ...

    def get(self, key: str, *, timeout_s: float = ..., bytes_max: int | None = ...) -> bytes: ...

    def get_buffer(self, key: str, *, timeout_s: float = ..., bytes_max: int | None = ...) -> memoryview: ...


class Way:
    """A way to the store. ``hit`` makes it fail as named in NAMES, ``heal`` ends that.

    It is an ``ObjectLibrary``: one of two, of which the other has an endpoint with a name that nobody knows.
    """

    def __init__(self, wire: Proxy, make: Callable[[str], ObjectLibrary]) -> None:
        self.wire = wire
        self._known = make(wire.url)
        self._unknown = make(f"http://store.invalid:{wire.port}")
        self._library = self._known
        self._unheard = 0

    @property
    def was_hit(self) -> bool:
        """Whether a request has met a fault."""
        return self._unheard > 0 or self.wire.faults.total() > 0 or self.wire.refused > 0

    def hit(self, name: str) -> None:
        """The way fails from now on."""
        if name == "refused":
            self.wire.mode = Mode.REFUSE
        elif name == "no such host":
            self._library = self._unknown
        else:
            self.wire.inject(FAULTS[name])

    def heal(self) -> None:
        """The way works from now on; what hangs in it goes on hanging."""
        self._library = self._known
        self.wire.calm()
        if self.wire.mode is not Mode.PASS:
            self.wire.mode = Mode.PASS

    @property
    def url(self) -> str:
        return self._known.url

    @property
    def _chosen(self) -> ObjectLibrary:
        self._unheard += self._library is self._unknown
        return self._library

    def get(self, key: str, *, timeout_s: float = 30, bytes_max: int | None = None) -> bytes:
        return self._chosen.get(key, timeout_s=timeout_s, bytes_max=bytes_max)

    def get_buffer(self, key: str, *, timeout_s: float = 30, bytes_max: int | None = None) -> memoryview:
        return self._chosen.get_buffer(key, timeout_s=timeout_s, bytes_max=bytes_max)


def central(endpoint: str) -> Library:
    """The library at an endpoint."""
    return Library.open(f"s3://{BUCKET}/{PREFIX}", endpoint=endpoint)


@contextmanager
def ways(stock: Stock, *tiers: str) -> Iterator[dict[str, Way]]:
    """A way to each of the tiers, ``site`` before ``central``."""
    signer = central(stock.endpoints["central"])

    def site(url: str) -> SiteCache:
        return SiteCache(signer, url)

    make: dict[str, Callable[[str], ObjectLibrary]] = {"site": site, "central": central}
    with ExitStack() as stack:
        yield {tier: Way(stack.enter_context(proxy(stock.address(tier))), make[tier]) for tier in tiers}


def sources(found: dict[str, Way]) -> list[Source]:
    """The sources over these ways, as the daemon makes them."""
    return [CentralSource(way, name=tier) for tier, way in found.items()]


@dataclass
class Outcome:
    """What a read came to: the bytes or an error, and when."""

    data: bytes | None
    error: DamfsError | None
    took_s: float


async def read(cache: CacheStore, made: Sample, deadline_s: float, *, with_recipe: bool = True) -> Outcome:
    """One read of a whole content by its deadline, as a mount does it."""
    started = time.monotonic()
    handle = await open_sample(cache, made, with_recipe=with_recipe)
    try:
        data = bytes(await handle.read(0, made.size, trio.current_time() + deadline_s))
    except DamfsError as error:
        return Outcome(None, error, time.monotonic() - started)
    finally:
        handle.release()
    return Outcome(data, None, time.monotonic() - started)


@dataclass
class Watch:
    """Reads cached bytes over and over: how long each took, and whether all were right."""

    took_s: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def check(self) -> None:
        """All were right and quick. Raises AssertionError."""
        assert not self.wrong, self.wrong[0]
        assert len(self.took_s) >= READS_MIN, f"only {len(self.took_s)} reads of cached bytes"
        median_s, longest_s = statistics.median(self.took_s), max(self.took_s)
        assert median_s < CACHED_S, f"reads of cached bytes took {median_s:.2f} s"
        assert longest_s < CACHED_S_MAX, f"a read of cached bytes took {longest_s:.2f} s"

    async def run(self, cache: CacheStore, made: Sample) -> None:
        """Until cancelled. A handle of its own for each read: none must have to ask a source."""
        while True:
            started = time.monotonic()
            handle = await open_sample(cache, made)
            try:
                if await read_all(handle, deadline_s=CACHED_S_MAX) != made.data:
                    self.wrong.append("other bytes than those that were cached")
            except DamfsError as error:
                self.wrong.append(str(error))
            finally:
                handle.release()
            self.took_s.append(time.monotonic() - started)
            await trio.sleep(0.1)


@asynccontextmanager
async def cell(
    folder: Path, stock: Stock, found: dict[str, Way], profile: str
) -> AsyncIterator[tuple[CacheStore, Watch]]:
    """A cache over these ways that has ``stock.cached``, which is read all the time until the end."""
    async with opened(folder, sources(found), asking=ASKING[profile]) as cache:
        outcome = await read(cache, stock.cached, FARM_S)
        assert outcome.data == stock.cached.data, outcome
        watch = Watch()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch.run, cache, stock.cached)
            yield cache, watch
            nursery.cancel_scope.cancel()


async def recovered(cache: CacheStore, made: Sample) -> float:
    """Read until it succeeds, as a user does that tries again: how long that took. Raises AssertionError."""
    started = time.monotonic()
    while True:
        outcome = await read(cache, made, RECOVERY_S)
        if outcome.error is None:
            assert outcome.data == made.data, "wrong bytes after the fault"
            return time.monotonic() - started
        assert time.monotonic() - started < RECOVERY_S, f"no recovery: {outcome.error}"
        await trio.sleep(0.1)


async def at_once(calls: Sequence[Callable[[], object]], limit: int) -> None:
    """Run the calls, so many at a time."""
    limiter = trio.CapacityLimiter(limit)

    async def one(call: Callable[[], object]) -> None:
        async with limiter:
            await call()  # type: ignore[misc]

    async with trio.open_nursery() as nursery:
        for call in calls:
            nursery.start_soon(one, call)
