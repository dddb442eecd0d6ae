"""The page cache: both sides are brought into the same state before they are compared.

How pages came into memory matters: the kernel keeps what a large write or a read-ahead brought in large pieces, what
small writes brought in small ones, and a mapping of large pieces is touched several times as fast. So the pages of the
native files and of the files in the cache folder are dropped, and read again in the same way. Which files of the cache
these are is found by their sizes; a few others of the same size lose their pages too, which costs them one read.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Set


def files_of_size(cache_folder: Path, sizes: Set[int]) -> list[Path] | None:
    """The files in the cache folder with one of these sizes; None when this user may not look.

    Source: cache/files.py, ``objects/<two digits>/<name>``.
    """
    found: list[Path] = []
    try:
        with os.scandir(cache_folder / "objects") as folders:
            for folder in folders:
                with suppress(NotADirectoryError), os.scandir(folder) as entries:
                    found += [Path(entry.path) for entry in entries if _size(entry) in sizes]
    except OSError:
        return None
    return found


def drop(paths: Iterable[Path]) -> None:
    """Drop the pages of files that are on the disk already; one that is gone has none."""
    for path in paths:
        with suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def memory_available_bytes() -> int:
    """What the kernel thinks it can give without swapping. Source: proc(5), MemAvailable."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_size
    except FileNotFoundError:
        return -1
