"""A policy of eviction: it names what is to go next, by what the rows of the index say.

Rules for policies:
- Everything that is remembered of an object stands in its row: ``used``, ``visited``, ``grp`` and ``queue``. Nothing
  is kept in memory for an object. The index notes uses and groups; ``queue`` is the policy's.
- A policy works when it is asked for victims, and at no other time: a read and a store cost the same with each.
- Pinned objects are never named. Whether something is open the policy does not know: the caller passes over it.
- Every call is a few look-ups in the index, and blocks its thread. May raise sqlite3.Error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from cache.index import Candidate


class Policy(Protocol):
    """See the module's rules."""

    name: ClassVar[str]
    """How the configuration calls it."""
    indexes: ClassVar[dict[str, str]]
    """What it needs of SQLite to find its victims fast, by name."""

    def begin(self) -> None:
        """A run of evictions begins: what was passed over in the last one may be named again."""

    def victims(self, limit: int, surplus_bytes: int) -> list[Candidate]:
        """What is to go next: at most ``limit`` objects, and no more of them than ``surplus_bytes`` need.

        The caller evicts them but for those that are open, and asks again. None: all were named in this run.
        """


def enough(found: list[Candidate], surplus_bytes: int) -> list[Candidate]:
    """The first of these that together have ``surplus_bytes``, or all."""
    for count, candidate in enumerate(found, 1):
        surplus_bytes -= candidate.charge
        if surplus_bytes <= 0:
            return found[:count]
    return found
