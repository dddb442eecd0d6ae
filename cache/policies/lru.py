"""LRU: what was not used for the longest time goes first."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from cache.policies.protocol import enough

if TYPE_CHECKING:
    from cache.index import Candidate, Index

_BEGINNING = (-(2**63), 0)


class Lru:
    """See ``protocol.Policy``. ``_after`` is how far a run has come, as (used, id)."""

    name: ClassVar[str] = "lru"
    indexes: ClassVar[dict[str, str]] = {}

    def __init__(self, index: Index) -> None:
        self._index = index
        self._after = _BEGINNING

    def begin(self) -> None:
        """From the oldest on."""
        self._after = _BEGINNING

    def victims(self, limit: int, surplus_bytes: int) -> list[Candidate]:
        """By last use."""
        found = enough(self._index.candidates("(used, id) > (?, ?)", self._after, "used, id", limit), surplus_bytes)
        if found:
            self._after = found[-1].used, found[-1].id
        return found
