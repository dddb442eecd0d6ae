"""Changesets: what one publish changes in a show, as a stream of lines.

    {"_type":"damfs.change/1","publish_id":…,"scope":…,"show":…}
    {"path":"a/b.exr","post":{…}|null,"pre":null|"b3:…"}            one op a line: see ``ops``

Every line is canonical JSON and ends with a newline; the digest of all these bytes names the changeset, which is
stored compressed with zstd (the compressed form is not canonical, and nothing depends on it). ``pre`` is the
digest of the canonical bytes of the ``post`` that the path had before.

State: none. Rules: an op is checked on the way out as on the way in, so what cannot be read cannot be written;
what a changeset *means* (``pre``, write-once, folders) is for ``apply``. Paths are sorted by their UTF-8 bytes,
as ``LC_ALL=C sort`` would; all that begin with the same characters therefore stand together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import zstandard
from blake3 import blake3

from manifest import canonical
from manifest.digest import Digest
from manifest.errors import DigestMismatch, FormatError
from manifest.fields import fields, hex_id, refuse_newer
from manifest.names import check_path, check_show, split
from manifest.ops import LINE_BYTES_MAX, Op, Order, encode_op, line_of, op_of, parse_lines
from manifest.post import (
    FILE_BYTES_MAX,
    MODE_MAX,
    TARGET_BYTES_MAX,
    File,
    Folder,
    Link,
    Post,
    encode_post,
    post_digest,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from manifest.ops import Line

__all__ = [
    "CHANGESET_BYTES_MAX", "FILE_BYTES_MAX", "MODE_MAX", "TARGET_BYTES_MAX",
    "ChangesetReader", "File", "Folder", "Header", "Link", "Op", "Post",
    "compress_changeset", "encode_header", "encode_op", "encode_post", "ops_in_batches", "post_digest", "scope_of",
]  # fmt: skip

TYPE = "damfs.change/1"
CHANGESET_BYTES_MAX = 2 * 1024**3
"""The plain bytes of one changeset."""
WINDOW_BYTES_MAX = 8 * 1024**2
"""A frame that wants a larger zstd window is refused; RFC 8878 asks every decoder for this much."""
_BLOCK_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Header:
    """Which publish this is. ``scope`` is a folder above all ops, empty for the show's root."""

    show: str
    publish_id: str
    scope: str


def scope_of(paths: Iterable[str]) -> str:
    """The deepest folder above all of these paths. Raises ValueError when there are none."""
    seen = set(paths)
    first, last = min(seen), max(seen)
    if first == last:
        return split(first)[0]
    common = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:common].rpartition("/")[0]


def encode_header(header: Header) -> bytes:
    """The first line of a changeset, its newline included. Raises FormatError when it breaks a rule."""
    _check_header(header)
    line = {"_type": TYPE, "publish_id": header.publish_id, "scope": header.scope, "show": header.show}
    return canonical.encode(line) + b"\n"


def compress_changeset(header: Header, ops: Iterable[Op]) -> tuple[Digest, bytes]:
    """The digest of the plain bytes, and the bytes to store. Raises FormatError, also when ops are unsorted."""
    hasher = blake3()
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=WINDOW_BYTES_MAX.bit_length() - 1)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    parts: list[bytes] = []
    lines = [encode_header(header)]
    order = Order(header.scope)
    pending, total = len(lines[0]), len(lines[0])

    def flush() -> None:
        block = b"".join(lines)
        hasher.update(block)
        parts.append(compressor.compress(block))
        lines.clear()

    for op in ops:
        line = encode_op(op)
        order.take(op.path)
        lines.append(line)
        pending += len(line)
        total += len(line)
        if total > CHANGESET_BYTES_MAX:
            raise FormatError(f"a changeset of more than {CHANGESET_BYTES_MAX} bytes: publish it in parts")
        if pending >= _BLOCK_BYTES:
            flush()
            pending = 0
    order.end()
    flush()
    parts.append(compressor.flush())
    return Digest(hasher.digest()), b"".join(parts)


