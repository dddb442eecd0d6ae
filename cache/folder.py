"""The cache's folder: made, locked, bound to its owner, its index opened, and everything dropped when that is damaged.

State: none; what is opened is handed on. All of it blocks, and runs in a thread.
"""

from __future__ import annotations

import logging
import secrets
import sqlite3
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cache.files import ObjectFiles
from cache.health import is_fault, try_out
from cache.index import Index, is_of_the_disk
from cache.limits import Overrides
from cache.lock import FolderLock
from cache.owner import bind, require
from cache.schema import IndexUnusable
from cache.small import SmallStore
from cache.sweep import TRASH
from manifest.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

    from cache.owner import Owner

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Parts:
    """What ``open_parts`` opens. ``totals``: bytes charged, number of contents. ``overrides``: of its limits."""

    lock: FolderLock
    index: Index
    files: ObjectFiles
    small: SmallStore
    totals: tuple[int, int]
    overrides: Overrides

    def close(self) -> None:
        """Let the folder go. Files that are open stay so. Blocking."""
        self.files.close()
        self.small.close()
        with suppress(sqlite3.Error):
            self.index.close()
        self.lock.release()


def open_parts(folder: Path, holder: str, owner: Owner, locks: list[int], *, try_disk: bool = False) -> Parts:
    """In a thread: the folder, its lock, its owner, its index; a damaged index takes everything with it.

    ``locks``: descriptors of a predecessor's locks; the one that is of this folder, if any, is taken out and used.
    ``try_disk``: see first that the disk works. Raises Busy, and ConfigurationError for what cannot be used.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_mode & 0o777 != 0o700:
            folder.chmod(0o700)
    except OSError as error:
        raise ConfigurationError(f"cannot use the cache folder {folder}: {error.strerror}") from error
    lock = FolderLock.adopt(folder, holder, locks) or FolderLock.take(folder, holder)
    try:
        if try_disk:
            try_out(folder)
        path = folder / "index.db"
        if not require(folder, owner):
            if path.exists():
                _drop(folder, "it does not say whose bytes it names")
            bind(folder, owner)
        files = ObjectFiles(folder / "objects")
        mark = Index.rebuild_mark(path)
        if mark.exists():
            _drop(folder, "it was found to be damaged before")
        try:
            index = Index(path)
            totals = index.totals()
        except (IndexUnusable, sqlite3.DatabaseError) as error:
            if is_fault(error) or is_of_the_disk(error):
                raise ConfigurationError(f"cannot use the cache index in {folder}: {error}") from error
            _drop(folder, str(error))
            index = Index(path)
            totals = index.totals()
        mark.unlink(missing_ok=True)
        files.prepare()
        return Parts(lock, index, files, _open_small(folder), totals, Overrides.load(folder))
    except OSError as error:
        lock.release()
        raise ConfigurationError(f"cannot use the cache folder {folder}: {error}") from error
    except (IndexUnusable, sqlite3.Error, ValueError) as error:
        lock.release()
        raise ConfigurationError(f"cannot make a cache index in {folder}: {error}; is its disk in order?") from error
    except BaseException:
        lock.release()
        raise


def _open_small(folder: Path) -> SmallStore:
    path = folder / "small"
    try:
        return SmallStore(path)
    except (sqlite3.Error, ValueError) as error:
        logger.warning("the small files of the cache in %s are unusable (%s): they are fetched again", folder, error)
        path.rename(folder / f"{TRASH}{secrets.token_hex(8)}")
        return SmallStore(path)


def _drop(folder: Path, reason: str) -> None:
    """Put aside everything that an unusable index named; it is removed in the background."""
    logger.warning("the cache index in %s is unusable (%s): the cache is dropped and filled again", folder, reason)
    for name in ("index.db", "index.db-wal", "index.db-shm"):
        (folder / name).unlink(missing_ok=True)
    for name in ("objects", "small"):
        with suppress(FileNotFoundError):
            (folder / name).rename(folder / f"{TRASH}{secrets.token_hex(8)}")
