"""The tables of a replica, and how its file is opened.

    entries     one version of one name, valid in revisions [since, until); a row is never deleted, ids follow the log
    spellings   the names among them that are not in NFC, under the form that siblings must not share
    contents    content id → packed recipe (36 bytes a chunk); none for a recipe that is an object of its own
    revisions   one for each log entry, no-ops among them; the last one is the head
    touched     (folder, revision): what a folder's mtime is made of
    meta        which library, show and trust the rows were made under

Created and migrated with sqlite-utils; ``user_version`` is the number of migrations, so that a reader can tell with
one statement whether it understands the file. WAL, one writer. synchronous=NORMAL: a power cut may lose the last
revisions, never a part of one, and they are applied again from the log.

Rule: nobody but SQLite opens the file in a process that has a connection to it. SQLite's locks are POSIX ones: closing
any other descriptor of the file drops them all, and another process then takes the write-ahead log away.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from manifest.errors import ConfigurationError, NotFound, ReplicaDamaged

if TYPE_CHECKING:
    from pathlib import Path

    from sqlite_utils import Database

FORMAT = 1
"""The number of migrations below."""
BUSY_TIMEOUT_S = 5.0
WRITER_CACHE_KIB = 32 * 1024
READER_CACHE_KIB = 4 * 1024
READER_MAPPED_BYTES = 2**31 - 65536
"""Readers map the file (a page that the kernel has costs no copy), and so hold little memory of their own. It is
never shortened or written over in place: a replica that is built anew is a new file."""
PAGE_BYTES = 8192
"""Of a new file. Measured on 1,000,000 rows against 4 KiB: inserts take 0.87 of the time, look-ups 0.95; 16 KiB look
up no faster, and a small commit writes more."""
WAL_BYTES_MAX = 64 * 1024 * 1024
"""A larger write-ahead log is cut back to this once its pages are in the database."""


# sqlite-utils does not write tables without row ids; these are made of their keys, so that one descent finds all.
_ENTRIES = """
CREATE TABLE entries(
    id INTEGER NOT NULL,
    parent INTEGER NOT NULL,
    name TEXT NOT NULL,
    node INTEGER NOT NULL,
    since INTEGER NOT NULL,
    until INTEGER,
    kind INTEGER NOT NULL,
    mode INTEGER NOT NULL,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    digest BLOB,
    content BLOB,
    target TEXT,
    is_object INTEGER NOT NULL,
    PRIMARY KEY (parent, name, since)
) WITHOUT ROWID
"""
_CONTENTS = "CREATE TABLE contents(content BLOB PRIMARY KEY, recipe BLOB NOT NULL) WITHOUT ROWID"
_TOUCHED = "CREATE TABLE touched(node INTEGER, seq INTEGER, PRIMARY KEY (node, seq)) WITHOUT ROWID"


def _first(db: Database) -> None:
    for statement in (_ENTRIES, _CONTENTS, _TOUCHED):
        db.execute(statement)
    entries = db.table("entries")
    entries.create_index(["id"], "entries_id", unique=True)
    entries.create_index(["since", "parent"], "entries_since")
    db.execute("CREATE INDEX entries_until ON entries(until, parent) WHERE until IS NOT NULL")
    spellings = db.table("spellings")
    spellings.create({"id": int, "parent": int, "nfc": str}, pk="id", not_null={"parent", "nfc"})
    spellings.create_index(["parent", "nfc"], "spellings_nfc")
    revisions = db.table("revisions")
    revisions.create(
        {
            "seq": int,
            "publish_id": str,
            "entry_digest": bytes,
            "time_ns": int,
            "author": str,
            "message": str,
            "keyid": str,
            "status": str,
            "reason": str,
            "files": int,
            "bytes": int,
        },
        pk="seq",
        not_null={"entry_digest", "time_ns", "author", "message", "keyid", "status", "reason", "files", "bytes"},
    )
    revisions.create_index(["publish_id"], "revisions_publish_id", unique=True)
    revisions.create_index(["time_ns"], "revisions_time")
    db.table("meta").create({"key": str, "value": str}, pk="key", not_null={"value"})
    db.execute("PRAGMA user_version = 1")


_MIGRATIONS = (_first,)


def connect_writer(path: Path) -> sqlite3.Connection:
    """Open a replica file for writing, created or migrated where needed.

    Raises ConfigurationError for a newer format or a file that cannot be written, sqlite3.DatabaseError for a file
    that is no database or a damaged one.
    """
    try:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT_S)
    except sqlite3.OperationalError as error:
        raise ConfigurationError(f"the replica {path} cannot be opened: {error}") from error
    try:
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA cache_size = -{WRITER_CACHE_KIB}")
        connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES_MAX}")
        connection.execute("PRAGMA temp_store = MEMORY")
        if (version := _version(connection)) != FORMAT:
            _migrate(connection, path, version)
    except sqlite3.OperationalError as error:
        connection.close()
        raise ConfigurationError(f"the replica {path} cannot be written: {error}") from error
    except BaseException:
        connection.close()
        raise
    return connection


def connect_reader(path: Path) -> sqlite3.Connection:
    """Open a replica file for reading, by one thread at a time. Raises NotFound, ConfigurationError."""
    if not path.exists():
        raise NotFound(f"no replica at {path}")
    try:
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=BUSY_TIMEOUT_S,
            cached_statements=64,
        )
    except sqlite3.OperationalError as error:
        raise ConfigurationError(f"the replica {path} cannot be opened: {error}") from error
    try:
        connection.execute("PRAGMA query_only = 1")
        connection.execute(f"PRAGMA cache_size = -{READER_CACHE_KIB}")
        connection.execute(f"PRAGMA mmap_size = {READER_MAPPED_BYTES}")
        connection.execute("PRAGMA temp_store = MEMORY")
        version = _version(connection)
    except sqlite3.DatabaseError as error:
        connection.close()
        raise ConfigurationError(f"the replica {path} cannot be read: {error}; it can be deleted") from error
    if version != FORMAT:
        connection.close()
        if version == 0:
            raise NotFound(f"no replica at {path} yet: it is being made")
        raise ConfigurationError(f"the replica {path} has format {version}, this program reads {FORMAT}")
    return connection


_OF_THE_FILE = {
    sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_FORMAT,
    sqlite3.SQLITE_NOTADB,
}  # fmt: skip
"""What fixed statements over checked values fail with only when the file does not hold together."""


def failure(error: sqlite3.Error, path: Path) -> ConfigurationError | sqlite3.Error:
    """What an error of SQLite means, none of which says anything about an entry: damage, no way to write, our bug."""
    if isinstance(error, (sqlite3.ProgrammingError, sqlite3.InterfaceError, sqlite3.InternalError)):
        return error
    code = getattr(error, "sqlite_errorcode", None)  # none: a text in the file is no UTF-8
    if code is None or code & 0xFF in _OF_THE_FILE or str(error).startswith("no such "):
        return ReplicaDamaged(f"the replica {path} is damaged: {error}")
    return ConfigurationError(
        f"the replica {path} cannot be written: {error}; make room, or delete it to build it anew"
    )


def drop(path: Path) -> None:
    """Remove a replica; the caller holds its lock. Whoever has it open keeps what it has."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _migrate(connection: sqlite3.Connection, path: Path, version: int) -> None:
    if version > FORMAT:
        raise ConfigurationError(
            f"the replica {path} has format {version}, this program knows up to {FORMAT}: "
            "update it, or delete the file to build it anew"
        )
    from sqlite_utils import Database, Migrations  # noqa: PLC0415 - slow to load, and only needed here

    migrations = Migrations("damfs.replica")
    for step in _MIGRATIONS:
        migrations()(step)
    migrations.apply(Database(connection, recursive_triggers=False, execute_plugins=False))
