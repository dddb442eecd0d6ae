"""Sparse files: one a content, bytes at the file's own offsets.

State: ``<cache>/objects/<hex[:2]>/<content hex>.<session><random>``. A name is never used twice: eight bytes of it
are random. A file that no row of the index names is nobody's, and swept; ``session`` marks the files of the running
process, which may not have a row yet. At most three quarters of the process's descriptors are open here.

Passthrough, mmap and reflinks need the bytes at their own offsets, hence sparse files and no packing.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import secrets
import stat
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from cache.openat2 import open_cached

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from manifest.digest import Digest

WRITE_BYTES = 256 * 1024
"""One write(2): larger ones take large pieces of page cache, at several times the cost where free memory is cold."""
TABLE_DESCRIPTORS = 65536
"""How large the process's table of descriptors is made at the start; 8 bytes each."""
FALLOC_FL_KEEP_SIZE = 1
FALLOC_FL_PUNCH_HOLE = 2


class OpenFile:
    """A descriptor with its users counted: it is closed when the last one has gone, never under somebody's read.

    Invariant: ``fd`` is open while ``_users`` > 0; ``_users`` counts its owner and every operation under way.
    A number that is closed too early can be given out again, and the read would return another file's bytes.
    """

    __slots__ = ("_files", "_users", "fd", "name")

    def __init__(self, fd: int, name: str, files: ObjectFiles) -> None:
        """Take over ``fd``, one of ``files``; its first user is the owner."""
        self.fd = fd
        self.name = name
        self._users = 1
        self._files = files

    def use(self) -> None:
        """One more user. On the event loop, as all counting."""
        assert self._users > 0
        self._users += 1

    def done(self) -> None:
        """One user less."""
        self._users -= 1
        if self._users == 0:
            self._files.dispose(self.fd)

    async def read(self, offset: int, size_bytes: int, limiter: trio.CapacityLimiter) -> bytes | None:
        """Exactly these bytes; None when the file does not give them (an error of the disk, or it was cut).

        Cancellation leaves the thread to itself: a dead disk holds nobody past a deadline, and the descriptor
        stays open for as long as the thread is in the kernel.
        """
        self.use()
        try:
            data = await trio.to_thread.run_sync(
                pread,
                self.fd,
                size_bytes,
                offset,
                abandon_on_cancel=True,
                limiter=_Hold(self, limiter),  # type: ignore[arg-type]  # trio calls these two methods and no other
            )
        except OSError as error:
            self._files.on_failed(error)
            return None
        finally:
            self.done()
        return data if len(data) == size_bytes else None


class _Hold:
    """A limiter that keeps a file in use for as long as the thread really runs, given up or not.

    Trio releases a thread's limiter when the thread has ended, on the event loop: that is the moment.
    """

    def __init__(self, file: OpenFile, limiter: trio.CapacityLimiter) -> None:
        self._file = file
        self._limiter = limiter

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        await self._limiter.acquire_on_behalf_of(borrower)
        self._file.use()

    def release_on_behalf_of(self, borrower: object) -> None:
        self._limiter.release_on_behalf_of(borrower)
        self._file.done()


