"""The binding that runs everywhere: pyfuse3 (libfuse3), also unprivileged through fusermount3.

Every request is a turn of pyfuse3's task loop and every byte passes through Python. Nothing is decided here: a
request becomes a call of ``Filesystem``, its answer a reply.

Rules, from pyfuse3's source (3.5): its session is global, so a process has one such mount. A handler that raises
anything but FUSEError ends the main loop, so each one goes through ``_failure``. A reply is made from the returned
object before anything else runs, so one EntryAttributes serves all replies. ``readdir`` always answers READDIRPLUS
and cannot send nodeid 0: what must not be kept is sent with timeout 0. The notify calls release the GIL, and use
the session without asking whether it still is: they and its end exclude each other.
"""

# ruff: noqa: ARG002  (the signatures are pyfuse3's)

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileHandleT, FileInfo, FileNameT, FlagT, FUSEError, InodeT, RequestContext

from manifest.errors import ConfigurationError
from manifest.names import Revision
from vfs import mountpoint as mountpoints
from vfs.attributes import BLOCK_BYTES, INFINITE_S, NO_SUCH_NAME, Attributes
from vfs.errno import ORDINARY, errno_of, is_known
from vfs.filesystem import NAME_BYTES_MAX, STATFS_BLOCK_BYTES, Filesystem
from vfs.invalidation import Notice
from vfs.limits import Connection, raise_limits
from vfs.loading import Wait
from vfs.mountpoint import MountOptions

log = logging.getLogger(__name__)

TASKS_MAX = 4096
"""How many requests wait at the same time before a further one does: pyfuse3's own default is 99."""
INIT_TIMEOUT_S = 10.0
NOTICE_TIMEOUT_S = 2.0
"""How long the end of the mount waits for a notice that is being written, before it aborts the connection."""
_GONE = {errno.ENOTCONN, errno.ENODEV, errno.EBADF, errno.ECONNABORTED}


class Pyfuse3Binding:
    """One mount through pyfuse3 (the ``Binding`` protocol)."""

    name = "pyfuse3"

    def __init__(self, mountpoint: Path, options: MountOptions) -> None:
        self.mountpoint = mountpoint
        self.limits: Mapping[str, int | str] = {}
        self._options = options
        self._session = threading.Lock()
        self._opened = self._closed = False
        self._connection: Connection | None = None
        self._threads = trio.CapacityLimiter(2)

    def way_of(self, ino: int) -> None:
        """See ``Binding.way_of``: who has what open is not known by inode."""

    async def run(
        self, filesystem: Filesystem, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """See ``Binding.run``."""
        initialised = trio.Event()
        operations = _Operations(filesystem, initialised)
        await trio.to_thread.run_sync(self._mount, operations, limiter=self._threads)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._main, nursery.cancel_scope)
                with trio.move_on_after(INIT_TIMEOUT_S):
                    await initialised.wait()
                if not initialised.is_set():
                    raise ConfigurationError(f"the kernel did not begin to talk about {self.mountpoint}")
                limits = await trio.to_thread.run_sync(raise_limits, self.mountpoint, limiter=self._threads)
                self.limits = {"max_tasks": TASKS_MAX, **limits}
                task_status.started()
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._close)

    released = False
    handover = None
    """Nobody takes over from this binding: libfuse keeps to itself what a successor would need."""

    def give_up(self) -> None:
        """See ``Binding.give_up``: it is always so."""

    async def release(self) -> None:
        """See ``Binding.release``. Raises ConfigurationError: there is no successor."""
        raise ConfigurationError("a pyfuse3 mount cannot be handed over: unmount it and mount it again")

    async def unmount(self, *, lazy: bool) -> None:
        """See ``Binding.unmount``."""
        await trio.to_thread.run_sync(
            mountpoints.unmount, self.mountpoint, lazy, abandon_on_cancel=True, limiter=self._threads
        )

    def notify(self, notices: Sequence[Notice]) -> list[tuple[Notice, int]]:
        """See ``Binding.notify``. Of an inode the attributes only: the pages of a file never change."""
        if not self._opened:  # nothing was told yet
            return []
        refused = []
        for notice in notices:
            with self._session:  # for each one, so that the end of the mount comes in between
                if self._closed:
                    raise OSError(errno.ENOTCONN, "the mount is gone")
                number = _write(notice)
            if number in _GONE:
                raise OSError(number, os.strerror(number))
            if number not in (0, errno.ENOENT):
                refused.append((notice, number))
        return refused

    def on_told(self, slot: int, revision: Revision) -> None:
        """See ``Binding.on_told``: nobody takes over from this binding, so nothing is recorded."""

    def _mount(self, operations: _Operations) -> None:
        options = {"ro", "nosuid", "nodev", "default_permissions", "fsname=damfs", "subtype=damfs"}
        if self._options.allow_other:
            options.add("allow_other")
        try:
            pyfuse3.init(operations, str(self.mountpoint), options)
        except RuntimeError as error:
            why = mountpoints.why_not(allow_other=self._options.allow_other) or str(error)
            raise ConfigurationError(f"cannot mount on {self.mountpoint}: {why}") from error
        self._opened = True
        self._connection = Connection(self.mountpoint)

    def _close(self) -> None:
        """Unmount (lazily, if that was not done) and free the session, which no notice may use any more.

        A notice may wait in the kernel for a request that will not be answered now: then the connection is aborted.
        """
        connection = self._connection
        if connection is not None and not connection.is_at(self.mountpoint):
            connection.abort()  # it was detached: libfuse would else unmount what is mounted there by now
        if not self._session.acquire(timeout=NOTICE_TIMEOUT_S):
            if connection is not None:
                connection.abort()
                if connection.is_at(self.mountpoint):  # libfuse takes an aborted connection for an unmounted one
                    self._detach()
            if not self._session.acquire(timeout=NOTICE_TIMEOUT_S):
                log.error("a notice to the kernel does not end; %s was unmounted without it", self.mountpoint)
                return
        try:
            self._closed = True
            pyfuse3.close()
            if connection is not None:
                connection.close()
        finally:
            self._session.release()

    def _detach(self) -> None:
        try:
            mountpoints.unmount(self.mountpoint, lazy=True)
        except ConfigurationError as error:
            log.warning("%s", error)

    async def _main(self, until: trio.CancelScope) -> None:
        await pyfuse3.main(max_tasks=TASKS_MAX)
        until.cancel()  # unmounted: nothing else is left to do


