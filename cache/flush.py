"""The durable order: fdatasync first, the index after it.

State: the contents with bytes that the index does not claim yet, rows to be deleted, last uses to be noted.

Rules:
- A row is taken (``Content.row``), then its file is fdatasync'ed, then the row is committed. Bytes written meanwhile
  are in the next row. Readers of this process do not wait for any of it.
- When fdatasync fails, the kernel may have dropped pages that it had called written: nothing of that file is
  believed any more (``distrust``).
- A file that is not believed is dropped, and its row: neither is opened any more. One that the kernel reads itself
  stays, since the kernel goes on reading it: its row is taken back, and right bytes are written over it (``mend``).
- When the index fails, nothing is claimed; what is open is tried again, the rest is given up.
- A flush runs INTERVAL_S after the first unclaimed byte, WHOLE_INTERVAL_S after a file has become whole (the kernel may
  read it from then on), or at once at URGENT_BYTES; beyond the limits stores wait.
"""

from __future__ import annotations

import logging
import math
import os
import sqlite3
from typing import TYPE_CHECKING, NamedTuple

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from cache.capacity import Capacity
    from cache.content import Content, Key
    from cache.files import ObjectFiles, OpenFile
    from cache.index import Index, ObjectRow
    from cache.metrics import Counters

logger = logging.getLogger(__name__)

INTERVAL_S = 0.3
WHOLE_INTERVAL_S = 0.02
URGENT_BYTES = 64 * 1024 * 1024
DIRTY_BYTES_MAX = 512 * 1024 * 1024
DIRTY_CONTENTS_MAX = 1024
TOUCH_INTERVAL_S = 5.0
TOUCHED_MAX = 4096
RETRY_S = 1.0
SYNC_THREADS = 4


class _Taken(NamedTuple):
    """What is to be claimed of a content: the row that was taken of its file, and when."""

    content: Content
    file: OpenFile
    epoch: int
    row: ObjectRow

    @property
    def holds(self) -> bool:
        """Whether what the row says is still believed."""
        return self.content.epoch == self.epoch


