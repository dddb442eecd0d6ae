"""SIEVE [Zhang et al., NSDI 2024]: a queue in the order of coming, and a hand that passes over what was used again.

The order of coming is the order of ids. The hand moves from the oldest to the youngest and takes the mark of a further
use off (``visited``); what has none goes. Where the hand is, is in memory: after a restart it begins with the oldest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from cache.policies.protocol import enough

if TYPE_CHECKING:
    from cache.index import Candidate, Index

ROUNDS_MAX = 2
"""In the first round of a run every mark can be taken off; behind the second one all was named."""


class Sieve:
    """See ``protocol.Policy``. ``_hand`` is the id that was looked at last."""

    name: ClassVar[str] = "sieve"
    indexes: ClassVar[dict[str, str]] = {}

    def __init__(self, index: Index) -> None:
        self._index = index
        self._hand = 0
        self._rounds = 0

    def begin(self) -> None:
        """From where the hand is."""
        self._rounds = 0

    def victims(self, limit: int, surplus_bytes: int) -> list[Candidate]:
        """What the hand comes to and was not used again."""
        while self._rounds < ROUNDS_MAX:
            seen = self._index.candidates("id > ?", (self._hand,), "id", limit)
            if not seen:
                self._hand = 0
                self._rounds += 1
                continue
            found = enough([c for c in seen if not c.visited], surplus_bytes)
            self._hand = found[-1].id if found else seen[-1].id
            marked = [c.id for c in seen if c.visited and c.id <= self._hand]
            self._index.arrange([("UPDATE objects SET visited = 0 WHERE id = ?", (i,)) for i in marked])
            if found:
                return found
        return []
