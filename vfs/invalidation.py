"""From a commit to the notices that make the kernel forget exactly what the commit changed.

The kernel keeps names and attributes for ever, so each change of the head is told to it. A *turn* is one such
change. The head is the new one before the turn is queued; then, in this order:

1. each changed name that is no link: INVAL_ENTRY. Of a new or removed subtree only the topmost name; a folder that
   goes on existing never, for that would detach what is mounted on it.
2. the links of the view turn (``ShowView.links``), on the event loop. Until then look-ups give changed links as they
   were: a link that the kernel does not hold would else be seen while an older "not there" of its target still is.
3. each changed link: INVAL_ENTRY. A tag moves when what it points to is visible.
4. each folder whose listing or mode changed: a fence, then INVAL_INODE, since INVAL_ENTRY of a name that is not
   cached changes nothing. The *fence* is an INVAL_ENTRY of "." in the folder's parent: no such name is ever cached,
   so it removes nothing, but it takes the parent's lock and so waits for a look-up or listing whose answer, made
   before the commit, is still on its way into the kernel's tables with the folder's old attributes. (Without it,
   readers on a busy machine kept a folder's old time for ever: reproduced.)
   A show's root folder needs no fence: look-ups in the mount's root answer its attributes with timeout 0.
5. ``on_told``: the kernel holds nothing older than this revision any more.

Source: fs/fuse/dir.c, fuse_reverse_inval_entry and fuse_reverse_inval_inode.

State: ``Notifier`` owns a queue and the one thread that writes notices. The turns of a show are queued in the order
of their revisions, and each begins where the one before ends.
Rules: a notice may block (a fence does what it is for), and only that thread; no reply ever waits for a notice.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Protocol, Self

import trio

from manifest.errors import Unavailable
from manifest.names import Revision
from manifest.replica import ROOT_NODE, ReplicaReader
from vfs import inodes
from vfs.inodes import LIVE, Ino
from vfs.metrics import Metrics

log = logging.getLogger(__name__)

FENCE = b"."
"""A name that no folder has and that the kernel never caches."""

NOTICES_MAX = 256
"""The most notices that a binding is given at once: between them the end of the mount is seen."""
_ITEMS_MAX = 64
_FULL_RETRY_S = 0.02
_STUCK_S = 10.0


class Notice(NamedTuple):
    """Forget ``name`` in the folder ``ino``; without a name: the attributes (and pages) of ``ino``."""

    ino: Ino
    name: bytes | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The notices of one turn, in the order to write them: names, (the links turn), links, folders."""

    names: Sequence[Notice]
    links: Sequence[Notice]
    folders: Sequence[Notice]

    def __len__(self) -> int:
        return len(self.names) + len(self.links) + len(self.folders)


@dataclass(frozen=True, slots=True)
class Turn:
    """A live view goes on to ``revision``. ``turn_links`` is called on the event loop's thread."""

    slot: int
    revision: Revision
    plan: Plan
    turn_links: Callable[[Revision], None]


class Target(Protocol):
    """What takes notices: a binding."""

    def notify(self, notices: Sequence[Notice]) -> list[tuple[Notice, int]]:
        """Write at most ``NOTICES_MAX`` notices in order; returns those that the kernel refused, with their errno.

        Called on the notifier's thread; may block. A name that the kernel does not know (ENOENT) is not refused.
        Raises OSError only when the mount is gone: nothing is written any more behind that. Before ``run`` has
        mounted, only the notices for what a predecessor told the kernel come.
        """
        ...


def plan(slot: int, reader: ReplicaReader, before: Revision, after: Revision) -> Plan:
    """The notices for a live view that goes from one revision to another.

    Takes time with the number of changed names: runs in a worker thread, over a reader of its own.
    """
    names: list[Notice] = []
    links: list[Notice] = []
    touched: dict[int, None] = {}
    for change in reader.changed_names(before, after):
        touched[change.parent] = None
        if change.before_node is not None and change.before_node == change.after_node:
            touched[change.before_node] = None
            continue
        parent = inodes.folder_ino(slot, LIVE, change.parent)
        (links if change.is_link else names).append(Notice(parent, change.name.encode()))
    for revision in range(before, after) if after - before > 1 else ():
        # A name that came and went in between is no change, but its folder has another time.
        touched.update((change.parent, None) for change in reader.changed_names(revision, revision + 1))
    return Plan(names, links, [notice for node in touched for notice in _folder_notices(slot, reader, node, after)])


def _folder_notices(slot: int, reader: ReplicaReader, node: int, revision: Revision) -> Iterator[Notice]:
    if node != ROOT_NODE:
        row = reader.folder(node, revision)
        if row is None:
            return
        yield Notice(inodes.folder_ino(slot, LIVE, row.parent), FENCE)
    yield Notice(inodes.folder_ino(slot, LIVE, node))


