"""The health of a cache folder's disk: whether it works, and whether it fails so often that it is not to be used.

State: when the disk failed lately (``Faults``); what looks and tries has none, blocks, and runs in a thread.

Rules:
- An error counts when it speaks of the disk. That it is full, or that too many files are open, does not.
- One error proves little: the disk is then tried out, and many errors within FAULTS_S count by themselves.
- A disk works when it is not read-only, and bytes that were written and made durable there are read back.
"""

from __future__ import annotations

import errno
import os
import secrets
import sqlite3
from collections import deque
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from pathlib import Path

FAULTS_MAX = 8
FAULTS_S = 10.0
PROBE = "probe"
"""The file that a disk is tried out with; only the holder of the lock writes it."""
_PROBE_BYTES = 4096
_NO_ROOM = frozenset((errno.ENOSPC, errno.EDQUOT))
_FAULTS = frozenset((
    errno.EIO, errno.EROFS, errno.ENOENT, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ESHUTDOWN, errno.EUCLEAN,
    errno.EBADMSG, errno.ENOTCONN, errno.ETIMEDOUT, errno.EREMOTEIO,
))  # fmt: skip
_FAULT_CODES = frozenset((sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY))


def is_fault(error: BaseException | None) -> bool:
    """Whether an error speaks of the disk, or of a folder that is not there."""
    if isinstance(error, OSError):
        return error.errno in _FAULTS
    return isinstance(error, sqlite3.Error) and (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF in _FAULT_CODES


class Faults:
    """What went wrong with a disk lately. Touched on the event loop only.

    ``noted`` is set when something went wrong since the last ``clear``.
    """

    def __init__(self) -> None:
        self.noted = trio.Event()
        self._last = ""
        self._times: deque[float] = deque(maxlen=FAULTS_MAX)

    def note(self, error: OSError | sqlite3.Error) -> None:
        """Count an error, if it speaks of the disk."""
        if is_fault(error):
            self._last = str(error)
            self._times.append(trio.current_time())
            self.noted.set()

    def clear(self) -> None:
        """Wait for the next error. Those that were noted go on counting."""
        self.noted = trio.Event()

    def verdict(self) -> str | None:
        """Why the disk is not to be used, going by its errors alone; None: they are few."""
        if len(self._times) < FAULTS_MAX or self._times[0] < trio.current_time() - FAULTS_S:
            return None
        return f"its disk failed {FAULTS_MAX} times within {FAULTS_S:g} s, at last with: {self._last}"


def look(folder: Path, lock_fd: int, *, thoroughly: bool) -> str | None:
    """Why a folder that was in use is not to be used any more; None: it is in order. ``thoroughly``: try its disk."""
    try:
        if not os.path.samestat(os.fstat(lock_fd), (folder / "lock").lstat()):
            return "another folder is in its place"
        (folder / "objects").lstat()
        if os.statvfs(folder).f_flag & os.ST_RDONLY:
            return "its file system is read-only"
        if thoroughly:
            try_out(folder)
    except (FileNotFoundError, NotADirectoryError):
        return "it was deleted"
    except OSError as error:
        return f"its disk fails ({error.strerror})"
    return None


def try_out(folder: Path) -> None:
    """Write some bytes to the disk of ``folder`` and read them back. A full one passes. Raises OSError."""
    path = folder / PROBE
    try:
        _write_and_read(path, secrets.token_bytes(_PROBE_BYTES))
        path.unlink(missing_ok=True)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise


def _write_and_read(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.pwrite(fd, data, 0)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        if os.pread(fd, len(data), 0) != data:
            raise OSError(errno.EIO, "it gives back other bytes than were written")
    finally:
        os.close(fd)