def pread(fd: int, size_bytes: int, offset: int) -> bytes:
    """Read until everything is there or the file ends. Raises OSError."""
    data = os.pread(fd, size_bytes, offset)
    while 0 < len(data) < size_bytes:  # a signal, or more than 2 GiB
        more = os.pread(fd, size_bytes - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


class ObjectFiles:
    """The folder of sparse files. Its methods block, but for ``dispose``; thread-safe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._session = secrets.token_hex(4)
        self._made: set[str] = set()
        self._closing: list[int] = []
        self._lock = threading.Lock()
        self._open_max = resource.getrlimit(resource.RLIMIT_NOFILE)[0] * 3 // 4
        self._open_count = 0
        self._folder_fd = -1
        self.on_disposed: Callable[[], None] = _nothing
        """Called on the event loop when something waits to be closed."""
        self.on_failed: Callable[[OSError], None] = _ignore
        """To be called on the event loop with every error of the disk: see ``health.py``."""

    def prepare(self) -> None:
        """Make the folder. Raises OSError."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self._folder_fd = os.open(self.folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def make_room(self) -> None:
        """Have the kernel make its table of our descriptors large, in a thread.

        It grows by doubling, and each time whoever opens a file waits for every CPU: up to 15 ms of the event loop.
        """
        number = min(self._open_max, TABLE_DESCRIPTORS) - 1
        with suppress(OSError):
            os.close(fcntl.fcntl(self._folder_fd, fcntl.F_DUPFD_CLOEXEC, number))

    def close(self) -> None:
        """Close what waits to be closed, and the folder. Nothing may be under way."""
        self.close_disposed()
        if self._folder_fd >= 0:
            os.close(self._folder_fd)
            self._folder_fd = -1

    def create(self, content: Digest, size_bytes: int) -> OpenFile:
        """A new empty sparse file of this size. Raises OSError."""
        text = content.hex()
        if text[:2] not in self._made:
            (self.folder / text[:2]).mkdir(mode=0o700, exist_ok=True)
            self._made.add(text[:2])
        name = f"{text[:2]}/{text}.{self._session}{secrets.token_hex(8)}"
        fd = self._open(name, os.O_CREAT | os.O_EXCL)
        try:
            os.ftruncate(fd, size_bytes)
        except OSError:
            self._close(fd)
            self.unlink(name)
            raise
        return OpenFile(fd, name, self)

    def open(self, name: str, size_bytes: int) -> OpenFile | None:
        """An existing file; None when it is not there or not one of this size. Raises OSError for other reasons."""
        if not _is_ours(name):
            return None
        try:
            fd = self._open(name)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR):
                return None
            raise
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size != size_bytes:
            self._close(fd)
            return None
        return OpenFile(fd, name, self)

    def open_now(self, name: str, size_bytes: int) -> OpenFile | None:
        """As ``open``, if it can be had without waiting for the disk or for another thread; None for any other reason.

        For the event loop.
        """
        if not _is_ours(name) or not self._lock.acquire(blocking=False):
            return None
        try:
            if self._open_count >= self._open_max:
                return None
            fd = open_cached(self._folder_fd, name)
            if fd is None:
                return None
            self._open_count += 1
        finally:
            self._lock.release()
        file = OpenFile(fd, name, self)
        status = os.fstat(fd)
        if status.st_size != size_bytes or not stat.S_ISREG(status.st_mode):
            file.done()
            return None
        return file

    def _open(self, name: str, flags: int = 0) -> int:
        """A descriptor, within the share of them that is ours: sources and databases need some too."""
        with self._lock:
            if self._open_count >= self._open_max:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            self._open_count += 1
        try:
            return os.open(self.folder / name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)
        except OSError:
            with self._lock:
                self._open_count -= 1
            raise

    def _close(self, fd: int) -> None:
        os.close(fd)
        with self._lock:
            self._open_count -= 1

    def close_now(self, file: OpenFile) -> None:
        """Close a file that nobody but the caller has: in a thread, where ``done`` may not be called."""
        self._close(file.fd)

    def unlink(self, name: str) -> None:
        """Remove a file; one that is gone already is fine. Raises OSError."""
        with suppress(FileNotFoundError):
            (self.folder / name).unlink()

    def dispose(self, fd: int) -> None:
        """Queue a descriptor to be closed: the last close of a large removed file can take long."""
        with self._lock:
            self._closing.append(fd)
        self.on_disposed()

    @property
    def open_count(self) -> int:
        """How many descriptors are open, those that wait to be closed too."""
        return self._open_count

    def close_disposed(self) -> None:
        """Close what ``dispose`` queued."""
        with self._lock:
            fds, self._closing = self._closing, []
            self._open_count -= len(fds)
        for fd in fds:
            with suppress(OSError):  # the data is fdatasync'ed or not claimed; nothing hangs on this result
                os.close(fd)

    def strangers(self) -> Iterator[list[str]]:
        """The names of all files of earlier processes, a folder at a time. Anything else in there is named too."""
        for shard in sorted(_names(self.folder)):
            found = [f"{shard}/{name}" for name in _names(self.folder / shard)]
            yield [name for name in found if name.rpartition(".")[2][: len(self._session)] != self._session]


class NotOurs(Exception):
    """A file has not the size that it was made with: somebody else has been at it."""


def write_chunk(fd: int, data: bytes | memoryview, offset: int, file_bytes: int) -> None:
    """Write all of ``data`` at ``offset`` of a file of ``file_bytes``.

    Raises OSError; then nothing of ``data`` may be relied on. Raises NotOurs for a file of another size, before
    writing: one that was cut would grow again, with zeros where other chunks were.
    What was written of a chunk that did not fit is given back, so that it does not hold disk that nobody counts.
    """
    if os.fstat(fd).st_size != file_bytes:
        raise NotOurs
    view = memoryview(data)
    done = 0
    try:
        while done < len(view):
            written = os.pwrite(fd, view[done : done + WRITE_BYTES], offset + done)
            done += written
    except OSError:
        _punch(fd, offset, len(view))
        raise


def read_nowait(fd: int, offset: int, size_bytes: int) -> bytearray | None:
    """These bytes if the page cache has them all; None if not, or if the file system cannot tell. Never blocks."""
    buffer = bytearray(size_bytes)
    try:
        count = os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
    except OSError:
        return None
    return buffer if count == size_bytes else None


def _punch(fd: int, offset: int, size_bytes: int) -> None:
    import ctypes  # noqa: PLC0415 - only on the way down

    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate(
        fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, ctypes.c_int64(offset), ctypes.c_int64(size_bytes)
    )  # best effort: a file system without holes keeps the blocks until the object goes


def mend_chunk(fd: int, data: bytes | memoryview, offset: int, file_bytes: int) -> None:
    """Write right bytes over whatever a file of ``file_bytes`` holds at ``offset``, while others read it.

    A file that is too long loses what is too much, one that was cut grows again, by right bytes only: chunks that lie
    behind its end have to wait for those before them (NotOurs). Raises OSError; what was there stays then, in part.
    """
    size_bytes = os.fstat(fd).st_size
    if size_bytes > file_bytes:
        os.ftruncate(fd, file_bytes)
    elif size_bytes < offset:
        raise NotOurs
    view = memoryview(data)
    done = 0
    while done < len(view):
        done += os.pwrite(fd, view[done : done + WRITE_BYTES], offset + done)


def _is_ours(name: str) -> bool:
    return name.count("/") == 1 and ".." not in name and not name.startswith("/")


def _nothing() -> None:
    pass


def _ignore(_: object) -> None:
    pass


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - names are all that is needed
    except (FileNotFoundError, NotADirectoryError):
        return []
