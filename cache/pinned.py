"""What pins keep from being evicted, as the index knows it: contents, by pin.

State: the table ``pinned`` of one index. Triggers keep ``objects.pins`` in step with it, also for contents that come
into the cache after they were pinned; the policies of eviction pass over those rows.

A pin's contents are told in rounds: ``add`` batch by batch with the number of a new round, then ``finish``, which lets
go of what only earlier rounds named, or ``take_back``. So nothing is unprotected meanwhile, and a round that was cut
off does no harm.
Which pins there are, and what they are of, is the caller's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from cache.index import Index

_ADD = (
    "INSERT INTO pinned(tenant, content, pin, size, came, round) VALUES (?1, ?2, ?3, ?4, ?5, ?5) "
    "ON CONFLICT(tenant, content, pin) DO UPDATE SET round = excluded.round"
)
_STEP = 500


class Pinned:
    """See the module. Every method blocks its thread and may raise sqlite3.Error."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def last_round(self, pin: int) -> int:
        """The highest number of a round of this pin; 0 when there was none."""
        return int(self._index.ask("SELECT coalesce(max(round), 0) FROM pinned WHERE pin = ?", (pin,))[0])

    def add(self, pin: int, round_: int, tenant: str, contents: Iterable[tuple[bytes, int]]) -> None:
        """These contents, given with their sizes, are the pin's."""
        self._index.arrange([(_ADD, (tenant, content, pin, size, round_)) for content, size in contents])

    def finish(self, pin: int, round_: int) -> None:
        """The pin has no contents but those of this round. In small steps: others write between them."""
        self._remove("pin = ? AND round < ?", (pin, round_))

    def take_back(self, pin: int, round_: int) -> None:
        """The pin does not get what this round was the first to name."""
        self._remove("pin = ? AND came = ?", (pin, round_))

    def drop(self, pin: int) -> None:
        """The pin is no more."""
        self._remove("pin = ?", (pin,))

    def keep_only(self, pins: Collection[int]) -> None:
        """Drop every pin but these."""
        marks = ",".join("?" * len(pins))
        self._remove(f"pin NOT IN ({marks})", tuple(pins))

    def of(self, tenant: str, content: bytes, limit: int) -> list[int]:
        """The pins that keep a content, sorted, at most ``limit``."""
        some = "SELECT DISTINCT pin FROM pinned WHERE tenant = ? AND content = ? ORDER BY pin LIMIT ?"
        (found,) = self._index.ask(f"SELECT group_concat(pin) FROM ({some})", (tenant, content, limit))  # noqa: S608
        return [] if found is None else sorted(int(pin) for pin in str(found).split(","))

    def total_bytes(self) -> int:
        """The sizes of all pinned contents, each once. A scan of the table: 0.3 s for a million."""
        distinct = "SELECT max(size) AS size FROM pinned GROUP BY tenant, content"
        return int(self._index.ask(f"SELECT coalesce(sum(size), 0) FROM ({distinct})")[0])  # noqa: S608

    def _remove(self, condition: str, values: tuple[object, ...]) -> None:
        count = f"SELECT count(*) FROM (SELECT 1 FROM pinned WHERE {condition} LIMIT 1)"  # noqa: S608
        some = f"SELECT tenant, content, pin FROM pinned WHERE {condition} LIMIT {_STEP}"  # noqa: S608
        while self._index.ask(count, values)[0]:
            self._index.arrange([(f"DELETE FROM pinned WHERE (tenant, content, pin) IN ({some})", values)])  # noqa: S608
