"""Applying changesets to a replica, against SQLite alone writing the same rows.

Ours is what a reader does: unpack, parse, check, look up what was there, write. Theirs is ``executemany`` of the very
rows that came out, prepared beforehand, into a file with the same schema, the same pages and as much memory: INSERT
for rows that are new, ``UPDATE … SET until = ? WHERE id = ?`` for rows that end. Both end with the write-ahead log
taken in.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from manifest.apply import ReplicaWriter
from manifest.changeset import ChangesetReader, File, Folder, Header, Link, Op, Post, compress_changeset, post_digest
from manifest.digest import Digest
from manifest.entry import Entry, genesis_prev, seal
from manifest.recipe import Recipe
from manifest.schema import PAGE_BYTES, WAL_BYTES_MAX, WRITER_CACHE_KIB
from manifest.trust import PinnedKeys, SigningKey
from tests.bench.measure import RUNS, Ratio, from_times, seconds

FOLDERS = 100
FILES = 1000
AIM = 3.0
TIME_NS = 1_700_000_000_000_000_000
PRAGMAS = (f"page_size = {PAGE_BYTES}", "journal_mode = WAL", "synchronous = NORMAL", "temp_store = MEMORY",
           f"cache_size = -{WRITER_CACHE_KIB}", f"journal_size_limit = {WAL_BYTES_MAX}")  # fmt: skip
"""Those of a replica's writer: both sides have the same pages and the same memory."""
Show = tuple[bytes, Entry, bytes]
"""(stored entry, entry, compressed changeset)"""
Rows = dict[str, list[Any]]


def path(folder: int, number: int) -> str:
    return f"f{folder:06d}/plate.{number:06d}.exr"


def file(folder: int, number: int, chunks: int = 1, version: int = 1) -> File:
    """A file with content of its own, in ``chunks`` chunks."""
    digest = Digest.of(b"%d %d %d" % (folder, number, version))
    names = [digest] if chunks == 1 else [Digest.of(digest + bytes([i])) for i in range(chunks)]
    recipe = Recipe.of((name, 1000 + number) for name in names)
    return File(0o644, recipe.size, TIME_NS + number, digest, recipe.content, recipe)


def files(folders: int, files: int, chunks: int = 1) -> Iterator[Op]:
    """One op a file, sorted by path."""
    return (Op(path(f, n), None, file(f, n, chunks)) for f in range(folders) for n in range(files))


def make(library_id: str, show: str, key: SigningKey, seq: int, prev: Digest, ops: Iterable[Op]) -> Show:
    """Revision ``seq`` of a show, behind the entry whose digest is ``prev``."""
    publish_id = Digest.of(b"%s %d" % (show.encode(), seq)).hex()[:32]
    change, compressed = compress_changeset(Header(show, publish_id, ""), ops)
    entry = Entry(show, seq, prev, publish_id, change, "bench", "", TIME_NS)
    return seal(entry, key), entry, compressed


def make_show(library_id: str, show: str, key: SigningKey, ops: Iterable[Op]) -> Show:
    """The first revision of a show."""
    return make(library_id, show, key, 1, genesis_prev(library_id, show), ops)


def apply(replica: Path, trust: PinnedKeys, keyid: str, made: Show) -> None:
    """Apply a revision as a reader does, to a replica that is made when it is missing."""
    stored, entry, compressed = made
    writer = ReplicaWriter.open(replica, entry.show, trust=trust.digest, library_id=trust.library_id)
    with closing(writer):
        writer.apply_entry(stored, entry, keyid, ChangesetReader(compressed))


def remove(database: Path) -> None:
    for leftover in database.parent.glob(database.name + "*"):
        leftover.unlink()


def measure(work: Path, trust: PinnedKeys, key: SigningKey, note: Callable[[str], None]) -> list[Ratio]:
    """First revisions of each kind of op, and later ones that replace or remove what the first one made."""
    results = []
    count = f"{FOLDERS * FILES:,}"
    kinds: dict[str, Callable[[int, int], Post]] = {
        "files of 3 chunks": lambda f, n: file(f, n, 3),
        "files of 20 chunks": lambda f, n: file(f, n, 20),
        "links": lambda _, n: Link(f"../v001/plate.{n:06d}.exr"),
        "folders": lambda *_: Folder(0o755),
    }
    for what, post in kinds.items():
        first = make_show(trust.library_id, "bench", key, each(None, post))
        results.append(first_ratio(work / "first.db", trust, key.keyid, first, f"{count} {what}", note))
    one = file
    later: dict[str, tuple[Callable[[int, int], Post], Callable[[int, int], Post | None]]] = {
        "replaced files": (one, lambda f, n: file(f, n, version=2)),
        "changed modes": (one, lambda f, n: replace(file(f, n), mode=0o600)),
        "removed files": (one, lambda *_: None),
        "replaced files of 20 chunks": (kinds["files of 20 chunks"], lambda f, n: file(f, n, 20, version=2)),
        "removed files of 20 chunks": (kinds["files of 20 chunks"], lambda *_: None),
        "moved links": (kinds["links"], lambda _, n: Link(f"../v002/plate.{n:06d}.exr")),
        "removed folders": (kinds["folders"], lambda *_: None),
    }
    for what, (before, after) in later.items():
        results.append(later_ratio(work, trust, key, before, after, f"{count} {what}", note))
    return results


