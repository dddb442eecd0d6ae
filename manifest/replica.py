"""The replica, read side: a show's names at every revision, from one SQLite file.

A row of ``entries`` is one version of a name, valid in revisions [since, until). Every question names the revision
it is about, so what a reader sees does not change under it while later ones are applied. ``diff`` answers what
changed between two; ``apply`` writes.

State: one connection, used by one thread at a time. Invariant: no read transaction outlives a call (everything is
fetched, in pages), so the write-ahead log can always be taken in.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple, Self

from manifest import diff, schema
from manifest.digest import DIGEST_BYTES, Digest
from manifest.errors import FormatError, ReplicaDamaged
from manifest.names import Revision, check_path
from manifest.post import File, Folder, Link, Post, post_digest
from manifest.recipe import Recipe

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    from manifest.diff import Change, ChangedName

ROOT_NODE = 0
"""The node of a show's root folder, which is not in ``entries``."""
FOLDER_MODE = 0o755
"""Of the root, and of a folder that comes into being as the parent of an op."""
PAGE_ROWS = 1000


class Kind(IntEnum):
    """What a row is. Rows hold plain integers: compare with ==."""

    FILE = 0
    LINK = 1
    FOLDER = 2


class Row(NamedTuple):
    """One version of a name.

    ``node`` is a folder's identity, the id of the row that first created it, kept until it is removed, and 0 for
    files and links. ``until`` is None while the version lasts. Size in bytes, mtime in ns; 0 where it has no meaning.
    ``is_object`` is 1 when the op named the recipe as an object, 0 when it had it inline.
    """

    id: int
    parent: int
    name: str
    node: int
    since: int
    until: int | None
    kind: int
    mode: int
    size: int
    mtime_ns: int
    digest: bytes | None
    content: bytes | None
    target: str | None
    is_object: int = 0


Listed = tuple[int, bytes, int, int, int, int, int]
"""(row id, name as UTF-8, kind, node, mode, size, mtime in ns) of a name in a folder. Of a link the size is that of
its target in bytes, and the time that of its publish; of a folder the time is when it was last touched."""


class RevisionInfo(NamedTuple):
    """An entry of the log. ``time_ns`` is effective: never before that of an earlier revision.

    A no-op (``status`` "noop") changed nothing, for ``reason``, and has neither publish id nor author nor key.
    """

    seq: int
    publish_id: str
    entry_digest: Digest
    time_ns: int
    author: str
    message: str
    keyid: str
    status: str
    reason: str


ROOT = Row(0, ROOT_NODE, "", ROOT_NODE, 0, None, int(Kind.FOLDER), FOLDER_MODE, 0, 0, None, None, None)
"""What the empty path resolves to."""

COLUMNS = ", ".join(Row._fields)
_LOOKUP = f"SELECT {COLUMNS} FROM entries WHERE parent = ? AND name = ? AND since <= ? ORDER BY since DESC LIMIT 1"  # noqa: S608
_LIST = (
    f"SELECT {COLUMNS} FROM entries WHERE parent = ? AND name > ? AND since <= ? "  # noqa: S608
    "AND (until IS NULL OR until > ?) ORDER BY name LIMIT ?"
)
_LISTING = """
SELECT id, CAST(name AS BLOB), kind, node, mode,
    CASE kind WHEN 1 THEN length(CAST(target AS BLOB)) ELSE size END,
    CASE kind
        WHEN 0 THEN mtime_ns
        WHEN 1 THEN (SELECT time_ns FROM revisions WHERE seq = e.since)
        ELSE coalesce((SELECT time_ns FROM revisions WHERE seq =
            (SELECT max(seq) FROM touched WHERE touched.node = e.node AND seq <= ?3)), 0)
    END
FROM entries e WHERE parent = ?1 AND name > ?2 AND since <= ?3 AND (until IS NULL OR until > ?3) ORDER BY name LIMIT ?4
"""
_GET = f"SELECT {COLUMNS} FROM entries WHERE id = ?"  # noqa: S608
_FOLDER = (
    f"SELECT {', '.join(f'e.{column}' for column in Row._fields)} FROM entries n CROSS JOIN entries e "  # noqa: S608
    "ON e.parent = n.parent AND e.name = n.name AND e.since <= ? "
    "WHERE n.id = ? ORDER BY e.since DESC LIMIT 1"
)
_REVISION = (
    "SELECT seq, coalesce(publish_id, ''), entry_digest, time_ns, author, message, keyid, status, reason FROM revisions"
)
_new_row = tuple.__new__


