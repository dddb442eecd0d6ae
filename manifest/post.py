"""Posts: what a path is after an op: a file, a link or a folder.

    {"digest":"b3:…","kind":"file","mode":…,"mtime_ns":…,"recipe":[["b3:…",length],…]|"b3:…","size":…}
    {"kind":"link","target":…}
    {"kind":"dir","mode":…}

The digest of these canonical bytes is the ``pre`` of an op that replaces them. Rules: a recipe of at most 64 chunks
is inline and sums to the size, a longer one is named by its content id; a file of one chunk has that chunk's digest;
an empty file has no chunk. Checked alike on the way out and on the way in.
"""

from __future__ import annotations

from dataclasses import dataclass
from json.encoder import encode_basestring

from manifest import canonical
from manifest.digest import EMPTY_DIGEST, Digest
from manifest.errors import FormatError
from manifest.fields import fields, integer
from manifest.recipe import CHUNK_BYTES_MAX, CHUNKS_MAX, INLINE_CHUNKS_MAX, Recipe

FILE_BYTES_MAX = CHUNKS_MAX * CHUNK_BYTES_MAX
MODE_MAX = 0o777
TARGET_BYTES_MAX = 4095


@dataclass(frozen=True, slots=True)
class File:
    """A file: permission bits, size in bytes, mtime in ns since 1970, digest of the whole, content id.

    ``recipe`` is None when it is an object of its own (more than 64 chunks), else inline in the changeset.
    """

    mode: int
    size: int
    mtime_ns: int
    digest: Digest
    content: Digest
    recipe: Recipe | None


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link; the target is stored as it stands and never followed by damfs itself."""

    target: str


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder with its permission bits."""

    mode: int


Post = File | Link | Folder


def encode_post(post: Post) -> bytes:
    """The canonical bytes of a post, whose digest a later op gives as ``pre``. Raises FormatError."""
    return post_text(post).encode()


def post_digest(post: Post) -> Digest:
    """What the ``pre`` of an op that replaces ``post`` must be. Raises FormatError."""
    return Digest.of(encode_post(post))


def parse_post(value: object) -> Post:
    """The post that this decoded JSON is. Raises FormatError."""
    kind = value.get("kind") if isinstance(value, dict) else None
    post: Post
    if kind == "file":
        digest, _, mode, mtime_ns, recipe, size = fields(value, "digest", "kind", "mode", "mtime_ns", "recipe", "size")
        inline = None if isinstance(recipe, str) else _parse_recipe(recipe)
        content = Digest.parse(recipe) if inline is None else inline.content
        post = File(mode, size, mtime_ns, Digest.parse(digest), content, inline)
    elif kind == "link":
        post = Link(fields(value, "kind", "target")[1])
    elif kind == "dir":
        post = Folder(fields(value, "kind", "mode")[1])
    else:
        raise FormatError(f"unknown kind {str(kind)[:40]!r}")
    check_post(post)
    return post


def _parse_recipe(value: object) -> Recipe:
    if not isinstance(value, list) or len(value) > INLINE_CHUNKS_MAX:
        raise FormatError(f"an inline recipe is a list of at most {INLINE_CHUNKS_MAX} chunks")
    chunks = []
    for chunk in value:
        if not isinstance(chunk, list) or len(chunk) != 2:
            raise FormatError("a chunk is a pair of digest and length")
        chunks.append((Digest.parse(chunk[0]), integer("chunk length", chunk[1], 1, CHUNK_BYTES_MAX)))
    return Recipe.of(chunks)


def check_post(post: Post) -> None:
    """Raise FormatError when a rule for posts is broken."""
    if isinstance(post, Link):
        _check_target(post.target)
        return
    integer("mode", post.mode, 0, MODE_MAX)
    if isinstance(post, Folder):
        return
    integer("size", post.size, 0, FILE_BYTES_MAX)
    integer("mtime_ns", post.mtime_ns, 0, canonical.INTEGER_MAX)
    if post.recipe is None:
        if post.size <= INLINE_CHUNKS_MAX:
            raise FormatError(f"a recipe of at most {INLINE_CHUNKS_MAX} chunks is inline")
        return
    _check_inline(post, post.recipe)


def _check_inline(post: File, recipe: Recipe) -> None:
    if len(recipe) > INLINE_CHUNKS_MAX:
        raise FormatError(f"a recipe of {len(recipe)} chunks is an object of its own")
    if recipe.size != post.size:
        raise FormatError(f"the chunks have {recipe.size} bytes, the file {post.size}")
    if recipe.content != post.content:
        raise FormatError(f"the recipe has the content id {recipe.content}, not {post.content}")
    whole = EMPTY_DIGEST if not len(recipe) else recipe[0].digest if len(recipe) == 1 else post.digest
    if whole != post.digest:
        raise FormatError(f"digest {post.digest} of a file whose one chunk, or emptiness, has {whole}")


def _check_target(target: object) -> None:
    if not isinstance(target, str) or not target or "\0" in target:
        raise FormatError(f"{str(target)[:80]!r} is no link target")
    try:
        length = len(target.encode())
    except UnicodeEncodeError as error:
        raise FormatError(f"{target[:80]!r} is no link target: not valid UTF-8") from error
    if length > TARGET_BYTES_MAX:
        raise FormatError(f"a link target of {length} bytes, at most {TARGET_BYTES_MAX}")


def post_text(post: Post) -> str:
    """Canonical JSON, spelt out because a generic encoder takes six times as long; a test compares the two."""
    check_post(post)
    if isinstance(post, File):
        if post.recipe is None:
            recipe = f'"{post.content}"'
        else:
            recipe = (
                "["
                + ",".join(
                    f'["{digest}",{length}]' for digest, length in map(post.recipe.__getitem__, range(len(post.recipe)))
                )
                + "]"
            )
        return (
            f'{{"digest":"{post.digest}","kind":"file","mode":{post.mode},"mtime_ns":{post.mtime_ns},'
            f'"recipe":{recipe},"size":{post.size}}}'
        )
    if isinstance(post, Link):
        return f'{{"kind":"link","target":{encode_basestring(post.target)}}}'
    return f'{{"kind":"dir","mode":{post.mode}}}'
