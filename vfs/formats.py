"""What programs do first with a file of a type, by its extension and its first bytes: a table.

State: none. What is said here is fetched before it is asked for; nothing is wrong when it is not, only later. Sources:
the applications that were measured in ``docs/decisions/0035``; ISO/IEC 14496-12 for boxes (QuickTime's atoms are the
same); SMPTE ST 377-1 for the partition pack of MXF.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

Buffer = bytes | bytearray | memoryview
Span = tuple[int, int]

HEADER_BYTES: Final = 64 * 1024
"""In files above HEADER_FILE_BYTES_MIN the first bytes, which are a chunk of their own (docs/FORMAT.md)."""
HEADER_FILE_BYTES_MIN: Final = 1024 * 1024
INDEX_BYTES_MAX: Final = 32 * 1024 * 1024
"""No more of an index at the end of a movie: an hour of one has some megabytes."""
_MXF_TAIL_BYTES: Final = 64 * 1024
_MXF_KEY: Final = bytes.fromhex("060e2b34020501010d01020101")
_BOXES_MAX: Final = 16


class Habit(NamedTuple):
    """How a type of file is read.

    ``is_random``: pieces of it, anywhere: of another file of a sequence it says nothing that this one is read.
    ``seek``: from the first bytes and the size, the bytes that are wanted next, if they lie far behind.
    """

    is_random: bool = False
    seek: Callable[[Buffer, int], Span | None] | None = None


def movie_index(head: Buffer, size: int) -> Span | None:
    """Where the index (``moov``) of a .mov or .mp4 lies, when it comes behind the media: it is read first."""
    offset = 0
    for _ in range(_BOXES_MAX):
        box = bytes(head[offset : offset + 16])
        if len(box) < 8 or box[4:8] == b"moov":
            return None
        length = int.from_bytes(box[:4], "big")
        if length == 1 and len(box) == 16:
            length = int.from_bytes(box[8:], "big")
        if length < 8:
            return None  # no such box, or the last one
        offset += length
        if box[4:8] == b"mdat":
            return (offset, min(size, offset + INDEX_BYTES_MAX)) if offset < size else None
    return None


def mxf_footer(head: Buffer, size: int) -> Span | None:
    """The footer partition and the random index pack of an MXF file: what a reader that wants to seek reads next."""
    pack = bytes(head[:64])
    if not pack.startswith(_MXF_KEY) or len(pack) < 64:
        return None
    length_bytes = 1 + (pack[16] & 0x7F if pack[16] & 0x80 else 0)
    at = 16 + length_bytes + 24  # behind versions, grid size, this and the previous partition
    footer = int.from_bytes(pack[at : at + 8], "big")
    tail = max(0, size - _MXF_TAIL_BYTES)
    start = footer if 0 < footer < size else tail
    return (start, size) if size - start <= INDEX_BYTES_MAX else (tail, size)


_STREAM: Final = Habit()
_RANDOM: Final = Habit(is_random=True)
_MOVIE: Final = Habit(seek=movie_index)
_TABLE: Final = {
    **dict.fromkeys(("mov", "mp4", "m4v", "m4a", "qt", "3gp"), _MOVIE),
    "mxf": Habit(seek=mxf_footer),
    **dict.fromkeys(("tx", "ptx", "ptex", "vdb", "abc", "usd", "usdc", "db", "sqlite"), _RANDOM),
}


def habit(name: str) -> Habit:
    """How files of this name are read."""
    return _TABLE.get(name.rpartition(".")[2].lower(), _STREAM)


def body_start(size: int) -> int:
    """A read that goes beyond this many bytes reads more of a file of this size than its header."""
    return HEADER_BYTES if size > HEADER_FILE_BYTES_MIN else min(HEADER_BYTES, size - 1)
