"""How much of its disk the cache's folder finds free. Blocking: a sick disk takes its time."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path


class Space(NamedTuple):
    """A file system, as statvfs(3) tells it. ``inodes`` is 0 where they are without number."""

    bytes: int
    free_bytes: int
    inodes: int
    free_inodes: int


def look(folder: Path) -> Space:
    """The file system that holds ``folder``. Free is what a user gets, without root's own reserve. Raises OSError."""
    found = os.statvfs(folder)
    return Space(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize, found.f_files, found.f_favail)
