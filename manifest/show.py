"""One show on one machine: its log, its replica and the follower between them, with the lock of the replica.

    <folder>/<library id>/<show>.db        the replica (SQLite, with its -wal and -shm)
    <folder>/<library id>/<show>.lock      flock'ed by whoever writes the replica; holds that process's pid

State: the lock's descriptor and the writer's connection. Rules:

- Nothing is asked of the network by ``open``, so that a show is there while its library is not.
- Whoever writes holds the lock: exclusive, between processes and threads, waited for until a deadline and never for
  ever. Readers need none: SQLite gives each a consistent snapshot.
- The lock file stays when the lock is released: a new file by its name would be another lock.
- A replica that is found damaged is dropped at once, since damage must never be taken for a fault of the log: whoever
  opens it next builds it anew. Readers keep what they have, and the show that found it follows no further.
- A replica file that was put in the place of ours (another process rebuilt it under another trust file, or somebody
  deleted it) is not written to: two states under one name would be a fork that nobody sees. It is left alone.
- Both are ReplicaDamaged; to go on, close the show and open it again.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Self

from manifest import schema
from manifest.apply import ReplicaWriter
from manifest.errors import Busy, ConfigurationError, ReplicaDamaged
from manifest.follow import Follower
from manifest.log import Log
from manifest.names import check_show
from manifest.replica import Replica
from manifest.way import CENTRAL, Way

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from manifest.identity import Identity
    from manifest.incoming import Fetch
    from manifest.library import Library
    from manifest.trust import Verifier

LOCK_DEADLINE_S = 60.0
"""How long another writer of the replica is waited for, when the caller names no deadline."""
READ_AHEAD_BYTES_MAX = 1024 * 1024 * 1024
"""About four million entries."""
_POLL_FIRST_S = 0.002
_POLL_MAX_S = 0.05

_log = logging.getLogger(__name__)


class WriteLock:
    """An flock on a file, held by one thread of one process at a time. Not reentrant."""

    def __init__(self, path: Path, what: str) -> None:
        """``what`` it locks, for messages. Makes the file. Raises ConfigurationError when it cannot."""
        self._what = what
        self._thread_lock = threading.Lock()
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigurationError(f"the lock {path} cannot be opened: {error.strerror}") from error

    @contextmanager
    def held(self, deadline: float | None = None) -> Iterator[None]:
        """Hold the lock. ``deadline``: s of time.monotonic. Raises Busy with the holder's pid."""
        deadline = time.monotonic() + LOCK_DEADLINE_S if deadline is None else deadline
        if not self._thread_lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise Busy(f"{self._what} is being written by this process; try again")
        try:
            self._flock(deadline)
            try:
                os.pwrite(self._descriptor, f"{os.getpid():<20}\n".encode(), 0)
                yield
            finally:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        finally:
            self._thread_lock.release()

    def close(self) -> None:
        """Let go of the file; the lock must not be held."""
        os.close(self._descriptor)

    def _flock(self, deadline: float) -> None:
        pause_s = _POLL_FIRST_S
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() + pause_s > deadline:
                    raise Busy(f"{self._what} is being written by process {self._holder()}; try again") from None
                time.sleep(pause_s)
                pause_s = min(pause_s * 1.5, _POLL_MAX_S)
            else:
                return

    def _holder(self) -> str:
        with suppress(OSError, ValueError):
            return str(int(os.pread(self._descriptor, 64, 0)))
        return "unknown"


class Show:
    """A show that can be followed, read and published to. Thread-safe but for ``close``."""

    def __init__(
        self, log: Log, path: Path, lock: WriteLock, writer: ReplicaWriter, verifier: Verifier, fetch: Fetch | None
    ) -> None:
        """Use ``Show.open``."""
        self.log = log
        self.path = path
        self.writer = writer
        self.follower = Follower(log, writer, verifier, fetch=fetch, lock=self._writing)
        self._lock = lock
        self._file = _file_at(path)
        self._size_bytes = 0
        self._damage = ""

    @classmethod
    def open(
        cls,
        library: Library,
        identity: Identity,
        verifier: Verifier,
        show: str,
        folder: Path,
        *,
        fetch: Fetch | None = None,
        way: Way = CENTRAL,
        deadline: float | None = None,
    ) -> Show:
        """The replica of ``show`` below ``folder``, made when it is missing, and its log. No network.

        ``way``: a cache that is asked first; ``fetch`` reads entries in its place, see Follower. ``deadline``: s of
        time.monotonic, for the lock.
        Raises FormatError for no show name, Busy, ConfigurationError when the replica cannot be made or is newer.
        """
        log = Log(library, check_show(show), way)
        home = folder / identity.id
        try:
            home.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigurationError(f"the folder {home} of replicas cannot be made: {error.strerror}") from error
        path = home / f"{show}.db"
        lock = WriteLock(home / f"{show}.lock", f"the replica {path}")
        try:
            with lock.held(deadline):
                writer = ReplicaWriter.open(path, show, trust=verifier.digest, library_id=identity.id)
        except BaseException:
            lock.close()
            raise
        return cls(log, path, lock, writer, verifier, fetch)

    def reader(self) -> Replica:
        """A new read-only connection, for one thread at a time; the caller closes it."""
        return Replica.open_reader(self.path)

    def drop(self, error: ReplicaDamaged, deadline: float | None = None) -> None:
        """A reader has found the replica damaged: have it built anew by whoever opens it next. Raises Busy."""
        with self._lock.held(deadline):
            if not self._damage and _file_at(self.path) == self._file:
                self._drop(error)

    def close(self) -> None:
        """Close the writer's connection and the lock. Readers live on."""
        self.writer.close()
        self._lock.close()

    @contextmanager
    def _writing(self, deadline: float | None) -> Iterator[None]:
        with self._lock.held(deadline):
            if self._damage:
                raise ReplicaDamaged(self._damage)
            if _file_at(self.path) != self._file:
                raise ReplicaDamaged(
                    f"the replica {self.path} is not the file it was: it was deleted, or made anew under another trust "
                    "file, while this process used it; run it again"
                )
            try:
                self._look_at(self.path.stat().st_size)
                yield
            except ReplicaDamaged as error:
                self._drop(error)
                raise
            except sqlite3.Error as error:
                found = schema.failure(error, self.path)
                if isinstance(found, ReplicaDamaged):
                    self._drop(found)
                if found is error:
                    raise
                raise found from error

    def _look_at(self, size_bytes: int) -> None:
        """A replica is never cut: whoever maps the rest of it would die of it. Raises ReplicaDamaged."""
        if size_bytes < self._size_bytes:
            raise ReplicaDamaged(
                f"the replica {self.path} is damaged: it had {self._size_bytes} bytes and has {size_bytes}"
            )
        self._size_bytes = size_bytes

    def _drop(self, error: ReplicaDamaged) -> None:
        """Let whoever opens the replica next build it anew. The lock is held, and the file is ours."""
        self._damage = f"{error}; it was dropped, and is built anew from the log when it is opened again"
        _log.warning("show %s: %s", self.log.show, self._damage)
        schema.drop(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_ahead(path: Path) -> None:
    """Have the kernel read a replica's file, so that the first look-ups need no disk. Does not wait for it.

    Only before this process opens the replica: see the rule in manifest/schema.py.
    """
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(descriptor, 0, READ_AHEAD_BYTES_MAX, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)


def _file_at(path: Path) -> tuple[int, int] | None:
    """Which file lies there: device and inode; None when there is none."""
    with suppress(FileNotFoundError):
        status = path.stat()
        return status.st_dev, status.st_ino
    return None
