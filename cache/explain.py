"""What the cache knows of one content, for whoever asks why reading it is slow.

State: none beside a limiter. Rules: no source is asked, and nothing changes. What is counted chunk by chunk, and the
look into the index, is done in a thread, on a copy: a file may have 100,000 chunks. What is told is bounded. A disk
that does not answer within LOOK_UP_S is not waited for: what it has is not told then.
"""

from __future__ import annotations

import sqlite3
import statistics
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import trio

from cache.handle import LENT_SHARE
from cache.opening import LOOK_UP_S
from cache.pinned import Pinned
from cache.queue import Priority
from cache.small import SMALL_BYTES_MAX
from manifest.errors import FormatError
from manifest.recipe import Recipe

if TYPE_CHECKING:
    from cache.fetch import Flight
    from cache.index import ObjectRow
    from cache.shelf import Shelf
    from cache.store import CacheStore
    from cache.timings import FetchTimes, ReadTimes
    from manifest.digest import Digest

THREADS = 2
RANGES_MAX = 32
PINS_MAX = 32


@dataclass(frozen=True, slots=True)
class Chunks:
    """The chunks of a content: how many, and the bytes of the smallest, the median and the largest."""

    count: int
    smallest_bytes: int
    median_bytes: int
    largest_bytes: int


@dataclass(frozen=True, slots=True)
class Coming:
    """What is being fetched of a content: chunks in a source's hands, being stored, and waiting for their turn.

    ``priority``: the most urgent one; ``ahead``: how many fetches come before the first of those that wait.
    """

    fetching: int
    storing: int
    queued: int
    bytes: int
    priority: str | None
    ahead: int
    longest_s: float


@dataclass(frozen=True, slots=True)
class Fetched:
    """What the last fetches of a content's chunks took, as far as remembered: sums over all of one source."""

    source: str
    chunks: int
    bytes: int
    turn_s: float
    nearby_s: float
    source_s: float
    verify_s: float
    store_s: float
    slowest_s: float
    last_time: float
    error: str


@dataclass(frozen=True, slots=True)
class ReadCost:
    """One read: ``fetch_s`` of ``total_s`` it waited for bytes that were not here. ``time`` in s since 1970."""

    time: float
    offset: int
    bytes: int
    total_s: float
    fetch_s: float
    error: str


@dataclass(frozen=True, slots=True)
class Explained:
    """A content in the cache. docs/STATUS.md describes each field."""

    size_bytes: int
    here_bytes: int
    here_chunks: int | None
    ranges: list[tuple[int, int]]
    ranges_more: int
    whole: bool
    small: bool
    folder: str | None
    chunks: Chunks | None
    coming: Coming
    handles: int
    lent: int
    may_lend: bool
    why_not_lent: str | None
    pins: list[int]
    last_read: ReadCost | None
    slowest_read: ReadCost | None
    fetched: list[Fetched]


@dataclass(frozen=True, slots=True)
class _State:
    """What is present, copied from an open content or read from the index."""

    present: bytes
    present_bytes: int
    whole: bytes | None
    settled: bool
    doubted: bool
    refs: int
    lent: int
    recipe: Recipe | None