class Replica:
    """Answers questions about one show. See the module's text for threads."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._execute = connection.execute
        meta = dict(self._execute("SELECT key, value FROM meta").fetchall())
        self._genesis = meta.get("genesis", "")
        self.show: str = meta.get("show", "")

    @classmethod
    def open_reader(cls, path: Path) -> Replica:
        """A reader with a connection of its own. Raises NotFound when there is no file, ConfigurationError."""
        return Replica(schema.connect_reader(path))

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- revisions --------------------------------------------------------------------------------------------------

    @property
    def head(self) -> Revision:
        """The newest revision; 0 for the empty show."""
        (head,) = self._execute("SELECT max(seq) FROM revisions").fetchone()
        return Revision(head or 0)

    @property
    def tip(self) -> Digest:
        """The digest of the stored entry of the head: what the next entry's ``prev`` must be."""
        row = self._execute("SELECT entry_digest FROM revisions ORDER BY seq DESC LIMIT 1").fetchone()
        return _digest(row[0], "an entry") if row else Digest.parse(self._genesis)

    def revision(self, seq: int) -> RevisionInfo | None:
        """The log entry of a revision; None for 0 and above the head."""
        return self._info(f"{_REVISION} WHERE seq = ?", seq)

    def revisions(self, start: int, stop: int) -> Iterator[RevisionInfo]:
        """The log entries from ``start`` up to, not including, ``stop``."""
        while rows := self._execute(
            f"{_REVISION} WHERE seq >= ? AND seq < ? ORDER BY seq LIMIT ?", (start, stop, PAGE_ROWS)
        ).fetchall():
            yield from map(_info_of, rows)
            start = rows[-1][0] + 1

    def find_publish(self, publish_id: str) -> RevisionInfo | None:
        """The applied entry with this publish id."""
        return self._info(f"{_REVISION} WHERE publish_id = ?", publish_id)

    def at_time(self, time_ns: int) -> Revision:
        """The last revision published by then, 0 when there is none."""
        row = self._execute(
            "SELECT seq FROM revisions WHERE time_ns <= ? ORDER BY time_ns DESC, seq DESC LIMIT 1", (time_ns,)
        ).fetchone()
        return Revision(row[0] if row else 0)

    def totals(self, revision: int) -> tuple[int, int]:
        """The number of files and the sum of their sizes in bytes, links not counted."""
        row = self._execute(
            "SELECT files, bytes FROM revisions WHERE seq <= ? ORDER BY seq DESC LIMIT 1", (revision,)
        ).fetchone()
        return (row[0], row[1]) if row else (0, 0)

    def _info(self, statement: str, key: int | str) -> RevisionInfo | None:
        row = self._execute(statement, (key,)).fetchone()
        return _info_of(row) if row else None

    # -- names ------------------------------------------------------------------------------------------------------

    def lookup(self, parent_node: int, name: str, revision: int) -> Row | None:
        """What ``name`` is in a folder."""
        row = self._execute(_LOOKUP, (parent_node, name, revision)).fetchone()
        if row is None or ((until := row[5]) is not None and until <= revision):
            return None
        return _new_row(Row, row)

    def list(self, parent_node: int, revision: int, *, after: str = "", limit: int = PAGE_ROWS) -> list[Row]:
        """The first ``limit`` names of a folder that come behind ``after``, sorted by their UTF-8 bytes."""
        rows = self._execute(_LIST, (parent_node, after, revision, revision, limit)).fetchall()
        return [_new_row(Row, row) for row in rows]

    def listing(self, parent_node: int, revision: int, *, after: str = "", limit: int = PAGE_ROWS) -> Sequence[Listed]:
        """What ``list`` says, as a scan of a mount needs it: one query, and no object but a tuple for each name."""
        return self._execute(_LISTING, (parent_node, after, revision, limit)).fetchall()

    def get(self, row_id: int) -> Row | None:
        """The row with this id, whatever the revision."""
        row = self._execute(_GET, (row_id,)).fetchone()
        return None if row is None else _new_row(Row, row)

    def folder(self, node: int, revision: int) -> Row | None:
        """What a folder looked like at a revision; None when it was not there."""
        if node == ROOT_NODE:
            return ROOT
        row = self._execute(_FOLDER, (revision, node)).fetchone()
        if row is None or row[3] != node or (row[5] is not None and row[5] <= revision):
            return None
        return _new_row(Row, row)

    def folder_mtime_ns(self, node: int, revision: int) -> int:
        """When a name last came into the folder, left it or changed, in ns since 1970; 0 for an untouched root."""
        row = self._execute(
            "SELECT time_ns FROM revisions WHERE seq = "
            "(SELECT seq FROM touched WHERE node = ? AND seq <= ? ORDER BY seq DESC LIMIT 1)",
            (node, revision),
        ).fetchone()
        return int(row[0]) if row else 0

    def resolve(self, path: str, revision: int) -> Row | None:
        """What a path is; ROOT for the empty one. Raises FormatError for what is no path."""
        row: Row | None = ROOT
        for name in check_path(path).split("/") if path else ():
            if row is None or row.kind != Kind.FOLDER:
                return None
            row = self.lookup(row.node, name, revision)
        return row

    def path_of(self, row: Row, revision: int) -> str:  # noqa: ARG002 - a folder never moves, so any revision will do
        """The path of a row, relative to the show; empty for the root."""
        names = [row.name]
        parent = row.parent
        while parent != ROOT_NODE:
            names_row = self._execute("SELECT parent, name FROM entries WHERE id = ?", (parent,)).fetchone()
            if names_row is None or names_row[0] >= parent:
                raise ReplicaDamaged(f"the replica of {self.show} is damaged: {row.name} lies in no folder")
            parent = names_row[0]
            names.append(names_row[1])
        return "/".join(reversed(names))

    def walk(self, path: str, revision: int) -> Iterator[tuple[str, Row]]:
        """Everything below a folder with its path from the show's root: depth first, names sorted within a folder.

        The folder itself is left out; nothing comes for what is not there or no folder. Memory: a page for each level.
        """
        start = self.resolve(path, revision)
        if start is None or start.kind != Kind.FOLDER:
            return
        levels = [self._below(path, start.node, revision)]
        while levels:
            item = next(levels[-1], None)
            if item is None:
                levels.pop()
                continue
            yield item
            if item[1].kind == Kind.FOLDER:
                levels.append(self._below(item[0], item[1].node, revision))

    def _below(self, path: str, node: int, revision: int) -> Iterator[tuple[str, Row]]:
        prefix = path + "/" if path else ""
        for row in self.names(node, revision):
            yield prefix + row.name, row

    def names(self, node: int, revision: int) -> Iterator[Row]:
        """All names of a folder, sorted, read in pages."""
        after = ""
        while rows := self.list(node, revision, after=after, limit=PAGE_ROWS):
            yield from rows
            if len(rows) < PAGE_ROWS:
                return
            after = rows[-1].name

    # -- contents ---------------------------------------------------------------------------------------------------

    def recipe(self, content: bytes) -> Recipe | None:
        """The recipe of a content id; None when it is an object of its own in the library. Raises ReplicaDamaged."""
        row = self._execute("SELECT recipe FROM contents WHERE content = ?", (content,)).fetchone()
        try:
            return Recipe(row[0]) if row else None
        except (FormatError, TypeError) as error:
            raise ReplicaDamaged(f"the replica of {self.show} is damaged: {error}") from error

    def post(self, row: Row) -> Post:
        """What the op said that made this row.

        The digest of its canonical bytes is the ``pre`` of an op that replaces the row. Raises ReplicaDamaged, never
        what a bad op raises: damage here says nothing about the log.
        """
        if row.kind == Kind.FOLDER:
            return Folder(row.mode)
        if row.kind == Kind.LINK and isinstance(row.target, str):
            return Link(row.target)
        if row.kind != Kind.FILE:
            raise ReplicaDamaged(f"the replica of {self.show} is damaged: {row.name} is of no kind")
        content = _digest(row.content, row.name)
        recipe = None if row.is_object else self.recipe(content)
        if recipe is None and not row.is_object:
            raise ReplicaDamaged(f"the replica of {self.show} is damaged: {row.name} has lost its recipe")
        return File(row.mode, row.size, row.mtime_ns, _digest(row.digest, row.name), content, recipe)

    def pre(self, row: Row) -> Digest:
        """What the ``pre`` of an op that replaces this row must be. Raises ReplicaDamaged."""
        try:
            return post_digest(self.post(row))
        except (FormatError, TypeError) as error:
            raise ReplicaDamaged(f"the replica of {self.show} is damaged at {row.name}: {error}") from error

    # -- differences ------------------------------------------------------------------------------------------------

    def changes(self, a: int, b: int, path: str = "") -> Iterator[Change]:
        """What differs at and below ``path`` from revision ``a`` to ``b``; see ``diff.changes``."""
        return diff.changes(self, self._connection, a, b, path)

    def changed_names(self, a: int, b: int) -> Sequence[ChangedName]:
        """What a kernel that knows revision ``a`` must forget to see ``b``; see ``diff.changed_names``."""
        return diff.changed_names(self, self._connection, a, b)


ReplicaReader = Replica


def _info_of(row: tuple[int, str, bytes, int, str, str, str, str, str]) -> RevisionInfo:
    return RevisionInfo(row[0], row[1], _digest(row[2], "an entry"), *row[3:])


def _digest(stored: object, what: str) -> Digest:
    """A digest as a row has it. Raises ReplicaDamaged."""
    if not isinstance(stored, bytes) or len(stored) != DIGEST_BYTES:
        raise ReplicaDamaged(f"the replica is damaged: {what} without a digest")
    return Digest(stored)
