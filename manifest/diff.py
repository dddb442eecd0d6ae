"""What changed in a show between two revisions: for people (``changes``) and for kernels (``changed_names``).

A row is alive at a revision when since <= revision < until. A name differs between a and b, the later, exactly when
the row alive at b began in (a, b], or the row alive at a ended there: both are ranges of an index.

State: none; both read through a replica that is handed in, in pages.
"""

from __future__ import annotations

import json
from heapq import merge
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Iterator

    from manifest.replica import Replica, Row

_LINK, _FOLDER = 1, 2  # of replica.Kind, which this module cannot import: replica imports it
_ROOT_NODE = 0
_PAGE = 1000
_NOTHING = (0, "", 0, 0)
_CHANGED_PARENTS = (
    "SELECT DISTINCT parent FROM entries INDEXED BY entries_since WHERE since > :lo AND since <= :hi UNION "
    "SELECT DISTINCT parent FROM entries INDEXED BY entries_until WHERE until > :lo AND until <= :hi"
)
_CHANGED_IN_FOLDER = (
    "SELECT DISTINCT name FROM entries WHERE parent = :parent AND name > :after "
    "AND ((since > :lo AND since <= :hi) OR (until > :lo AND until <= :hi)) ORDER BY name LIMIT :limit"
)
_KEPT_PARENTS = (
    f"SELECT p.parent FROM ({_CHANGED_PARENTS}) p LEFT JOIN entries f ON f.id = p.parent "  # noqa: S608 - constants
    "WHERE p.parent = 0 OR f.since <= :lo"
)
_BEGUN = (
    "SELECT parent, name, node, kind FROM entries INDEXED BY entries_since WHERE since > :lo AND since <= :hi "
    "AND (until IS NULL OR until > :hi) AND parent IN (SELECT value FROM json_each(:parents))"
)
_ENDED = (
    "SELECT parent, name, node, kind FROM entries INDEXED BY entries_until WHERE until > :lo AND until <= :hi "
    "AND since <= :lo AND parent IN (SELECT value FROM json_each(:parents))"
)


class Change(NamedTuple):
    """A path and what it was and is; None where nothing was or is. Rows that say the same are no change."""

    path: str
    before: Row | None
    after: Row | None


class ChangedName(NamedTuple):
    """A name whose row differs, in a folder that is there before and after.

    The nodes are those of folders, None for a file, a link or nothing; equal when a folder goes on existing with
    another mode. ``is_link``: what the name is now, or was, is a link.
    """

    parent: int
    name: str
    before_node: int | None
    after_node: int | None
    is_link: bool


_Item = tuple[str, "Row | None", "Row | None"]


def changes(replica: Replica, connection: sqlite3.Connection, a: int, b: int, path: str = "") -> Iterator[Change]:
    """What differs at and below ``path``, depth first, names sorted within a folder; ``a`` may be the later one.

    Memory: the folders with changes in them, and a page for each level.
    """
    range_ = {"lo": min(a, b), "hi": max(a, b)}
    dirty = _dirty(replica, connection, range_)
    levels: list[Iterator[_Item]] = [iter([(path, replica.resolve(path, a), replica.resolve(path, b))])]
    while levels:
        item = next(levels[-1], None)
        if item is None:
            levels.pop()
            continue
        where, before, after = item
        if _said(before) != _said(after):
            yield Change(where, before, after)
        old, new = _node(before), _node(after)
        prefix = where + "/" if where else ""
        if old != new:
            levels.append(_replaced(replica, prefix, (old, a), (new, b)))
        elif old is not None and old in dirty:
            names = merge(_changed_in(connection, old, range_), sorted(set(dirty[old])))
            levels.append(_kept(replica, prefix, old, (a, b), names))


def _said(row: Row | None) -> object:
    return None if row is None else row[6:13]  # from kind to target: what people see


def _node(row: Row | None) -> int | None:
    return row.node if row is not None and row.kind == _FOLDER else None


def _dirty(replica: Replica, connection: sqlite3.Connection, range_: dict[str, int]) -> dict[int, list[str]]:
    """The folders that names changed in, or below; with the names of the folders that lead to changes below."""
    dirty: dict[int, list[str]] = {}
    for (changed,) in connection.execute(_CHANGED_PARENTS, range_).fetchall():
        node, name = changed, None
        while True:
            known = node in dirty
            names = dirty.setdefault(node, [])
            if name is not None:
                names.append(name)
            if known or node == _ROOT_NODE:
                break
            row = replica.get(node)
            assert row is not None, "a parent is a row"
            node, name = row.parent, row.name
    return dirty


def _changed_in(connection: sqlite3.Connection, parent: int, range_: dict[str, int]) -> Iterator[str]:
    """The names in a folder that have a row which begins or ends in the range, sorted, read in pages."""
    after = ""
    while rows := connection.execute(
        _CHANGED_IN_FOLDER, {**range_, "parent": parent, "after": after, "limit": _PAGE}
    ).fetchall():
        for (name,) in rows:
            yield name
        after = rows[-1][0]


def _kept(
    replica: Replica, prefix: str, node: int, revisions: tuple[int, int], names: Iterable[str]
) -> Iterator[_Item]:
    """These names (sorted, perhaps twice) of a folder that is there at both revisions."""
    last = None
    for name in names:
        if name != last:
            yield prefix + name, replica.lookup(node, name, revisions[0]), replica.lookup(node, name, revisions[1])
        last = name


def _replaced(
    replica: Replica, prefix: str, before: tuple[int | None, int], after: tuple[int | None, int]
) -> Iterator[_Item]:
    """All names of two different folders at one path, of which either may be missing."""
    sides = [() if node is None else replica.names(node, revision) for node, revision in (before, after)]
    old, new = iter(sides[0]), iter(sides[1])
    left, right = next(old, None), next(new, None)
    while left is not None or right is not None:
        name = min(row.name for row in (left, right) if row is not None)
        was = left if left is not None and left.name == name else None
        is_ = right if right is not None and right.name == name else None
        yield prefix + name, was, is_
        if was is not None:
            left = next(old, None)
        if is_ is not None:
            right = next(new, None)


def changed_names(replica: Replica, connection: sqlite3.Connection, a: int, b: int) -> list[ChangedName]:
    """The names that differ in folders which are there at both revisions, sorted by folder and name.

    Nothing below a folder that is new or gone: its own name says it all. ``a`` may be the later one.
    """
    range_ = {"lo": min(a, b), "hi": max(a, b)}
    parents = [
        parent
        for (parent,) in connection.execute(_KEPT_PARENTS, range_).fetchall()
        if replica.folder(parent, a) is not None and replica.folder(parent, b) is not None
    ]
    among = {**range_, "parents": json.dumps(parents)}
    early = {(row[0], row[1]): row for row in connection.execute(_ENDED, among).fetchall()}
    late = {(row[0], row[1]): row for row in connection.execute(_BEGUN, among).fetchall()}
    old, new = (early, late) if a <= b else (late, early)
    found = []
    for key in sorted(early.keys() | late.keys()):
        was, is_ = old.get(key), new.get(key)
        kind = (is_ or was or _NOTHING)[3]
        found.append(ChangedName(*key, _folder_node(was), _folder_node(is_), kind == _LINK))
    return found


def _folder_node(row: tuple[int, str, int, int] | None) -> int | None:
    return row[2] if row is not None and row[3] == _FOLDER else None
