"""Accounts by show: what each one has in the cache, and what its reads cost.

State: the table ``shows`` in the index, which triggers keep in step with the rows, in their own transactions: so it is
known at the start without a walk, and costs no memory. And counters since the start, for at most SHOWS_MAX shows;
those of all others are counted together, as OTHER.

What programs read past the daemon (docs/decisions/0023) is no read here: of a file that the kernel reads itself, the
first fill is counted, and each open.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from cache.limits import NO_LIMITS

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Iterator, Mapping

    from cache.limits import ShowLimits

SHOWS_MAX = 4096
OTHER = "(other)"
"""No show can be called so."""

_SCHEMA = """
BEGIN IMMEDIATE;
CREATE TABLE shows(
  tenant TEXT PRIMARY KEY,
  charge INTEGER NOT NULL,        -- bytes of disk that its objects and recipes count for
  objects INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO shows SELECT tenant, sum(charge), sum(number) FROM (
  SELECT tenant, charge, 1 AS number FROM objects UNION ALL SELECT tenant, charge, 0 FROM recipes
) GROUP BY tenant;
CREATE TRIGGER shows_object_added AFTER INSERT ON objects BEGIN
  INSERT INTO shows VALUES (new.tenant, new.charge, 1)
  ON CONFLICT(tenant) DO UPDATE SET charge = charge + excluded.charge, objects = objects + 1;
END;
CREATE TRIGGER shows_object_changed AFTER UPDATE OF charge ON objects WHEN new.charge <> old.charge BEGIN
  UPDATE shows SET charge = charge + new.charge - old.charge WHERE tenant = new.tenant;
END;
CREATE TRIGGER shows_object_gone AFTER DELETE ON objects BEGIN
  UPDATE shows SET charge = charge - old.charge, objects = objects - 1 WHERE tenant = old.tenant;
END;
CREATE TRIGGER shows_recipe_added AFTER INSERT ON recipes BEGIN
  INSERT INTO shows VALUES (new.tenant, new.charge, 0)
  ON CONFLICT(tenant) DO UPDATE SET charge = charge + excluded.charge;
END;
CREATE TRIGGER shows_recipe_gone AFTER DELETE ON recipes BEGIN
  UPDATE shows SET charge = charge - old.charge WHERE tenant = old.tenant;
END;
COMMIT;
"""


class Held(NamedTuple):
    """What a show has in the cache: bytes of disk that it is charged, and contents."""

    bytes: int
    objects: int


def prepare(writer: sqlite3.Connection) -> None:
    """See to it that an index has the table and its triggers; an older one is counted through once."""
    (found,) = writer.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'shows'").fetchone()
    if not found:
        writer.executescript(_SCHEMA)


def held(reader: sqlite3.Connection) -> dict[str, Held]:
    """What the shows have, the largest ones first; at most SHOWS_MAX by name, and OTHER."""
    rows = reader.execute(
        "SELECT tenant, charge, objects FROM shows WHERE objects > 0 OR charge > 0 ORDER BY charge DESC LIMIT ?",
        (SHOWS_MAX,),
    ).fetchall()
    found = {tenant: Held(charge, objects) for tenant, charge, objects in rows}
    if len(rows) == SHOWS_MAX:
        charge, objects = reader.execute("SELECT sum(charge), sum(objects) FROM shows").fetchone()
        named = found.values()
        found[OTHER] = Held(charge - sum(show.bytes for show in named), objects - sum(show.objects for show in named))
    return found


@dataclass(frozen=True, slots=True)
class ShowStats:
    """One show as ``damfs cache stats`` shows it; docs/STATUS.md describes each field."""

    used_bytes: int
    objects: int
    hits: int
    misses: int
    hit_bytes: int
    miss_bytes: int
    fetched_bytes: dict[str, int]
    passthrough_opens: int
    quota_bytes: int | None
    priority: str


@dataclass(slots=True)
class ShowReads:
    """What the reads of one show were, since the start. See ``metrics.Counters``."""

    hits: int = 0
    misses: int = 0
    hit_bytes: int = 0
    miss_bytes: int = 0
    passthrough_opens: int = 0
    fetched_bytes: Counter[str] = field(default_factory=Counter)
    """By source."""


class ReadAccounts:
    """The counters of each show. Touched on the event loop; ``items`` may be called from another thread."""

    def __init__(self) -> None:
        self._by_show: dict[str, ShowReads] = {}
        self._other = ShowReads()

    def of(self, show: str) -> ShowReads:
        """The counters that a show's reads are counted in."""
        found = self._by_show.get(show)
        if found is None:
            if len(self._by_show) >= SHOWS_MAX:
                return self._other
            found = self._by_show[show] = ShowReads()
        return found

    def items(self) -> Iterator[tuple[str, ShowReads]]:
        """(show, its counters), by name; OTHER at the end, if there are others."""
        yield from sorted(self._by_show.items())
        if self._other != ShowReads():
            yield OTHER, self._other


def stats(
    held_here: Iterable[Mapping[str, Held]], reads: ReadAccounts, limits: Mapping[str, ShowLimits]
) -> dict[str, ShowStats]:
    """Every show that has something here (in any folder), was read or has limits, by name."""
    counted = dict(reads.items())
    has: dict[str, Held] = {}
    for folder in held_here:
        for show, here in folder.items():
            before = has.get(show, _NOTHING)
            has[show] = Held(before.bytes + here.bytes, before.objects + here.objects)
    found = {}
    for show in sorted({*has, *counted, *limits}):
        here, was, limit = has.get(show, _NOTHING), counted.get(show, _UNREAD), limits.get(show, NO_LIMITS)
        found[show] = ShowStats(
            here.bytes, here.objects, was.hits, was.misses, was.hit_bytes, was.miss_bytes, dict(was.fetched_bytes),
            was.passthrough_opens, limit.quota_bytes, limit.priority.name.lower(),
        )  # fmt: skip
    return found


_NOTHING = Held(0, 0)
_UNREAD = ShowReads()
