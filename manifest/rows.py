"""From the ops of one changeset to the rows of one revision: the rules of the namespace.

Rules, each broken one a Conflict with its path (a FormatError where no replica is needed to see it):
``pre`` is the digest of what is there; a version that is there takes nothing more in; a folder does not become
something else, nor something else a folder; no op goes through what is no folder; a folder goes when it is empty
afterwards; siblings differ under NFC; an op changes something.

How it is fast: ops come sorted by path, so all that begin with the same characters stand together, and the folders
above the op at hand are a stack; what is below a folder that this changeset makes needs no look-up. All look-ups
are as of the head before, whether or not rows were already written, so what comes out does not depend on how the
stream was cut into batches.

State: the stack, and rows on their way to the database. Memory: bounded but for 8 bytes for each removed folder.
"""

from __future__ import annotations

import json
import time
from array import array
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

from manifest import before
from manifest.canonical import INTEGER_MAX
from manifest.errors import Conflict, FormatError
from manifest.names import is_version, nfc, split
from manifest.ops import FILE, FOLDER, LINK, REMOVED
from manifest.replica import FOLDER_MODE, ROOT_NODE

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Mapping

    from manifest.ops import Line
    from manifest.replica import Replica, Row

_BATCH_ROWS = 2000
_BATCH_CONTENTS_BYTES = 32 * 1024**2
_CONTENT_BYTES = 160
"""So many bytes of contents, each with what Python adds, are gathered and written in order: their ids are random, and
a page of the database is rewritten each time that a batch meets it."""
_DRAWERS = 16
"""They are gathered by the first bits of their ids, so that no sort holds the interpreter for long."""
_SINGLE = (FILE, LINK)
_NOTHING = (None, None)

_INSERT = "INSERT INTO entries VALUES (?, ?, ?, ?, ?, NULL, ?, ?, ?, ?, ?, ?, ?, ?)"
_FOLDER_AT = (
    "SELECT node, kind FROM entries WHERE parent = ? AND name = ? AND since < ? AND (until IS NULL OR until >= ?) "
    "ORDER BY since DESC LIMIT 1"
)
_CLOSE = "UPDATE entries SET until = ? WHERE parent = ? AND name = ? AND since = ?"
_CLOSE_MANY = (
    "UPDATE entries SET until = :seq WHERE parent = :parent AND name IN (SELECT value FROM json_each(:names)) "
    "AND since < :seq AND until IS NULL"
)
_CONTENT = "INSERT OR IGNORE INTO contents VALUES (?, ?)"
_SPELLING = "INSERT INTO spellings VALUES (?, ?, ?)"
_TOUCH = "INSERT INTO touched VALUES (?, ?)"
# A new name in NFC and one that is there in another form; the other way round; two in other forms.
_NEW_IN_NFC = (
    "SELECT e.id FROM entries e INDEXED BY entries_since CROSS JOIN spellings s "
    "ON s.parent = e.parent AND s.nfc = e.name CROSS JOIN entries o ON o.id = s.id "
    "WHERE e.since = :seq AND o.until IS NULL LIMIT 1"
)
_OLD_IN_NFC = (
    "SELECT s.id FROM spellings s CROSS JOIN entries o ON o.parent = s.parent AND o.name = s.nfc "
    "WHERE s.id > :last AND o.until IS NULL LIMIT 1"
)
_NONE_IN_NFC = (
    "SELECT s.id FROM spellings s CROSS JOIN spellings t ON t.parent = s.parent AND t.nfc = s.nfc AND t.id <> s.id "
    "CROSS JOIN entries o ON o.id = t.id WHERE s.id > :last AND o.until IS NULL LIMIT 1"
)


