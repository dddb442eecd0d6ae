"""How a file is cut: FastCDC, with a profile for what is streamed and one for what is read at random.

Rules: the cuts depend on nothing but the bytes, the name's extension and, for images, the header, so equal files have
equal chunks everywhere; the numbers below are part of the format (docs/FORMAT.md) and never change for a library that
exists. In a file above 1 MiB the first 64 KiB are a chunk of their own, since hosts probe a thousand cold headers at
once. Other cuts are harmless to readers: they cost deduplication only.

Source: W. Xia et al., "The Design of Fast Content-Defined Chunking", IEEE TPDS 2020 (normalisation level 1, the
default gear table), as the package pyfastcdc implements it.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, NamedTuple

from pyfastcdc import FastCDC

from manifest.recipe import CHUNK_BYTES_MAX
from tools.publish.headers import exr_is_texture, tiff_is_texture

if TYPE_CHECKING:
    from collections.abc import Iterator

KIB = 1024
MIB = 1024 * KIB


class Profile(NamedTuple):
    """The limits of a chunk, in bytes: FastCDC's minimum, average and maximum."""

    name: str
    min_bytes: int
    average_bytes: int
    max_bytes: int


STREAM = Profile("stream", 1 * MIB, 4 * MIB, 16 * MIB)
RANDOM = Profile("random", 64 * KIB, 256 * KIB, 1 * MIB)
RANDOM_EXTENSIONS = frozenset({".tx", ".vdb", ".abc", ".usdc", ".ptx"})
HEADER_BYTES = 64 * KIB
HEADER_FILE_BYTES_MIN = 1 * MIB
"""Only files larger than this have their header apart."""

assert STREAM.max_bytes <= CHUNK_BYTES_MAX


def choose(name: str, descriptor: int) -> Profile:
    """The profile for an open file of this name. Reads the headers of images. Raises OSError."""
    extension = PurePath(name).suffix.lower()
    if extension in RANDOM_EXTENSIONS:
        return RANDOM
    if extension == ".exr" and exr_is_texture(descriptor):
        return RANDOM
    if extension in (".tif", ".tiff") and tiff_is_texture(descriptor):
        return RANDOM
    return STREAM


class Cutter:
    """Cuts one file, handed over as consecutive windows. Not thread-safe.

    The cuts are those of the whole file at once: a cut depends only on the bytes since the one before it, so what is
    behind the last certain cut of a window is handed over again at the beginning of the next one.
    """

    def __init__(self, profile: Profile, size_bytes: int) -> None:
        """``size_bytes`` is the size of the file; the windows must add up to it."""
        self._fastcdc = FastCDC(profile.average_bytes, min_size=profile.min_bytes, max_size=profile.max_bytes)
        self._max_bytes = profile.max_bytes
        self._header_due = size_bytes > HEADER_FILE_BYTES_MIN

    def cut(self, window: memoryview, *, last: bool) -> Iterator[tuple[int, int]]:
        """(offset in the window, length) of each chunk that is certain.

        With ``last`` the chunks cover the window; else what they leave over, at most the profile's maximum, belongs
        at the beginning of the next window. A window holds more than the maximum, unless it is the last.
        """
        start = 0
        if self._header_due:
            self._header_due = False
            yield 0, HEADER_BYTES
            start = HEADER_BYTES
        if start == len(window):
            return
        for chunk in self._fastcdc.cut_buf(window[start:]):
            end = start + chunk.offset + chunk.length
            if end < len(window) or last or chunk.length == self._max_bytes:
                yield start + chunk.offset, chunk.length
