"""Whether the disk gives back what was written: an object's file against its recipe, past the page cache.

State: none. Everything here blocks, and is for a thread. Reads are direct (open(2), O_DIRECT) where the file system
has them: they say what the disk holds, and push nobody's bytes out of memory. They yield to everybody else's
(ioprio_set(2), class idle), where the disk's scheduler knows that.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, Self

from blake3 import blake3

from manifest.digest import Digest
from manifest.errors import FormatError
from manifest.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from cache.index import ObjectRow

PIECE_BYTES = 1024 * 1024
_ALIGNED = 4096
_IOPRIO_CALLS = {"x86_64": (251, 252), "aarch64": (30, 31)}
"""The numbers of ioprio_set and ioprio_get, which glibc has no wrappers for."""
_WHO_PROCESS = 1
_CLASS_IDLE = 3 << 13


class Span(NamedTuple):
    """Bytes of a file that must have this digest."""

    offset: int
    length: int
    digest: Digest


def recipe_of(content: bytes, packed: bytes | None) -> Recipe | None:
    """The recipe that was kept for a content; None for one that is not the content's."""
    try:
        recipe = None if packed is None else Recipe(packed)
    except FormatError:
        return None
    return recipe if recipe is not None and recipe.content == content else None


def spans(row: ObjectRow, recipe: Recipe | None) -> Iterator[Span] | None:
    """What must hold of the row's file; None where nothing is known: it was filled before recipes were kept."""
    if recipe is not None and len(recipe) == row.chunks and recipe.size == row.size:
        return (
            Span(recipe.offset(i), recipe[i].length, recipe[i].digest)
            for i in range(row.chunks)
            if row.present[i >> 3] >> (i & 7) & 1
        )
    if row.whole and row.present_bytes == row.size:
        return iter((Span(0, row.size, Digest(row.whole)),))
    return None


def is_small_right(content: bytes, recipe: Recipe | None, data: bytes) -> bool | None:
    """Whether ``data`` is a small content; None where nobody can say. One of one chunk needs no recipe."""
    recipe = recipe or (Recipe.of([(Digest.of(data), len(data))]) if data else None)
    if recipe is None or recipe.content != content:
        return False if recipe is None or len(recipe) == 1 else None
    return len(data) == recipe.size and all(
        Digest.of(data[recipe.offset(i) : recipe.offset(i + 1)]) == recipe[i].digest for i in range(len(recipe))
    )


class Check:
    """One object's file being checked, a step at a time. A context manager.

    ``reason``: why the file is not what it should be; empty as long as it is. ``error``: what the disk said, if that.
    """

    def __init__(self, path: Path, size_bytes: int, spans: Iterator[Span]) -> None:
        """Raises OSError where the file cannot be opened."""
        self.reason = ""
        self.error: OSError | None = None
        self._size_bytes = size_bytes
        self._spans = spans
        self._fd = _open_direct(path)
        self._view = memoryview(mmap.mmap(-1, PIECE_BYTES))
        self._work = self._run()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._work.close()
        os.close(self._fd)

    def advance(self, bytes_max: int) -> int:
        """Read on, some ``bytes_max``; returns how many bytes were read, 0 at the end or when a reason was found."""
        done = 0
        try:
            with _yielding():
                while done < bytes_max and (count := next(self._work, 0)):
                    done += count
        except OSError as error:
            self.error = error
            self.reason = f"the disk does not give its bytes back: {error.strerror}"
            return 0
        return 0 if self.reason else done

    def _run(self) -> Generator[int, None, None]:
        if os.fstat(self._fd).st_size != self._size_bytes:
            self.reason = "its size was changed by somebody else"
            return
        for span in self._spans:
            hasher = blake3()
            for piece in self._pieces(span):
                hasher.update(piece)
                yield len(piece)
            if hasher.digest() != span.digest:
                self.reason = f"bytes {span.offset} to {span.offset + span.length} are not what was written"
                return

    def _pieces(self, span: Span) -> Iterator[memoryview]:
        """The bytes of a span, a piece at a time, each valid until the next; fewer where the file ends."""
        position, end = span.offset, span.offset + span.length
        while position < end:
            begin = position // _ALIGNED * _ALIGNED
            want = min(PIECE_BYTES, -(-(end - begin) // _ALIGNED) * _ALIGNED)
            until = min(begin + os.preadv(self._fd, [self._view[:want]], begin), end)
            if until <= position:
                return
            yield self._view[position - begin : until - begin]
            position = until


def _open_direct(path: Path) -> int:
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, flags)  # a file system without direct reads


@contextmanager
def _yielding() -> Iterator[None]:
    """Have the reads of this thread come after everybody else's, where that can be had; then as they were before."""
    calls = _IOPRIO_CALLS.get(platform.machine())
    if calls is None:
        yield
        return
    libc = ctypes.CDLL(None)
    set_priority, get_priority = calls
    before = libc.syscall(get_priority, _WHO_PROCESS, 0)
    libc.syscall(set_priority, _WHO_PROCESS, 0, _CLASS_IDLE)
    try:
        yield
    finally:
        libc.syscall(set_priority, _WHO_PROCESS, 0, max(before, 0))
