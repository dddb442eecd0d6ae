"""Fetching: one fetch an object however many wait, and the one place where bytes are verified.

State: the flights under way (by tenant, digest and length), a short memory of failures, a ring of recent chunks that
could not be kept on disk. All of it bounded, all of it touched on the event loop only.

Rules:
- A flight belongs to the cache's nursery: a reader that gives up never cancels it. One that joins it while it waits
  to try again makes it try sooner; while it waits for its turn (``queue.py``), and wants it more urgently, gives it
  that priority. One that no reader has asked for is *withdrawn* when nobody waits for it before its turn has come.
- What the cache has itself, under another name, is asked first (``nearby``): that answer is verified already. A disk
  that does not give it within NEARBY_S is asked no more for as long.
- Bytes leave here only after BLAKE3 and length were right: each source is made a ``Verified`` one before anything else
  is put around it. Whom to ask, when and how often is the chain's business (``sources/chain.py``).
- The readers have their bytes before the disk has: storing comes after landing, and its failure is not theirs.
- A failure is remembered for NEGATIVE_S: a storm of readers costs one fetch, and a repair heals at once.
- What is known to be down is told at once, and not remembered: that it answers again is seen at once too.
- While the ``gate`` is shut no source is asked: that is an error at once, however patient the reader is.
"""

from __future__ import annotations

import logging
import math
import time
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import trio

from cache.bandwidth import Bandwidth
from cache.queue import Priority, Queue
from cache.sources import stack
from cache.sources.gate import Gate
from cache.sources.policy import ASKED_ONCE, Policy
from cache.sources.protocol import Accountable, ObjectRef, Source, SourceStatus
from cache.window import Window
from manifest.digest import Digest
from manifest.errors import DamfsError, DigestMismatch, FormatError, KnownDown, Offline, Unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable, Sequence

    from cache.clone import Found
    from cache.metrics import CacheMetrics, Counters
    from cache.queue import Turn
    from cache.timings import FetchTimes

logger = logging.getLogger(__name__)

Key = tuple[str, bytes, int | None]
"""Tenant, digest, length: two recipes may name one chunk with two lengths, and what is right for one is not for the
other."""

NEGATIVE_S = 0.5
NEGATIVES_MAX = 1024
FLIGHTS_MAX = 8192
INFLIGHT_BYTES_MAX = 256 * 1024 * 1024
RING_BYTES_MAX = 128 * 1024 * 1024
VERIFY_THREADS = 4
VERIFY_NOW_BYTES = 64 * 1024
"""So little is verified where it is: a thread would take several times as long to begin with it."""
UNKNOWN_LENGTH_BYTES = 1024 * 1024
"""What a flight of unknown length (a recipe) counts for."""
FLIGHT_S_MIN = 30.0
"""A shared fetch has at least so long, however short of time its first reader is."""
NEARBY_S = 10.0


class Sink(Protocol):
    """Where a flight's bytes are kept."""

    @property
    def sink_key(self) -> Hashable:
        """Sinks with equal keys are one."""

    def adopt(self) -> None:
        """A flight has taken the sink: what it stands for must stay until ``drop``."""

    async def keep(self, data: memoryview | bytes, found: Found | None) -> bool:
        """Store verified bytes, that were ``found`` in the cache; False when they could not be kept. Raises nothing."""

    def drop(self) -> None:
        """The flight that adopted the sink is over, whether it came to ``keep`` or not."""


class Flight:
    """One fetch, shared; ``turn`` is its place in the queue. ``data`` or ``error`` is set once, before ``landed``.

    ``waiting`` counts who waits for it; ``stays``: it goes on when nobody does. ``taxiing`` ends when its turn comes,
    or once it was ``withdrawn``.
    """

    __slots__ = (
        "data", "deadline", "error", "found", "landed", "ref", "sinks", "stays", "taxiing", "times", "turn",
        "waiting", "withdrawn",
    )  # fmt: skip

    def __init__(self, ref: ObjectRef, deadline: float, turn: Turn, times: FetchTimes) -> None:
        self.ref = ref
        self.deadline = deadline
        self.turn = turn
        self.landed = trio.Event()
        self.data: memoryview | bytes | None = None
        self.found: Found | None = None
        self.error: DamfsError | None = None
        self.sinks: OrderedDict[Hashable, Sink] = OrderedDict()
        self.times = times
        self.waiting = 0
        self.stays = False
        self.taxiing = trio.CancelScope(deadline=deadline)
        self.withdrawn = False


