"""A show's log written by hand, entry for entry, good ones and bad; and what a replica holds, to be compared."""

from __future__ import annotations

import secrets
import sqlite3
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import zstandard

from manifest import canonical, layout
from manifest.changeset import Header, Op, compress_changeset
from manifest.digest import Digest
from manifest.entry import Entry, genesis_prev, seal
from manifest.identity import add_show, read_identity
from manifest.library import Library
from manifest.post import File, Post, post_digest
from manifest.recipe import Recipe
from manifest.show import Show
from manifest.trust import PinnedKeys, SigningKey, Verifier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from manifest.incoming import Fetch

SHOW = "apollo"


def file(data: bytes = b"pixels", *, mode: int = 0o644) -> File:
    """A file of these bytes, which need not be in the library: nothing here reads them."""
    digest = Digest.of(data)
    recipe = Recipe.of([(digest, len(data))] if data else [])
    return File(mode, len(data), 1_700_000_000_000_000_000, digest, recipe.content, recipe)


def put(path: str, post: Post | None = None, *, over: Post | None = None) -> Op:
    """The op that makes ``path`` a file, or ``post``, where ``over`` was."""
    return Op(path, None if over is None else post_digest(over), file(path.encode()) if post is None else post)


def remove(path: str, was: Post) -> Op:
    """The op that removes ``path``."""
    return Op(path, post_digest(was), None)


class Scribe:
    """Writes the log of a show in a library, in the order of the calls, without asking a replica."""

    def __init__(
        self, library: Library, folder: Path, *, new: bool = True, name: str = SHOW, key: SigningKey | None = None
    ) -> None:
        """``name`` of the show, which is made when it is ``new``; without a ``key`` one of its own signs."""
        self.library = library
        self.folder = folder
        self.identity = read_identity(library)
        self.name = name
        self.key = key or SigningKey.generate()
        self.trust: Verifier = PinnedKeys(self.identity.id, [self.key.public])
        self.seq = 0
        self.prev = genesis_prev(self.identity.id, self.name)
        if new:
            add_show(library, self.name)

    def show(self, name: str = "replica", *, library: Library | None = None, fetch: Fetch | None = None) -> Show:
        """A replica of its own, which the caller closes."""
        return Show.open(library or self.library, self.identity, self.trust, self.name, self.folder / name, fetch=fetch)

    def entry(
        self, ops: Iterable[Op], *, publish_id: str | None = None, author: str = "ann", key: SigningKey | None = None,
        **changes: Any,
    ) -> bytes:  # fmt: skip
        """The stored bytes of the next entry, whose changeset is put; ``changes`` are fields of the Entry."""
        publish_id = publish_id or secrets.token_hex(16)
        change, compressed = compress_changeset(Header(self.name, publish_id, ""), ops)
        self.library.put(layout.change_key(self.name, change), compressed)
        seq, time_ns = self.seq + 1, 1_700_000_000_000_000_000
        entry = Entry(self.name, seq, self.prev, publish_id, change, author, "message", time_ns)
        return seal(replace(entry, **changes), key or self.key)

    def raw(self, lines: Iterable[object], publish_id: str | None = None) -> bytes:
        """The stored bytes of the next entry over a changeset of any lines, its header apart."""
        publish_id = publish_id or secrets.token_hex(16)
        header = {"_type": "damfs.change/1", "publish_id": publish_id, "scope": "", "show": self.name}
        plain = b"".join(canonical.encode(line) + b"\n" for line in (header, *lines))
        change = Digest.of(plain)
        self.library.put(layout.change_key(self.name, change), zstandard.compress(plain))
        return self.entry([put("unused")], publish_id=publish_id, change=change)

    def add(self, stored: bytes) -> int:
        """Lay these bytes down as the next entry; its number."""
        self.seq += 1
        self.library.create(layout.log_key(self.name, self.seq), stored)
        self.prev = Digest.of(stored)
        return self.seq

    def publish(self, path: str, **fields: Any) -> int:
        """A good entry that makes a file."""
        return self.add(self.entry([put(path)], **fields))

    def stored(self, seq: int) -> bytes:
        return self.library.get(layout.log_key(self.name, seq))

    def overwrite(self, seq: int, stored: bytes) -> None:
        """What nobody should be able to do: other bytes in the place of an entry."""
        self.library.put(layout.log_key(self.name, seq), stored)

    def lose(self, seq: int) -> bytes:
        """Take an entry away; returns it."""
        stored = self.stored(seq)
        self.library.delete(layout.log_key(self.name, seq))
        return stored


def flipped(stored: bytes, bit: int = 1000) -> bytes:
    """The bytes with one bit turned."""
    at = bit % (len(stored) * 8)
    damaged = bytearray(stored)
    damaged[at // 8] ^= 1 << (at % 8)
    return bytes(damaged)


def names(show: Show) -> list[str]:
    """The paths of all files at the head, sorted."""
    return [path for path, row in show.writer.walk("", show.writer.head) if row.digest is not None]


def dump(show: Show) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table of the replica, those of the migrations apart."""
    with sqlite3.connect(show.path) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = {name: connection.execute(f'SELECT * FROM "{name}" ORDER BY 1, 2').fetchall() for name in tables}
    connection.close()
    # When a table was migrated is not part of what a show holds.
    return {name: found for name, found in rows.items() if not name.startswith("_")}


class FaultyLibrary(Library):
    """A library that another one serves, with faults on the way. ``reads``: asked before each read of a key.

    A fault gets the key and the true bytes (None when there are none) and answers in their place, or raises.
    """

    def __init__(self, inner: Library, reads: Callable[[str, bytes | None], bytes | None]) -> None:
        self.__dict__.update(inner.__dict__)
        self.inner = inner
        self.reads = reads

    def get(self, key: str, *, timeout_s: float = 30.0, bytes_max: int | None = None) -> bytes:
        from manifest.errors import NotFound

        try:
            true: bytes | None = self.inner.get(key, timeout_s=timeout_s, bytes_max=bytes_max)
        except NotFound:
            true = None
        answer = self.reads(key, true)
        if answer is None:
            raise NotFound(f"there is no {key}")
        return answer
