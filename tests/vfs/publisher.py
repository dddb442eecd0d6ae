"""Publishing for the tests of the mount: real changesets, applied to the replica that the runner reads.

The log and its signatures are tested elsewhere: here a publish is its changeset and its chunks.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path

from manifest import layout
from manifest.apply import ReplicaWriter
from manifest.changeset import ChangesetReader, Header, Op, compress_changeset, scope_of
from manifest.digest import Digest
from manifest.entry import Entry, seal
from manifest.library import Library
from manifest.names import Revision
from manifest.post import File, Folder, Link, Post, post_digest
from manifest.recipe import Recipe
from manifest.trust import SigningKey

LIBRARY_ID = "0" * 32
TRUST = b"\0" * 32
T0_NS = 1_700_000_000_123_456_789
CHUNK_BYTES = 1024 * 1024

Change = bytes | Post | None
"""The bytes of a file, a post as it stands, or None: removed."""


class Publisher:
    """The one writer of a show. ``posts`` is what every path is now."""

    def __init__(self, library: Library, folder: Path, show: str) -> None:
        self.library = library
        self.show = show
        self.posts: dict[str, Post] = {}
        self._key = SigningKey.generate()
        self._writer = ReplicaWriter.open(folder / f"{show}.db", show, trust=TRUST, library_id=LIBRARY_ID)

    @property
    def head(self) -> Revision:
        return self._writer.head

    def close(self) -> None:
        self._writer.close()

    def post_of(self, data: bytes, *, mode: int = 0o644, mtime_ns: int = T0_NS, store: bool = True) -> File:
        """A file of these bytes, whose chunks are put into the library unless ``store`` is False."""
        chunks = [data[start : start + CHUNK_BYTES] for start in range(0, len(data), CHUNK_BYTES)]
        recipe = Recipe.of((Digest.of(chunk), len(chunk)) for chunk in chunks)
        if store:
            for chunk in chunks:
                self.library.put(layout.chunk_key(self.show, Digest.of(chunk)), chunk)
        return File(mode, len(data), mtime_ns, Digest.of(data), recipe.content, recipe)

    def publish(self, changes: Mapping[str, Change], *, author: str = "ada", time_ns: int = 0) -> Revision:
        """One revision with these changes by path. Returns it; the mount does not know of it yet."""
        ops = []
        for path in sorted(changes):
            change = changes[path]
            post = self.post_of(change) if isinstance(change, bytes) else change
            before = self.posts.get(path)
            ops.append(Op(path, None if before is None else post_digest(before), post))
            if post is None:
                self.posts.pop(path, None)
            else:
                self.posts[path] = post
                self._remember_parents(path)
        header = Header(self.show, secrets.token_hex(16), scope_of(changes))
        change, compressed = compress_changeset(header, ops)
        seq = self._writer.head + 1
        entry = Entry(
            self.show,
            seq,
            self._writer.tip,
            header.publish_id,
            change,
            author,
            "",
            time_ns or T0_NS + seq * 1_000_000_000,
        )
        stored = seal(entry, self._key)
        self._writer.apply_entry(stored, entry, self._key.keyid, ChangesetReader(compressed))
        return Revision(seq)

    def _remember_parents(self, path: str) -> None:
        while path := path.rpartition("/")[0]:
            self.posts.setdefault(path, Folder(0o755))


__all__ = ["Folder", "Link", "Publisher"]