class Ring:
    """Recent chunks in memory, verified: for what the disk cannot hold, so that each READ does not fetch it again.

    Invariant: ``_bytes`` is the sum of the lengths and at most ``_bytes_max``.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._chunks: OrderedDict[Key, memoryview | bytes] = OrderedDict()

    def get(self, key: Key) -> memoryview | bytes | None:
        """A chunk, which is young again; or None."""
        data = self._chunks.get(key)
        if data is not None:
            self._chunks.move_to_end(key)
        return data

    def put(self, key: Key, data: memoryview | bytes) -> None:
        """Keep a chunk and let the oldest ones go."""
        if len(data) > self._bytes_max or key in self._chunks:
            return
        self._chunks[key] = data
        self._bytes += len(data)
        while self._bytes > self._bytes_max:
            _, old = self._chunks.popitem(last=False)
            self._bytes -= len(old)


class Verified:
    """A source whose answers are right: the one place where fetched bytes are judged.

    What it gives has the length and the digest that were asked for; anything else is a DigestMismatch.
    """

    def __init__(self, source: Source, counters: Counters, limiter: trio.CapacityLimiter) -> None:
        self._source = source
        self._counters = counters
        self._limiter = limiter

    @property
    def name(self) -> str:
        return self._source.name

    async def fetch(self, ref: ObjectRef, deadline: float) -> memoryview | bytes:
        """See ``Source.fetch``. A wrong answer counts against the source."""
        begun = time.perf_counter()
        try:
            try:
                data = await self._source.fetch(ref, deadline)
            except FormatError as error:  # longer than it may be: refused before it was read
                raise DigestMismatch(str(error)) from None
            came = time.perf_counter()
            await self._verify(ref, data)
        except DigestMismatch as error:
            self._counters.verification_failures[self.name] += 1
            if isinstance(self._source, Accountable):
                self._source.rejected(str(error))
            raise
        self._counters.fetched(ref.tenant, self.name, len(data))
        self._counters.timings.answered((ref.tenant, ref.digest), self.name, begun, came, len(data))
        return data

    def status(self) -> SourceStatus:
        """See ``Source.status``: the wrapped source's."""
        return self._source.status()

    async def _verify(self, ref: ObjectRef, data: memoryview | bytes) -> None:
        if ref.length is not None and len(data) != ref.length:
            raise DigestMismatch(
                f"{ref} from {self.name} has {len(data)} bytes, expected {ref.length}: put it into the store again"
            )
        if len(data) <= VERIFY_NOW_BYTES:
            digest = Digest.of(data)
        else:
            digest = await trio.to_thread.run_sync(Digest.of, data, limiter=self._limiter)
        if digest != ref.digest:
            raise DigestMismatch(f"{ref} from {self.name} has the digest {digest}: put it into the store again")


class _Question:
    """One that may be given up while a thread that cannot be stopped looks for the answer.

    Invariant: a file that was found is in use until somebody has taken it, or has given the question up.
    """

    __slots__ = ("_found", "_given_up", "answered")

    def __init__(self) -> None:
        self.answered = trio.Event()
        self._found: Found | None = None
        self._given_up = False

    async def ask(self, nearby: Callable[[ObjectRef], Awaitable[Found | None]], ref: ObjectRef) -> None:
        try:
            self._found = await nearby(ref)
        except Exception:
            logger.exception("%s: looking for it in the cache ended with an error that is a bug", ref)
        self.answered.set()
        if self._given_up:
            self.give_up()

    def take(self) -> Found | None:
        found, self._found = self._found, None
        return found

    def give_up(self) -> None:
        self._given_up = True
        found = self.take()
        if found is not None:
            found.file.done()


