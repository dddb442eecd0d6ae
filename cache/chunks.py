"""Which cached objects have a chunk: the tables by which a chunk is found, and an object is checked, without a source.

State: two tables of the index (``index.py``), written in the transaction that writes an object's row: the recipe of
every object that has chunks, and for each chunk 64 bits of its digest, the object, the number and the offset.

Rules:
- Nothing here is believed. Whoever finds a chunk hashes its bytes; whoever takes a recipe compares it with the
  content id. So 64 bits are enough, and a lost or damaged row costs a download.
- What an object has of its recipe is what its row says, at the time of the question.
- An object's chunks go with its row, by a trigger.

About 60 bytes of disk a chunk; nothing in memory. All functions take a connection's ``execute``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from manifest.errors import FormatError
from manifest.recipe import Recipe

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

CHUNKS_MAX = 65536
"""Of an object with more chunks, only so many are found again."""
CANDIDATES_MAX = 4
"""How many objects are looked at for one chunk, the newest first."""
SCHEMA = """
CREATE TABLE chunks(
  prefix INTEGER NOT NULL,        -- the first 8 bytes of the chunk's digest, little-endian, signed
  object INTEGER NOT NULL,        -- objects.id
  number INTEGER NOT NULL,        -- of the chunk in the object's recipe
  offset INTEGER NOT NULL,        -- of the chunk in the object's file, in bytes
  PRIMARY KEY(prefix, object, number)
) WITHOUT ROWID;
CREATE INDEX chunks_object ON chunks(object);
CREATE TRIGGER chunks_go AFTER DELETE ON objects BEGIN DELETE FROM chunks WHERE object = old.id; END;
"""
_DONORS = """
SELECT o.file, o.size, c.offset, c.number, o.present FROM chunks c JOIN objects o ON o.id = c.object
WHERE c.prefix = ? AND o.tenant = ? ORDER BY c.object DESC LIMIT ?
"""


class Place(NamedTuple):
    """Where a chunk may lie: in ``file`` of ``size`` bytes, from ``offset`` on."""

    file: str
    size: int
    offset: int


def record(connection: sqlite3.Connection, object_id: int, tenant: str, content: bytes, packed: bytes) -> None:
    """Note the recipe of an object that has just got a row, in that row's transaction.

    A recipe that was kept before (``Index.keep_recipe``) stays, and counts for what it counted.
    """
    connection.execute(
        "INSERT OR IGNORE INTO recipes(tenant, content, charge, used, packed) VALUES (?, ?, 0, 0, ?)",
        (tenant, content, packed),
    )
    connection.executemany("INSERT OR IGNORE INTO chunks VALUES (?, ?, ?, ?)", _rows(object_id, packed))


def places(connection: sqlite3.Connection, tenant: str, digest: bytes) -> list[Place]:
    """Where a chunk may lie, the likeliest place first."""
    found = connection.execute(_DONORS, (_prefix(digest), tenant, CANDIDATES_MAX)).fetchall()
    return [
        Place(file, size, offset)
        for file, size, offset, number, present in found
        if number >> 3 < len(present) and present[number >> 3] >> (number & 7) & 1
    ]


def _rows(object_id: int, packed: bytes) -> Iterator[tuple[int, int, int, int]]:
    try:
        recipe = Recipe(packed)
    except FormatError:
        return
    for number in range(min(len(recipe), CHUNKS_MAX)):
        yield _prefix(recipe[number].digest), object_id, number, recipe.offset(number)


def _prefix(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "little", signed=True)