class _Place:
    """A path on the stack: a folder, or (``node`` None) something that nothing can be below.

    ``frozen``: it is, or lies in, a version that was there before.
    """

    __slots__ = ("frozen", "is_new", "node", "path", "removed", "touched")

    def __init__(self, path: str, node: int | None, *, is_new: bool = False, frozen: bool = False) -> None:
        self.path = path
        self.node = node
        self.is_new = is_new
        self.frozen = frozen
        self.removed = False
        self.touched = False


def _differs(path: str, pre: bytes | None, there: bytes | None) -> Conflict:
    """What is there is not what the publisher saw there."""
    if pre is None:
        return Conflict(f"{path} is there already, and its publisher did not know", path)
    if there is None:
        return Conflict(f"{path} is not there, and its publisher saw b3:{pre.hex()}", path)
    was = f"its publisher saw b3:{pre.hex()}, and it is b3:{there.hex()}"
    return Conflict(f"{path} changed in between: {was}", path)


class Namespace:
    """Applies one changeset as revision ``seq``, in a transaction that is the caller's.

    Invariant: each path on the stack is a prefix, as a string, of the one after it.
    """

    def __init__(self, connection: sqlite3.Connection, replica: Replica, seq: int) -> None:
        self._connection = connection
        self._replica = replica
        self._seq = seq
        self._head = seq - 1
        (last,) = connection.execute("SELECT max(id) FROM entries").fetchone()
        self._first_id = self._id = int(last or 0)
        self.files, self.bytes = replica.totals(self._head)
        self.ops = 0
        self._stack = [_Place("", ROOT_NODE)]
        self._rows: list[tuple[object, ...]] = []
        self._closed: list[tuple[int, str, int]] = []
        self._before: Mapping[str, before.Before] = {}
        self._looked_up = 0
        self._contents: list[list[tuple[bytes, bytes]]] = [[] for _ in range(_DRAWERS)]
        self._contents_held = 0
        self._spellings: list[tuple[int, int, str]] = []
        self._touched: list[tuple[int, int]] = []
        self._removed = array("q")

    def apply(self, batches: Iterable[list[Line]]) -> None:
        """Write the rows of a whole changeset. Raises Conflict and FormatError, leaving rows half written."""
        last, above, place = "\0", "", self._stack[0]
        for batch in batches:
            self._looked_up = 0
            for at, line in enumerate(batch):
                path, parent, name, pre, packed, kind = line[:6]
                if path.startswith(last):
                    self._cover(last, path)
                if parent != above:
                    place = self._folder(path, parent, makes=kind != REMOVED)
                    above = parent
                if place.is_new and pre is None and kind in _SINGLE and name.isascii():
                    # what most ops are: a new name, which needs no care, in a new folder, which is touched
                    self._id = row_id = self._id + 1
                    self._rows.append((row_id, place.node, name, 0, self._seq, *line[5:]))
                    if kind == FILE:
                        self.files += 1
                        self.bytes += line[7]
                        if packed is not None:
                            self._keep(line[10], packed)
                else:
                    if at >= self._looked_up and not place.is_new:
                        self._look_up(place, batch, at)
                    self._op(place, line)
                last = path
            self.ops += len(batch)
            self._flush()
            time.sleep(0)  # let a waiting event loop have the interpreter
        self._flush(everything=True)
        self._finish()

    # -- the folders above ------------------------------------------------------------------------------------------

    def _pop(self, path: str) -> None:
        while not path.startswith(self._stack[-1].path):
            self._stack.pop()

    def _cover(self, last: str, path: str) -> None:
        """Remember the op before, whose path begins like this one: it may stand where a folder has to be."""
        self._pop(path)
        if self._stack[-1].path != last:
            self._stack.append(_Place(last, None))

    def _folder(self, path: str, parent: str, *, makes: bool) -> _Place:
        """The folder that ``path`` lies in; made when it is not there and the op ``makes`` something."""
        self._pop(path)
        place = next(p for p in reversed(self._stack) if not p.path or path[len(p.path)] == "/")
        if place.node is None:
            raise Conflict(f"{path} goes through {place.path}, which is no folder", path)
        below = parent[len(place.path) :].lstrip("/")
        for name in below.split("/") if below else ():
            place = self._descend(place, name, path, makes=makes)
            self._stack.append(place)
        return place

    def _descend(self, place: _Place, name: str, path: str, *, makes: bool) -> _Place:
        assert place.node is not None
        here = f"{place.path}/{name}" if place.path else name
        folder = None
        if not place.is_new:
            folder = self._connection.execute(_FOLDER_AT, (place.node, name, self._seq, self._seq)).fetchone()
        if folder is not None:
            node, kind = folder
            if kind != FOLDER:
                raise Conflict(f"{path} goes through {here}, which is no folder", path)
            return _Place(here, node, frozen=place.frozen or is_version(name))
        if not makes:
            raise Conflict(f"{path} is not there: its folder {here} is not", path)
        self._may_add(place, path)
        return self._new_folder(place, here, name, FOLDER_MODE)

    def _new_folder(self, place: _Place, path: str, name: str, mode: int) -> _Place:
        self._touch(place)
        made = _Place(path, self._add(place, name, FOLDER, mode), is_new=True)
        self._touch(made)
        return made

    def _may_add(self, place: _Place, path: str) -> None:
        if place.frozen:
            raise Conflict(f"{path} lies in a version that was published before; versions are write-once", path)
        if place.removed:
            raise Conflict(f"{path} lies in {place.path}, which the same publish removes", path)

    # -- ops --------------------------------------------------------------------------------------------------------

    def _look_up(self, place: _Place, batch: list[Line], at: int) -> None:
        """Look up what is at the paths from ``at`` on that lie in the same folder, all at once."""
        assert place.node is not None
        parent, end = batch[at][1], at + 1
        while end < len(batch) and batch[end][1] == parent:
            end += 1
        wanted = {line[2]: line[3] for line in batch[at:end]}
        self._before = before.posts(self._replica, self._connection, place.node, wanted, self._head)
        self._looked_up = end

    def _op(self, place: _Place, line: Line) -> None:
        path, _, name, pre, packed, kind, mode, size, _, _, content, _, _ = line
        if kind != REMOVED:
            self._may_add(place, path)
        row, there = _NOTHING if place.is_new else self._before.get(name, _NOTHING)
        if there != pre:
            raise _differs(path, pre, there)
        if kind == FOLDER:
            self._set_folder(place, path, name, row, mode)
            return
        if row is not None:
            if row.kind == FOLDER:
                if kind != REMOVED:
                    raise Conflict(f"{path} is a folder and does not become something else: remove it first", path)
                self._remove_folder(place, path, row)
            elif row[6:] == line[5:]:
                raise Conflict(f"{path}: nothing changes", path)
            self._close(row)
        if not place.touched:
            self._touch(place)
        if kind != REMOVED:
            self._add(place, name, *line[5:])
            if kind == FILE:
                self.files += 1
                self.bytes += size
                if packed is not None:
                    self._keep(content, packed)

    def _set_folder(self, place: _Place, path: str, name: str, row: Row | None, mode: int) -> None:
        self._pop(path)
        if row is None:
            self._stack.append(self._new_folder(place, path, name, mode))
            return
        if row.kind != FOLDER:
            raise Conflict(f"{path} is no folder and does not become one: remove it first", path)
        if is_version(name):
            raise Conflict(f"{path} is a version that was published before; versions are write-once", path)
        if row.mode == mode:
            raise Conflict(f"{path}: nothing changes", path)
        self._close(row)
        self._add(place, name, FOLDER, mode, node=row.node)
        kept = _Place(path, row.node, frozen=place.frozen)
        self._touch(kept)
        self._stack.append(kept)

    def _remove_folder(self, place: _Place, path: str, row: Row) -> None:
        self._removed.append(row.node)
        gone = _Place(path, row.node, frozen=place.frozen or is_version(row.name))
        gone.removed = True
        self._pop(path)
        self._stack.append(gone)

    # -- rows -------------------------------------------------------------------------------------------------------

    def _add(
        self,
        place: _Place,
        name: str,
        kind: int,
        mode: int,
        size: int = 0,
        mtime_ns: int = 0,
        digest: bytes | None = None,
        content: bytes | None = None,
        target: str | None = None,
        is_object: int = 0,
        *,
        node: int = 0,
    ) -> int:
        """A new row; its id is the next one, in the order of the ops, in every replica."""
        self._id = row_id = self._id + 1
        node = (node or row_id) if kind == FOLDER else 0
        self._rows.append(
            (row_id, place.node, name, node, self._seq, kind, mode, size, mtime_ns, digest, content, target, is_object)
        )
        if not name.isascii() and (form := nfc(name)) != name:
            assert place.node is not None
            self._spellings.append((row_id, place.node, form))
        return row_id

    def _close(self, row: Row) -> None:
        self._closed.append((row.parent, row.name, row.since))
        if row.kind == FILE:
            self.files -= 1
            self.bytes -= row.size

    def _keep(self, content: bytes | None, packed: bytes) -> None:
        assert content is not None
        self._contents[content[0] * _DRAWERS >> 8].append((content, packed))
        self._contents_held += len(packed) + _CONTENT_BYTES

    def _touch(self, place: _Place) -> None:
        assert place.node is not None
        if not place.touched:
            place.touched = True
            self._touched.append((place.node, self._seq))

    def _flush(self, *, everything: bool = False) -> None:
        if len(self._closed) >= _BATCH_ROWS or everything:
            self._end_rows()
        for statement, rows in ((_INSERT, self._rows), (_TOUCH, self._touched), (_SPELLING, self._spellings)):
            if len(rows) >= _BATCH_ROWS or everything:
                self._connection.executemany(statement, rows)
                rows.clear()
        if self._contents_held >= _BATCH_CONTENTS_BYTES or everything:
            for drawer in self._contents:
                drawer.sort(key=itemgetter(0))
                self._connection.executemany(_CONTENT, drawer)
                drawer.clear()
            self._contents_held = 0

    def _end_rows(self) -> None:
        """Write when rows ended: those of a folder that stand together in one statement."""
        single: list[tuple[int, int, str, int]] = []
        for parent, group in groupby(self._closed, itemgetter(0)):
            rows = [*group]
            if len(rows) <= before.FEW:
                single += [(self._seq, *row) for row in rows]
            else:
                names = json.dumps([name for _, name, _ in rows], ensure_ascii=False)
                self._connection.execute(_CLOSE_MANY, {"seq": self._seq, "parent": parent, "names": names})
        self._connection.executemany(_CLOSE, single)
        self._closed.clear()

    def _finish(self) -> None:
        """The rules that need the whole changeset to be in."""
        for node in self._removed:
            left = self._connection.execute(
                "SELECT id FROM entries WHERE parent = ? AND until IS NULL LIMIT 1", (node,)
            ).fetchone()
            if left is not None:
                path = self._path(left[0])
                raise Conflict(f"{split(path)[0]} is removed and not empty: {path} is left", path)
        if self._connection.execute("SELECT 1 FROM spellings LIMIT 1").fetchone() is not None:
            for statement in (_NEW_IN_NFC, _OLD_IN_NFC, _NONE_IN_NFC):
                alike = self._connection.execute(statement, {"seq": self._seq, "last": self._first_id}).fetchone()
                if alike is not None:
                    path = self._path(alike[0])
                    raise Conflict(f"{path} has a sibling whose name looks the same: they are equal under NFC", path)
        if self.bytes > INTEGER_MAX:
            raise FormatError(f"the files of the show would have {self.bytes} bytes together, more than can be counted")

    def _path(self, row_id: int) -> str:
        row = self._replica.get(row_id)
        assert row is not None
        return self._replica.path_of(row, self._seq)