class Explainer:
    """See the module's rules. Belongs to the event loop."""

    def __init__(self, cache: CacheStore) -> None:
        self._cache = cache
        self._limiter = trio.CapacityLimiter(THREADS)
        self._looking = trio.CapacityLimiter(THREADS)

    async def explain(
        self, tenant: str, content: Digest, size: int, digest: Digest, recipe: Recipe | None
    ) -> Explained:
        """What is known of a content, ``recipe`` being None when it is an object of its own. Raises nothing."""
        cache = self._cache
        shelf = cache.shelf_of(tenant, content)
        state = None if shelf is None else _open_state(shelf, tenant, content)
        flights = [flight for flight in cache.fetcher.flights if flight.ref.tenant == tenant]
        reads = cache.counters.timings.reads_of((tenant, content))

        def look() -> tuple[_State, list[int], bool]:
            return _look(shelf, tenant, content, size, recipe, state)

        found: tuple[_State, list[int], bool] = state or _nothing(recipe), [], False
        with trio.move_on_after(LOOK_UP_S):
            found = await trio.to_thread.run_sync(look, abandon_on_cancel=True, limiter=self._looking)
        seen, pins, readable = found

        def count() -> tuple[list[tuple[int, int]], int, list[Flight], list[Fetched], Chunks | None]:
            known = seen.recipe
            mine = _of(flights, content, known)
            return (*_ranges(known, seen.present), mine, self._fetched(tenant, content, known), _chunks(known))

        ranges, more, mine, fetched, chunks = await trio.to_thread.run_sync(count, limiter=self._limiter)
        if size <= SMALL_BYTES_MAX or seen.recipe is None:
            ranges = [(0, size)] if size and seen.present_bytes == size else []
        alive = {id(flight) for flight in cache.fetcher.flights}
        mine = [flight for flight in mine if id(flight) in alive]
        why_not = _why_not(seen, size, digest, shelf)
        if not readable and state is None and shelf is not None and not shelf.is_retired:
            why_not = f"the cache in {shelf.folder} does not say what it has of it: its disk fails, or hangs"
        last, slowest = (None, None) if reads is None else (_cost(reads.last), _cost(reads.slowest))
        is_small = 0 < size <= SMALL_BYTES_MAX
        return Explained(
            size_bytes=size,
            here_bytes=size if not size else min(size, seen.present_bytes),
            here_chunks=None if is_small or not readable else int.from_bytes(seen.present, "little").bit_count(),
            ranges=ranges,
            ranges_more=more,
            whole=not size or seen.present_bytes >= size,
            small=is_small,
            folder=None if shelf is None else str(shelf.folder),
            chunks=chunks,
            coming=self._coming(mine),
            handles=seen.refs,
            lent=seen.lent,
            may_lend=why_not is None,
            why_not_lent=why_not,
            pins=pins,
            last_read=last,
            slowest_read=slowest,
            fetched=fetched,
        )

    def _coming(self, flights: list[Flight]) -> Coming:
        queue = self._cache.fetcher.queue
        waiting = [flight for flight in flights if not flight.landed.is_set() and not flight.turn.begun.is_set()]
        storing = sum(flight.landed.is_set() for flight in flights)
        urgent = min((flight.turn.priority for flight in flights), default=None)
        first = min(waiting, key=lambda flight: flight.turn.priority, default=None)
        return Coming(
            fetching=len(flights) - len(waiting) - storing,
            storing=storing,
            queued=len(waiting),
            bytes=sum(flight.ref.length or 0 for flight in flights if not flight.landed.is_set()),
            priority=None if urgent is None else urgent.name.lower(),
            ahead=0 if first is None else queue.ahead(first.turn),
            longest_s=max((flight.times.so_far_s for flight in flights), default=0.0),
        )

    def _fetched(self, tenant: str, content: Digest, recipe: Recipe | None) -> list[Fetched]:
        """In a thread: the remembered fetches of all chunks and of the recipe, by source."""
        timings = self._cache.counters.timings
        found: dict[str, list[FetchTimes]] = {}
        digests = {content} if recipe is None else {content, *(recipe[i].digest for i in range(len(recipe)))}
        for digest in digests:
            times = timings.fetch_of((tenant, digest))
            if times is not None:
                found.setdefault(times.source, []).append(times)
        return [_summed(source, each) for source, each in sorted(found.items())]


def queued(cache: CacheStore) -> list[dict[str, int | str]]:
    """How many fetches wait and are under way, by priority, the most urgent first."""
    queue = cache.fetcher.queue
    return [
        {
            "priority": one.name.lower(),
            "waiting": queue.waiting(one),
            "under_way": queue.under_way(one),
        }
        for one in Priority
    ]


def _open_state(shelf: Shelf, tenant: str, content: Digest) -> _State | None:
    """What memory knows of an open content; None: it is not open, or small, or being looked up."""
    found = shelf.contents.get((tenant, content))
    if found is None or found.is_small or found.ready is not None:
        return None
    return _State(
        bytes(found.present), found.present_bytes, found.whole, found.settled and found.registered, found.doubted,
        found.refs, found.lent, found.recipe,
    )  # fmt: skip


