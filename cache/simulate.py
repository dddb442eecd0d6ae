"""A cache without bytes: what a policy of eviction would do with references, on an index in memory.

Replayed are opens. What is not there is fetched and put in as a whole; above the high water mark what the policy names
goes, down to the low one. Uses are noted every TOUCH_INTERVAL_S of the references' time and new rows every INTERVAL_S,
as the cache does it. Nothing is ever open, pinned or bounded by a quota.

State: which files are here, and an index that says the same, a little later.
"""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cache import policies
from cache.evict import STEP
from cache.flush import INTERVAL_S, TOUCH_INTERVAL_S, TOUCHED_MAX
from cache.index import Index, ObjectRow

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cache.policies.protocol import Policy
    from cache.trace import Reference

TENANT = "simulated"
_MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of its own in there


class Rates(NamedTuple):
    """The parts of the opens, and of the bytes, that were there."""

    opens: float
    bytes: float


def simulate(
    policy: str, references: Sequence[Reference], size_bytes: int, *, marks: tuple[float, float], warm_up: int = 0
) -> Rates:
    """Replay references, in the order of time, in a cache of a size with these (high, low) water marks.

    The first ``warm_up`` of them are not counted. Blocks for some 20 µs a reference.
    """
    with _index() as index:
        return _Simulation(index, policies.make(policy, index), size_bytes, marks).replay(references, warm_up)


@contextmanager
def _index() -> Iterator[Index]:
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None, prefix="damfs-simulate-") as folder:
        index = Index(Path(folder) / "index.db")
        try:
            yield index
        finally:
            index.close()


class _Simulation:
    def __init__(self, index: Index, policy: Policy, size_bytes: int, marks: tuple[float, float]) -> None:
        self._index = index
        self._policy = policy
        self._size_bytes = size_bytes
        self._high_bytes, self._low_bytes = (int(size_bytes * mark) for mark in marks)
        self._used_bytes = 0
        self._here: set[int] = set()
        self._coming: list[ObjectRow] = []
        self._touched: dict[tuple[str, bytes], int] = {}
        self._flushed_ms = self._noted_ms = 0.0

    def replay(self, references: Sequence[Reference], warm_up: int) -> Rates:
        hits = hit_bytes = asked_bytes = 0
        for i, reference in enumerate(references):
            self._tick(reference.when_ms)
            is_hit = reference.file in self._here
            self._use(reference, is_hit=is_hit)
            if i >= warm_up:
                hits += is_hit
                hit_bytes += is_hit * reference.size_bytes
                asked_bytes += reference.size_bytes
        return Rates(hits / max(1, len(references) - warm_up), hit_bytes / max(1, asked_bytes))

    def _tick(self, now_ms: int) -> None:
        if now_ms - self._flushed_ms >= INTERVAL_S * 1000:
            self._flush(now_ms)
        if now_ms - self._noted_ms >= TOUCH_INTERVAL_S * 1000 and self._touched:
            self._index.touch(self._touched)
            self._touched.clear()
            self._noted_ms = now_ms

    def _use(self, reference: Reference, *, is_hit: bool) -> None:
        content, size = reference.file.to_bytes(32), reference.size_bytes
        if len(self._touched) < TOUCHED_MAX:
            self._touched[TENANT, content] = reference.when_ms
        if is_hit or size > self._size_bytes:
            return
        self._here.add(reference.file)
        self._used_bytes += size
        row = ObjectRow(0, TENANT, content, size, 1, b"", content.hex(), size, size, b"\1", reference.group)
        self._coming.append(row)
        if self._used_bytes > self._high_bytes:
            self._flush(reference.when_ms)
            self._evict()

    def _flush(self, now_ms: int) -> None:
        if self._coming:
            self._index.commit(self._coming, now_ms, durable=False)
            self._coming.clear()
        self._flushed_ms = now_ms

    def _evict(self) -> None:
        self._policy.begin()
        while (surplus := self._used_bytes - self._low_bytes) > 0:
            victims = self._policy.victims(STEP, surplus)
            assert victims, "nothing is open, so something can go"
            self._index.delete([victim.id for victim in victims])
            for victim in victims:
                self._here.remove(int.from_bytes(victim.content))
                self._used_bytes -= victim.charge
