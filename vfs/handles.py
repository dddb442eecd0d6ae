"""Open files and open folders, by the number that the kernel holds of them.

State: ``Handles``, one table; an entry lives from OPEN to RELEASE.
Invariant: a handle keeps what it was opened on. A file's row never changes; a folder's listing keeps the revision
of its OPENDIR however far the head goes, so a name is neither listed twice nor lost.

Offsets in a folder are ``position << 29 | row id``: the position finds the entry in the batch at hand, the row id
finds the place again from nothing, also in another process. ``.`` and ``..`` come first, at the positions 1 and 2
with row id 0; in the root of the mount the id is the show's slot. Of the two only inode and type are asked: the
kernel never takes their attributes out of a listing.
"""

from __future__ import annotations

import itertools
import stat
from collections.abc import Sequence
from typing import NamedTuple

import trio

from cache.handle import CachedObject
from manifest.errors import Unavailable
from manifest.names import Revision
from manifest.replica import ROOT_NODE, Kind, Listed, Row
from vfs import inodes
from vfs.attributes import INFINITE_S
from vfs.errno import Stale, TooManyHandles
from vfs.inodes import ID_BITS, ID_MAX, LIVE, ROOT_INO
from vfs.metrics import Metrics
from vfs.readahead import FileAhead
from vfs.recording import Touched
from vfs.views import ShowView

BATCH_NAMES_MAX = 1000
"""The most names that one query of the replica lists: about 0.7 ms."""
HANDLES_MAX = 1024 * 1024
_FILE, _FOLDER = int(Kind.FILE), int(Kind.FOLDER)

DirEntry = tuple[bytes, int, int, int, int, int]
"""(name, inode, mode with type bits, size in bytes, mtime in ns, the offset behind it): a tuple, for speed."""


class Batch(NamedTuple):
    """Entries of a folder, of which those from ``start`` on are asked for; none left: the end.

    The timeouts (in seconds) are 0 when the listing is older than the head, or newer than the links that look-ups
    give: what it says must not be kept.
    """

    entries: Sequence[DirEntry]
    start: int
    timeout_s: float


class Failed(NamedTuple):
    """A read that waited in vain: which bytes of the file, why, and until when (trio's clock) that is the answer."""

    start: int
    stop: int
    error: Unavailable
    until: float


class FileHandle:
    """An open file. The cached object behind it is opened at the first read, so that OPEN never waits.

    ``complained``: that its bytes are not what was published stands in the log. ``touched``: its reads are recorded.
    ``ahead`` is told of its reads while not all of its bytes are here.
    """

    __slots__ = ("ahead", "complained", "failed", "object", "opening", "row", "touched", "view")

    def __init__(self, view: ShowView, row: Row) -> None:
        self.view = view
        self.row = row
        self.object: CachedObject | None = None
        self.ahead: FileAhead | None = None
        self.opening: trio.Lock | None = None
        self.failed: Failed | None = None
        self.complained = False
        self.touched: Touched | None = None

    @property
    def key(self) -> tuple[str, bytes | None]:
        """What names its content in the cache."""
        return self.view.show, self.row.content

    def release(self) -> None:
        if self.ahead is not None:
            self.ahead.close()
            self.ahead = None
        if self.object is not None:
            self.object.release()
            self.object = None


