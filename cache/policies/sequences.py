"""Sequences: what was used once goes before what was used again, and an image sequence goes as a unit, from its end.

- An object that was used once only is on trial. While those have more than TRIAL_SHARE of what is cached the oldest of
  them is the victim, else the oldest of those that were used again. So a scan costs the working set little.
- With a victim that is a frame go the frames of its sequence that were used in the same sitting (within SITTING_MS
  behind it), the last one first: the rest of a sequence that nobody plays is of no use, and of one that is played
  round and round, and is larger than the cache, a part stays for every round, where LRU keeps none.
- Unless other frames of the sequence were used twice since (``before``): then the playing has turned back without
  coming to the victim, which is not in the range that is played. Only what was used before that goes.
- A sequence of which frames were used again in that sitting is no scan: its other frames are on trial no more.

State: how far a run has come, and the sitting that it empties.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, NamedTuple

from cache.policies.protocol import enough

if TYPE_CHECKING:
    from cache.index import Candidate, Index

TRIAL_SHARE = 0.25
SITTING_MS = 30 * 60 * 1000
_BYTES = """
SELECT coalesce(sum(charge), 0), coalesce(sum(charge * (NOT visited > 0)), 0) FROM objects WHERE pins = 0
"""
_SITTING = "grp <> 0 AND tenant = ? AND grp = ? AND used BETWEEN ? AND ?"
_PLAYED = f"SELECT count(*) FROM objects WHERE pins = 0 AND {_SITTING} AND visited > 0"  # noqa: S608 - of constants
_TURNED = f"SELECT coalesce(max(before), 0) FROM objects WHERE pins = 0 AND {_SITTING}"  # noqa: S608
_ONCE_BYTES = f"SELECT coalesce(sum(charge), 0) FROM objects WHERE pins = 0 AND {_SITTING} AND visited = 0"  # noqa: S608
_USED_AGAIN = f"UPDATE objects SET visited = 1 WHERE pins = 0 AND {_SITTING} AND visited = 0"  # noqa: S608
_BEGINNING = (-(2**63), 0)
_END = (2**63 - 1, 2**63 - 1)


class _Sitting(NamedTuple):
    """Frames of a sequence that were used at about the same time; those on trial alone, or all."""

    tenant: str
    group: int
    since: int
    until: int
    is_on_trial: bool

    @property
    def values(self) -> tuple[str, int, int, int]:
        return self[:4]


class Sequences:
    """See the module's rules and ``protocol.Policy``.

    A run goes through what was used once and what was used again (``False`` and ``True``) by last use; ``_after`` is
    how far it has come, ``_is_left`` whether there is more. ``_emptied``: until when the frames of a sequence were
    all named.
    """

    name: ClassVar[str] = "sequences"
    indexes: ClassVar[dict[str, str]] = {
        "objects_again": "objects(visited > 0, used, id, charge) WHERE pins = 0",
        "objects_grp": "objects(tenant, grp, used, id) WHERE pins = 0 AND grp <> 0",
    }

    def __init__(self, index: Index) -> None:
        self._index = index
        self._total_bytes = self._trial_bytes = 0
        self._after = {False: _BEGINNING, True: _BEGINNING}
        self._is_left = {False: True, True: True}
        self._sitting: _Sitting | None = None
        self._before = _END
        self._emptied: dict[tuple[str, int], int] = {}

    def begin(self) -> None:
        """From the oldest on."""
        self._after = {False: _BEGINNING, True: _BEGINNING}
        self._is_left = {False: True, True: True}
        self._sitting = None
        self._emptied.clear()
        self._total_bytes, self._trial_bytes = self._index.ask(_BYTES)

    def victims(self, limit: int, surplus_bytes: int) -> list[Candidate]:
        """The frames of the sitting that is being emptied, else what is oldest."""
        found: list[Candidate] = []
        while not found and (self._sitting or any(self._is_left.values())):
            if self._sitting:
                found = self._frames(self._sitting, limit, surplus_bytes)
            else:
                found = self._oldest(limit, surplus_bytes)
        self._total_bytes -= sum(c.charge for c in found)
        self._trial_bytes -= sum(c.charge for c in found if not c.visited)
        return found

    def _frames(self, sitting: _Sitting, limit: int, surplus_bytes: int) -> list[Candidate]:
        """The last frames of a sitting."""
        condition = f"{_SITTING} AND (used, id) < (?, ?)" + " AND visited = 0" * sitting.is_on_trial
        seen = self._index.candidates(condition, (*sitting.values, *self._before), "used DESC, id DESC", limit)
        found = enough(seen, surplus_bytes)
        if found:
            self._before = found[-1].used, found[-1].id
        else:
            self._emptied[sitting.tenant, sitting.group] = sitting.until
            self._sitting = None
        return found

    def _oldest(self, limit: int, surplus_bytes: int) -> list[Candidate]:
        """The oldest objects up to the first frame; when that is the oldest itself, its sitting is emptied next."""
        again = not self._is_left[False] or (
            self._is_left[True] and self._trial_bytes <= self._total_bytes * TRIAL_SHARE
        )
        seen = self._index.candidates(
            "(visited > 0) = ? AND (used, id) > (?, ?)", (again, *self._after[again]), "used, id", limit
        )
        self._is_left[again] = bool(seen)
        found: list[Candidate] = []
        for candidate in seen:
            if candidate.group and candidate.used > self._emptied.get((candidate.tenant, candidate.group), -1):
                if not found:
                    self._begin_with(candidate)
                break
            if not candidate.group:
                found.append(candidate)
                surplus_bytes -= candidate.charge
            self._after[again] = candidate.used, candidate.id
            if surplus_bytes <= 0:
                break
        return found

    def _begin_with(self, frame: Candidate) -> None:
        """Empty the sitting of a frame, or have it on trial no more."""
        until = frame.used + SITTING_MS
        sitting = _Sitting(frame.tenant, frame.group, frame.used, until, not frame.visited)
        (turned,) = self._index.ask(_TURNED, sitting.values)
        if frame.used < turned < until:
            sitting = sitting._replace(until=turned)
        if sitting.is_on_trial and self._index.ask(_PLAYED, sitting.values)[0]:
            self._trial_bytes -= self._index.ask(_ONCE_BYTES, sitting.values)[0]
            self._index.arrange([(_USED_AGAIN, sitting.values)])
        else:
            self._sitting, self._before = sitting, _END