class ChangesetReader:
    """Reads a compressed changeset as a stream; each iteration starts anew.

    Memory: the compressed bytes, a zstd window of at most 8 MiB and one block of lines. The digest is not checked
    here but by ``verify``, which comes first.
    """

    def __init__(self, compressed: bytes) -> None:
        """Read the header. Raises FormatError, NewerFormat, and DigestMismatch as ``batches`` does."""
        self._compressed = compressed
        block = next(_blocks(compressed), b"")
        self.header = _parse_header(block.split(b"\n", 1)[0])

    @classmethod
    def verify(cls, compressed: bytes, expected: Digest) -> None:
        """Check the plain bytes against their name, in one streaming pass.

        Raises DigestMismatch, also for what is no zstd frame or one that is too large: these are not the bytes.
        """
        hasher = blake3()
        try:
            for block in _plain(compressed):
                hasher.update(block)
        except DigestMismatch as error:
            raise DigestMismatch(f"changeset {expected}: {error}") from error
        if (got := Digest(hasher.digest())) != expected:
            raise DigestMismatch(f"changeset {expected}: the stored bytes have the digest {got}")

    def __iter__(self) -> Iterator[Op]:
        """The ops in their order. Raises FormatError at the first line that is not exactly right."""
        for batch in self.batches():
            yield from map(op_of, batch)

    def batches(self) -> Iterator[list[Line]]:
        """The ops in lists of at most a few thousand, without an object for each. Raises FormatError.

        DigestMismatch when the bytes cannot be unpacked, which says nothing about what they are.
        """
        order = Order(self.header.scope)
        header = True
        for block in _blocks(self._compressed):
            try:
                text = block.decode()
            except UnicodeDecodeError as error:
                raise FormatError(f"not UTF-8 in a changeset: {error}") from error
            if header:
                text, header = text[text.index("\n") + 1 :], False
            yield parse_lines(text, order)
        order.end()


def ops_in_batches(header: Header, ops: Iterable[Op], count: int = 1000) -> Iterator[list[Line]]:
    """Ops that were not read but made here, checked as a reader would check them. Raises FormatError."""
    _check_header(header)
    order = Order(header.scope)
    batch: list[Line] = []
    for op in ops:
        encode_op(op)
        order.take(op.path)
        batch.append(line_of(op))
        if len(batch) >= count:
            yield batch
            batch = []
    order.end()
    yield batch


def _parse_header(line: bytes) -> Header:
    value = canonical.decode(line, bytes_max=LINE_BYTES_MAX)
    refuse_newer(value, TYPE)
    kind, publish_id, scope, show = fields(value, "_type", "publish_id", "scope", "show")
    if kind != TYPE:
        raise FormatError(f"not a changeset: expected {TYPE}, got {str(kind)[:80]!r}")
    header = Header(show, publish_id, scope)
    _check_header(header)
    return header


def _check_header(header: Header) -> None:
    check_show(header.show)
    hex_id("publish_id", header.publish_id)
    if header.scope != "":
        check_path(header.scope)


# -- bytes ----------------------------------------------------------------------------------------------------------


def _plain(compressed: bytes) -> Iterator[bytes]:
    """The plain bytes in blocks. Raises DigestMismatch when they are no zstd frame or more than the limit.

    Not FormatError: it depends on the compressed form, which nobody signed, and on the memory that there is.
    """
    total = 0
    try:
        stream = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES_MAX).stream_reader(compressed)
        while block := stream.read(_BLOCK_BYTES):
            total += len(block)
            if total > CHANGESET_BYTES_MAX:
                raise DigestMismatch(f"more than {CHANGESET_BYTES_MAX} plain bytes")
            yield block
    except zstandard.ZstdError as error:
        raise DigestMismatch(f"not a zstd frame as a changeset has it: {error}") from error


def _blocks(compressed: bytes) -> Iterator[bytes]:
    """The plain bytes in blocks of whole lines, at least one. Raises FormatError."""
    rest = b""
    for block in _plain(compressed):
        cut = block.rfind(b"\n") + 1
        if cut:
            yield rest + block[:cut]
            rest = block[cut:]
        else:
            rest += block
        if len(rest) > LINE_BYTES_MAX:
            raise FormatError(f"a line of more than {LINE_BYTES_MAX} bytes in a changeset")
    if rest:
        raise FormatError("a changeset that ends within a line")
