"""Whether an image is a texture: tiled and mip-mapped, as its header says.

Renderers read such a file a tile at a time, all over the place, so it is cut into small chunks. Rules: a few bounded
reads, whatever the file claims; a header that makes no sense is no texture; nothing is raised but OSError.

Sources: "OpenEXR File Layout", https://openexr.com/en/latest/OpenEXRFileLayout.html ; TIFF 6.0 (Adobe, 1992) and the
BigTIFF design, https://libtiff.gitlab.io/libtiff/specification/bigtiff.html .
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

_HEAD_BYTES_MAX = 64 * 1024
_ATTRIBUTES_MAX = 1024
_ATTRIBUTE_NAME_BYTES_MAX = 256
_DIRECTORIES_MAX = 4
_DIRECTORY_ENTRIES_MAX = 1024

_EXR_MAGIC = b"\x76\x2f\x31\x01"
_EXR_VERSION_AND_FLAGS_BYTES = 8
_EXR_TILES_BYTES = 9
_EXR_LEVEL_MODES = (1, 2)  # MIPMAP_LEVELS, RIPMAP_LEVELS

_NEW_SUBFILE_TYPE, _IMAGE_WIDTH, _IMAGE_LENGTH, _TILE_WIDTH, _SUB_IFDS = 254, 256, 257, 322, 330
_REDUCED_RESOLUTION = 1
_SHORT = 3


def exr_is_texture(descriptor: int) -> bool:
    """Whether an open file is an OpenEXR image with a part whose ``tiles`` attribute has more than one level."""
    head = os.pread(descriptor, _HEAD_BYTES_MAX, 0)
    if not head.startswith(_EXR_MAGIC):
        return False
    at = _EXR_VERSION_AND_FLAGS_BYTES
    for _ in range(_ATTRIBUTES_MAX):
        name, at = _text(head, at)
        if name == b"":
            # The end of a part's header; in a file of several parts the next one follows, else pixel offsets do.
            name, at = _text(head, at)
        kind, at = _text(head, at)
        if not name or not kind or at + 4 > len(head):
            return False
        (size,) = struct.unpack_from("<I", head, at)
        at += 4
        if (name, kind, size) == (b"tiles", b"tiledesc", _EXR_TILES_BYTES) and at + size <= len(head):
            mipmapped = head[at + 8] & 0x0F in _EXR_LEVEL_MODES
            if mipmapped:
                return True
        at += size
    return False


def _text(head: bytes, at: int) -> tuple[bytes | None, int]:
    """(the zero-terminated text at ``at``, where the next thing begins); None when there is none."""
    end = head.find(b"\0", at, at + _ATTRIBUTE_NAME_BYTES_MAX)
    return (None, at) if end < 0 else (head[at:end], end + 1)


def tiff_is_texture(descriptor: int) -> bool:
    """Whether an open file is a TIFF or BigTIFF whose first image is tiled and followed by reduced ones.

    libtiff-based writers mark a reduced image with NewSubfileType or put it below SubIFDs; OpenImageIO's maketx sets
    neither, and is known by a second tiled image of half the width or height.
    """
    head = os.pread(descriptor, 16, 0)
    layout = _layout(head)
    if layout is None:
        return False
    first = _directory(descriptor, layout, layout.first(head))
    if first is None or _TILE_WIDTH not in first.values:
        return False
    if first.values.get(_SUB_IFDS, 0):
        return True
    following, seen = first.following, 1
    while following and seen < _DIRECTORIES_MAX:
        directory = _directory(descriptor, layout, following)
        if directory is None:
            return False
        if _is_reduced(first.values, directory.values):
            return True
        following, seen = directory.following, seen + 1
    return False


class _Layout(NamedTuple):
    """How a TIFF writes numbers: byte order, and the sizes of classic or Big TIFF."""

    order: str
    number: str
    entry: str
    offset: str
    entry_bytes: int

    def first(self, head: bytes) -> int:
        """Where the first directory is, in bytes."""
        at = 4 if self.offset == "I" else 8
        return int(struct.unpack_from(self.order + self.offset, head, at)[0])


class _Directory(NamedTuple):
    values: dict[int, int]
    following: int


def _layout(head: bytes) -> _Layout | None:
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 16:
        return None
    (magic,) = struct.unpack_from(order + "H", head, 2)
    if magic == 42:
        return _Layout(order, "H", "HHI", "I", 12)
    if magic == 43 and struct.unpack_from(order + "HH", head, 4) == (8, 0):
        return _Layout(order, "Q", "HHQ", "Q", 20)
    return None


def _directory(descriptor: int, layout: _Layout, offset: int) -> _Directory | None:
    """The tags of a directory, each with its first value (an offset where the values do not fit in)."""
    if not 8 <= offset < 2**62:
        return None
    count_bytes = struct.calcsize(layout.order + layout.number)
    raw = os.pread(descriptor, count_bytes, offset)
    if len(raw) < count_bytes:
        return None
    (count,) = struct.unpack(layout.order + layout.number, raw)
    if not 0 < count <= _DIRECTORY_ENTRIES_MAX:
        return None
    offset_bytes = struct.calcsize(layout.order + layout.offset)
    body = os.pread(descriptor, count * layout.entry_bytes + offset_bytes, offset + count_bytes)
    if len(body) < count * layout.entry_bytes + offset_bytes:
        return None
    values = {}
    for at in range(0, count * layout.entry_bytes, layout.entry_bytes):
        tag, kind, _ = struct.unpack_from(layout.order + layout.entry, body, at)
        form = "H" if kind == _SHORT else layout.offset
        values[tag] = int(struct.unpack_from(layout.order + form, body, at + layout.entry_bytes - offset_bytes)[0])
    return _Directory(values, int(struct.unpack_from(layout.order + layout.offset, body, len(body) - offset_bytes)[0]))


def _is_reduced(first: dict[int, int], other: dict[int, int]) -> bool:
    if _TILE_WIDTH not in other:
        return False
    if other.get(_NEW_SUBFILE_TYPE, 0) & _REDUCED_RESOLUTION:
        return True
    width, height = first.get(_IMAGE_WIDTH, 0), first.get(_IMAGE_LENGTH, 0)
    halves = {(width + 1) // 2, width // 2, 1}, {(height + 1) // 2, height // 2, 1}
    smaller = other.get(_IMAGE_WIDTH, 0) < width or other.get(_IMAGE_LENGTH, 0) < height
    return smaller and other.get(_IMAGE_WIDTH) in halves[0] and other.get(_IMAGE_LENGTH) in halves[1]