class Flusher:
    """See the module's rules."""

    def __init__(
        self,
        index: Index,
        files: ObjectFiles,
        capacity: Capacity,
        counters: Counters,
        retain: Callable[[Content], None],
        release: Callable[[Content], None],
    ) -> None:
        self._index = index
        self._files = files
        self._capacity = capacity
        self._counters = counters
        self._retain = retain
        self._release = release
        self._dirty: dict[Key, Content] = {}
        self._dirty_bytes = 0
        self._retired = False
        self._dropped: list[tuple[int, str, int]] = []
        self._dropped_files: set[str] = set()
        self._touched: dict[Key, int] = {}
        self._groups: dict[Key, int] = {}
        self._wake = trio.Event()
        self._urgent = trio.Event()
        self._due = math.inf
        self._pause = trio.CancelScope()
        self._flushed = trio.Event()
        self._one_at_a_time = trio.Lock()
        self._sync_limiter = trio.CapacityLimiter(SYNC_THREADS)
        self._index_limiter = trio.CapacityLimiter(1)
        self.mend: Callable[[Content], None] = _nothing
        """Have right bytes written over what a file holds that the kernel reads."""

    def mark(self, content: Content, added_bytes: int, *, within_s: float = INTERVAL_S) -> None:
        """``content`` has something that the index does not know: ``added_bytes`` of data, or only a new state."""
        if self._retired:
            return
        if content.key not in self._dirty:
            self._retain(content)
            self._dirty[content.key] = content
        self._dirty_bytes += added_bytes
        due = trio.current_time() + within_s
        if due < self._due:
            self._due = self._pause.deadline = due
        self._wake.set()
        if self._dirty_bytes >= URGENT_BYTES:
            self._urgent.set()

    def touch(self, key: Key, group: int = 0) -> None:
        """``key`` is used now; noted within TOUCH_INTERVAL_S, and not at all in a rush of more than TOUCHED_MAX."""
        if len(self._touched) < TOUCHED_MAX or key in self._touched:
            self._touched[key] = self._index.clock.now_ms()
            if group:
                self._groups[key] = group

    async def room(self) -> None:
        """Wait until there is not too much unclaimed."""
        while self._dirty_bytes > DIRTY_BYTES_MAX or len(self._dirty) > DIRTY_CONTENTS_MAX:
            self._urgent.set()
            await self._flushed.wait()

    def distrust(self, content: Content, reason: str) -> None:
        """Nothing that ``content``'s file holds is believed any more: it is dropped, and fetched again.

        Reads that are in the file end as they end; their descriptor stays open. A file that the kernel reads itself
        stays the content's file, and is mended.
        """
        if content.lent:
            if content.present_count or not content.doubted:
                self._counters.doubted += 1
                logger.error(
                    "cached file of show %s, path %s is wrong (%s) while programs have it open past this daemon: what "
                    "they read of it since may be wrong too. It is fetched again and written over; when the log says "
                    "that this is done, read it again",
                    content.tenant, content.hint or "?", reason,
                )  # fmt: skip
            content.doubted = True
            content.believe_nothing()
            self.mark(content, 0, within_s=0)
            self.mend(content)
        elif self._discard(content):
            logger.error(
                "cached file of show %s, path %s is dropped and fetched again: %s",
                content.tenant, content.hint or "?", reason,
            )  # fmt: skip

    def forget(self, row: ObjectRow) -> None:
        """A committed row turned out not to be true (its file is gone or another): have it deleted."""
        self._drop_later(row.id, row.file, 0)

    def is_dropped(self, row: ObjectRow) -> bool:
        """Whether a row that was found is about to be deleted: nothing that it says is true."""
        return row.file in self._dropped_files

    async def run(self) -> None:
        """Flush when there is something. Ends when cancelled; ``flush`` once more after that."""
        while True:
            await self._wake.wait()
            with trio.CancelScope(deadline=min(self._due, trio.current_time() + INTERVAL_S)) as self._pause:
                await self._urgent.wait()
            if not await self.flush():
                await trio.sleep(RETRY_S)
                self._wake.set()

    async def run_touches(self) -> None:
        """Note last uses and close what is to be closed, now and then. Ends when cancelled."""
        while True:
            await trio.sleep(TOUCH_INTERVAL_S)
            await self.flush_touches()

    async def flush_touches(self) -> None:
        """Note last uses now."""
        touched, self._touched = self._touched, {}
        groups, self._groups = self._groups, {}
        if touched:
            try:
                await trio.to_thread.run_sync(self._index.touch, touched, groups, limiter=self._index_limiter)
            except sqlite3.Error as error:
                self._index.failed(error)

    async def let_go(self) -> bool:
        """Claim what is held by nothing but its being unclaimed; False when there is no such thing."""
        if any(content.refs == 1 for content in self._dirty.values()):
            return await self.flush()
        return False

    def retire(self) -> None:
        """The disk has failed: nothing is claimed any more. No flush may be under way."""
        self._retired = True
        while self._dirty:
            self._release(self._dirty.popitem()[1])
        self._dirty_bytes = 0
        self._flushed.set()

    async def flush(self) -> bool:
        """Claim everything written so far. False when the index did not take it. Cancellation waits for its end.

        For one that ended in the middle would lose what is to be deleted: rows that are believed again after a restart.
        """
        with trio.CancelScope(shield=True):
            clean = await self._flush()
            self._flushed.set()
            self._flushed = trio.Event()
        return clean

    async def _flush(self) -> bool:
        async with self._one_at_a_time:
            self._due = math.inf
            if self._wake.is_set():  # somebody waits for one that is not, and must not wait for ever
                self._wake = trio.Event()
            if self._urgent.is_set():
                self._urgent = trio.Event()
            dirty, self._dirty = list(self._dirty.values()), {}
            taken_bytes, self._dirty_bytes = self._dirty_bytes, 0
            clean = await self._drop()
            rows: list[_Taken] = []
            for content in dirty:
                if content.file is not None:
                    content.file.use()
                    rows.append(_Taken(content, content.file, content.epoch, content.row()))
            try:
                rows_durable = await self._sync(rows)
                clean = await self._claim(rows_durable) and clean
            finally:
                for taken in rows:
                    taken.file.done()
                for content in dirty:
                    self._release(content)
            logger.debug("flushed %d contents, %d bytes", len(rows), taken_bytes)
            return clean

    async def _sync(self, rows: list[_Taken]) -> list[_Taken]:
        """Make the files durable; those where it worked."""
        durable: list[_Taken] = []

        async def sync(taken: _Taken) -> None:
            try:
                await trio.to_thread.run_sync(os.fdatasync, taken.file.fd, limiter=self._sync_limiter)
            except OSError as error:
                self._counters.not_stored["error"] += 1
                self._files.on_failed(error)
                if taken.holds:
                    self.distrust(taken.content, f"fdatasync: {error.strerror}")
            else:
                durable.append(taken)

        async with trio.open_nursery() as nursery:
            for taken in rows:
                if taken.row.present_bytes:
                    nursery.start_soon(sync, taken)
                else:
                    durable.append(taken)  # it promises nothing
        return durable

    async def _claim(self, rows: list[_Taken]) -> bool:
        """Commit the rows of files that are durable and still believed."""
        rows = [taken for taken in rows if taken.holds]
        if not rows:
            return True
        claimed_before = {taken.content.key: taken.content.claimed_charge for taken in rows}
        try:
            written = await trio.to_thread.run_sync(
                self._index.commit,
                [taken.row for taken in rows],
                self._index.clock.now_ms(),
                limiter=self._index_limiter,
            )
        except sqlite3.Error as error:
            self._index.failed(error)
            self._counters.not_stored["index"] += len(rows)
            for taken in rows:
                self._not_claimed(taken.content)
            return False
        for taken, (row_id, replaced, replaced_file) in zip(rows, written, strict=True):
            content, row = taken.content, taken.row
            if replaced_file != taken.file.name and _are_of_one_content(replaced_file, taken.file.name):
                self._drop_later(0, replaced_file, 0)
            if replaced is not None:
                self._capacity.give_back(replaced)
            elif not row.id:
                self._capacity.objects += 1
            if content.file is not taken.file:  # dropped while its row was being written, and counted without it
                unclaimed = claimed_before[content.key] - row.charge if row_id else 0
                self._drop_later(row_id, taken.file.name, unclaimed)
                continue
            content.row_id = row_id
            content.claimed_charge = row.charge if row_id else 0
            if row_id and taken.holds:
                content.settled = bool(row.whole) and row.present_bytes == row.size
            else:
                self.mark(content, 0)  # its row is gone, or says what is believed no more: write it anew
        return True

    def _not_claimed(self, content: Content) -> None:
        if content.refs > 1:
            self.mark(content, 0)
        else:
            self._discard(content)

    def _discard(self, content: Content) -> bool:
        """Let go of a content's file, and have its row deleted. False when there is no file."""
        row_id, unclaimed_charge = content.row_id, content.charge - content.claimed_charge
        file = content.clear()
        if file is None:
            return False
        self._drop_later(row_id, file.name, unclaimed_charge)
        file.done()
        return True

    def _drop_later(self, row_id: int, name: str, unclaimed_charge: int) -> None:
        """Have a row and its file removed; until that is done nobody opens them (``is_dropped``)."""
        self._dropped.append((row_id, name, unclaimed_charge))
        self._dropped_files.add(name)
        self._wake.set()

    async def _drop(self) -> bool:
        """Delete rows and files that nobody believes."""
        dropped, self._dropped = self._dropped, []
        if not dropped:
            return True
        try:
            freed, objects = await trio.to_thread.run_sync(self._drop_now, dropped, limiter=self._index_limiter)
        except (sqlite3.Error, OSError) as error:
            if isinstance(error, sqlite3.Error):
                self._index.failed(error)
            else:
                self._files.on_failed(error)
            self._dropped = dropped + self._dropped
            return False
        self._dropped_files.difference_update(name for _, name, _ in dropped)
        self._capacity.objects -= objects
        self._capacity.give_back(freed + sum(unclaimed for _, _, unclaimed in dropped))
        return True

    def _drop_now(self, dropped: list[tuple[int, str, int]]) -> tuple[int, int]:
        freed = self._index.delete([row_id for row_id, _, _ in dropped if row_id])
        for _, name, _ in dropped:
            if name:
                self._files.unlink(name)
        return freed


def _nothing(_: object) -> None:
    pass


def _are_of_one_content(name: str, other: str) -> bool:
    """Whether two names of files differ in their random part alone."""
    return name.rpartition(".")[0] == other.rpartition(".")[0]