def each(before: Callable[[int, int], Post] | None, after: Callable[[int, int], Post | None]) -> Iterator[Op]:
    """The ops that make of each file what ``after`` says."""
    for folder in range(FOLDERS):
        for number in range(FILES):
            pre = None if before is None else post_digest(before(folder, number))
            yield Op(path(folder, number), pre, after(folder, number))


def first_ratio(
    database: Path, trust: PinnedKeys, keyid: str, made: Show, what: str, note: Callable[[str], None]
) -> Ratio:
    """The first revision of a show, left in ``database``, against inserting its rows into an empty file."""
    plain = database.with_name("plain.db")

    def ours() -> None:
        remove(database)
        apply(database, trust, keyid, made)

    ours()
    with closing(sqlite3.connect(database)) as applied:
        schema = [sql for (sql,) in applied.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")
                  if "sqlite_" not in sql]  # fmt: skip
        names = [name for (name,) in applied.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
                 if "sqlite_" not in name]  # fmt: skip
        rows: Rows = {name: applied.execute(f"SELECT * FROM {name}").fetchall() for name in names}

    def theirs() -> None:
        remove(plain)
        write(plain, schema, [], rows)

    ours_s, theirs_s = [], []
    for run in range(RUNS):
        note(f"applying {what}, run {run + 1} of {RUNS}")
        theirs_s.append(seconds(theirs))
        ours_s.append(seconds(ours))
    remove(plain)
    return from_times(f"apply {what} (time)", "apply", "executemany of the same rows", ours_s, theirs_s, aim=AIM)


def later_ratio(
    work: Path, trust: PinnedKeys, key: SigningKey,
    before: Callable[[int, int], Post], after: Callable[[int, int], Post | None], what: str,
    note: Callable[[str], None],
) -> Ratio:  # fmt: skip
    """The second revision of a show, against updating and inserting its rows in a copy of the file."""
    base, copy = work / "base.db", work / "copy.db"
    first = make_show(trust.library_id, "bench", key, each(None, before))
    remove(base)
    apply(base, trust, key.keyid, first)
    second = make(trust.library_id, "bench", key, 2, Digest.of(first[0]), each(before, after))

    def fresh() -> None:
        remove(copy)
        shutil.copyfile(base, copy)

    fresh()
    apply(copy, trust, key.keyid, second)
    with closing(sqlite3.connect(copy)) as applied:
        applied.execute("ATTACH ? AS old", (str(base),))
        ended = applied.execute("SELECT until, id FROM entries WHERE until = 2").fetchall()
        rows: Rows = {
            "entries": applied.execute("SELECT * FROM entries WHERE since = 2").fetchall(),
            "touched": applied.execute("SELECT * FROM touched WHERE seq = 2").fetchall(),
            "contents": applied.execute(
                "SELECT * FROM contents WHERE content NOT IN (SELECT content FROM old.contents)"
            ).fetchall(),
            "revisions": applied.execute("SELECT * FROM revisions WHERE seq = 2").fetchall(),
        }
    ours_s, theirs_s = [], []
    for run in range(RUNS):
        note(f"applying {what}, run {run + 1} of {RUNS}")
        fresh()
        theirs_s.append(seconds(lambda: write(copy, [], ended, rows)))
        fresh()
        ours_s.append(seconds(lambda: apply(copy, trust, key.keyid, second)))
    remove(base)
    remove(copy)
    return from_times(f"apply {what} (time)", "apply", "executemany of the same rows", ours_s, theirs_s, aim=AIM)


def write(database: Path, schema: list[str], ended: list[tuple[int, int]], rows: Rows) -> None:
    """Write rows with SQLite alone, in one transaction."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        for pragma in PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")
        for statement in schema:
            connection.execute(statement)
        connection.execute("BEGIN")
        connection.executemany("UPDATE entries SET until = ? WHERE id = ?", ended)
        for name, values in rows.items():
            if values:
                connection.executemany(f"INSERT INTO {name} VALUES ({','.join('?' * len(values[0]))})", values)
        connection.execute("COMMIT")
