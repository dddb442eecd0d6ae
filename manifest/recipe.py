"""Recipes: how the chunks of a file follow one another.

A recipe is stored and kept in memory packed, 36 bytes a chunk: the 32-byte digest and the length as a 32-bit
little-endian number. Its object is MAGIC and the packed bytes; the digest of that object is the **content id**.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from manifest.digest import DIGEST_BYTES, Digest
from manifest.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Iterable

MAGIC = b"damfs.recipe/1\n"
CHUNK_BYTES_MAX = 16 * 1024 * 1024
CHUNKS_MAX = 8 * 1024 * 1024
INLINE_CHUNKS_MAX = 64
"""Recipes of at most so many chunks stand in the changeset itself; longer ones are objects."""

_RECORD = struct.Struct(f"<{DIGEST_BYTES}sI")
RECORD_BYTES = _RECORD.size
OBJECT_BYTES_MAX = len(MAGIC) + RECORD_BYTES * CHUNKS_MAX


class Chunk(NamedTuple):
    """One piece of a file: ``length`` bytes (1 … 16 MiB) that have this digest."""

    digest: Digest
    length: int


class Recipe:
    """The ordered chunks of one content.

    Invariant: ``packed`` is well-formed (whole records, lengths 1 … CHUNK_BYTES_MAX) and never changes.
    Memory: 36 bytes a chunk, and 8 more once an offset was asked for.
    """

    __slots__ = ("_content", "_ends", "packed")

    def __init__(self, packed: bytes) -> None:
        """Read packed records. Raises FormatError when they are not well-formed."""
        count, rest = divmod(len(packed), RECORD_BYTES)
        if rest or count > CHUNKS_MAX:
            raise FormatError(f"a recipe of {len(packed)} bytes: expected whole records of {RECORD_BYTES} bytes")
        self.packed = packed
        self._content: Digest | None = None
        self._ends: array[int] | None = None
        for _, length in _RECORD.iter_unpack(packed):
            if not 0 < length <= CHUNK_BYTES_MAX:
                raise FormatError(f"a chunk of {length} bytes: expected 1 … {CHUNK_BYTES_MAX}")

    @classmethod
    def of(cls, chunks: Iterable[tuple[bytes, int]]) -> Recipe:
        """The recipe of these (digest, length) pairs. Raises FormatError on a length out of range."""
        return cls(b"".join(_RECORD.pack(digest, length) for digest, length in chunks))

    @classmethod
    def from_object(cls, data: bytes) -> Recipe:
        """Read a stored recipe object (MAGIC and records). Raises FormatError."""
        if not data.startswith(MAGIC):
            raise FormatError("not a recipe: it does not begin with damfs.recipe/1")
        return cls(data[len(MAGIC) :])

    def to_object(self) -> bytes:
        """The bytes of the stored object, whose digest is the content id."""
        return MAGIC + self.packed

    @property
    def content(self) -> Digest:
        """The content id: the digest of the recipe's own object."""
        if self._content is None:
            self._content = Digest.of(self.to_object())
        return self._content

    @property
    def size(self) -> int:
        """The bytes of the file that the recipe describes."""
        ends = self._offsets()
        return ends[-1] if ends else 0

    def __len__(self) -> int:
        return len(self.packed) // RECORD_BYTES

    def __getitem__(self, index: int) -> Chunk:
        if not 0 <= index < len(self):
            raise IndexError(index)
        digest, length = _RECORD.unpack_from(self.packed, index * RECORD_BYTES)
        return Chunk(Digest(digest), length)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and other.packed == self.packed

    def __hash__(self) -> int:
        return hash(self.packed)

    def offset(self, index: int) -> int:
        """Where chunk ``index`` begins in the file, in bytes."""
        return self._offsets()[index - 1] if index else 0

    def covering(self, offset: int, size_bytes: int) -> range:
        """The indexes of the chunks that hold any of these bytes; what lies behind the end is ignored."""
        ends = self._offsets()
        end = min(offset + size_bytes, self.size)
        if offset >= end:
            return range(0)
        return range(bisect_right(ends, offset), bisect_right(ends, end - 1) + 1)

    def _offsets(self) -> array[int]:
        if self._ends is None:
            self._ends = array("q", accumulate(length for _, length in _RECORD.iter_unpack(self.packed)))
        return self._ends
