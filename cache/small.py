"""Contents of at most 64 KiB, in a diskcache store: a file each would cost more than the bytes.

State: ``<cache>/small/`` (diskcache's SQLite file). Key: tenant, NUL, content id; value: the whole content.

Rules:
- ``RawDisk`` writes raw values only and reads nothing else: whatever another mode a row may have, it is a miss, and
  nothing is ever unpickled.
- No eviction of its own: the index evicts. A short time-out: a lock that is not had at once is a miss.
- Every value is verified by its reader against the recipe: the order of writes does not matter here.

Thread-safe.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diskcache
from diskcache.core import MODE_RAW, UNKNOWN

from cache.shm import take_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

SMALL_BYTES_MAX = 64 * 1024
TIMEOUT_S = 0.25
_PRAGMAS = {"journal_mode": "wal", "synchronous": 1, "auto_vacuum": 1, "mmap_size": 0, "cache_size": 1024}
_SETTINGS: dict[str, Any] = {
    "eviction_policy": "none",
    "cull_limit": 0,
    "statistics": 0,
    "tag_index": 0,
    "size_limit": 2**62,
    **{f"sqlite_{name}": value for name, value in _PRAGMAS.items()},
}
_MADE_LAST = "Settings_size_delete"
"""What diskcache makes last in a new store: one that has it was made to the end."""
OVERHEAD_BYTES = 512
"""What a value is charged on top of its bytes: rows and half-empty pages."""


class RawDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache has no types
    """diskcache's serialisation, cut down to raw bytes (diskcache 5.6, ``Disk`` in core.py)."""

    def put(self, key: object) -> tuple[bytes, bool]:
        """A key for the database. Only bytes."""
        assert isinstance(key, bytes)
        return key, True

    def get(self, key: object, raw: object) -> bytes:
        """A key from the database; empty for one that ``put`` never wrote."""
        return key if raw and isinstance(key, bytes) else b""

    def store(self, value: object, read: bool, key: object = UNKNOWN) -> tuple[int, int, None, bytes]:  # noqa: ARG002
        """(size, mode, file name, value) for the database. Only bytes, never in a file."""
        assert isinstance(value, bytes)
        return 0, MODE_RAW, None, value

    def fetch(self, mode: int, filename: object, value: object, read: bool) -> bytes | None:  # noqa: ARG002
        """A value from the database; None, a miss, for all that ``store`` never wrote."""
        return value if mode == MODE_RAW and isinstance(value, bytes) else None

    def remove(self, file_path: object) -> None:
        """There are no files; a name in a row is not ours, and is not followed."""


class _OneConnection(diskcache.Cache):  # type: ignore[misc]  # diskcache has no types
    """diskcache's Cache on one connection, used under its owner's lock.

    As it comes (5.6, ``_con`` in core.py) it opens one for each thread that ever calls it, and can close only the
    caller's own: the others would hold the folder's disk for as long as their threads live. And it writes every
    setting at every start, waiting a minute for a lock that a process may hold while it is being killed.
    """

    _connection: sqlite3.Connection | None = None
    _shm_fd = -1

    def __init__(self, folder: str) -> None:
        self._directory, self._timeout = folder, TIMEOUT_S
        if not self._adopt():
            super().__init__(folder, timeout=TIMEOUT_S, disk=RawDisk, **_SETTINGS)
        self._take_blocks()

    def _adopt(self) -> bool:
        """Take a store that was made with the same settings, without writing; False when it was not."""
        if not (Path(self._directory) / "cache.db").exists():
            return False
        try:
            known = dict(self._con.execute("SELECT key, value FROM Settings"))
        except sqlite3.OperationalError:
            return False
        (made,) = self._con.execute("SELECT count(*) FROM sqlite_master WHERE name = ?", (_MADE_LAST,)).fetchone()
        if not made or any(known.get(name) != value for name, value in _SETTINGS.items()):
            return False
        self._txn_id = None
        self._disk = RawDisk(self._directory)
        for name, value in _SETTINGS.items():
            setattr(self, name, value)
        return True

    @property
    def _con(self) -> sqlite3.Connection:
        if self._connection is None:
            path = Path(self._directory) / "cache.db"
            self._connection = sqlite3.connect(
                path, timeout=self._timeout, isolation_level=None, check_same_thread=False
            )
            for name, value in _PRAGMAS.items():
                self._connection.execute(f"PRAGMA {name} = {value}")
        return self._connection

    def _take_blocks(self) -> None:
        """See ``shm``."""
        self._con.execute("SELECT 1 FROM Settings LIMIT 1").fetchone()  # maps it
        self._shm_fd = take_blocks(Path(self._directory) / "cache.db")

    def close(self) -> None:
        """Close the connection; the next call opens another one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._shm_fd >= 0:
            os.close(self._shm_fd)
            self._shm_fd = -1


class SmallStore:
    """Small values by key. ``get`` and ``put`` never raise for what the store does: a cache may forget.

    Invariant: ``_cache`` is only called under ``_lock``.
    """

    def __init__(self, folder: Path) -> None:
        """Open or make the store. Raises OSError, or sqlite3.Error or ValueError for one that is damaged."""
        self._lock = threading.Lock()
        self._closed = False
        try:
            self._cache = _OneConnection(str(folder))
        except (TypeError, AttributeError) as error:  # settings that somebody else wrote into it
            raise ValueError(str(error)) from error

    def get(self, key: bytes) -> bytes | None:
        """The value, not verified; None when it is not there or cannot be read now."""
        try:
            with self._lock:
                value = None if self._closed else self._cache.get(key)
        except (diskcache.Timeout, sqlite3.Error, OSError):
            return None
        return value if isinstance(value, bytes) else None

    def put(self, key: bytes, value: bytes) -> bool:
        """Keep a value; False when the store could not."""
        try:
            with self._lock:
                return not self._closed and bool(self._cache.set(key, value))
        except (diskcache.Timeout, sqlite3.Error, OSError):
            return False

    def delete(self, key: bytes) -> bool:
        """Drop a value; False when the store could not."""
        try:
            with self._lock:
                if not self._closed:
                    self._cache.delete(key)
        except (diskcache.Timeout, sqlite3.Error, OSError):
            return False
        return not self._closed

    def keys(self) -> Iterator[bytes]:
        """All keys, in order. Raises sqlite3.Error."""
        keys = self._cache.iterkeys()
        while True:
            with self._lock:
                key = None if self._closed else next(keys, None)
            if key is None:
                return
            yield key

    def close(self) -> None:
        """Close the store, once no thread uses it: it has nothing and takes nothing from then on."""
        with self._lock:
            self._closed = True
            self._cache.close()


def small_key(tenant: str, content: bytes) -> bytes:
    """The key of a content."""
    return tenant.encode() + b"\0" + content
