"""The blocks of SQLite's shared memory, and of its log, taken while there are some.

SQLite maps ``<database>-shm`` and stores to it. So that no store meets a hole it writes a byte into every 4 KiB first
(``unixShmMap`` in os_unix.c). On a file system of smaller blocks holes remain, and once the disk is full a store to one
of them is SIGBUS: the end of the process, at a commit.

State: none; the caller keeps the descriptor for as long as it has the database open, and closes it after that: a close
of any descriptor of a file drops all POSIX locks that the process has on it, and SQLite's are such.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

SHM_BYTES = 128 * 1024
"""Four times what SQLite maps first: enough for a WAL of 16,000 pages. It is checkpointed at 1,000."""


LOG_BYTES = 32 + 1000 * (24 + 4096)
"""SQLite's log (the WAL) when it is checkpointed: its header, and 1,000 pages with theirs."""


def take_log_blocks(database: Path) -> None:
    """Give the log of an open database the blocks that it grows to, if there are so many. Blocking.

    So it takes no room that was to stay free, and there is room in it to note what goes when the disk is full. SQLite
    reads it to the first frame that is none, and keeps its length when it begins anew. For who opens the database,
    before anything else uses it.
    """
    try:
        fd = os.open(f"{database}-wal", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        with suppress(OSError):
            os.posix_fallocate(fd, 0, LOG_BYTES)
    finally:
        os.close(fd)


def take_blocks(database: Path) -> int:
    """Give the shared memory of an open database its blocks, if there are any left. Blocking.

    Returns a descriptor to be closed after the database; -1 when the database has no such file.
    """
    try:
        fd = os.open(f"{database}-shm", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return -1
    with suppress(OSError):  # the disk is full already, or its file system cannot: no worse than without
        os.posix_fallocate(fd, 0, SHM_BYTES)
    return fd
