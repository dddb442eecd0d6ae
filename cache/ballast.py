"""Ballast: some blocks of the disk that are held in order to be given up when it is full.

Deleting needs room, too: SQLite writes what it changes to its log first. On a disk that others have filled to the last
block nothing could be evicted, and a cache that cannot evict never has room again. So some is held back: it is let go
of when a deletion finds none, and taken again when there is some.

State: the file ``<database>.ballast``, and whether it has its blocks. For one thread at a time. Raises nothing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

BALLAST_BYTES = 2 * 1024 * 1024
"""Twice what the log of a step of evictions takes."""


class Ballast:
    """See the module."""

    def __init__(self, database: Path) -> None:
        self._path = database.with_name(f"{database.name}.ballast")
        self._is_held = False

    def take(self) -> None:
        """Hold the blocks, if they are not held and the disk has them."""
        if self._is_held:
            return
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError:
            return
        try:
            os.posix_fallocate(fd, 0, BALLAST_BYTES)
            self._is_held = True
        except OSError:
            self._empty(fd)
        finally:
            os.close(fd)

    def give(self) -> bool:
        """Let go of the blocks; False when there were none."""
        if not self._is_held:
            return False
        self._is_held = False
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            return self._empty(fd)
        finally:
            os.close(fd)

    def _empty(self, fd: int) -> bool:
        try:
            os.ftruncate(fd, 0)
            os.fsync(fd)  # blocks that were freed are free when the file system has committed that
        except OSError:
            return False
        return True
