"""Dedup: a chunk that another cached object of the show has is taken from there, and not downloaded.

State: none. Rules:
- What an object is said to have is hashed before anybody gets it. What is not as it should be costs a download, and its
  object is ``suspect``: it is checked next.
- A taker has its bytes at offsets of its own: where the two offsets agree on the file system's blocks, whole blocks are
  shared (FICLONERANGE, ioctl_ficlonerange(2)), the rest is written; elsewhere all of it is. What is shared is read back
  and hashed before it counts as present.
- Shared blocks are charged to every object that has them: what the cache is charged is never less than what it takes.
- Two tenants never share a byte.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import struct
from typing import TYPE_CHECKING, NamedTuple

import trio

from cache.files import pread, write_chunk
from manifest.digest import Digest

if TYPE_CHECKING:
    from collections.abc import Callable

    from cache.chunks import Place
    from cache.files import ObjectFiles, OpenFile
    from cache.index import Index
    from cache.metrics import Counters
    from cache.sources.protocol import ObjectRef

FIND_THREADS = 4
READ_S = 5.0
"""How long a disk may take to give a chunk before it is downloaded instead."""
SHARED_BYTES_MIN = 64 * 1024
"""Below that, a few writes cost less than an extent of its own."""
_FICLONERANGE = 0x4020940D
_CLONE_RANGE = struct.Struct("=qQQQ")


class Found(NamedTuple):
    """A chunk's verified bytes, and where they lie. ``file`` is in use; the one who found it says ``done``."""

    data: bytes
    file: OpenFile
    offset: int


class Neighbours:
    """Finds chunks in the objects of one folder. ``suspect`` gets the name of a file that was not as it should be."""

    def __init__(self, index: Index, files: ObjectFiles, counters: Counters, suspect: Callable[[str], None]) -> None:
        self._index = index
        self._files = files
        self._counters = counters
        self._suspect = suspect
        self._limiter = trio.CapacityLimiter(FIND_THREADS)

    async def find(self, ref: ObjectRef) -> Found | None:
        """The bytes of ``ref``, if an object of its tenant has them; else None. Raises only Cancelled."""
        if ref.kind != "chunk" or ref.length is None:
            return None
        try:
            places = await trio.to_thread.run_sync(self._index.places, ref.tenant, ref.digest, limiter=self._limiter)
        except sqlite3.Error as error:
            self._index.failed(error)
            return None
        for place in places:
            data, file = await self._read(place, ref.length)
            if file is None:
                continue
            if data is not None and await trio.to_thread.run_sync(Digest.of, data, limiter=self._limiter) == ref.digest:
                self._counters.dedup_bytes["download"] += len(data)
                return Found(data, file, place.offset)
            file.done()
            self._suspect(place.file)
        return None

    async def _read(self, place: Place, length: int) -> tuple[bytes | None, OpenFile | None]:
        """What lies at a place, and its file, which is in use then; no file where it cannot be opened."""
        try:
            with trio.CancelScope(shield=True):  # a descriptor must not be lost
                file = await trio.to_thread.run_sync(self._files.open, place.file, place.size, limiter=self._limiter)
        except OSError:
            return None, None
        if file is None:
            return None, None
        data = None
        try:
            with trio.move_on_after(READ_S):
                data = await file.read(place.offset, length, self._limiter)
        except BaseException:
            file.done()
            raise
        return data, file


def write_shared(
    fd: int, data: bytes | memoryview, offset: int, file_bytes: int, donor_fd: int, donor_offset: int
) -> int:
    """As ``files.write_chunk``; blocks that the donor has at ``donor_offset`` are shared with it where that can be.

    Returns how many bytes are. Blocking.
    """
    view = memoryview(data)
    block = os.fstatvfs(fd).f_bsize
    begin, end = -(-offset // block) * block, (offset + len(view)) // block * block
    if (offset - donor_offset) % block or end - begin < SHARED_BYTES_MIN:
        write_chunk(fd, view, offset, file_bytes)
        return 0
    write_chunk(fd, view[: begin - offset], offset, file_bytes)  # it sees to the file's size first
    interior = view[begin - offset : end - offset]
    if _clone(fd, begin, donor_fd, donor_offset + begin - offset, len(interior)) and _holds(fd, begin, interior):
        write_chunk(fd, view[end - offset :], end, file_bytes)
        return len(interior)
    write_chunk(fd, view[begin - offset :], begin, file_bytes)
    return 0


def _clone(fd: int, offset: int, donor_fd: int, donor_offset: int, length: int) -> bool:
    """Have both files share these blocks; False where the file system cannot, or the two are not on one."""
    try:
        fcntl.ioctl(fd, _FICLONERANGE, _CLONE_RANGE.pack(donor_fd, donor_offset, length, offset))
    except OSError:
        return False
    return True


def _holds(fd: int, offset: int, data: memoryview) -> bool:
    """Whether the file gives these bytes back; by their digests, which are made without the interpreter's lock."""
    try:
        return Digest.of(pread(fd, len(data), offset)) == Digest.of(data)
    except OSError:
        return False
