"""Views: a show as of one revision, and what the names in the root of the mount stand for.

    <show>           the live view: it follows the head
    <show>@<N>       pinned at revision N; reachable by name, not listed
    <show>@<time>    a symbolic link to the last revision published by then (ISO 8601, UTC unless it says otherwise)

State: ``Views`` has the attached shows, each with its head as the mount shows it and its readers.

Between the moment that a new head is shown and the one that the kernel has forgotten what it knew of changed names,
the links of a live view stay behind (``links`` < ``head``, see vfs/invalidation.py for the order). A name that is a
link at either revision is then answered as of ``links``, everything else as of ``head``. Of a name that turns from a
folder into a link it is said that it is not there: what was in the folder is gone, and the link is not there yet.
Invariant: what is answered as of ``links`` is not kept by the kernel. So it is no matter what becomes of the name:
what is kept was true at the head of its moment, and the notices of each later turn take it back.
Invariant: a pinned view has one spelling only; a second name for one folder would make the kernel move it.
Everything here belongs to the event loop's thread, but ``planner``, which belongs to one worker thread at a time.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import NamedTuple

import trio

from manifest import names
from manifest.errors import FormatError, NotFound, UsageError
from manifest.names import At, Revision
from manifest.replica import Kind, ReplicaReader, RevisionInfo, Row
from vfs import inodes
from vfs.attributes import NO_SUCH_NAME, Attributes
from vfs.errno import Stale
from vfs.inodes import LIVE, Ino

_REVISIONS_KEPT_MAX = 1024


class RootName(NamedTuple):
    """What a name in the root of the mount asks for; ``at`` None is the live view."""

    show: str
    at: Revision | At | None


def parse_root_name(name: str) -> RootName:
    """Read ``<show>``, ``<show>@<N>`` or ``<show>@<time>``. Raises NotFound for everything else."""
    show, has_at, at = name.partition("@")
    try:
        return RootName(names.check_show(show), names.parse_at(at) if has_at else None)
    except (FormatError, UsageError):
        raise NotFound(f"no show is called {name!r}") from None


class ShowView:
    """One attached show. ``head`` is the revision that its live view shows, ``links`` the one of links in it."""

    __slots__ = ("_revisions", "advancing", "head", "links", "planner", "reader", "show", "slot")

    def __init__(self, show: str, slot: int, reader: ReplicaReader, head: Revision, planner: ReplicaReader) -> None:
        self.show = show
        self.slot = slot
        self.reader = reader
        self.planner = planner
        self.head = self.links = head
        self.advancing = trio.Lock()
        self._revisions: dict[int, RevisionInfo] = {}

    def replace_readers(self, reader: ReplicaReader, planner: ReplicaReader) -> tuple[ReplicaReader, ReplicaReader]:
        """Go on with another replica of the same log, in one step: ids are in log order, so all have the same.

        ``advancing`` is held. Returns the readers that nobody uses any more.
        """
        assert self.advancing.locked()
        assert reader.head >= self.head, f"{self.show}: a replica at {reader.head} cannot show {self.head}"
        before = self.reader, self.planner
        self.reader, self.planner = reader, planner
        self._revisions.clear()
        return before

    def revision(self, view: int) -> Revision:
        """The revision that a view number of an inode means now. Raises Stale for one above the head."""
        if view == LIVE:
            return self.head
        if view > self.head:
            raise Stale(f"{self.show}@{view} is above the head {self.head}")
        return Revision(view)

    def turn_links(self, revision: Revision) -> None:
        """Links are shown as of this revision from now on."""
        self.links = max(self.links, revision)

    @property
    def is_turning(self) -> bool:
        """Whether links are still behind: what a listing says of the live view must not be kept."""
        return self.links != self.head

    def lookup(self, view: int, node: int, name: str, owner: tuple[int, int]) -> Attributes:
        """The attributes of a name in a folder; ``NO_SUCH_NAME`` where its absence may be remembered.

        Raises NotFound where it may not, and Stale for a view above the head.
        """
        revision = self.revision(view)
        row = self.reader.lookup(node, name, revision)
        if view == LIVE and self.links != revision:
            before = self.reader.lookup(node, name, self.links)
            if _is_link(row) or _is_link(before):
                return self._link_before_it_turns(before, name, owner)
        if row is None:
            return NO_SUCH_NAME
        ino, mode, size, mtime_ns = self.describe(row, view, revision)
        return Attributes(Ino(ino), mode, size, mtime_ns, owner)

    def _link_before_it_turns(self, before: Row | None, name: str, owner: tuple[int, int]) -> Attributes:
        if before is None or before.kind == Kind.FOLDER:
            raise NotFound(f"{self.show}: {name} is no link yet")
        found = self.attributes(before, LIVE, owner)
        found.entry_timeout_s = 0.0
        return found

    def about(self, seq: int) -> RevisionInfo | None:
        """Who published a revision and when; None for revision 0. What was asked lately is remembered."""
        info = self._revisions.get(seq)
        if info is None:
            info = self.reader.revision(Revision(seq))
            if info is not None:
                if len(self._revisions) >= _REVISIONS_KEPT_MAX:
                    self._revisions.clear()
                self._revisions[seq] = info
        return info

    def folder_attributes(self, view: int, node: int, owner: tuple[int, int]) -> Attributes:
        """The attributes of a folder by its node. Raises Stale when it is not (or no longer) there."""
        revision = self.revision(view)
        row = self.reader.folder(node, revision)
        if row is None:
            raise Stale(f"{self.show}: folder {node} is not there at revision {revision}")
        return Attributes(
            inodes.folder_ino(self.slot, view, node),
            stat.S_IFDIR | row.mode,
            0,
            self.reader.folder_mtime_ns(node, revision),
            owner,
        )

    def attributes(self, row: Row, view: int, owner: tuple[int, int]) -> Attributes:
        """The attributes of what a row describes, as seen in a view."""
        ino, mode, size, mtime_ns = self.describe(row, view, self.revision(view))
        return Attributes(Ino(ino), mode, size, mtime_ns, owner)

    def describe(self, row: Row, view: int, revision: Revision) -> tuple[int, int, int, int]:
        """(inode, mode with type bits, size in bytes, mtime in ns) of a row as seen in a view at its revision."""
        if row.kind == Kind.FILE:
            return inodes.row_ino(self.slot, row.id), stat.S_IFREG | row.mode, row.size, row.mtime_ns
        if row.kind == Kind.LINK:
            size = len((row.target or "").encode())
            return inodes.row_ino(self.slot, row.id), stat.S_IFLNK | 0o777, size, self.link_mtime_ns(row)
        mtime_ns = self.reader.folder_mtime_ns(row.node, revision)
        return inodes.folder_ino(self.slot, view, row.node), stat.S_IFDIR | row.mode, 0, mtime_ns

    def link_mtime_ns(self, row: Row) -> int:
        """A link has no time of its own: that of the publish that set it."""
        info = self.about(row.since)
        return info.time_ns if info else 0

    def time_link(self, revision: Revision, owner: tuple[int, int]) -> Attributes:
        """The attributes of ``<show>@<time>``: looked up anew each time, for the next publish may move it."""
        info = self.about(revision)
        return Attributes(
            inodes.time_link_ino(self.slot, revision),
            stat.S_IFLNK | 0o777,
            len(self.pinned_name(revision)),
            info.time_ns if info else 0,
            owner,
            entry_timeout_s=0.0,
        )

    def pinned_name(self, revision: int) -> bytes:
        """The name of a pinned view in the root of the mount."""
        return f"{self.show}@{revision}".encode()


def _is_link(row: Row | None) -> bool:
    return row is not None and row.kind == Kind.LINK


class Views:
    """The attached shows, by name and by slot."""

    def __init__(self) -> None:
        self._by_name: dict[str, ShowView] = {}
        self._by_slot: dict[int, ShowView] = {}

    def attach(self, view: ShowView) -> None:
        """Serve a show from now on; it is attached once."""
        assert view.show not in self._by_name, f"{view.show} is attached"
        assert view.slot not in self._by_slot, f"slot {view.slot} is in use"
        self._by_name[view.show] = view
        self._by_slot[view.slot] = view

    def get(self, show: str) -> ShowView | None:
        return self._by_name.get(show)

    def at(self, slot: int) -> ShowView | None:
        return self._by_slot.get(slot)

    def __iter__(self) -> Iterator[ShowView]:
        return iter(self._by_name.values())