def _write(notice: Notice) -> int:
    """Write one notice; returns 0 or the errno."""
    try:
        if notice.name is None:
            pyfuse3.invalidate_inode(InodeT(notice.ino), attr_only=True)
        else:
            pyfuse3.invalidate_entry(InodeT(notice.ino), FileNameT(notice.name))
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _blank(filesystem: Filesystem) -> EntryAttributes:
    entry = EntryAttributes()
    entry.st_uid, entry.st_gid = filesystem.owner
    return entry


class _Operations(pyfuse3.Operations):
    """pyfuse3's handlers. Metadata is answered inline; only a ``Wait`` and a read suspend the task."""

    def __init__(self, filesystem: Filesystem, initialised: trio.Event) -> None:
        super().__init__()
        self._fs = filesystem
        self._initialised = initialised
        self._errors = filesystem.metrics.errors
        self._entry = _blank(filesystem)
        self._listed = _blank(filesystem)
        self._absent = _blank(filesystem)
        self._absent.st_ino = InodeT(0)
        self._absent.entry_timeout = INFINITE_S

    def init(self) -> None:
        self._initialised.set()

    async def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        try:
            try:
                found = self._fs.lookup(parent_inode, name)
            except Wait:
                found = await self._fs.patiently(self._fs.lookup, parent_inode, name)
        except Exception as error:  # noqa: BLE001  reported and translated by _failure
            self._failure("lookup", error)
        return self._absent if found is NO_SUCH_NAME else self._reply(found)

    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        try:
            try:
                return self._reply(self._fs.getattr(inode))
            except Wait:
                return self._reply(await self._fs.patiently(self._fs.getattr, inode))
        except Exception as error:  # noqa: BLE001
            self._failure("getattr", error)

    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        try:
            return FileNameT(await self._fs.patiently(self._fs.readlink, inode))
        except Exception as error:  # noqa: BLE001
            self._failure("readlink", error)

    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        try:
            handle, keeps_pages = await self._fs.patiently(self._fs.open, inode, flags, ctx.pid)
        except Exception as error:  # noqa: BLE001
            self._failure("open", error)
        return FileInfo(fh=FileHandleT(handle), keep_cache=keeps_pages)

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        try:
            return await self._fs.read(fh, off, size)  # type: ignore[return-value]  # any buffer is taken
        except Exception as error:  # noqa: BLE001
            self._failure("read", error)

    async def release(self, fh: FileHandleT) -> None:
        try:
            self._fs.release(fh)
        except Exception as error:  # noqa: BLE001
            self._failure("release", error)

    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        try:
            return FileHandleT(await self._fs.patiently(self._fs.opendir, inode))
        except Exception as error:  # noqa: BLE001
            self._failure("opendir", error)

    async def readdir(self, fh: FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        try:
            self._list(fh, start_id, token)
        except Exception as error:  # noqa: BLE001
            self._failure("readdir", error)

    async def releasedir(self, fh: FileHandleT) -> None:
        await self.release(fh)

    async def getxattr(self, inode: InodeT, name: pyfuse3.XAttrNameT, ctx: RequestContext) -> bytes:
        try:
            return await self._fs.patiently(self._fs.getxattr, inode, name)
        except Exception as error:  # noqa: BLE001
            self._failure("getxattr", error)

    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> tuple[pyfuse3.XAttrNameT, ...]:
        return tuple(map(pyfuse3.XAttrNameT, self._fs.listxattr(inode)))

    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        try:
            usage = self._fs.statfs()
        except Exception as error:  # noqa: BLE001
            self._failure("statfs", error)
        stat = pyfuse3.StatvfsData()
        stat.f_bsize = stat.f_frsize = STATFS_BLOCK_BYTES
        stat.f_blocks = -(-usage.bytes // STATFS_BLOCK_BYTES)
        stat.f_files = usage.files
        stat.f_namemax = NAME_BYTES_MAX
        return stat

    async def _refuse(self, *_: Any) -> NoReturn:
        raise FUSEError(errno.EROFS)

    # The kernel refuses these itself on a read-only mount; so do we, should one come through.
    setattr = mknod = mkdir = unlink = rmdir = symlink = rename = link = create = write = _refuse  # type: ignore[assignment]
    setxattr = removexattr = _refuse  # type: ignore[assignment]

    def _reply(self, found: Attributes) -> EntryAttributes:
        entry = self._entry
        entry.st_ino = InodeT(found.ino)
        entry.st_mode = pyfuse3.ModeT(found.mode)
        entry.st_size = found.size
        entry.st_blocks = -(-found.size // BLOCK_BYTES)
        entry.st_mtime_ns = entry.st_ctime_ns = entry.st_atime_ns = found.mtime_ns
        entry.entry_timeout = found.entry_timeout_s
        entry.attr_timeout = found.attr_timeout_s
        return entry

    def _list(self, handle: int, offset: int, token: pyfuse3.ReaddirToken) -> None:
        """Fill one READDIRPLUS reply: the hottest loop of a scan, so it sets only what differs from the last."""
        entry, reply = self._listed, pyfuse3.readdir_reply
        last_mode = last_size = last_mtime_ns = None
        while True:
            entries, start, timeout_s = self._fs.readdir(handle, offset)
            if start >= len(entries):
                return
            entry.entry_timeout = entry.attr_timeout = timeout_s
            for name, ino, mode, size, mtime_ns, following in entries[start:] if start else entries:
                entry.st_ino = ino
                if mode != last_mode:
                    entry.st_mode = last_mode = mode
                if size != last_size:
                    entry.st_size = last_size = size
                    entry.st_blocks = (size + BLOCK_BYTES - 1) // BLOCK_BYTES
                if mtime_ns != last_mtime_ns:
                    entry.st_mtime_ns = entry.st_ctime_ns = entry.st_atime_ns = last_mtime_ns = mtime_ns
                if not reply(token, name, entry, following):
                    return
            offset = following

    def _failure(self, request: str, error: Exception) -> NoReturn:
        """Answer an exception with its errno; one that is not ours is a bug, and logged as such."""
        number = errno_of(error)
        if not is_known(error):
            log.error("%s failed: a bug in damfs, answered with EIO", request, exc_info=error)
        else:
            log.debug("%s: %s", request, error)
        if number not in ORDINARY:
            self._errors.labels(errno.errorcode[number]).inc()
        raise FUSEError(number) from None
