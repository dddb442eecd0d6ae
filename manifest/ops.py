"""Ops: the lines of a changeset, one a path, in their one spelling.

    {"path":"a/b.exr","post":{…}|null,"pre":null|"b3:…"}            strictly sorted by path, each path once

There are two ways of reading a line. ``parse_op`` is the definition: it decodes JSON, encodes it again and compares.
``parse_lines`` reads the lines of a block together, with one expression that has room for nothing but canonical
spellings, and makes no object for a line but a tuple; what the expression does not know (an escaped name) goes the
first way. Both accept and produce exactly the same; tests prove it.

State: none but ``Order``, which a stream of ops advances.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from json.encoder import encode_basestring
from typing import TYPE_CHECKING

from blake3 import blake3

from manifest import canonical
from manifest.digest import EMPTY_DIGEST, Digest
from manifest.errors import FormatError
from manifest.fields import fields
from manifest.names import check_path, split
from manifest.post import FILE_BYTES_MAX, MODE_MAX, TARGET_BYTES_MAX, File, Folder, Link, Post, parse_post, post_text
from manifest.recipe import CHUNK_BYTES_MAX, INLINE_CHUNKS_MAX, MAGIC, RECORD_BYTES, Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

LINE_BYTES_MAX = 64 * 1024
REMOVED, FILE, LINK, FOLDER = -1, 0, 1, 2
"""What a line makes of its path; but for REMOVED the kinds of ``replica.Kind``."""

Line = tuple[str, str, str, bytes | None, bytes | None, int, int, int, int, bytes | None, bytes | None, str | None, int]
"""An op without an object for each part: (path, parent path, name, pre, packed recipe, kind, mode, size, mtime in ns,
digest, content id, target, is_object). From the kind on it is the end of a row of a replica: 0 and None where they
have no meaning, and is_object 1 for a recipe that is an object of its own."""


@dataclass(frozen=True, slots=True)
class Op:
    """A path and what it is from now on; None removes it. ``pre`` is None where nothing was before."""

    path: str
    pre: Digest | None
    post: Post | None


class Order:
    """Strictly ascending paths that all lie below a scope, which is empty for everything."""

    def __init__(self, scope: str) -> None:
        self.prefix = scope + "/" if scope else ""
        self.last = ""
        self.parent = ""

    def take(self, path: str) -> None:
        """Go on to ``path``. Raises FormatError when it may not come next."""
        if path <= self.last:
            raise FormatError(f"{path!r} stands behind {self.last!r}: ops are sorted by path, each path once")
        if not path.startswith(self.prefix):
            raise FormatError(f"{path!r} lies outside the scope {self.prefix!r}")
        self.last = path

    def end(self) -> None:
        """Raise FormatError when nothing came."""
        if not self.last:
            raise FormatError("a changeset without ops")


# -- one op ---------------------------------------------------------------------------------------------------------


def encode_op(op: Op) -> bytes:
    """The line of an op, its newline included. Raises FormatError when it breaks a rule."""
    post = "null" if op.post is None else post_text(op.post)
    pre = "null" if op.pre is None else f'"{op.pre}"'
    if op.post is None and op.pre is None:
        raise FormatError(f"{op.path}: neither was nor will be")
    return f'{{"path":{encode_basestring(check_path(op.path))},"post":{post},"pre":{pre}}}\n'.encode()


def parse_op(line: str) -> Op:
    """Read any line (without its newline) the slow way, which is the definition. Raises FormatError."""
    path, post, pre = fields(canonical.decode(line.encode(), bytes_max=LINE_BYTES_MAX), "path", "post", "pre")
    check_path(path)
    try:
        op = Op(path, None if pre is None else Digest.parse(pre), None if post is None else parse_post(post))
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error
    if op.pre is None and op.post is None:
        raise FormatError(f"{path}: neither was nor will be")
    return op


def line_of(op: Op) -> Line:
    """An op as the tuple that ``parse_lines`` makes of its line."""
    parent, name = split(op.path)
    post = op.post
    if post is None:
        return (op.path, parent, name, op.pre, None, REMOVED, 0, 0, 0, None, None, None, 0)
    if isinstance(post, Folder):
        return (op.path, parent, name, op.pre, None, FOLDER, post.mode, 0, 0, None, None, None, 0)
    if isinstance(post, Link):
        return (op.path, parent, name, op.pre, None, LINK, 0, 0, 0, None, None, post.target, 0)
    packed, is_object = (None, 1) if post.recipe is None else (post.recipe.packed, 0)
    file = (FILE, post.mode, post.size, post.mtime_ns, post.digest, post.content, None, is_object)
    return (op.path, parent, name, op.pre, packed, *file)


def op_of(line: Line) -> Op:
    """The op that a tuple stands for."""
    path, _, _, pre, packed, kind, mode, size, mtime_ns, digest, content, target, _ = line
    post: Post | None = None
    if kind == FOLDER:
        post = Folder(mode)
    elif kind == LINK:
        assert target is not None
        post = Link(target)
    elif kind == FILE:
        assert digest is not None
        assert content is not None
        recipe = None if packed is None else Recipe(packed)
        post = File(mode, size, mtime_ns, Digest(digest), Digest(content), recipe)
    return Op(path, None if pre is None else Digest(pre), post)


# -- many lines -----------------------------------------------------------------------------------------------------

_HEX = "[0-9a-f]{64}"
_TEXT = r'[^"\\\x00-\x1f]+'
_MODE = "0|[1-9][0-9]{0,2}"
_LINES = re.compile(
    rf'^(?:\{{"path":"({_TEXT})","post":(?:'
    rf'\{{"digest":"b3:({_HEX})","kind":"file","mode":({_MODE}),"mtime_ns":(0|[1-9][0-9]{{0,18}}),"recipe":'
    rf'(?:\[\["b3:\2",([1-9][0-9]{{0,7}})\]\],"size":\5'
    rf'|(\[\["b3:[^}}]*\]|"b3:{_HEX}"|\[\]),"size":(0|[1-9][0-9]{{0,14}}))\}}'
    rf'|\{{"kind":"link","target":"({_TEXT})"\}}|\{{"kind":"dir","mode":({_MODE})\}}|null)'
    rf',"pre":(?:null|"b3:({_HEX})")\}}|([^\n]+))\n',
    re.MULTILINE,
)
"""A line in its only spelling: a file of one chunk, any other file (a recipe of several chunks is looked at later), a
link, a folder, a removal; or (last group) any other line. What is excluded from a recipe is less than a line has, so
a broken line may be taken together with later ones; the number of lines tells."""
_NO_NAMES = frozenset(("", ".", ".."))
_SHORT_PATH, _SHORT_NAME = 1000, 63
"""So many characters, of up to 4 bytes each, are not too many."""
_HEX_LETTERS = 64
_LENGTH_DIGITS = len(str(CHUNK_BYTES_MAX))
_EMPTY = (0, EMPTY_DIGEST)
_NO_CHUNKS = bytes(Recipe(b"").content)
_Post = tuple[bytes | None, int, int, int, int, bytes | None, bytes | None, str | None, int]


def parse_lines(text: str, order: Order) -> list[Line]:
    """Read whole lines, advancing ``order``. Raises FormatError."""
    found: list[Line] = []
    append, fromhex, magic = found.append, bytes.fromhex, MAGIC
    last, parent, prefix = order.last, order.parent, order.prefix
    lines = _LINES.findall(text)
    if len(lines) != text.count("\n"):
        raise FormatError("an empty line or a broken one in a changeset")
    several: Iterator[bytes | None] | None = None
    for path, digest_hex, mode_text, mtime_text, length, recipe, size_text, target, folder_mode, before, other in lines:
        if other:
            op = parse_op(other)
            order.last = last
            order.take(op.path)
            last = op.path
            append(line_of(op))
            continue
        if path <= last or not path.startswith(prefix):
            order.last = last
            order.take(path)
        last = path
        cut = path.rfind("/")
        name = path[cut + 1 :]
        if cut <= 0 or path[:cut] != parent or len(path) > _SHORT_PATH or len(name) > _SHORT_NAME:
            check_path(path)
            parent = path[:cut] if cut > 0 else ""
        elif name in _NO_NAMES:
            check_path(path)
        pre = fromhex(before) if before else None
        if digest_hex:
            mode, mtime_ns, size = int(mode_text), int(mtime_text), int(length or size_text)
            digest = fromhex(digest_hex)
            if length:
                packed = digest + size.to_bytes(4, "little") if size <= CHUNK_BYTES_MAX else None
            elif recipe[:2] == "[[":
                if several is None:
                    several = iter(_pack([(line[5][1:-1], int(line[6])) for line in lines if line[5][:2] == "[["]))
                packed = next(several)
            else:
                packed = None
            if packed is not None and mode <= MODE_MAX and mtime_ns <= canonical.INTEGER_MAX:
                content = blake3(magic + packed).digest()
                append((path, parent, name, pre, packed, 0, mode, size, mtime_ns, digest, content, None, 0))
                continue
            post = _file(mode, size, mtime_ns, digest, recipe)
        else:
            post = _no_file(target, folder_mode, is_change=before != "")
        if post is None:  # the definition says what is wrong
            append(line_of(parse_op(text.split("\n", len(found) + 1)[len(found)])))
        else:
            append((path, parent, name, pre, *post))
    order.last, order.parent = last, parent
    return found


def _file(mode: int, size: int, mtime_ns: int, digest: bytes, recipe: str) -> _Post | None:
    """The end of a Line, from the packed recipe on, of a file without inline chunks; None when it breaks a rule."""
    if mode > MODE_MAX or mtime_ns > canonical.INTEGER_MAX:
        return None
    if recipe == "[]":
        return (b"", FILE, mode, 0, mtime_ns, digest, _NO_CHUNKS, None, 0) if (size, digest) == _EMPTY else None
    if recipe[:1] != '"' or not INLINE_CHUNKS_MAX < size <= FILE_BYTES_MAX:
        return None
    return (None, FILE, mode, size, mtime_ns, digest, bytes.fromhex(recipe[4:-1]), None, 1)


def _no_file(target: str, folder_mode: str, *, is_change: bool) -> _Post | None:
    """The end of a Line, from the packed recipe on, of a link, a folder or a removal; None when it breaks a rule."""
    if target:
        is_short = len(target) <= TARGET_BYTES_MAX // 4 or len(target.encode()) <= TARGET_BYTES_MAX
        return (None, LINK, 0, 0, 0, None, None, target, 0) if is_short else None
    if folder_mode:
        mode = int(folder_mode)
        return (None, FOLDER, mode, 0, 0, None, None, None, 0) if mode <= MODE_MAX else None
    return (None, REMOVED, 0, 0, 0, None, None, None, 0) if is_change else None


def _pack(recipes: list[tuple[str, int]]) -> list[bytes | None]:
    """The packed recipes of files of 2 to 64 chunks, from their chunks as lines have them and the files' sizes.

    None for what breaks a rule. All are read together: what is not a hex digit must be what stands between digests
    and lengths in canonical spelling, and then each piece between two quotation marks has only one way to be right.
    """
    nothing: list[bytes | None] = [None] * len(recipes)
    text = ",".join([chunks for chunks, _ in recipes])
    counts = [chunks.count("]") for chunks, _ in recipes]
    total = sum(counts)
    if not text.isascii() or text.encode().translate(None, b"0123456789abcdef") + b"," != b'[":",],' * total:
        return nothing
    starts = text.split('"b3:')  # so many that each colon is one of these
    pieces = '"'.join(starts).split('"')
    lengths = "".join(pieces[::2])[2:-1].split("],[,")
    if not len(starts) - 1 == len(lengths) == total or set(map(len, pieces[1::2])) != {_HEX_LETTERS}:
        return nothing
    if pieces[0] != "[" or max(map(len, lengths)) > _LENGTH_DIGITS or min(lengths) < "1":
        return nothing
    try:
        numbers = [*map(int, lengths)]
    except ValueError:  # a letter
        return nothing
    if max(numbers) > CHUNK_BYTES_MAX:
        return nothing
    pieces[0] = ""
    pieces[2::2] = struct.pack(f"<{total}I", *numbers).hex(" ", 4).split(" ")
    packed = bytes.fromhex("".join(pieces))
    found: list[bytes | None] = []
    start = 0
    for count, (_, size) in zip(counts, recipes, strict=True):
        end = start + count
        is_right = 1 < count <= INLINE_CHUNKS_MAX and sum(numbers[start:end]) == size
        found.append(packed[start * RECORD_BYTES : end * RECORD_BYTES] if is_right else None)
        start = end
    return found
