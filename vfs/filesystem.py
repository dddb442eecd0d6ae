"""The file system, neutral of how the kernel is spoken to: a binding turns requests into these calls.

Rules for bindings:

- the methods that answer requests, all but ``read``, are plain functions that touch nothing but the replica (one
  look-up, or one listing of at most 1,000 names). Where an answer must be waited for they raise ``Wait``
  (vfs/loading.py).
- an answer and its reply are one step: no ``await`` between them. An answer made before ``advance`` is then
  written before the notices that correct it.
- errors are raised as exceptions of the DamfsError tree; ``vfs.errno`` has their numbers.
- all of it belongs to the event loop's thread.

State: the attached shows (views) and the open handles. There is no table of inodes: a number says what it means.
Invariant: what the kernel was told to keep for ever is true until a notice takes it back.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, ParamSpec, TypeVar

import trio

from cache.store import CacheStore
from manifest.errors import IsAFolder, NotALink, NotFound, Unavailable
from manifest.names import At, Revision
from manifest.replica import ROOT_NODE, Kind, ReplicaReader, Row
from vfs import attributes, inodes, views, xattrs
from vfs.ahead import Ahead, AheadLimits
from vfs.attributes import NO_SUCH_NAME, Attributes
from vfs.errno import NameTooLong, ReadOnly, Stale
from vfs.handles import Batch, FileHandle, FolderHandle, Handles, RootHandle
from vfs.inodes import LIVE, ROOT_INO, Ino, Slots, Where
from vfs.invalidation import Notice, Notifier, Turn, plan
from vfs.loading import ShowLoader, Wait
from vfs.metrics import Metrics
from vfs.reads import Buffer, Reads
from vfs.recording import Recorder
from vfs.views import ShowView, Views

NAME_BYTES_MAX = 255
STATFS_BLOCK_BYTES = 4096
REACH_S = 2.0
"""How long a look-up of ``<show>@N`` above the head waits for that revision to come."""

_WRITES = os.O_ACCMODE | os.O_TRUNC
_P = ParamSpec("_P")
_T = TypeVar("_T")


class Usage(NamedTuple):
    """For statfs: the bytes and files of the loaded shows at their heads; nothing is free on a read-only mount.

    A show that is not loaded is not counted: its size stands in its replica alone, and nobody reads that for a ``df``.
    """

    bytes: int
    files: int


class Filesystem:
    """The mounted library. ``owner``: the (uid, gid) that everything belongs to."""

    def __init__(
        self,
        cache: CacheStore,
        loader: ShowLoader,
        slots: Slots,
        *,
        owner: tuple[int, int],
        read_deadline_s: float,
        metrics: Metrics,
        ahead: AheadLimits = AheadLimits(),  # noqa: B008 - it never changes
    ) -> None:
        self.views = Views()
        self.metrics = metrics
        self.owner = owner
        self.told_before: dict[int, Revision] = {}
        """By slot: the revision that the kernel was wholly told of, by a predecessor; for shows to be attached."""
        self.on_told: Callable[[int, Revision], None] | None = None
        self.recorder: Recorder | None = None
        self.on_open: Callable[[ShowView, Row], None] | None = None
        """Called for each file that is opened; returns at once."""
        self._notifier: Notifier | None = None
        self._untold: list[Turn] = []
        self.handles = Handles(metrics)
        self._cache = cache
        self._loader = loader
        self._slots = slots
        self.ahead = Ahead(cache, ahead)
        metrics.watch_ahead(self.ahead.now)
        self.reads = Reads(cache, read_deadline_s, metrics, self.ahead)
        self._planning = trio.CapacityLimiter(2)
        self._root_mtime_ns = time.time_ns()

    # What the keeper of the replicas calls.

    async def attach(
        self,
        show: str,
        reader: ReplicaReader,
        head: Revision,
        *,
        planner: ReplicaReader,
        told: Sequence[Revision] = (),
    ) -> None:
        """Serve a show, which has a slot, from its replica. The readers are the caller's to close, after the mount.

        ``reader`` is used on the event loop's thread, ``planner`` in worker threads, one at a time. ``told``: the
        kernel may still hold answers of these revisions, which a predecessor of this process served, in order (the
        last one that the kernel was wholly told of, and the heads since). The turns from each of them to the next
        and to ``head`` are handed to the notifier, as soon as there is one. Without ``told`` it is what the binding
        knows (``told_before``), and each revision since then.
        Raises Unavailable when the replica does not have them. Without ``told`` this is one step; cancellation leaves
        the show served, with its turns queued, or not.
        """
        slot = self._slots.get(show)
        assert slot is not None, f"{show} has no slot"
        view = ShowView(show, slot, reader, head, planner)
        before = self.told_before.pop(slot, None)
        if not told and before is not None:
            told = [Revision(revision) for revision in range(before, head)] or [before]
        if not told:
            if self.on_told is not None:
                self.on_told(slot, head)
            self.views.attach(view)
            return
        if max(told) > head:
            raise Unavailable(f"{show} was served at revision {max(told)}, and the replica has {head} only: sync it")
        view.links = min(told)
        async with view.advancing:
            turns = [await self._plan(view, *step) for step in itertools.pairwise(sorted({*told, head}))]
            self.views.attach(view)
            if self._notifier is None:
                self._untold += turns
                return
            for turn in turns:
                await self._submit(turn)

    async def replace_readers(
        self, show: str, reader: ReplicaReader, *, planner: ReplicaReader
    ) -> tuple[ReplicaReader, ReplicaReader]:
        """Serve an attached show from another replica of the same log, which has at least what is shown now.

        Returns the readers that are in use no longer: the caller's to close. Cancellation changes nothing.
        """
        view = self.views.get(show)
        assert view is not None, f"{show} is not attached"
        async with view.advancing:
            return view.replace_readers(reader, planner)

    async def advance(self, show: str, head: Revision) -> int:
        """Show a newer head, once the replica has it. Returns the number of notices to the kernel.

        The caller may ``settle`` the notifier. Cancellation leaves the old head or the new one with its turn queued.
        """
        view = self.views.get(show)
        if view is None:
            return 0
        async with view.advancing:
            if head <= view.head:
                return 0
            turn = await self._plan(view, view.head, head)
            view.head = head
            if self._notifier is not None:
                await self._submit(turn)
            elif any(older.slot == view.slot for older in self._untold):
                self._untold.append(turn)
            else:  # nobody holds anything
                view.turn_links(head)
            return len(turn.plan)

    async def shows_changed(self) -> None:
        """The list of known shows is another one: the root of the mount has a new time."""
        self._root_mtime_ns = time.time_ns()
        await self._submit([Notice(ROOT_INO)])

    @property
    def notifier(self) -> Notifier | None:
        """Who tells the kernel of changes, while something is mounted."""
        return self._notifier

    def notify_through(self, notifier: Notifier | None) -> None:
        """Tell the kernel of changes through this notifier from now on, beginning with what it was not told yet."""
        self._notifier = notifier
        if notifier is not None:
            notifier.begin_with(self._untold)
            self._untold.clear()

    async def _plan(self, view: ShowView, before: Revision, after: Revision) -> Turn:
        made = await trio.to_thread.run_sync(plan, view.slot, view.planner, before, after, limiter=self._planning)
        return Turn(view.slot, after, made, view.turn_links)

    async def _submit(self, item: Sequence[Notice] | Turn) -> None:
        if self._notifier is not None:
            with trio.CancelScope(shield=True):  # a head without its notices would be stale for ever
                await self._notifier.submit(item)

    # Waiting.

    async def wait_for(self, wait: Wait) -> None:
        """Wait until the call that raised ``wait`` can be answered. Raises NotFound or Unavailable when it cannot."""
        if self.views.get(wait.show) is None:
            if not await self._loader.load(wait.show):
                raise NotFound(f"the library has no show {wait.show}")
            if self.views.get(wait.show) is None:
                raise Unavailable(f"the show {wait.show} could not be loaded")
        if wait.revision is not None:
            with trio.move_on_after(REACH_S):
                await self._loader.reach(wait.show, wait.revision, REACH_S)

    async def patiently(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """``call`` one of the plain methods, and wait where it must be waited for. Raises what it raises."""
        for _ in range(3):  # at most: load the show, reach the revision, answer
            try:
                return call(*args, **kwargs)
            except Wait as wait:
                await self.wait_for(wait)
                if wait.revision is not None:
                    break
        try:
            return call(*args, **kwargs)
        except Wait as wait:
            raise NotFound(f"{wait.show} has no revision {wait.revision} yet") from None

    # Names and attributes.

    def lookup(self, parent: int, name: bytes) -> Attributes:
        """LOOKUP: the attributes of a name; ``ino`` 0 where its absence may be remembered.

        Raises Wait, NotFound (where absence must not be remembered), NameTooLong.
        """
        if len(name) > NAME_BYTES_MAX:
            raise NameTooLong(f"a name of {len(name)} bytes")
        try:
            text = name.decode()
        except UnicodeDecodeError:
            if parent == ROOT_INO:
                raise NotFound(f"no show is called {name!r}") from None
            return NO_SUCH_NAME
        if parent == ROOT_INO:
            return self._lookup_root(text)
        where = inodes.decode(parent)
        view = self._view(where)
        return view.lookup(where.view, where.id, text, self.owner)

    def getattr(self, ino: int) -> Attributes:
        """GETATTR. Raises Wait, and Stale for a folder that is gone."""
        if ino == ROOT_INO:
            return attributes.root_attributes(self._root_mtime_ns, self.owner)
        where = inodes.decode(ino)
        view = self._view(where)
        if inodes.is_time_link(where):
            return view.time_link(Revision(where.view), self.owner)
        if inodes.is_folder(where):
            return view.folder_attributes(where.view, where.id, self.owner)
        return view.attributes(self._row(view, where), LIVE, self.owner)

    def readlink(self, ino: int) -> bytes:
        """READLINK: the target of a link. Raises Wait, NotALink."""
        where = inodes.decode(ino)
        view = self._view(where)
        if inodes.is_time_link(where):
            return view.pinned_name(where.view)
        row = self._row(view, where)
        if row.kind != Kind.LINK or row.target is None:
            raise NotALink(f"inode {ino} is no link")
        return row.target.encode()

    def statfs(self) -> Usage:
        """STATFS of the whole mount."""
        totals = [view.reader.totals(view.head) for view in self.views]
        return Usage(sum(size for _, size in totals), sum(files for files, _ in totals))

    def getxattr(self, ino: int, name: bytes) -> bytes:
        """GETXATTR: the value. Raises Wait, NoAttribute, NoNamespace."""
        if not name.startswith(xattrs.NAMESPACE):
            raise xattrs.NOT_SUPPORTED
        if not name.startswith(xattrs.PREFIX) or ino == ROOT_INO:
            raise xattrs.REFUSAL
        where = inodes.decode(ino)
        view = self._view(where)
        if inodes.is_time_link(where):
            raise xattrs.REFUSAL
        if inodes.is_folder(where):
            return xattrs.value_of_revision(view, self._folder_revision(view, where), name)
        return xattrs.value_of_file(view, self._row(view, where), name, self._cache)

    def listxattr(self, ino: int) -> tuple[bytes, ...]:
        """LISTXATTR: the names of the extended attributes. Raises nothing."""
        if ino == ROOT_INO or inodes.is_time_link(inodes.decode(ino)):
            return ()
        return xattrs.FOLDER_NAMES if inodes.is_folder(inodes.decode(ino)) else xattrs.FILE_NAMES

    # Files and folders.

    def file(self, ino: int, flags: int) -> FileHandle:
        """A file to be read, which is not among the open ``handles``. Raises Wait, ReadOnly, IsAFolder."""
        if flags & _WRITES:
            raise ReadOnly("the mount is read-only: publish, or work in a workspace")
        where = inodes.decode(ino)
        if ino == ROOT_INO or inodes.is_folder(where):
            raise IsAFolder(f"inode {ino} is a folder")
        view = self._view(where)
        return FileHandle(view, self._row(view, where))

    def opened(self, handle: FileHandle, pid: int) -> None:
        """To be called for each file that a program opens, before its way of reading is chosen; ``pid`` is a thread's.

        When the handle has ``touched`` then, its reads must come through damfs, also of what the kernel has in memory.
        """
        if self.recorder is not None:
            handle.touched = self.recorder.opened(pid, handle.view, handle.row)
        if self.on_open is not None:
            self.on_open(handle.view, handle.row)
        self.ahead.opened(handle)

    def open(self, ino: int, flags: int, pid: int) -> tuple[int, bool]:
        """OPEN: a handle on a file, and whether what the kernel has of it in memory may stay.

        Raises Wait, ReadOnly, IsAFolder, TooManyHandles.
        """
        handle = self.file(ino, flags)
        self.opened(handle, pid)
        return self.handles.add(handle), handle.touched is None

    async def read(self, handle: int, offset: int, size: int) -> Buffer:
        """READ: exactly min(size, file size - offset) bytes. Raises what ``Reads.read`` raises."""
        return await self.reads.read(self.handles.file(handle), offset, size)

    def release(self, handle: int) -> None:
        """RELEASE and RELEASEDIR."""
        self.handles.release(handle)

    def folder(self, ino: int, revision: int | None = None) -> FolderHandle | RootHandle:
        """A folder to be listed, as it is now or was at a revision; not among the open ``handles``.

        Raises Wait, Stale.
        """
        if ino == ROOT_INO:
            return RootHandle(self._shows())
        where = inodes.decode(ino)
        return FolderHandle(self._view(where), where.view, where.id, None if revision is None else Revision(revision))

    def opendir(self, ino: int) -> int:
        """OPENDIR: a handle that lists the folder as it is now. Raises Wait, Stale, TooManyHandles."""
        return self.handles.add(self.folder(ino))

    def readdir(self, handle: int, offset: int) -> Batch:
        """READDIR: the entries behind an offset, none at the end; ``.`` and ``..`` come first."""
        return self.handles.folder(handle).batch(offset)

    def _lookup_root(self, text: str) -> Attributes:
        show, at = views.parse_root_name(text)
        view = self.views.get(show)
        if view is None:
            raise Wait(show)
        if at is None:
            found = view.folder_attributes(LIVE, ROOT_NODE, self.owner)
            found.attr_timeout_s = 0.0  # instead of a fence in the mount's root (vfs/invalidation.py)
            return found
        if isinstance(at, At):
            return view.time_link(view.reader.at_time(at.time_ns), self.owner)
        if at > view.head:
            raise Wait(show, at)
        return view.folder_attributes(at, ROOT_NODE, self.owner)

    def _shows(self) -> list[tuple[str, int]]:
        known = ((show, self._slots.get(show)) for show in sorted(self._loader.known_shows()))
        return [(show, slot) for show, slot in known if slot is not None]

    def _view(self, where: Where) -> ShowView:
        view = self.views.at(where.slot)
        if view is None:
            show = self._slots.show(where.slot)
            if show is None:
                raise Stale(f"no show has the slot {where.slot}")
            raise Wait(show)
        return view

    def _row(self, view: ShowView, where: Where) -> Row:
        row = view.reader.get(where.id)
        if row is None:
            raise Stale(f"{view.show} has no row {where.id}")
        return row

    def _folder_revision(self, view: ShowView, where: Where) -> int:
        revision = view.revision(where.view)
        row = view.reader.folder(where.id, revision)
        if row is None:
            raise Stale(f"{view.show}: folder {where.id} is not there at revision {revision}")
        return revision if where.id == ROOT_NODE else row.since


__all__ = ["Filesystem", "Ino", "Usage", "Wait"]
