"""The tables of the index, and the way to them from an older format.

State: none. Format 1 did not know groups, pins, policies and where chunks lie: its rows stay, and begin anew
with these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cache import chunks
from manifest.errors import ConfigurationError

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

FORMAT = 2
APPLICATION_ID = 0x64616D66  # "damf"
VISITED_MAX = 3
"""So many further uses of an object are counted (S3-FIFO's two bits)."""
_SCHEMA = """
CREATE TABLE objects(
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  tenant TEXT NOT NULL,
  content BLOB NOT NULL,
  size INTEGER NOT NULL,          -- bytes of the whole content
  chunks INTEGER NOT NULL,        -- 0 for a small content, which is there as a whole or not at all
  whole BLOB NOT NULL,            -- the digest of the whole file, once it has been read; else empty
  file TEXT NOT NULL,             -- below objects/; empty for a small content
  present_bytes INTEGER NOT NULL,
  charge INTEGER NOT NULL,        -- bytes of disk that it counts for
  used INTEGER NOT NULL,          -- last use, Unix milliseconds
  checksum INTEGER NOT NULL,      -- CRC-32 of everything above but charge and used, and of present
  present BLOB NOT NULL,          -- bit i (byte i/8, lowest first): chunk i
  grp INTEGER NOT NULL DEFAULT 0,      -- the group that it is used with (a sequence), a 64-bit key; 0: none
  pins INTEGER NOT NULL DEFAULT 0,     -- 1: a pin keeps it from being evicted
  queue INTEGER NOT NULL DEFAULT 0,    -- where the policy of eviction has put it; 0: where all begin
  visited INTEGER NOT NULL DEFAULT 0,  -- uses since it came or was last looked at, 0 … 3
  before INTEGER NOT NULL DEFAULT 0,   -- the use before the last one, Unix milliseconds; 0: none
  UNIQUE(tenant, content)
);
CREATE INDEX objects_used ON objects(used, id, charge);
CREATE UNIQUE INDEX objects_file ON objects(file) WHERE file <> '';
CREATE TABLE recipes(
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  tenant TEXT NOT NULL,
  content BLOB NOT NULL,
  charge INTEGER NOT NULL,
  used INTEGER NOT NULL,
  packed BLOB NOT NULL,
  UNIQUE(tenant, content)
);
CREATE INDEX recipes_used ON recipes(used, id, charge);
"""
_PINNED = """
CREATE TABLE pinned(
  tenant TEXT NOT NULL,
  content BLOB NOT NULL,
  pin INTEGER NOT NULL,
  size INTEGER NOT NULL,
  came INTEGER NOT NULL,          -- the first round that named it
  round INTEGER NOT NULL,         -- the last one
  PRIMARY KEY(tenant, content, pin)
) WITHOUT ROWID;
CREATE INDEX pinned_pin ON pinned(pin, round);
CREATE TRIGGER pinned_comes AFTER INSERT ON pinned BEGIN
  UPDATE objects SET pins = 1 WHERE tenant = NEW.tenant AND content = NEW.content;
END;
CREATE TRIGGER pinned_goes AFTER DELETE ON pinned BEGIN
  UPDATE objects SET pins = EXISTS(SELECT 1 FROM pinned WHERE tenant = OLD.tenant AND content = OLD.content)
  WHERE tenant = OLD.tenant AND content = OLD.content;
END;
CREATE TRIGGER object_comes AFTER INSERT ON objects
WHEN EXISTS(SELECT 1 FROM pinned WHERE tenant = NEW.tenant AND content = NEW.content) BEGIN
  UPDATE objects SET pins = 1 WHERE id = NEW.id;
END;
"""
_FROM_1 = "".join(
    f"ALTER TABLE objects ADD COLUMN {name} INTEGER NOT NULL DEFAULT 0; "
    for name in ("grp", "pins", "queue", "visited", "before")
)


class IndexUnusable(Exception):
    """The file is not a sound index. It is a cache: the remedy is to drop it."""


def prepare(writer: sqlite3.Connection, path: Path) -> None:
    """Make the tables, or bring those of format 1 up to date in one transaction that rewrites no row.

    Raises ConfigurationError for a newer format, IndexUnusable for what is no index, and sqlite3.Error.
    """
    (application,) = writer.execute("PRAGMA application_id").fetchone()
    (version,) = writer.execute("PRAGMA user_version").fetchone()
    (tables,) = writer.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables and application != APPLICATION_ID:
        raise IndexUnusable("it is a database of another program")
    if tables and version > FORMAT:
        raise ConfigurationError(
            f"the cache at {path.parent} was written by a newer damfs (index format {version}, this one "
            f"knows {FORMAT}): use that damfs, another cache folder, or remove this one"
        )
    if tables and version < 1:
        raise IndexUnusable(f"its format is {version}, this damfs writes {FORMAT}")
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute("PRAGMA synchronous = NORMAL")
    if not tables:
        writer.executescript(
            f"BEGIN IMMEDIATE; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT}; "
            f"{_SCHEMA} {_PINNED} {chunks.SCHEMA} COMMIT;"
        )
    elif version == 1:
        writer.executescript(
            f"BEGIN IMMEDIATE; {_FROM_1} {_PINNED} {chunks.SCHEMA} PRAGMA user_version = {FORMAT}; COMMIT;"
        )
    writer.execute("SELECT count(*) FROM (SELECT pins FROM objects LIMIT 1)").fetchone()
