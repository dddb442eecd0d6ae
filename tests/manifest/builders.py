"""Makes signed entries and their changesets from a dict of what paths become, as a publisher without rules would.

``Author`` never checks anything on the way: ``stored`` and ``plain`` take what no publisher of damfs would write.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, NamedTuple

import zstandard

from manifest.apply import ReplicaWriter
from manifest.changeset import ChangesetReader, File, Header, Op, Post, compress_changeset, post_digest, scope_of
from manifest.digest import Digest
from manifest.entry import Entry, genesis_prev, seal
from manifest.recipe import Recipe
from manifest.trust import PinnedKeys, SigningKey

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from manifest.replica import Replica

LIBRARY_ID = "0123456789abcdef" * 2
SHOW = "apollo"
PUBLISH_ID = "0" * 32
T0_NS = 1_700_000_000_123_456_789
KEY = SigningKey.generate()
TRUST = PinnedKeys(LIBRARY_ID, [KEY.public])


def file(data: bytes = b"bytes", *, mode: int = 0o644, mtime_ns: int = T0_NS, chunk_bytes: int = 1024) -> File:
    """The post of a file of these bytes, its recipe inline."""
    chunks = [data[start : start + chunk_bytes] for start in range(0, len(data), chunk_bytes)]
    recipe = Recipe.of((Digest.of(chunk), len(chunk)) for chunk in chunks)
    return File(mode, len(data), mtime_ns, Digest.of(data), recipe.content, recipe)


def large_file(name: str = "large", size: int = 10**9) -> File:
    """The post of a file whose recipe is an object of its own."""
    return File(0o644, size, T0_NS, Digest.of(name.encode()), Digest.of(b"recipe of " + name.encode()), None)


class Publish(NamedTuple):
    """What a publisher puts into the store."""

    stored: bytes
    entry: Entry
    compressed: bytes


def pre_of(replica: Replica, path: str) -> Digest | None:
    """What an op on this path gives as ``pre`` at the head."""
    row = replica.resolve(path, replica.head)
    return None if row is None else post_digest(replica.post(row))


def ops_of(replica: Replica, changes: Mapping[str, Post | None]) -> list[Op]:
    """The ops that bring these changes to the head of a replica."""
    return [Op(path, pre_of(replica, path), changes[path]) for path in sorted(changes)]


def make(
    replica: Replica,
    ops: Iterable[Op],
    *,
    publish_id: str | None = None,
    scope: str | None = None,
    author: str = "ada",
    message: str = "",
    time_ns: int = T0_NS,
    key: SigningKey = KEY,
) -> Publish:
    """The next entry behind a replica's head, with these ops."""
    listed = list(ops)
    publish_id = publish_id or secrets.token_hex(16)
    header = Header(replica.show, publish_id, scope_of(op.path for op in listed) if scope is None else scope)
    change, compressed = compress_changeset(header, listed)
    entry = Entry(replica.show, replica.head + 1, replica.tip, publish_id, change, author, message, time_ns)
    return Publish(seal(entry, key), entry, compressed)


def apply(writer: ReplicaWriter, publish: Publish) -> None:
    """Apply as a follower would: verified first."""
    entry, keyid = TRUST.verify(publish.stored)
    ChangesetReader.verify(publish.compressed, entry.change)
    writer.apply_entry(publish.stored, entry, keyid, ChangesetReader(publish.compressed))


def publish(writer: ReplicaWriter, changes: Mapping[str, Post | None], *, time_ns: int = T0_NS) -> Publish:
    """Make and apply the next entry; an existing path gets the right ``pre``."""
    made = make(writer, ops_of(writer, changes), time_ns=time_ns)
    apply(writer, made)
    return made


def open_writer(folder: Path, name: str = "apollo.db", *, trust: bytes | None = None) -> ReplicaWriter:
    """A replica of the show in a folder of the test's own."""
    return ReplicaWriter.open(
        folder / name, SHOW, trust=TRUST.digest if trust is None else trust, library_id=LIBRARY_ID
    )


def plain(*lines: bytes, header: bytes | None = None) -> bytes:
    """A compressed changeset of these very lines, without any check. The newlines are added."""
    first = header or b'{"_type":"damfs.change/1","publish_id":"%s","scope":"","show":"apollo"}' % PUBLISH_ID.encode()
    return zstandard.compress(b"".join(line + b"\n" for line in (first, *lines)))


def changeset_line(path: str) -> bytes:
    """The line of a new one-chunk file, whatever the path is. Without its newline."""
    one = b"b3:" + b"ab" * 32
    post = b'{"digest":"%s","kind":"file","mode":420,"mtime_ns":1,"recipe":[["%s",7]],"size":7}' % (one, one)
    return b'{"path":"%s","post":%s,"pre":null}' % (path.encode(), post)


def genesis() -> Digest:
    """The ``prev`` of the show's first entry."""
    return genesis_prev(LIBRARY_ID, SHOW)


def everything(replica: Replica, revision: int) -> dict[str, Post]:
    """Every path of a revision and what it is."""
    return {path: replica.post(row) for path, row in replica.walk("", revision)}


def dump(writer: ReplicaWriter) -> dict[str, list[tuple[object, ...]]]:
    """All rows of all tables but ``meta``."""
    tables = ("entries", "spellings", "contents", "revisions", "touched")
    return {table: writer._execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall() for table in tables}
