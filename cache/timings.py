"""Timings: where the time of the last reads and fetches went, for whoever asks why something is slow.

State: of each content that was read lately its last read and its slowest one; of each object that was fetched lately
what that took; of each source its last answers. All of it bounded, written on the event loop.

Rules:
- A read out of the page cache, which is answered at once, leaves nothing here: it costs nothing and tells nothing.
- Bytes are timed where they are waited for, chunk by chunk; a reader's own time is what it waited in all.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cache.content import Key

CONTENTS_MAX = 1024
OBJECTS_MAX = 4096
ANSWERS_MAX = 256
ERROR_CHARACTERS_MAX = 400
BUSY_S_MIN = 1e-6

Step = Literal["turn", "nearby", "source", "store"]

T = TypeVar("T")


class FetchTimes:
    """What one fetch took, in seconds; 0 for what it did not come to. ``time``: when it ended, s since 1970.

    Its steps are ``turn`` (waiting for it), ``nearby`` (looking in the cache), ``source`` and ``store``. Until it has
    ended ``verify_s`` is a part of ``source_s``. ``source`` gave the bytes; ``cache``: another file of the cache had
    them; empty: nobody.
    """

    __slots__ = (
        "_since", "_step", "error", "nearby_s", "size_bytes", "source", "source_s", "store_s", "time", "turn_s",
        "verify_s",
    )  # fmt: skip

    def __init__(self) -> None:
        self._since = time.perf_counter()
        self._step: Step = "turn"
        self.time = 0.0
        self.source = self.error = ""
        self.size_bytes = 0
        self.turn_s = self.nearby_s = self.source_s = self.verify_s = self.store_s = 0.0

    def enter(self, step: Step) -> None:
        """The step before has ended, and this one begins."""
        now = time.perf_counter()
        self._spend(now - self._since)
        self._since, self._step = now, step

    def end(self, error: str) -> None:
        """It is over; ``error`` is empty when it went well."""
        self._spend(time.perf_counter() - self._since)
        self.source_s = max(0.0, self.source_s - self.verify_s)
        self.time = time.time()
        self.error = error[:ERROR_CHARACTERS_MAX]

    def _spend(self, seconds: float) -> None:
        if self._step == "turn":
            self.turn_s += seconds
        elif self._step == "nearby":
            self.nearby_s += seconds
        elif self._step == "source":
            self.source_s += seconds
        else:
            self.store_s += seconds

    @property
    def so_far_s(self) -> float:
        """How long it has been under way, while it is."""
        return self.turn_s + self.nearby_s + self.source_s + self.store_s + time.perf_counter() - self._since

    @property
    def total_s(self) -> float:
        """All of it, when it is over."""
        return self.turn_s + self.nearby_s + self.source_s + self.verify_s + self.store_s


class ReadTimes:
    """What one read took: for ``fetch_s`` of ``total_s`` seconds it waited for bytes that were not here."""

    __slots__ = ("_begun", "error", "fetch_s", "offset", "size_bytes", "time", "total_s")

    def __init__(self, offset: int, size_bytes: int) -> None:
        self.offset = offset
        self.size_bytes = size_bytes
        self.fetch_s = self.total_s = self.time = 0.0
        self.error = ""
        self._begun = time.perf_counter()

    @contextmanager
    def fetching(self) -> Iterator[None]:
        """Around a wait for bytes that are not here."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.fetch_s += time.perf_counter() - begun

    def end(self) -> None:
        """It was answered."""
        self.total_s = time.perf_counter() - self._begun
        self.time = time.time()


class Reads(NamedTuple):
    """The last read of a content that was waited for, and the slowest one since it was first read."""

    last: ReadTimes
    slowest: ReadTimes


class Answer(NamedTuple):
    """A good answer of a source: when it was asked and when it had answered (perf_counter), and the bytes."""

    begun: float
    ended: float
    size_bytes: int


class Timings:
    """See the module."""

    def __init__(self) -> None:
        self._reads: OrderedDict[Key, Reads] = OrderedDict()
        self._fetches: OrderedDict[Key, FetchTimes] = OrderedDict()
        self._under_way: dict[Key, FetchTimes] = {}
        self._answers: dict[str, deque[Answer]] = {}

    def read(self, content: Key, times: ReadTimes) -> None:
        """A read of a content has ended, well or with an error."""
        before = self._reads.get(content)
        slowest = times if before is None or times.total_s >= before.slowest.total_s else before.slowest
        _put(self._reads, content, Reads(times, slowest), CONTENTS_MAX)

    def begin(self, key: Key) -> FetchTimes:
        """A fetch of the object ``key`` begins, ``fetched`` is to follow. Of two at once the later has the answers."""
        times = self._under_way[key] = FetchTimes()
        return times

    def fetched(self, key: Key, times: FetchTimes, error: str) -> None:
        """The fetch that ``begin`` gave these ``times`` has ended; ``error`` is empty when it went well."""
        if self._under_way.get(key) is times:
            del self._under_way[key]
        times.end(error)
        _put(self._fetches, key, times, OBJECTS_MAX)

    def answered(self, key: Key, source: str, begun: float, came: float, size_bytes: int) -> None:
        """A source has given right bytes, asked at ``begun``; they ``came`` (perf_counter) and were verified since."""
        answers = self._answers.setdefault(source, deque(maxlen=ANSWERS_MAX))
        answers.append(Answer(begun, came, size_bytes))
        times = self._under_way.get(key)
        if times is not None:  # a probe belongs to no fetch
            times.source = source
            times.verify_s = time.perf_counter() - came

    def reads_of(self, content: Key) -> Reads | None:
        """What is known of reads of a content."""
        return self._reads.get(content)

    def fetch_of(self, key: Key) -> FetchTimes | None:
        """What is known of the last fetch of an object. May be called in a thread."""
        return self._fetches.get(key)

    def bytes_per_s(self, source: str) -> float | None:
        """What came from a source in a second, while anything was asked of it; None when nothing was had."""
        answers = self._answers.get(source)
        if not answers:
            return None
        busy_s, until = 0.0, 0.0
        for answer in sorted(answers):
            busy_s += max(0.0, answer.ended - max(answer.begun, until))
            until = max(until, answer.ended)
        return sum(answer.size_bytes for answer in answers) / max(busy_s, BUSY_S_MIN)


def _put(kept: OrderedDict[Key, T], key: Key, value: T, count_max: int) -> None:
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > count_max:
        kept.popitem(last=False)
