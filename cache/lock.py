"""One daemon a cache folder: an flock that names its holder.

State: the open descriptor of ``<cache>/lock``. The lock belongs to the open file description: the kernel drops it with
the last process that has it open, however that ends, so a lock is never stale. A daemon's supervisor keeps a copy and
hands it to the successor, which therefore waits for no predecessor. What the file says is only for people.
"""

from __future__ import annotations

import fcntl
import logging
import os
from contextlib import suppress
from pathlib import Path

from manifest.errors import Busy, ConfigurationError

logger = logging.getLogger(__name__)

_NOTE_BYTES_MAX = 8192


def holder_of(folder: Path) -> tuple[int, Path] | None:
    """The pid that has the lock, or had it last, and the mountpoint that it named; for people."""
    with suppress(OSError, ValueError):
        pid, where = (folder / "lock").read_bytes()[:_NOTE_BYTES_MAX].decode(errors="surrogateescape").split("\n")[:2]
        return int(pid), Path(where)
    return None


class FolderLock:
    """An exclusive lock on a folder, held until ``release``.

    Invariant: while ``fd`` is open this process, and no other, holds the folder.
    """

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def take(cls, folder: Path, holder: str) -> FolderLock:
        """Lock ``folder``; ``holder`` says for people what for (a mountpoint).

        Raises Busy, naming the holder, when another process has it, and ConfigurationError when the lock file
        cannot be used at all. Does not wait.
        """
        path = folder / "lock"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise ConfigurationError(f"cannot lock the cache folder {folder}: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _note(fd, holder)
        except BlockingIOError as error:
            note = os.pread(fd, _NOTE_BYTES_MAX, 0).decode(errors="replace").split("\n")
            os.close(fd)
            pid, where = [*note, "?"][:2]
            raise Busy(
                f"cache folder {folder} is held by pid {pid or '?'}, mounted at {where or '?'}: "
                "unmount it there or use another cache folder"
            ) from error
        except OSError as error:
            os.close(fd)
            raise ConfigurationError(f"cannot lock the cache folder {folder}: {error.strerror}") from error
        return cls(fd)

    @classmethod
    def adopt(cls, folder: Path, holder: str, fds: list[int]) -> FolderLock | None:
        """The lock by a predecessor's descriptor, if one of ``fds`` is of the lock file in ``folder``; else None.

        That one is taken out of the list and becomes this lock's, or is closed when it is of no use.
        """
        try:
            there = (folder / "lock").lstat()
            fd = next(fd for fd in fds if os.path.samestat(os.fstat(fd), there))
        except (OSError, StopIteration):
            return None
        fds.remove(fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held already: this never waits, and never loses it
            os.set_inheritable(fd, False)
            _note(fd, holder)
        except OSError as error:
            logger.warning("a predecessor's lock on the cache folder %s is of no use: %s", folder, error)
            os.close(fd)
            return None
        return cls(fd)

    def release(self) -> None:
        """Let the next one in. The file stays: removing it would let two processes lock two files."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _note(fd: int, holder: str) -> None:
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n{holder}\n".encode(errors="surrogateescape"), 0)
