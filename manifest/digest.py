"""Digests: BLAKE3-256 of bytes, written ``b3:<64 hex>``; ``b3sum FILE`` prints the same for a file.

Source: the BLAKE3 specification, https://github.com/BLAKE3-team/BLAKE3-specs.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Self

from blake3 import blake3

from manifest.errors import FormatError

if TYPE_CHECKING:
    from pathlib import Path

DIGEST_BYTES = 32
PREFIX = "b3:"
_TEXT = re.compile(r"b3:[0-9a-f]{64}")
_READ_BYTES = 4 * 1024 * 1024


class Digest(bytes):
    """A 32-byte BLAKE3 digest. It *is* the raw bytes, so SQLite, sets and dicts take it as it stands."""

    __slots__ = ()

    def __new__(cls, raw: bytes) -> Self:
        """Wrap 32 raw bytes. Raises ValueError on any other length: that is a bug of the caller."""
        if len(raw) != DIGEST_BYTES:
            raise ValueError(f"a digest has {DIGEST_BYTES} bytes, not {len(raw)}")
        return super().__new__(cls, raw)

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview) -> Digest:
        """The digest of ``data``. Releases the GIL for all but tiny inputs."""
        return cls(blake3(data).digest())

    @classmethod
    def parse(cls, text: object) -> Digest:
        """Read ``b3:<64 lower-case hex>``. Raises FormatError on anything else."""
        if not isinstance(text, str) or not _TEXT.fullmatch(text):
            raise FormatError(f"expected a digest b3:<64 hex>, got {str(text)[:80]!r}")
        return cls(bytes.fromhex(text[len(PREFIX) :]))

    @classmethod
    def of_file(cls, path: Path) -> Digest:
        """The digest of a whole file, read in pieces of 4 MiB. Raises OSError."""
        hasher = blake3()
        buffer = bytearray(_READ_BYTES)
        view = memoryview(buffer)
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                hasher.update(view[:count])
        return cls(hasher.digest())

    def __str__(self) -> str:
        return PREFIX + self.hex()

    def __repr__(self) -> str:
        return f"Digest({self})"


EMPTY_DIGEST = Digest.of(b"")