class FolderHandle:
    """An open folder of a show: the revision of its OPENDIR, and the batch of entries last asked for."""

    __slots__ = ("_begin", "_dots", "_entries", "_view", "_view_number", "node", "revision")

    def __init__(self, view: ShowView, view_number: int, node: int, revision: Revision | None = None) -> None:
        """``revision``: the one of its OPENDIR; None: the view's now. Raises Stale when there is no such folder."""
        self._view = view
        self._view_number = view_number
        self.node = node
        self.revision = view.revision(view_number) if revision is None else revision
        row = view.reader.folder(node, self.revision)
        if row is None:
            raise Stale(f"{view.show}: folder {node} is not there at revision {self.revision}")
        here = inodes.folder_ino(view.slot, view_number, node)
        above = ROOT_INO if node == ROOT_NODE else inodes.folder_ino(view.slot, view_number, row.parent)
        self._dots = _dots(here, above)
        self._begin = 0
        self._entries: list[DirEntry] = []

    def batch(self, offset: int) -> Batch:
        """The entries behind ``offset``: 0, or one that an entry of this folder came with."""
        start = (offset >> ID_BITS) - self._begin
        entries = self._entries
        if not (0 < start < len(entries) and entries[start - 1][5] == offset):
            entries, start = self._fill(offset), 0
        view = self._view
        is_kept = self._view_number != LIVE or (self.revision == view.head and not view.is_turning)
        return Batch(entries, start, INFINITE_S if is_kept else 0.0)

    def release(self) -> None:
        """Nothing is held beside the handle itself."""

    def _fill(self, offset: int) -> list[DirEntry]:
        after = ""
        row_id = offset & 2**ID_BITS - 1
        if row_id:
            row = self._view.reader.get(row_id)
            if row is None:
                return []
            after = row.name
        rows = self._view.reader.listing(self.node, self.revision, after=after, limit=BATCH_NAMES_MAX)
        self._begin = offset >> ID_BITS
        names = self._prepare(rows, max(self._begin, len(self._dots)) + 1)
        self._entries = names if row_id else [*self._dots[self._begin :], *names]
        return self._entries

    def _prepare(self, rows: Sequence[Listed], first: int) -> list[DirEntry]:
        slot, number = self._view.slot, self._view_number
        base = inodes.base(slot)
        if rows and (last := max(rows)[0]) > ID_MAX:
            inodes.row_ino(slot, last)  # raises: it has no number
        return [
            (name, base | row_id, stat.S_IFREG | mode, size, mtime_ns, position << ID_BITS | row_id)
            if kind == _FILE
            else (name, inodes.folder_ino(slot, number, node), stat.S_IFDIR | mode, size, mtime_ns,
                  position << ID_BITS | row_id)
            if kind == _FOLDER
            else (name, base | row_id, stat.S_IFLNK | 0o777, size, mtime_ns, position << ID_BITS | row_id)
            for position, (row_id, name, kind, node, mode, size, mtime_ns) in enumerate(rows, first)
        ]  # fmt: skip


class RootHandle:
    """The open root of the mount: the shows that were known at its OPENDIR."""

    __slots__ = ("_entries",)
    revision = Revision(0)
    """The root has no revisions."""

    def __init__(self, shows: Sequence[tuple[str, int]]) -> None:
        """``shows``: (name, slot), in order. Above the root is what the mountpoint lies in: it is not ours to name."""
        self._entries: list[DirEntry] = [
            *_dots(ROOT_INO, ROOT_INO),
            *(
                (show.encode(), inodes.folder_ino(slot, LIVE, ROOT_NODE), stat.S_IFDIR | 0o755, 0, 0,
                 position << ID_BITS | slot)
                for position, (show, slot) in enumerate(shows, 3)
            ),
        ]  # fmt: skip

    def batch(self, offset: int) -> Batch:
        """What it says of a show is not kept: the next look-up asks again."""
        return Batch(self._entries, self._start(offset), 0.0)

    def _start(self, offset: int) -> int:
        """Behind the entry that came with ``offset``, also when another process, with other shows, said so."""
        position, entries = offset >> ID_BITS, self._entries
        if position <= len(entries) and (position == 0 or entries[position - 1][5] == offset):
            return position
        slot = offset & 2**ID_BITS - 1
        return next((n for n, entry in enumerate(entries, 1) if entry[5] & 2**ID_BITS - 1 == slot), len(entries))

    def release(self) -> None:
        """Nothing is held beside the handle itself."""


def _dots(here: int, above: int) -> list[DirEntry]:
    return [
        (name, ino, stat.S_IFDIR | 0o755, 0, 0, position << ID_BITS)
        for position, (name, ino) in enumerate(((b".", here), (b"..", above)), 1)
    ]


Handle = FileHandle | FolderHandle | RootHandle


class Handles:
    """All open handles, by their numbers, which are never used again."""

    def __init__(self, metrics: Metrics) -> None:
        self._open: dict[int, Handle] = {}
        self._numbers = itertools.count(1)
        metrics.handles.set_function(lambda: len(self._open))

    def add(self, handle: Handle) -> int:
        """Register a handle. Raises TooManyHandles."""
        if len(self._open) >= HANDLES_MAX:
            raise TooManyHandles(f"{HANDLES_MAX} files and folders are open")
        number = next(self._numbers)
        self._open[number] = handle
        return number

    def file(self, number: int) -> FileHandle:
        """The open file with this number. Raises Stale."""
        handle = self._open.get(number)
        if not isinstance(handle, FileHandle):
            raise Stale(f"handle {number} is no open file")
        return handle

    def folder(self, number: int) -> FolderHandle | RootHandle:
        """The open folder with this number. Raises Stale."""
        handle = self._open.get(number)
        if handle is None or isinstance(handle, FileHandle):
            raise Stale(f"handle {number} is no open folder")
        return handle

    def release(self, number: int) -> None:
        """Close a handle; one that is not open is ignored."""
        handle = self._open.pop(number, None)
        if handle is not None:
            handle.release()

    def release_all(self) -> None:
        """Close what is still open when the mount is gone."""
        while self._open:
            self._open.popitem()[1].release()

    def __len__(self) -> int:
        return len(self._open)