def _look(
    shelf: Shelf | None, tenant: str, content: Digest, size: int, recipe: Recipe | None, state: _State | None
) -> tuple[_State, list[int], bool]:
    """In a thread: what is present, the pins that keep it, and whether the index could be asked."""
    row: ObjectRow | None = None
    pins: list[int] = []
    packed = None
    is_readable = True
    try:
        if shelf is not None and not shelf.is_retired:
            pins = Pinned(shelf.index).of(tenant, content, PINS_MAX)
            if state is None:
                row = shelf.index.find(tenant, content)
            if recipe is None and (state is None or state.recipe is None):
                packed = shelf.index.recipe(tenant, content)
    except sqlite3.Error:
        is_readable = False
    if recipe is None:
        recipe = state.recipe if state is not None and state.recipe is not None else _parsed(packed, content)
    if state is None:
        nothing = _nothing(recipe)
        state = nothing if row is None or row.size != size else replace(
            nothing, present=row.present, present_bytes=row.present_bytes, whole=row.whole or None, settled=True
        )  # fmt: skip
    elif state.recipe is None and recipe is not None:
        state = replace(state, recipe=recipe)
    return state, pins, is_readable


def _nothing(recipe: Recipe | None) -> _State:
    return _State(b"", 0, None, settled=False, doubted=False, refs=0, lent=0, recipe=recipe)


def _parsed(packed: bytes | None, content: Digest) -> Recipe | None:
    if packed is None:
        return None
    try:
        recipe = Recipe(packed)
    except FormatError:
        return None
    return recipe if recipe.content == content else None


def _ranges(recipe: Recipe | None, present: bytes) -> tuple[list[tuple[int, int]], int]:
    """The bytes [start, stop) that are here, joined, and how many more of such ranges there are."""
    ranges: list[tuple[int, int]] = []
    more, start = 0, -1
    if recipe is None or not present:
        return ranges, more
    count = min(len(recipe), len(present) * 8)
    for i in range(count + 1):
        is_here = i < count and present[i >> 3] >> (i & 7) & 1
        if is_here and start < 0:
            start = recipe.offset(i)
        elif not is_here and start >= 0:
            if len(ranges) < RANGES_MAX:
                ranges.append((start, recipe.offset(i)))
            else:
                more += 1
            start = -1
    return ranges, more


def _of(flights: list[Flight], content: Digest, recipe: Recipe | None) -> list[Flight]:
    """Those that fetch something of a content."""
    if not flights:
        return []
    digests = {content} if recipe is None else {content, *(recipe[i].digest for i in range(len(recipe)))}
    return [flight for flight in flights if flight.ref.digest in digests]


def _chunks(recipe: Recipe | None) -> Chunks | None:
    if recipe is None or not len(recipe):
        return None
    lengths = sorted(recipe[i].length for i in range(len(recipe)))
    return Chunks(len(lengths), lengths[0], int(statistics.median_low(lengths)), lengths[-1])


def _summed(source: str, each: list[FetchTimes]) -> Fetched:
    failed = max((one for one in each if one.error), key=lambda one: one.time, default=None)
    return Fetched(
        source=source,
        chunks=len(each),
        bytes=sum(one.size_bytes for one in each),
        turn_s=sum(one.turn_s for one in each),
        nearby_s=sum(one.nearby_s for one in each),
        source_s=sum(one.source_s for one in each),
        verify_s=sum(one.verify_s for one in each),
        store_s=sum(one.store_s for one in each),
        slowest_s=max(one.total_s for one in each),
        last_time=max(one.time for one in each),
        error="" if failed is None else failed.error,
    )


def _why_not(state: _State, size: int, digest: Digest, shelf: Shelf | None) -> str | None:
    """Why the kernel may not read the file itself, as ``CachedObject.backing`` decides; None: it may."""
    if shelf is None or shelf.is_retired:
        return "no cache folder is in service"
    if size == 0:
        return "it is empty"
    if size <= SMALL_BYTES_MAX:
        return f"it has at most {SMALL_BYTES_MAX // 1024} KiB, which are kept in a database"
    if size > shelf.capacity.size_bytes // LENT_SHARE:
        return "it is larger than a quarter of the cache"
    if state.doubted:
        return "its cached file was found to be wrong, and is being written over"
    if state.present_bytes < size:
        return "not all of it is on this workstation"
    if state.whole is not None and state.whole != digest:
        return "its bytes are not what its publisher said they are, as a whole"
    if state.whole is None:
        return "it was not checked as a whole yet"
    return None if state.settled else "the disk has not confirmed all of it yet"


def _cost(times: ReadTimes) -> ReadCost:
    return ReadCost(times.time, times.offset, times.size_bytes, times.total_s, times.fetch_s, times.error)
