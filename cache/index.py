"""The index: which chunks of which contents the cache holds, in one SQLite file.

State: ``<cache>/index.db`` (WAL). Nothing is kept in memory for an object that is not open.

Rules:
- **What makes a present bit true**: a bit in a committed row says that the bytes of that chunk lie verified in the
  row's file *and were fdatasync'ed before the commit began* (``flush.py``). Nobody else writes bits.
- A file name is used by one row and never again (``files.py``), so a row that a power cut brings back names a file
  that is gone, never a younger one. For that reason deletions need no stronger commit than other writes.
- Rows carry a checksum, SQLite's pages do not: a row that was damaged on disk is as good as none.
- A file written by a newer damfs is refused, an older format is migrated in place, and one that is not a sound index
  is dropped with everything it named.
- What a policy of eviction knows of an object stands in its row (``policies/``): when it was last used, how often it
  was used again, the queue that it is in, and its group. Nobody's bytes depend on these: no checksum covers them.

Thread-safe: one connection writes under a lock, one reads under another. ``percent`` and ``find_now`` have their own
connection, for the event loop alone, which waits for nobody. So have the questions of housekeeping, which may take a
second with a million rows: no reader waits for them.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import struct
import threading
import zlib
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from cache import accounts, chunks
from cache.ballast import Ballast
from cache.clock import UseClock
from cache.schema import VISITED_MAX, IndexUnusable, prepare
from cache.shares import EVERYTHING
from cache.shm import take_blocks, take_log_blocks
from manifest.digest import Digest
from manifest.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from cache.accounts import Held
    from cache.chunks import Place

logger = logging.getLogger(__name__)

T = TypeVar("T")

BUSY_TIMEOUT_S = 5.0
SAME_USE_MS = 2_000
"""Opens within so short a time are one use: a host probes a header, then reads the frame."""
_NUMBERS = struct.Struct("<QQQQQ")
_COLUMNS = "id, tenant, content, size, chunks, whole, file, present_bytes, charge, checksum, present"
_FIND = f"SELECT {_COLUMNS} FROM objects WHERE tenant = ? AND content = ?"  # noqa: S608 - of a constant

_PRESENT = "SELECT present_bytes FROM objects WHERE tenant = ? AND content = ?"
_CANDIDATE = "SELECT used, id, 0, tenant, content, file, charge, pins FROM objects WHERE tenant = ? AND content = ?"
_IS_AGAIN = f"?1 - used >= {SAME_USE_MS} AND NOT (grp = 0 AND ?4 <> 0)"
_TOUCH = f"""
UPDATE objects SET visited = min(visited + ({_IS_AGAIN}), {VISITED_MAX}),
before = iif({_IS_AGAIN}, used, before), used = ?1, grp = iif(grp = 0, ?4, grp)
WHERE tenant = ?2 AND content = ?3
"""  # noqa: S608 - of constants


@dataclass(frozen=True, slots=True)
class ObjectRow:
    """One content that is, in part, in the cache. ``id`` 0: not in the index yet."""

    id: int
    tenant: str
    content: bytes
    size: int
    chunks: int
    whole: bytes
    file: str
    present_bytes: int
    charge: int
    present: bytes
    grp: int = 0
    """The key of its group."""
    packed: bytes = b""
    """Its recipe. Both are written with a new row only, and not told by ``find``."""

    @property
    def key(self) -> tuple[str, bytes]:
        """What names the content: its tenant and its content id."""
        return self.tenant, self.content

    def checksum(self) -> int:
        """CRC-32 over what a reader relies on."""
        crc = zlib.crc32(f"{self.tenant}\0{self.file}\0".encode())
        crc = zlib.crc32(self.content, crc)
        lengths = len(self.whole), self.present_bytes, len(self.present)
        crc = zlib.crc32(_NUMBERS.pack(self.size, self.chunks, *lengths), crc)
        crc = zlib.crc32(self.whole, crc)
        return zlib.crc32(self.present, crc)


class Candidate(NamedTuple):
    """Something that can be evicted. ``is_recipe``: a row of ``recipes`` that no object needs."""

    used: int
    id: int
    is_recipe: bool
    tenant: str
    content: bytes
    file: str
    charge: int
    group: int = 0
    queue: int = 0
    visited: int = 0


_DISK_CODES = frozenset((
    sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_NOMEM,
))  # fmt: skip
"""Errors that say nothing about what the file holds."""


class Written(NamedTuple):
    """What became of a committed row. ``id`` 0: it was to be updated and is not there any more.

    ``replaced``: the charge of another row of the same content that had to go; None when there was none. Its file,
    ``replaced_file``, is nobody's then; empty for one without. That row may have been damaged, its name be any.
    """

    id: int
    replaced: int | None
    replaced_file: str = ""


class Index:
    """See the module's rules. Every method blocks its thread and may raise sqlite3.Error."""

    def __init__(self, path: Path) -> None:
        """Open or make the index at ``path``.

        Raises ConfigurationError when a newer damfs wrote it and IndexUnusable when it is not an index.
        """
        self._path = path
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()
        self._housekeeping_lock = threading.Lock()
        self._connections: list[sqlite3.Connection] = []
        self._shm_fd = -1
        self._ballast = Ballast(path)
        self._reported: set[int] = set()
        self.scope = EVERYTHING
        """The shows whose rows are candidates for eviction. Set by who evicts, from the event loop."""
        self.on_failed: Callable[[sqlite3.Error], None] = _ignore
        """To be called on the event loop with every error: see ``health.py``."""
        try:
            self._writer = self._connect()
            prepare(self._writer, path)
            accounts.prepare(self._writer)
            self._reader = self._connect(read_only=True)
            self._loop_reader = self._connect(read_only=True, timeout_s=0)
            self._housekeeper = self._connect(read_only=True)
            self._shm_fd = take_blocks(path)
            take_log_blocks(path)
            self._ballast.take()
            self.clock = UseClock(self._newest_use())
        except sqlite3.Error as error:
            self.close()
            if is_of_the_disk(error):
                raise ConfigurationError(f"cannot use the cache index {path}: {error}; is its disk full?") from error
            raise IndexUnusable(str(error)) from error
        except (ConfigurationError, IndexUnusable):
            self.close()
            raise

    def failed(self, error: sqlite3.Error) -> None:
        """Report an error of the index, once a kind. One that says it is damaged has it dropped at the next start."""
        if isinstance(error, sqlite3.ProgrammingError):
            return  # it was closed under its user: its disk has failed, and that is known
        self.on_failed(error)
        code = _primary_code(error)
        if code in self._reported:
            return
        self._reported.add(code)
        damaged = code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
        logger.error(
            "the cache index fails (%s): what it cannot say is fetched again%s",
            error, "; the cache is dropped and rebuilt at the next start" if damaged else "",
        )  # fmt: skip
        if damaged:
            with suppress(OSError):
                self.rebuild_mark(self._path).touch(mode=0o600)

    @staticmethod
    def rebuild_mark(path: Path) -> Path:
        """The file whose presence says that the index at ``path`` was found to be damaged."""
        return path.with_suffix(".rebuild")

    def close(self) -> None:
        """Close every connection, once no thread uses it. The event loop must not use it any more."""
        with self._write_lock, self._read_lock, self._housekeeping_lock:
            for connection in reversed(self._connections):
                connection.close()
            self._connections.clear()
        if self._shm_fd >= 0:
            os.close(self._shm_fd)
            self._shm_fd = -1

    def totals(self) -> tuple[int, int]:
        """(bytes charged, number of contents), by two scans of covering indexes."""
        with self._read_lock:
            charge, count = self._reader.execute("SELECT coalesce(sum(charge), 0), count(*) FROM objects").fetchone()
            (recipes,) = self._reader.execute("SELECT coalesce(sum(charge), 0) FROM recipes").fetchone()
        return charge + recipes, count

    def find(self, tenant: str, content: bytes) -> ObjectRow | None:
        """The row of a content; None when there is none, or a damaged one (which is reported, not removed)."""
        with self._read_lock:
            found = self._reader.execute(_FIND, (tenant, content)).fetchone()
        return None if found is None else _row(found)

    def find_now(self, tenant: str, content: bytes) -> ObjectRow | None:
        """As ``find``, for the event loop: raises sqlite3.Error rather than wait."""
        found = self._loop_reader.execute(_FIND, (tenant, content)).fetchone()
        return None if found is None else _row(found)

    def has_now(self, tenant: str, content: bytes) -> bool:
        """Whether a content has a row, for the event loop: raises sqlite3.Error rather than wait."""
        found = self._loop_reader.execute("SELECT 1 FROM objects WHERE tenant = ? AND content = ?", (tenant, content))
        return found.fetchone() is not None

    def percent(self, tenant: str, content: bytes) -> int:
        """How much of a content is here, 0 … 100, rounded down. For the event loop: one look-up."""
        found = self._loop_reader.execute(
            "SELECT present_bytes, size FROM objects WHERE tenant = ? AND content = ?", (tenant, content)
        ).fetchone()
        return 0 if found is None else int(found[0]) * 100 // max(int(found[1]), 1)

    def commit(self, rows: Sequence[ObjectRow], used: int, *, durable: bool = True) -> list[Written]:
        """Write rows in one transaction. A row with id 0 replaces whatever row its content had.

        The caller has made their bytes durable. ``durable``: the rows are too when this returns; without it a power
        cut loses those since the last checkpoint, which is no lie, only a loss.
        """
        written: list[Written] = []
        with self._write_lock, self._synchronous(full=durable), self._writer:
            self._writer.execute("BEGIN IMMEDIATE")
            for row in rows:
                values: tuple[object, ...] = (
                    row.size,
                    row.chunks,
                    row.whole,
                    row.file,
                    row.present_bytes,
                    row.charge,
                    used,
                )
                values += (row.checksum(), row.present)
                if row.id:
                    changed = self._writer.execute(
                        "UPDATE objects SET size = ?, chunks = ?, whole = ?, file = ?, present_bytes = ?, charge = ?, "
                        "used = ?, checksum = ?, present = ? WHERE id = ?",
                        (*values, row.id),
                    ).rowcount
                    written.append(Written(row.id if changed else 0, None))
                else:
                    replaced = self._writer.execute(
                        "DELETE FROM objects WHERE tenant = ? AND content = ? RETURNING charge, CAST(file AS BLOB)",
                        row.key,
                    ).fetchall()
                    cursor = self._writer.execute(
                        "INSERT INTO objects(tenant, content, size, chunks, whole, file, present_bytes, "
                        "charge, used, checksum, present, grp) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                        (row.tenant, row.content, *values, row.grp),
                    )
                    charge, file = replaced[0] if replaced else (None, None)
                    written.append(Written(cursor.lastrowid or 0, charge, (file or b"").decode(errors="replace")))
                    if row.packed:
                        chunks.record(self._writer, cursor.lastrowid or 0, row.tenant, row.content, row.packed)
        return written

    def touch(
        self, used: Mapping[tuple[str, bytes], int], groups: Mapping[tuple[str, bytes], int] | None = None
    ) -> None:
        """Note last uses, in one transaction; what is not there is passed over.

        One that comes SAME_USE_MS after what was noted before counts as a further use (``visited``). What was brought
        without a group gets the one in ``groups`` with its first use, which is no further one.
        """
        groups = groups or {}
        values = [(when, *key) for key, when in used.items()]
        with self._write_lock, self._writer:
            self._writer.execute("BEGIN IMMEDIATE")
            self._writer.executemany(_TOUCH, ((*value, groups.get(value[1:], 0)) for value in values))
            self._writer.executemany("UPDATE recipes SET used = ? WHERE tenant = ? AND content = ?", values)

    def delete(self, object_ids: Sequence[int], recipe_ids: Sequence[int] = ()) -> tuple[int, int]:
        """Forget objects, with their recipes, and recipes, in one transaction.

        Returns the charge that was theirs and the number of objects that were there.
        """
        with self._write_lock:
            freed, gone = self._on_a_full_disk_too(lambda: self._delete(object_ids, recipe_ids, "id = ?"))
        return freed, len(gone)

    def evict(self, object_ids: Sequence[int], recipe_ids: Sequence[int]) -> tuple[int, int, set[int]]:
        """As ``delete``, but for what was pinned since it was a candidate, whose ids are returned, too."""
        with self._write_lock:
            freed, gone = self._on_a_full_disk_too(lambda: self._delete(object_ids, recipe_ids, "id = ? AND pins = 0"))
            execute = self._writer.execute
            stay = {
                i
                for i in object_ids
                if i not in gone and execute("SELECT 1 FROM objects WHERE id = ?", (i,)).fetchone()
            }
        return freed, len(gone), stay

    def _delete(self, object_ids: Sequence[int], recipe_ids: Sequence[int], condition: str) -> tuple[int, set[int]]:
        freed, gone = 0, set()
        statement = f"DELETE FROM objects WHERE {condition} RETURNING tenant, content, charge"  # noqa: S608
        with self._writer:
            execute = self._writer.execute
            execute("BEGIN IMMEDIATE")
            for i in object_ids:
                for tenant, content, charge in execute(statement, (i,)).fetchall():
                    recipe = execute(
                        "DELETE FROM recipes WHERE tenant = ? AND content = ? RETURNING charge", (tenant, content)
                    ).fetchall()
                    freed += charge + sum(c for (c,) in recipe)
                    gone.add(i)
            for i in recipe_ids:
                found = execute("DELETE FROM recipes WHERE id = ? RETURNING charge", (i,)).fetchall()
                freed += sum(c for (c,) in found)
        return freed, gone

    def candidates(self, condition: str, values: Sequence[object], order: str, limit: int) -> list[Candidate]:
        """Up to ``limit`` objects in ``scope``, pinned by nobody, for which an SQL condition holds, in an SQL order."""
        scope = self.scope
        with self._housekeeping_lock:
            found = self._housekeeper.execute(
                "SELECT used, id, 0, tenant, content, file, charge, grp, queue, visited FROM objects "  # noqa: S608
                f"WHERE pins = 0 AND {scope.condition} AND {condition} ORDER BY {order} LIMIT ?",
                (*scope.tenants, *values, limit),
            ).fetchall()
        return [Candidate(*row) for row in found]

    def arrange(self, changes: Sequence[tuple[str, Sequence[object]]]) -> None:
        """Change what a policy keeps in rows, by these statements, in one transaction."""
        with self._write_lock:
            self._on_a_full_disk_too(lambda: self._arrange(changes))

    def _arrange(self, changes: Sequence[tuple[str, Sequence[object]]]) -> None:
        with self._writer:
            self._writer.execute("BEGIN IMMEDIATE")
            for statement, values in changes:
                self._writer.execute(statement, values)

    def _on_a_full_disk_too(self, change: Callable[[], T]) -> T:
        """Do what makes room, without the ballast if there is no other room. The write lock is held."""
        self._ballast.take()
        try:
            return change()
        except sqlite3.Error as error:
            if _primary_code(error) != sqlite3.SQLITE_FULL or not self._ballast.give():
                raise
        return change()

    def ask(self, question: str, values: Sequence[object] = ()) -> tuple[Any, ...]:
        """The one row that answers an SQL question."""
        with self._housekeeping_lock:
            return tuple(self._housekeeper.execute(question, values).fetchone())

    def oldest_recipes(self, limit: int) -> list[Candidate]:
        """Up to ``limit`` recipes in ``scope`` that no object needs, oldest first; their charge is the recipe's."""
        scope = self.scope
        with self._housekeeping_lock:
            found = self._housekeeper.execute(
                "SELECT used, id, 1, tenant, content, '', charge FROM recipes r WHERE NOT EXISTS (SELECT 1 FROM "  # noqa: S608
                "objects o WHERE o.tenant = r.tenant AND o.content = r.content) "
                f"AND {scope.condition} ORDER BY used, id LIMIT ?",
                (*scope.tenants, limit),
            ).fetchall()
        return [Candidate(*row) for row in found]

    def places(self, tenant: str, digest: bytes) -> list[Place]:
        """Where a chunk may lie, among the objects of a tenant."""
        with self._read_lock:
            return chunks.places(self._reader, tenant, digest)

    def behind(self, position: int, until: int, limit: int) -> list[tuple[int, ObjectRow | None]]:
        """Up to ``limit`` ids behind ``position``, up to ``until``, with their rows; None for a damaged one."""
        with self._read_lock:
            found = self._reader.execute(
                f"SELECT {_COLUMNS} FROM objects WHERE id > ? AND id <= ? ORDER BY id LIMIT ?",  # noqa: S608 - constant
                (position, until, limit),
            ).fetchall()
        return [(values[0], _row(values)) for values in found]

    def find_file(self, file: str) -> ObjectRow | None:
        """The row that names a file."""
        with self._read_lock:
            query = f"SELECT {_COLUMNS} FROM objects WHERE file = ? AND file <> ''"  # noqa: S608 - of a constant
            found = self._reader.execute(query, (file,)).fetchone()
        return None if found is None else _row(found)

    def _newest_use(self) -> int:
        (newest,) = self._reader.execute("SELECT coalesce(max(used), 0) FROM objects").fetchone()
        return int(newest)

    def last_id(self) -> int:
        """The id of the newest row; 0 without any."""
        with self._read_lock:
            (last,) = self._reader.execute("SELECT coalesce(max(id), 0) FROM objects").fetchone()
        return int(last)

    def held(self) -> dict[str, Held]:
        """What each show has here; see ``accounts.held``."""
        with self._read_lock:
            return accounts.held(self._reader)

    def present(self, tenant: str, contents: Sequence[bytes]) -> dict[bytes, int]:
        """How many bytes of these contents are here, of those that have a row."""
        with self._read_lock:
            execute = self._reader.execute
            found = (execute(_PRESENT, (tenant, content)).fetchone() for content in contents)
            return {content: row[0] for content, row in zip(contents, found, strict=True) if row is not None}

    def evictable(self, tenant: str, contents: Sequence[bytes]) -> tuple[list[Candidate], int]:
        """The rows of these contents that nobody has pinned, and the number of those that somebody has."""
        with self._read_lock:
            execute = self._reader.execute
            rows = [row for content in contents for row in execute(_CANDIDATE, (tenant, content))]
        return [Candidate(*row) for *row, pins in rows if not pins], sum(1 for *_, pins in rows if pins)

    def named(self, files: Sequence[str]) -> set[str]:
        """Those of these file names that a row names."""
        marks = ",".join("?" * len(files))
        with self._read_lock:
            found = self._reader.execute(f"SELECT file FROM objects WHERE file IN ({marks})", files)  # noqa: S608
            return {name for (name,) in found}

    def known(self, keys: Sequence[tuple[str, bytes]]) -> set[tuple[str, bytes]]:
        """Those of these contents that have a row."""
        with self._read_lock:
            execute = self._reader.execute
            return {
                key for key in keys if execute("SELECT 1 FROM objects WHERE tenant = ? AND content = ?", key).fetchone()
            }

    def recipe(self, tenant: str, content: bytes) -> bytes | None:
        """The packed records of a recipe object that was fetched before; the caller verifies them."""
        with self._read_lock:
            found = self._reader.execute(
                "SELECT packed FROM recipes WHERE tenant = ? AND content = ?", (tenant, content)
            ).fetchone()
        return None if found is None or not isinstance(found[0], bytes) else bytes(found[0])

    def keep_recipe(self, tenant: str, content: bytes, packed: bytes, charge: int, used: int) -> int:
        """Keep a verified recipe, so that its file can be read offline. Returns the charge of one that it replaced."""
        with self._write_lock, self._writer:
            self._writer.execute("BEGIN IMMEDIATE")
            replaced = self._writer.execute(
                "DELETE FROM recipes WHERE tenant = ? AND content = ? RETURNING charge", (tenant, content)
            ).fetchall()
            self._writer.execute(
                "INSERT INTO recipes(tenant, content, charge, used, packed) VALUES (?, ?, ?, ?, ?)",
                (tenant, content, charge, used, packed),
            )
        return sum(charge for (charge,) in replaced)

    @contextmanager
    def _synchronous(self, *, full: bool) -> Iterator[None]:
        if not full:
            yield
            return
        self._writer.execute("PRAGMA synchronous = FULL")
        try:
            yield
        finally:
            self._writer.execute("PRAGMA synchronous = NORMAL")

    def _connect(self, *, read_only: bool = False, timeout_s: float = BUSY_TIMEOUT_S) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=timeout_s, isolation_level=None, check_same_thread=False, cached_statements=64
        )
        self._connections.append(connection)
        if read_only:
            connection.execute("PRAGMA query_only = ON")
        return connection


def is_of_the_disk(error: Exception) -> bool:
    """Whether an error says nothing about what the file holds."""
    return isinstance(error, sqlite3.Error) and _primary_code(error) in _DISK_CODES


def _primary_code(error: sqlite3.Error) -> int:
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


def _row(found: tuple[Any, ...]) -> ObjectRow | None:
    """A row as it was written; None (and a log line) when it is not what was written."""
    *values, checksum, present = found
    try:
        row_id, tenant, content, size, chunks, whole, file, present_bytes, charge = values
        row = ObjectRow(
            int(row_id), str(tenant), Digest(content), int(size), int(chunks), bytes(whole), str(file),
            int(present_bytes), int(charge), bytes(present),
        )  # fmt: skip
        sound = row.checksum() == checksum
    except (TypeError, ValueError, struct.error):
        sound = False
    if not sound:
        logger.warning("a row of the cache index is damaged; its content is fetched again")
        return None
    return row


def _ignore(_: object) -> None:
    pass
