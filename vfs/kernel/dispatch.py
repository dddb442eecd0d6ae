"""Requests of the kernel → calls of ``Filesystem`` → replies.

Requests are read until there are none. Metadata is answered where it is read, with no task in between; what must be
waited for (bytes that are not in memory, a show that is not loaded) is a task of its own, under the limits of
turns.py. The one task that reads requests gives way to others every YIELD_S, and when there is nothing to read.

State: the open files by handle (their meaning follows from the inode: what a predecessor opened is made again at its
first use).
Rules: a reply is one write; nothing here blocks; an answer and its reply are one step (vfs/filesystem.py).
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import trio

from vfs import inodes, xattrs
from vfs.attributes import BLOCK_BYTES, INFINITE_S, NO_SUCH_NAME, Attributes
from vfs.errno import ORDINARY, errno_of, is_known
from vfs.filesystem import NAME_BYTES_MAX, STATFS_BLOCK_BYTES, Filesystem
from vfs.handles import FileHandle
from vfs.inodes import LIVE, ROOT_INO
from vfs.kernel import folders, passthrough, wire
from vfs.kernel.device import Device
from vfs.kernel.folders import Listing, Listings
from vfs.kernel.journal import Journal, Open
from vfs.kernel.passthrough import Passthrough
from vfs.kernel.turns import Turns
from vfs.kernel.waiting import Waiters, Waiting
from vfs.loading import Wait
from vfs.reads import Buffer

log = logging.getLogger(__name__)

YIELD_S: Final = 0.001
"""Other tasks have their turn at least so often."""
LINGER_S: Final = 0.0001
"""After the last request the next one is awaited so long without going to sleep: a client that asks one thing after
the other is answered without the cost of waking up."""
_GONE: Final = {errno.ENODEV, errno.ENOTCONN, errno.ECONNABORTED, errno.EBADF}
_FOREVER: Final = int(INFINITE_S)
_NO_ATTR: Final = (0,) * 16


class Dispatcher:
    """Serves one connection. ``run`` returns when the kernel has ended it."""

    def __init__(self, filesystem: Filesystem, device: Device, journal: Journal, *, may_lend: bool) -> None:
        self.listings = Listings()
        self.passthrough = Passthrough(device.lend, device.take_back)
        self.turns = Turns()
        self.local_turns = Turns()
        self._fs = filesystem
        self._reads = filesystem.reads
        self._device = device
        self._journal = journal
        self.may_lend = may_lend
        self._errors = filesystem.metrics.errors
        filesystem.metrics.handles.set_function(lambda: len(self._files))
        self._files: dict[int, FileHandle] = {}
        self._resent: dict[int, Open] = {}
        self._listing_numbers = itertools.count(1)
        self._waiters = Waiters(device.write)
        self._stopping = trio.CancelScope()
        self._nursery: trio.Nursery
        self._buffer = bytearray(wire.REQUEST_BYTES_MAX)
        self._view = memoryview(self._buffer)
        self._uid, self._gid = filesystem.owner
        self._handlers: dict[int, Callable[[int, int, int], None]] = {
            wire.LOOKUP: self._lookup,
            wire.FORGET: self._ignore,
            wire.BATCH_FORGET: self._ignore,
            wire.GETATTR: self._getattr,
            wire.READLINK: self._readlink,
            wire.OPEN: self._open,
            wire.READ: self._read,
            wire.STATFS: self._statfs,
            wire.RELEASE: self._release,
            wire.GETXATTR: self._getxattr,
            wire.LISTXATTR: self._listxattr,
            wire.OPENDIR: self._opendir,
            wire.READDIR: self._readdir,
            wire.READDIRPLUS: self._readdirplus,
            wire.RELEASEDIR: self._releasedir,
            wire.INTERRUPT: self._interrupt,
            wire.DESTROY: self._succeed,
        }

    # -- the loop

    async def run(self) -> None:
        """Serve until the mount is gone or ``stop`` is called.

        Cancellation leaves requests unanswered, as ``stop`` does: a successor answers them.
        """
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self._waiters.watch)
            with self._stopping:
                await self._serve()
            self._nursery.cancel_scope.cancel()

    def stop(self) -> None:
        """Read no further request: a successor will."""
        self._stopping.cancel()

    def close(self) -> None:
        """Let go of everything that was open, once ``run`` has ended."""
        while self._files:
            self._files.popitem()[1].release()
        self.passthrough.release_all()

    async def _serve(self) -> None:
        fd, buffers = self._device.fd, [self._buffer]
        readv, clock, unpack = os.readv, time.monotonic, wire.IN_HEADER.unpack_from
        buffer, handlers, refuse = self._buffer, self._handlers, self._refuse
        last = yielded = clock()
        while True:
            try:
                size = readv(fd, buffers)
            except BlockingIOError:
                if not self._waiters and clock() - last < LINGER_S:
                    continue
                await trio.lowlevel.wait_readable(fd)
                last = yielded = clock()
                continue
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINTR):  # a request that was withdrawn
                    continue
                if error.errno in _GONE:
                    return
                raise
            _, opcode, unique, nodeid, *_ = unpack(buffer)
            try:
                handlers.get(opcode, refuse)(unique, nodeid, size)
            except Wait:
                self._ask_again(handlers[opcode], unique, nodeid, size)
            except Exception as error:  # noqa: BLE001  translated, and reported when it is a bug
                self._fail(unique, opcode, error)
            last = clock()
            if last - yielded > YIELD_S:
                await trio.lowlevel.checkpoint()
                yielded = clock()

    def _ask_again(self, handler: Callable[[int, int, int], None], unique: int, nodeid: int, size: int) -> None:
        """A show must be waited for: a task waits, puts the request back into the buffer and answers it again."""
        request = bytes(self._view[:size])
        header = wire.IN_HEADER.unpack_from(request)

        def answer() -> None:
            self._buffer[:size] = request
            handler(unique, nodeid, size)

        async def answer_patiently() -> None:
            try:
                await self._fs.patiently(answer)
            except Exception as error:  # noqa: BLE001
                self._fail(unique, header[1], error)

        self._start(Waiting(unique, header[6]), answer_patiently)

    def _start(self, waiting: Waiting, call: Callable[..., Any], *arguments: object) -> None:
        self._waiters.start(self._nursery, waiting, call, *arguments)

    def _interrupt(self, _unique: int, _nodeid: int, _size: int) -> None:
        self._waiters.interrupt(wire.INTERRUPT_IN.unpack_from(self._buffer, wire.HEADER_BYTES)[0])

    def _fail(self, unique: int, opcode: int, error: Exception) -> None:
        """Answer an exception with its errno; one that is not ours is a bug, and logged as such."""
        number = errno_of(error)
        if not is_known(error):
            log.error("request %d failed: a bug in damfs, answered with EIO", opcode, exc_info=error)
        else:
            log.debug("request %d: %s", opcode, error)
        if number not in ORDINARY:
            self._errors.labels(errno.errorcode[number]).inc()
        self._device.write(wire.error(unique, number))

    def _refuse(self, unique: int, _nodeid: int, _size: int) -> None:
        """What changes something: EROFS. What we need not be asked (FLUSH, FSYNC, ACCESS …): ENOSYS, once for ever."""
        opcode = wire.IN_HEADER.unpack_from(self._buffer)[1]
        self._device.write(wire.error(unique, errno.EROFS if opcode in wire.WRITES else errno.ENOSYS))

    def _succeed(self, unique: int, _nodeid: int, _size: int) -> None:
        self._device.write(wire.error(unique, 0))

    def _ignore(self, _unique: int, _nodeid: int, _size: int) -> None:
        """FORGET: there is no table of inodes, and no reply."""

    # -- names and attributes

    def _lookup(self, unique: int, parent: int, size: int) -> None:
        found = self._fs.lookup(parent, bytes(self._view[wire.HEADER_BYTES : size - 1]))
        write, pack = self._device.write, wire.REPLY_ENTRY.pack
        if found is NO_SUCH_NAME:
            write(pack(wire.REPLY_ENTRY.size, 0, unique, 0, 0, _FOREVER, 0, 0, 0, *_NO_ATTR))
            return
        seconds, ns = divmod(found.mtime_ns, 1_000_000_000)
        length = found.size
        write(
            pack(
                wire.REPLY_ENTRY.size, 0, unique,
                found.ino, 0, int(found.entry_timeout_s), int(found.attr_timeout_s), 0, 0,
                found.ino, length, (length + BLOCK_BYTES - 1) // BLOCK_BYTES, seconds, seconds, seconds, ns, ns, ns,
                found.mode, 1, self._uid, self._gid, 0, 0, 0,
            )
        )  # fmt: skip

    def _getattr(self, unique: int, nodeid: int, _size: int) -> None:
        self._device.write(_attr_reply(unique, self._fs.getattr(nodeid)))

    def _readlink(self, unique: int, nodeid: int, _size: int) -> None:
        self._device.write(wire.reply(unique, self._fs.readlink(nodeid)))

    def _statfs(self, unique: int, _nodeid: int, _size: int) -> None:
        usage = self._fs.statfs()
        block = STATFS_BLOCK_BYTES
        body = wire.STATFS_OUT.pack(
            -(-usage.bytes // block), 0, 0, usage.files, 0, block, NAME_BYTES_MAX, block, 0, *(0,) * 6
        )
        self._device.write(wire.reply(unique, body))

    def _getxattr(self, unique: int, nodeid: int, size: int) -> None:
        name = bytes(self._view[wire.HEADER_BYTES + wire.GETXATTR_IN.size : size - 1])
        if not name.startswith(xattrs.NAMESPACE):  # what `ls -l` asks
            self._device.write(wire.error(unique, errno.EOPNOTSUPP))
            return
        room, _ = wire.GETXATTR_IN.unpack_from(self._buffer, wire.HEADER_BYTES)
        self._reply_xattr(unique, room, self._fs.getxattr(nodeid, name))

    def _listxattr(self, unique: int, nodeid: int, _size: int) -> None:
        room, _ = wire.GETXATTR_IN.unpack_from(self._buffer, wire.HEADER_BYTES)
        self._reply_xattr(unique, room, b"".join(name + b"\0" for name in self._fs.listxattr(nodeid)))

    def _reply_xattr(self, unique: int, room: int, value: bytes) -> None:
        if not room:
            self._device.write(wire.reply(unique, wire.GETXATTR_OUT.pack(len(value), 0)))
        elif len(value) > room:
            self._device.write(wire.error(unique, errno.ERANGE))
        else:
            self._device.write(wire.reply(unique, value))

    # -- folders

    def _opendir(self, unique: int, nodeid: int, _size: int) -> None:
        handle = self._fs.folder(nodeid)
        number = folders.number(next(self._listing_numbers) & 0x7FFFFFFF, handle.revision)
        self.listings.put((nodeid, number), Listing(handle, self._fs.owner))
        is_pinned = nodeid != ROOT_INO and inodes.decode(nodeid).view != LIVE
        flags = wire.FOPEN_CACHE_DIR | wire.FOPEN_KEEP_CACHE if is_pinned else 0
        self._device.write(wire.REPLY_OPEN.pack(wire.REPLY_OPEN.size, 0, unique, number, flags, 0))

    def _readdir(self, unique: int, nodeid: int, _size: int) -> None:
        self._list(unique, nodeid, plus=False)

    def _readdirplus(self, unique: int, nodeid: int, _size: int) -> None:
        self._list(unique, nodeid, plus=True)

    def _list(self, unique: int, nodeid: int, *, plus: bool) -> None:
        number, offset, room, *_ = wire.READ_IN.unpack_from(self._buffer, wire.HEADER_BYTES)
        listing = self.listings.get((nodeid, number))
        if listing is None:  # a predecessor's, or one that was not read for long
            listing = Listing(self._fs.folder(nodeid, folders.revision_of(number)), self._fs.owner)
            self.listings.put((nodeid, number), listing)
        found = listing.read(offset, room, plus=plus)
        self._device.write((wire.OUT_HEADER.pack(wire.OUT_HEADER.size + len(found), 0, unique), found))

    def _releasedir(self, unique: int, nodeid: int, _size: int) -> None:
        self.listings.drop((nodeid, wire.RELEASE_IN.unpack_from(self._buffer, wire.HEADER_BYTES)[0]))
        self._device.write(wire.error(unique, 0))

    # -- files

    def adopt(self, opened: Sequence[Open]) -> None:
        """The files that a predecessor opened, before ``run``: each keeps its way of reading."""
        for one in opened:
            self.passthrough.adopt(one.ino, one.handle, one.backing_id)
            self._resent[one.unique] = one

    async def hold_adopted(self) -> None:
        """Hold what a predecessor lent to the kernel, so that it is not evicted. Cancellation leaves the rest."""
        for backing_id, ino in self.passthrough.not_held():
            try:
                handle = await self._fs.patiently(self._fs.file, ino, os.O_RDONLY)
                await self._reads.open(handle)
            except Exception as error:  # noqa: BLE001  the file is open in the kernel, wherever it lies
                log.warning("inode %d is open, and not held in the cache: %s", ino, error)
                continue
            if handle.object is not None:
                self.passthrough.hold(backing_id, handle.object)
                handle.object = None

    def _open(self, unique: int, nodeid: int, _size: int) -> None:
        flags, _ = wire.OPEN_IN.unpack_from(self._buffer, wire.HEADER_BYTES)
        if unique & wire.UNIQUE_RESENT:
            before = self._resent.pop(unique & ~wire.UNIQUE_RESENT, None)
            if before is not None:  # written down by a predecessor that died before it replied
                self._reply_open(unique, nodeid, before.handle, before.backing_id)
                return
        handle = self._fs.file(nodeid, flags)
        pid = wire.IN_HEADER.unpack_from(self._buffer)[6]
        self._fs.opened(handle, pid)
        may_lend = self.may_lend and handle.touched is None
        if may_lend and not self.passthrough.is_open(nodeid) and not self._reads.open_now(handle):
            waiting = Waiting(unique, pid)
            self._start(waiting, self._open_later, unique, nodeid, handle)
            return
        self._opened(unique, nodeid, handle)

    async def _open_later(self, unique: int, nodeid: int, handle: FileHandle) -> None:
        """The cache must look on its disk to know whether the kernel may read the file."""
        try:
            with trio.CancelScope(shield=True):  # it is local, and a reply must follow
                await self._reads.open(handle)
        except Exception as error:  # noqa: BLE001  a read will meet it again, and say so
            log.debug("inode %d is read through damfs: %s", nodeid, error)
        self._opened(unique, nodeid, handle)

    def _opened(self, unique: int, nodeid: int, handle: FileHandle) -> None:
        """Settle the way of reading, write it down, tell the kernel: one step."""
        try:
            backing_id = self.passthrough.choose(nodeid, handle.key, handle.object)
            number = self._journal.opened(nodeid, unique & ~wire.UNIQUE_RESENT, backing_id)
        except Exception as error:  # noqa: BLE001
            handle.release()
            self.passthrough.settle(nodeid)
            self._fail(unique, wire.OPEN, error)
            return
        if backing_id != passthrough.NONE:
            self._reads.opened_past(handle)
        self.passthrough.opened(nodeid, number)
        self._files[number] = handle
        if handle.touched is not None and backing_id != passthrough.NONE:
            handle.touched.note_all()  # somebody had it open before, and one inode is read in one way
        self._reply_open(unique, nodeid, number, backing_id, keeps_pages=handle.touched is None)

    def _reply_open(self, unique: int, nodeid: int, number: int, backing_id: int, *, keeps_pages: bool = True) -> None:
        if backing_id != passthrough.NONE:
            flags = wire.FOPEN_NOFLUSH | wire.FOPEN_PASSTHROUGH
        else:
            flags = wire.FOPEN_NOFLUSH | (wire.FOPEN_KEEP_CACHE if keeps_pages else 0)
        if not self._device.write(wire.REPLY_OPEN.pack(wire.REPLY_OPEN.size, 0, unique, number, flags, backing_id)):
            self._close(nodeid, number)  # nobody waits for it any more, so nobody will close it

    def _release(self, unique: int, nodeid: int, _size: int) -> None:
        self._close(nodeid, wire.RELEASE_IN.unpack_from(self._buffer, wire.HEADER_BYTES)[0])
        self._device.write(wire.error(unique, 0))

    def _close(self, nodeid: int, number: int) -> None:
        """Struck out of the journal first: what is in there is valid. One that is not open was released before."""
        if self._journal.released(number):
            self.passthrough.released(nodeid, number)
        handle = self._files.pop(number, None)
        if handle is not None:
            handle.release()

    def _read(self, unique: int, nodeid: int, _size: int) -> None:
        number, offset, size, *_ = wire.READ_IN.unpack_from(self._buffer, wire.HEADER_BYTES)
        handle = self._files.get(number)
        if handle is None:  # a predecessor's
            handle = self._files[number] = self._fs.file(nodeid, os.O_RDONLY)
        data = self._reads.now(handle, offset, size)
        if data is not None:
            self._reply_data(unique, data)
            return
        header = wire.IN_HEADER.unpack_from(self._buffer)
        waiting, user = Waiting(unique, header[6]), header[4]
        if self._reads.is_local(handle, offset, size):
            turns, cost = self.local_turns, size
        else:
            turns, cost = self.turns, self._reads.cost_bytes(handle, offset, size)
        ended = partial(turns.ended, user, cost)
        number = turns.take(
            user, cost, partial(self._start, waiting, self._read_later, unique, handle, offset, size, ended)
        )
        if number:
            waiting.withdraw = partial(turns.withdraw, user, number)
            self._waiters.queue(waiting)

    async def _read_later(
        self, unique: int, handle: FileHandle, offset: int, size: int, ended: Callable[[], None]
    ) -> None:
        try:
            data = await self._reads.read(handle, offset, size)
        except Exception as error:  # noqa: BLE001
            self._fail(unique, wire.READ, error)
        else:
            self._reply_data(unique, data)
        finally:
            ended()

    def _reply_data(self, unique: int, data: Buffer) -> None:
        self._device.write((wire.OUT_HEADER.pack(wire.OUT_HEADER.size + len(data), 0, unique), data))


def _attr_reply(unique: int, found: Attributes) -> bytes:
    seconds, ns = divmod(found.mtime_ns, 1_000_000_000)
    return wire.REPLY_ATTR.pack(
        wire.REPLY_ATTR.size, 0, unique, int(found.attr_timeout_s), 0, 0,
        found.ino, found.size, -(-found.size // BLOCK_BYTES), seconds, seconds, seconds, ns, ns, ns,
        found.mode, 1, found.uid, found.gid, 0, 0, 0,
    )  # fmt: skip
