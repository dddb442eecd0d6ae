"""What was at the paths of a changeset, many at a time: the rows, and what the ``pre`` of their ops must be.

State: none; reads through a replica that is handed in. Rules: a text that has the digest which the publisher saw is
the post, whatever the row looks like; where none can be told from a row and its recipe, or the digest is another, the
replica is asked, which also says what is damaged.
"""

from __future__ import annotations

import json
import struct
from json.encoder import encode_basestring
from typing import TYPE_CHECKING

from blake3 import blake3

from manifest.ops import FILE, FOLDER, LINK
from manifest.recipe import CHUNK_BYTES_MAX, MAGIC, RECORD_BYTES, Recipe
from manifest.replica import COLUMNS, Row

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping

    from manifest.replica import Replica

Before = tuple[Row, bytes]
"""A row, and the digest of the canonical bytes of its post."""

FEW = 4
"""So many names are looked up one by one: the versions that a name had cost nothing then."""
_ROWS = (
    f"SELECT {COLUMNS} FROM entries WHERE parent = ? AND name IN (SELECT value FROM json_each(?)) "  # noqa: S608
    "AND since <= ? AND (until IS NULL OR until > ?)"
)
_RECIPES = "SELECT content, recipe FROM contents WHERE content IN (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_RECIPES_AT_ONCE = _RECIPES.count("?")
_NO_CHUNKS = bytes(Recipe(b"").content)
_new_row = tuple.__new__


def posts(
    replica: Replica, connection: sqlite3.Connection, parent: int, wanted: Mapping[str, bytes | None], revision: int
) -> dict[str, Before]:
    """Those of these names that a folder has, each with its row and digest; most digests are those that are wanted.

    Raises ReplicaDamaged.
    """
    if len(wanted) <= FEW:
        rows = [row for name in wanted if (row := replica.lookup(parent, name, revision)) is not None]
    else:
        found = connection.execute(_ROWS, (parent, json.dumps([*wanted], ensure_ascii=False), revision, revision))
        rows = [_new_row(Row, row) for row in found.fetchall()]
    known: dict[str, Before] = {}
    several: list[Row] = []
    for row in rows:
        text = _of_a_row(row)
        if text is None:
            several.append(row)
            continue
        name = row[2]
        digest = blake3(text.encode()).digest()
        known[name] = (row, digest if digest == wanted[name] else replica.pre(row))
    for start in range(0, len(several), _RECIPES_AT_ONCE):
        some = several[start : start + _RECIPES_AT_ONCE]
        contents = [row.content for row in some] + [None] * (_RECIPES_AT_ONCE - len(some))
        recipes = dict(connection.execute(_RECIPES, contents).fetchall())
        for row in some:
            digest = blake3(_of_several_chunks(row, recipes.get(row.content)).encode()).digest()
            known[row.name] = (row, digest if digest == wanted[row.name] else replica.pre(row))
    return known


def _of_a_row(row: Row) -> str | None:
    """The canonical text of the post that made a row; None when it takes a recipe to tell it.

    That a file has one chunk is proven by its content id. Of a damaged row nothing, or any text.
    """
    _, _, _, _, _, _, kind, mode, size, mtime_ns, digest, content, target, is_object = row
    try:
        if kind == FOLDER:
            return f'{{"kind":"dir","mode":{mode}}}'
        if kind == LINK and target is not None:
            return f'{{"kind":"link","target":{encode_basestring(target)}}}'
        if kind != FILE or digest is None or content is None:
            return None
        name = f"b3:{digest.hex()}"
        if is_object:
            recipe = f'"b3:{content.hex()}"'
        elif 0 < size <= CHUNK_BYTES_MAX and blake3(MAGIC + digest + size.to_bytes(4, "little")).digest() == content:
            recipe = f'[["{name}",{size}]]'
        elif content == _NO_CHUNKS:
            recipe = "[]"
        else:
            return None
    except (TypeError, AttributeError):  # other types than the columns have: damage
        return None
    return f'{{"digest":"{name}","kind":"file","mode":{mode},"mtime_ns":{mtime_ns},"recipe":{recipe},"size":{size}}}'


def _of_several_chunks(row: Row, packed: object) -> str:
    """The canonical text of the post that made a file's row, with its recipe. Of a damaged row any text."""
    if row.kind != FILE or not isinstance(packed, bytes) or not isinstance(row.digest, bytes):
        return ""
    if not packed or len(packed) % RECORD_BYTES:
        return ""
    count = len(packed) // RECORD_BYTES
    pairs: list[str | int] = [0] * (2 * count)
    pairs[::2] = packed.hex(" ", RECORD_BYTES).split(" ")
    pairs[1::2] = struct.unpack("<" + "32xI" * count, packed)
    recipe = (',["b3:%.64s",%d]' * count % tuple(pairs))[1:]
    return (
        f'{{"digest":"b3:{row.digest.hex()}","kind":"file","mode":{row.mode},"mtime_ns":{row.mtime_ns},'
        f'"recipe":[{recipe}],"size":{row.size}}}'
    )