class Notifier:
    """Writes notices in the order they were handed in, from one thread of its own.

    Used as ``async with Notifier(binding, metrics) as notifier``; leaving it lets the thread go without waiting
    for a notice that blocks (the thread is a daemon: it never keeps the process alive).
    ``on_told(slot, revision)`` is called on that thread when a turn is written to its end.
    """

    def __init__(
        self, target: Target, metrics: Metrics, *, on_told: Callable[[int, Revision], None] | None = None
    ) -> None:
        self._target = target
        self._metrics = metrics
        self._on_told = on_told
        self._queue: queue.SimpleQueue[Sequence[Notice] | Turn | trio.Event | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write_all, name="damfs-notices", daemon=True)
        self._token: trio.lowlevel.TrioToken | None = None
        self._closed = False
        self._writing_since: float | None = None

    async def __aenter__(self) -> Self:
        self._token = trio.lowlevel.current_trio_token()
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True  # a thread that is stuck sees it once it gets on
        self._queue.put(None)

    async def submit(self, item: Sequence[Notice] | Turn) -> None:
        """Hand notices in. Waits only while the queue is full: not one may be dropped while the mount lives.

        Cancellation leaves none of them in the queue.
        """
        if isinstance(item, Turn) or item:
            await self._put(item)

    def begin_with(self, turns: Sequence[Turn]) -> None:
        """Hand in what was to be told before there was a notifier, however much it is."""
        for turn in turns:
            self._queue.put(turn)

    async def settle(self, timeout_s: float) -> None:
        """Wait until everything handed in so far is written. Raises Unavailable when ``timeout_s`` are over."""
        done = trio.Event()
        with trio.move_on_after(timeout_s):
            await self._put(done)
            if not self._closed:
                await done.wait()
            return
        raise Unavailable(f"the kernel did not take all notices within {timeout_s} s")

    def stuck_s(self) -> float:
        """For how long the notices that are being written (``NOTICES_MAX`` at most) block already, in seconds."""
        since = self._writing_since
        return 0.0 if since is None else time.monotonic() - since

    async def _put(self, item: Sequence[Notice] | Turn | trio.Event) -> None:
        started = trio.current_time()
        warned = False
        while not self._closed:
            if self._queue.qsize() < _ITEMS_MAX:
                self._queue.put(item)
                return
            if not warned and trio.current_time() - started > _STUCK_S:
                log.warning("the kernel has taken no notice for %.0f s; publishes are shown late", self.stuck_s())
                warned = True
            await trio.sleep(_FULL_RETRY_S)

    def _write_all(self) -> None:
        try:
            while not self._closed:
                item = self._queue.get()
                if item is None:
                    break
                if isinstance(item, trio.Event):
                    self._on_loop(item.set)
                elif not (self._turn(item) if isinstance(item, Turn) else self._write(item)):
                    break
        finally:
            self._closed = True
            self._release_waiters()

    def _turn(self, turn: Turn) -> bool:
        """Write one turn; False when the mount is gone.

        The links are not waited for: until they have turned no look-up of a changed link is kept, and what settles
        is woken behind them.
        """
        if not self._write(turn.plan.names):
            return False
        self._on_loop(turn.turn_links, turn.revision)
        if not (self._write(turn.plan.links) and self._write(turn.plan.folders)):
            return False
        if self._on_told is not None:
            self._on_told(turn.slot, turn.revision)
        return True

    def _write(self, notices: Sequence[Notice]) -> bool:
        """Write notices; False when the mount is gone."""
        for start in range(0, len(notices), NOTICES_MAX):
            if self._closed:
                return False
            piece = notices[start : start + NOTICES_MAX]
            self._writing_since = time.monotonic()
            try:
                refused = self._target.notify(piece)
            except OSError as error:
                log.debug("no notice is written any more: %s", error)
                return False
            finally:
                self._writing_since = None
            for (ino, name), number in refused:
                self._metrics.notices_failed.inc()
                log.error("the kernel refused the notice for %r in inode %d: %s", name, ino, os.strerror(number))
            self._metrics.notices.inc(len(piece))
        return True

    def _release_waiters(self) -> None:
        with suppress(queue.Empty):
            while True:
                item = self._queue.get_nowait()
                if isinstance(item, trio.Event):
                    self._on_loop(item.set)

    def _on_loop(self, call: Callable[..., None], *args: object) -> None:
        """Have the event loop call something, in the order of these; not at all when it has ended."""
        assert self._token is not None
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(call, *args)