class Fetcher:
    """See the module's rules."""

    def __init__(
        self,
        nursery: trio.Nursery,
        sources: Sequence[Source],
        counters: Counters,
        metrics: CacheMetrics,
        *,
        policy: Policy = ASKED_ONCE,
        nearby: Callable[[ObjectRef], Awaitable[Found | None]] | None = None,
        inflight_bytes_max: int = INFLIGHT_BYTES_MAX,
        ring_bytes_max: int = RING_BYTES_MAX,
        flights_max: int = FLIGHTS_MAX,
    ) -> None:
        self._metrics = metrics
        verify_limiter = trio.CapacityLimiter(VERIFY_THREADS)
        self._nursery = nursery
        self.sources = stack.chain(
            sources,
            policy,
            verified=lambda source: Verified(source, counters, verify_limiter),
            numbers=counters.sources,
            observe=self._observe,
        )
        nursery.start_soon(self.sources.run, name="sources")
        self._nearby = nearby
        self._nearby_from = -math.inf
        self._gate = Gate()
        self._counters = counters
        self.queue = Queue(
            inflight_bytes_max, Bandwidth(policy.download_rate), Window(policy.requests_max, policy.prompt_s)
        )
        nursery.start_soon(self.queue.run, name="bandwidth")
        self._ring = Ring(ring_bytes_max)
        self._flights_max = flights_max
        self._flights: dict[Key, Flight] = {}
        self._one_less = trio.Event()
        self._negative: OrderedDict[Key, tuple[DamfsError, float]] = OrderedDict()
        self._closed = False

    @property
    def inflight(self) -> int:
        """Fetches under way or queued."""
        return len(self._flights)

    @property
    def flights(self) -> list[Flight]:
        """The fetches under way or queued, to be looked at."""
        return list(self._flights.values())

    def available(self) -> str | None:
        """None when a source may be asked now; else why none may, for people. From memory."""
        return self.sources.available()

    def forbid(self, reason: str | None) -> None:
        """Ask no source any more, not even whether it answers, and end what is under way; None: ask again."""
        if reason is None:
            self._gate.open()
        else:
            self._gate.shut(reason)
        self.sources.forbid(reason)

    def close(self) -> None:
        """Begin nothing any more."""
        self._closed = True

    def recent(self, ref: ObjectRef) -> memoryview | bytes | None:
        """The bytes if they are in memory: in a flight that has landed, or in the ring. Verified."""
        key = _key(ref)
        flight = self._flights.get(key)
        if flight is not None and flight.data is not None:
            return flight.data
        return self._ring.get(key)

    def nudge(
        self, ref: ObjectRef, sink: Sink, deadline: float, hint: str, priority: Priority = Priority.DEMAND
    ) -> bool:
        """Start a fetch without waiting for it; False when there is no room, or a reason against it."""
        key = _key(ref)
        if self._closed or not self._has_room(key, priority) or self._failed(key) is not None:
            return False
        self._begin(key, ref, sink, deadline, hint, priority).stays = True
        return True

    async def get(
        self, ref: ObjectRef, sink: Sink | None, deadline: float, hint: str, priority: Priority = Priority.DEMAND
    ) -> memoryview | bytes:
        """The verified bytes of ``ref``, fetched with everybody else who wants them now.

        ``sink`` keeps them on disk; ``priority`` may promote a fetch that waits for its turn. ``deadline`` (trio's
        clock) says how long the fetch may go on; the caller's own scope ends the wait. Cancellation leaves the fetch
        to go on when it has begun, or was ever asked for with DEMAND. Raises Unavailable, NotFound, AccessDenied,
        DigestMismatch.
        """
        key = _key(ref)
        while True:
            if self._closed:
                raise Unavailable(f"{ref}: the cache is closed")
            failed = self._failed(key)
            if failed is not None:
                error, until = failed
                if not isinstance(error, Unavailable) or until >= deadline:
                    raise _again(error)
                await trio.sleep_until(until)
                continue
            if not self._has_room(key, priority):
                await self._one_less.wait()
                continue
            flight = self._begin(key, ref, sink, deadline, hint, priority)
            await self._await_landing(flight, stays=priority == Priority.DEMAND)
            if flight.data is not None:
                return flight.data
            assert flight.error is not None
            is_over = flight.deadline < deadline - NEGATIVE_S  # it was begun for somebody with less patience
            if is_over and isinstance(flight.error, Unavailable) and not isinstance(flight.error, Offline):
                continue
            raise _again(flight.error)

    async def _await_landing(self, flight: Flight, *, stays: bool) -> None:
        """Wait for it; the last one who gives that up before it has begun withdraws it, unless it ``stays``."""
        flight.stays |= stays
        flight.waiting += 1
        try:
            await flight.landed.wait()
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.stays and not flight.turn.begun.is_set():
                flight.withdrawn = True
                flight.taxiing.cancel()

    def _has_room(self, key: Key, priority: Priority) -> bool:
        """Whether one more may wait: half of the places are for what readers wait for."""
        limit = self._flights_max if priority == Priority.DEMAND else self._flights_max // 2
        return key in self._flights or len(self._flights) < limit

    def _begin(
        self, key: Key, ref: ObjectRef, sink: Sink | None, deadline: float, hint: str, priority: Priority
    ) -> Flight:
        flight = self._flights.get(key)
        if flight is None or flight.withdrawn:
            turn = self.queue.enter(ref.length or UNKNOWN_LENGTH_BYTES, priority)
            times = self._counters.timings.begin(key[:2])
            flight = Flight(replace(ref, hint=hint), max(deadline, trio.current_time() + FLIGHT_S_MIN), turn, times)
            self._flights[key] = flight
            self._nursery.start_soon(self._fly, key, flight)
        elif flight.data is None:
            self.queue.promote(flight.turn, priority)
            self.sources.hurry(flight.ref)
        if sink is not None and sink.sink_key not in flight.sinks:
            sink.adopt()
            flight.sinks[sink.sink_key] = sink
        return flight

    async def _fly(self, key: Key, flight: Flight) -> None:
        """Fetch, verify, hand out, keep. Always ends the flight; raises only Cancelled, when the cache closes."""
        times = flight.times
        try:
            await self._await_turn(flight)
            times.enter("nearby")
            flight.found = await self._ask_nearby(flight.ref)
            if flight.found is not None:
                flight.data, times.source = flight.found.data, "cache"
                self.queue.took(flight.turn, 0)
            else:
                times.enter("source")
                with self._gate.passing(flight.ref, flight.ref.hint):
                    flight.data = await self.sources.fetch(
                        flight.ref, flight.deadline, lambda is_parked: self.queue.park(flight.turn, is_parked=is_parked)
                    )
                self.queue.took(flight.turn, len(flight.data))
            flight.landed.set()
            self.queue.park(flight.turn, is_parked=True)  # the disk has it now, and the line has room for others
            times.size_bytes = len(flight.data)
            times.enter("store")
            await self._keep(key, flight)
        except Offline as error:
            self._counters.offline_refused += 1
            flight.error = error
        except DamfsError as error:
            if not flight.withdrawn:
                self._remember(key, error)
            flight.error = error
        except Exception as error:
            logger.exception("%s: a fetch ended with an error that is a bug", flight.ref)
            flight.error = Unavailable(f"{flight.ref}: {type(error).__name__}, see the log")
            self._remember(key, flight.error)
        except BaseException:  # Cancelled, or a group of such where the sources' wrappers have nurseries
            flight.error = Unavailable(f"{flight.ref}: the cache is being closed")
            raise
        finally:
            self.queue.leave(flight.turn)
            if flight.found is not None:
                flight.found.file.done()
            if self._flights.get(key) is flight:  # else one that was withdrawn has a successor
                self._counters.timings.fetched(key[:2], times, "" if flight.error is None else str(flight.error))
                del self._flights[key]
            flight.landed.set()
            for sink in flight.sinks.values():
                sink.drop()
            self._one_less.set()
            self._one_less = trio.Event()

    async def _await_turn(self, flight: Flight) -> None:
        with flight.taxiing:
            await flight.turn.begun.wait()
            return
        if flight.withdrawn:
            raise Unavailable(f"{flight.ref}: nobody wants it any more")
        raise Unavailable(
            f"{flight.ref}: its turn did not come within the deadline: the sources, or network.download, are slow"
        )

    async def _ask_nearby(self, ref: ObjectRef) -> Found | None:
        """What the cache has of it already, if that is soon known."""
        if self._nearby is None or trio.current_time() < self._nearby_from:
            return None
        question = _Question()
        self._nursery.start_soon(question.ask, self._nearby, ref)
        try:
            with trio.move_on_after(NEARBY_S):
                await question.answered.wait()
                return question.take()
        finally:
            question.give_up()
        self._nearby_from = trio.current_time() + NEARBY_S
        return None

    async def _keep(self, key: Key, flight: Flight) -> None:
        """Give the bytes to every sink, those too that come while others store."""
        assert flight.data is not None
        while flight.sinks:
            _, sink = flight.sinks.popitem(last=False)
            try:
                kept = await sink.keep(flight.data, flight.found)
            finally:
                sink.drop()
            if not kept:
                self._ring.put(key, flight.data)

    def _observe(self, name: str, length: int | None, seconds: float, *, is_good: bool) -> None:
        """A request to a source has ended."""
        self._metrics.latency_s.labels(name).observe(seconds)
        self.queue.answered(length, seconds, is_good=is_good)

    def _failed(self, key: Key) -> tuple[DamfsError, float] | None:
        found = self._negative.get(key)
        if found is not None and found[1] <= trio.current_time():
            del self._negative[key]
            return None
        return found

    def _remember(self, key: Key, error: DamfsError) -> None:
        if isinstance(error, KnownDown):
            return
        self._negative[key] = (error, trio.current_time() + NEGATIVE_S)
        self._negative.move_to_end(key)
        while len(self._negative) > NEGATIVES_MAX:
            self._negative.popitem(last=False)


def _key(ref: ObjectRef) -> Key:
    return ref.tenant, ref.digest, ref.length


def _again(error: DamfsError) -> DamfsError:
    """An error for one more reader: an exception object belongs to whoever catches it."""
    copy = type(error)(*error.args)
    copy.__cause__ = error
    return copy
