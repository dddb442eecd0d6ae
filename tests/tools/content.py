"""Shows with known content for the tests of the commands, published through manifest/ alone."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from manifest import layout
from manifest.changeset import Op, scope_of
from manifest.commit import Publish, commit
from manifest.digest import EMPTY_DIGEST, Digest
from manifest.identity import read_identity
from manifest.library import Library
from manifest.post import File, Folder, Link
from manifest.recipe import INLINE_CHUNKS_MAX, Recipe
from manifest.show import Show
from manifest.trust import PinnedKeys, SigningKey

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from manifest.post import Post
    from tests.harness import Studio

CHUNK_BYTES = 4096
MTIME_NS = 1_700_000_000_123_456_789


def publish(
    user: Studio,
    files: Mapping[str, bytes | str | int | None],
    *,
    show: str = "apollo",
    message: str = "",
    key: SigningKey | None = None,
    endpoint: str | None = None,
) -> int:
    """Publish bytes as files, text as links, numbers as folders of that mode, None as removals; the revision."""
    library = Library.open(user.url, endpoint=endpoint)
    identity = read_identity(library)
    key = key or SigningKey.load(user.folder / "config/damfs/key.pem")
    verifier = PinnedKeys(identity.id, [key.public])
    with Show.open(library, identity, verifier, show, user.folder / "publisher") as opened:
        opened.follower.advance()
        reader = opened.reader()
        try:
            ops = [Op(path, _pre(reader, path), _post(library, show, value)) for path, value in sorted(files.items())]
        finally:
            reader.close()
        change = Publish(
            show, secrets.token_hex(16), "somebody@example.com", message, scope_of(op.path for op in ops), ops
        )
        return commit(opened.follower, key, change, deadline_s=30)


def _pre(reader: object, path: str) -> Digest | None:
    from tools.publish.live import Live

    live = Live(reader, reader.head)  # type: ignore[arg-type,attr-defined]
    return live.pre(live.row(path))


def _post(library: Library, show: str, value: bytes | str | int | None) -> Post | None:
    if value is None:
        return None
    if isinstance(value, str):
        return Link(value)
    if isinstance(value, int):
        return Folder(value)
    recipe = put_chunks(library, show, value)
    inline = recipe if len(recipe) <= INLINE_CHUNKS_MAX else None
    if inline is None:
        library.put(layout.recipe_key(show, recipe.content), recipe.to_object())
    digest = Digest.of(value) if value else EMPTY_DIGEST
    return File(0o640, len(value), MTIME_NS, digest, recipe.content, inline)


def put_chunks(library: Library, show: str, data: bytes) -> Recipe:
    """Store ``data`` in chunks of CHUNK_BYTES; its recipe."""
    pieces = [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]
    for piece in pieces:
        library.put(layout.chunk_key(show, Digest.of(piece)), piece)
    return Recipe.of((Digest.of(piece), len(piece)) for piece in pieces)


def chunk_file(user: Studio, show: str, data: bytes) -> Path:
    """Where a file:// library keeps the chunk with these bytes."""
    return user.folder / "library" / layout.chunk_key(show, Digest.of(data))


def noise(count: int, seed: int = 0) -> bytes:
    """``count`` bytes that compress badly and are the same in every run."""
    import random

    return random.Random(seed).randbytes(count)
