"""What nobody names any more, removed in the background after a start.

Files without a row (a kill between create and commit, an eviction cut short), small values without a row (a power
cut), and the remains of a cache that was dropped. And the other way round: rows that a power cut brought back, whose
files are gone (``forget``). Nothing is served later because of any of it, and what is said to be cached is.
"""

from __future__ import annotations

import logging
import shutil
import sqlite3
from itertools import islice
from typing import TYPE_CHECKING

import trio

from cache.index import Index

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cache.files import ObjectFiles
    from cache.index import ObjectRow
    from cache.small import SmallStore

logger = logging.getLogger(__name__)

TRASH = "trash."
_BATCH = 256
_PAUSE_S = 0.01
_DIGEST_BYTES = 32


async def sweep(
    folder: Path, index: Index, files: ObjectFiles, small: SmallStore, forget: Callable[[ObjectRow], None]
) -> None:
    """Remove what is unnamed. Errors are logged and end the sweep; cancellation ends it between two steps."""
    limiter = trio.CapacityLimiter(1)
    removed = 0
    try:
        await _sweep_rows(index, files, forget, limiter)
        strangers = files.strangers()
        while (names := await trio.to_thread.run_sync(next, strangers, None, limiter=limiter)) is not None:
            removed += await trio.to_thread.run_sync(_sweep_files, index, files, names, limiter=limiter)
            await trio.sleep(_PAUSE_S)
        removed += await trio.to_thread.run_sync(_sweep_small, index, small, limiter=limiter)
        await trio.to_thread.run_sync(_sweep_trash, folder, limiter=limiter)
    except sqlite3.Error as error:
        index.failed(error)
    except OSError as error:
        logger.warning("the cache folder could not be swept: %s", error)
        files.on_failed(error)
    if removed:
        logger.info("removed %d files and values that the cache index does not name", removed)


async def _sweep_rows(
    index: Index, files: ObjectFiles, forget: Callable[[ObjectRow], None], limiter: trio.CapacityLimiter
) -> None:
    """Rows of earlier processes only: one of this process may be behind what is open."""
    until = await trio.to_thread.run_sync(index.last_id, limiter=limiter)
    position = 0
    while batch := await trio.to_thread.run_sync(index.behind, position, until, _BATCH, limiter=limiter):
        for row in await trio.to_thread.run_sync(_without_file, files, batch, limiter=limiter):
            forget(row)
        position = batch[-1][0]
        await trio.sleep(_PAUSE_S)


def _without_file(files: ObjectFiles, rows: list[tuple[int, ObjectRow | None]]) -> list[ObjectRow]:
    return [row for _, row in rows if row is not None and row.file and not (files.folder / row.file).exists()]


def _sweep_files(index: Index, files: ObjectFiles, names: list[str]) -> int:
    removed = 0
    for begin in range(0, len(names), _BATCH):
        batch = names[begin : begin + _BATCH]
        named = index.named(batch)
        for name in batch:
            if name not in named:
                files.unlink(name)
                removed += 1
    return removed


def _sweep_small(index: Index, small: SmallStore) -> int:
    """Rows are written before values and deleted after them, so a value without a row is nobody's."""
    removed = 0
    keys: Iterator[bytes] = small.keys()
    while batch := list(islice(keys, _BATCH)):
        split = {(key[: -_DIGEST_BYTES - 1].decode(errors="replace"), key[-_DIGEST_BYTES:]): key for key in batch}
        known = index.known(list(split))
        for pair, key in split.items():
            if pair not in known:
                small.delete(key)
                removed += 1
    return removed


def _sweep_trash(folder: Path) -> None:
    for path in folder.glob(TRASH + "*"):
        shutil.rmtree(path, ignore_errors=True)
