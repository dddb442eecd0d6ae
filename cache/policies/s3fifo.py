"""S3-FIFO [Yang et al., SOSP 2023]: a small queue on trial, a main one, and a memory of what left the small one.

What comes is on trial: ``queue`` is 0, in the order of ids. From there it goes to the main queue when it was used again
or had been on trial not long ago, and else out. The main queue is in the order of ``queue``, a running number; what was
used again begins anew at its end, with one use less. All of that is decided when room is needed: a store costs nothing.

State: ``_ghosts``, hashes of contents that left the trial, each at its own place in an array of GHOSTS, where the next
one of the place overwrites it. Lost at a restart.
"""

from __future__ import annotations

import zlib
from array import array
from typing import TYPE_CHECKING, ClassVar

from cache.policies.protocol import enough

if TYPE_CHECKING:
    from cache.index import Candidate, Index

TRIAL_SHARE = 0.1
"""The part of what is cached that the trial keeps; what it has beyond that goes first."""
GHOSTS = 1 << 16
_BYTES = """
SELECT coalesce(sum(charge), 0), coalesce(sum(charge * (queue = 0)), 0), coalesce(max(queue), 0)
FROM objects WHERE pins = 0
"""
_MOVE = "UPDATE objects SET queue = ?, visited = ? WHERE id = ?"


class S3Fifo:
    """See ``protocol.Policy``. ``_on_trial`` and ``_in_main`` are how far a run has come in either queue."""

    name: ClassVar[str] = "s3fifo"
    indexes: ClassVar[dict[str, str]] = {"objects_queue": "objects(queue, id, charge) WHERE pins = 0"}

    def __init__(self, index: Index) -> None:
        self._index = index
        self._ghosts = array("I", bytes(4 * GHOSTS))
        self._on_trial = self._in_main = 0
        self._total_bytes = self._trial_bytes = self._last = 0

    def begin(self) -> None:
        """From the beginning of both queues."""
        self._on_trial = self._in_main = 0
        self._total_bytes, self._trial_bytes, self._last = self._index.ask(_BYTES)

    def victims(self, limit: int, surplus_bytes: int) -> list[Candidate]:
        """From the trial while that has more than its share, else from the main queue."""
        main_is_left = trial_is_left = True
        while main_is_left or trial_is_left:
            if trial_is_left and (self._trial_bytes > self._total_bytes * TRIAL_SHARE or not main_is_left):
                seen = self._index.candidates("queue = 0 AND id > ?", (self._on_trial,), "id", limit)
                found = self._try(seen, surplus_bytes)
                trial_is_left = bool(seen)
            else:
                seen = self._index.candidates("queue > ?", (self._in_main,), "queue", limit)
                found = self._pass_on(seen, surplus_bytes)
                main_is_left = bool(seen)
            if found:
                self._total_bytes -= sum(c.charge for c in found)
                return found
        return []

    def _try(self, seen: list[Candidate], surplus_bytes: int) -> list[Candidate]:
        """Those on trial that go; those before them that do not go to the main queue."""
        found = enough([c for c in seen if not c.visited and not self._is_ghost(c)], surplus_bytes)
        self._on_trial = found[-1].id if found else seen[-1].id if seen else self._on_trial
        kept = [c for c in seen if c.id <= self._on_trial and (c.visited or self._is_ghost(c))]
        for candidate in found:
            hashed = _hash(candidate)
            self._ghosts[hashed % GHOSTS] = hashed
        self._trial_bytes -= sum(c.charge for c in (*found, *kept))
        self._to_the_end([(c.id, 0) for c in kept])
        return found

    def _pass_on(self, seen: list[Candidate], surplus_bytes: int) -> list[Candidate]:
        """Those of the main queue that go; those before them begin anew."""
        found = enough([c for c in seen if not c.visited], surplus_bytes)
        self._in_main = found[-1].queue if found else seen[-1].queue if seen else self._in_main
        self._to_the_end([(c.id, c.visited - 1) for c in seen if c.queue <= self._in_main and c.visited])
        return found

    def _to_the_end(self, moved: list[tuple[int, int]]) -> None:
        if moved:
            self._index.arrange([(_MOVE, (self._last + i, visited, id_)) for i, (id_, visited) in enumerate(moved, 1)])
            self._last += len(moved)

    def _is_ghost(self, candidate: Candidate) -> bool:
        hashed = _hash(candidate)
        return self._ghosts[hashed % GHOSTS] == hashed


def _hash(candidate: Candidate) -> int:
    return zlib.crc32(candidate.content, zlib.crc32(candidate.tenant.encode()))
