"""The scrub: every cached object is read from the disk and compared with what was written, now and then, in idle time.

State: ``<cache>/scrub.json``, where the pass is: it goes on there after a restart, at most SAVE_S behind. What a pass
found, in memory.

Rules:
- No source is asked. An object is compared chunk by chunk with the recipe that the index keeps (``chunks.py``), or as
  a whole with the digest that its row has; where there is neither, it is counted as unknown.
- A pass goes by row ids, and begins an interval after the one before it has begun: every object once an interval. It
  reads at most so many bytes a second (``Pace``), past the page cache, and only while nobody has read for IDLE_S.
- What is wrong is believed no more from that moment: dropped, or mended in place when the kernel reads it itself
  (``Flusher.distrust``). What was whole is fetched again. It is counted, and logged once.
- What was asked for (``begin``) does not wait for idleness, and a suspect (``suspect``) comes before everything else.
- The clock may jump: a pass begun in the future counts as begun now.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from collections import OrderedDict
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import trio

from cache import check, durable
from cache.small import small_key
from manifest.digest import Digest
from manifest.errors import DamfsError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from cache.content import Content, Key
    from cache.files import ObjectFiles
    from cache.flush import Flusher
    from cache.index import Index, ObjectRow
    from cache.metrics import Counters
    from cache.opening import OpenContents
    from cache.pace import Pace
    from cache.small import SmallStore
    from manifest.recipe import Recipe

logger = logging.getLogger(__name__)

IDLE_S = 1.0
START_S = 60.0
"""A daemon that has just started has more urgent things to read."""
SAVE_S = 30.0
LOOK_S = 600.0
"""How often is looked whether a pass is due."""
STEP_BYTES = 4 * 1024 * 1024
ROWS = 16
SUSPECTS_MAX = 256
REFETCH_S = 60.0
"""How long one chunk may take."""


BAD_MAX = 100
ID_MAX = 2**63 - 1
"""Of a row."""
RIGHT, UNKNOWN = "", "unknown"


@dataclass(slots=True)
class Pass:
    """Where a pass is: begun at ``began_s`` (Unix time), at row ``position`` of those up to row ``until``."""

    began_s: float = 0.0
    position: int = 0
    until: int = 0


@dataclass(frozen=True, slots=True)
class Bad:
    """An object that was wrong."""

    show: str
    content: str
    reason: str


@dataclass(slots=True)
class Report:
    """What a pass over everything has found so far. ``unknown``: objects that nothing is known of to compare with."""

    running: bool = True
    objects_total: int = 0
    objects: int = 0
    size_bytes: int = 0
    unknown: int = 0
    bad_objects: int = 0
    bad: list[Bad] = field(default_factory=list)
    """The first BAD_MAX of them."""


class Scrubber:
    """See the module's rules. ``busy`` is a number that changes with every read; ``refill`` brings what is missing."""

    def __init__(
        self,
        folder: Path,
        index: Index,
        files: ObjectFiles,
        small: SmallStore,
        flusher: Flusher,
        contents: OpenContents,
        counters: Counters,
        refill: Callable[[Content, float], Awaitable[None]],
        busy: Callable[[], int],
        pace: Pace,
    ) -> None:
        self.pace = pace
        self.report = Report(running=False)
        """Of the last pass that was asked for."""
        self._path = folder / "scrub.json"
        self._index = index
        self._files = files
        self._small = small
        self._flusher = flusher
        self._contents = contents
        self._counters = counters
        self._refill = refill
        self._busy = busy
        self._busy_before = -1
        self._suspects: OrderedDict[str, None] = OrderedDict()
        self._rate = 0
        self._keys: Sequence[Key] | None = None
        self._wake = trio.Event()
        self._limiter = trio.CapacityLimiter(1)

    def begin(self, rate: int = 0, keys: Sequence[Key] | None = None) -> Report:
        """Check everything now, or these contents, at most ``rate`` bytes a second (0: no limit).

        The report is filled while that goes on. Nothing may be running that was asked for before.
        """
        assert not self.report.running
        self.report = Report()
        self._rate, self._keys = rate, keys
        self._wake.set()
        return self.report

    def suspect(self, file: str) -> None:
        """The object with this file gave wrong bytes to one who cannot say whose fault it is: it is checked next."""
        if len(self._suspects) < SUSPECTS_MAX:
            self._suspects[file] = None
            self._wake.set()

    async def run(self) -> None:
        """Scrub for as long as the cache is open. Ends when cancelled, between two steps."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_asked)
            nursery.start_soon(self._run_idle)

    async def _run_asked(self) -> None:
        """What somebody waits for."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            try:
                while self._suspects:
                    file, _ = self._suspects.popitem(last=False)
                    row = await trio.to_thread.run_sync(self._index.find_file, file, limiter=self._limiter)
                    if row is not None:
                        await self._check(row, Report(), self._after_asked)
                if self.report.running and self._keys is None:
                    await self._check_all(self.report)
                elif self.report.running:
                    await self._check_some(self.report, self._keys or ())
            except sqlite3.Error as error:
                self._index.failed(error)
            finally:
                self.report.running = False

    async def _check_all(self, report: Report) -> None:
        until = await trio.to_thread.run_sync(self._index.last_id, limiter=self._limiter)
        _, report.objects_total = await trio.to_thread.run_sync(self._index.totals, limiter=self._limiter)
        position = 0
        while rows := await self._rows(position, until):
            for position, row in rows:  # noqa: B007 - the next rows are those behind it
                if row is not None:
                    await self._check(row, report, self._after_asked)

    async def _check_some(self, report: Report, keys: Sequence[Key]) -> None:
        report.objects_total = len(keys)
        for key in keys:
            row = await trio.to_thread.run_sync(self._index.find, *key, limiter=self._limiter)
            if row is None:
                report.objects_total -= 1
            else:
                await self._check(row, report, self._after_asked)

    async def _run_idle(self) -> None:
        """The passes that nobody asks for."""
        await trio.sleep(START_S)
        at = await trio.to_thread.run_sync(self._load, limiter=self._limiter)
        while True:
            try:
                if self.pace.bandwidth:
                    at = await self._begun(at)
                    await self._go_on(at)
            except sqlite3.Error as error:
                self._index.failed(error)
            except OSError as error:
                logger.warning("where the scrub is cannot be noted in %s: %s", self._path, error)
            await trio.sleep(LOOK_S)

    async def _begun(self, at: Pass) -> Pass:
        """``at``, or a new pass where one is due."""
        now_s = time.time()
        if at.began_s > now_s:  # the clock was set back
            return Pass(now_s, at.position, at.until)
        if now_s - at.began_s < self.pace.interval_s:
            return at
        return Pass(now_s, 0, await trio.to_thread.run_sync(self._index.last_id, limiter=self._limiter))

    async def _go_on(self, at: Pass) -> None:
        """From where a pass is to its end."""
        if at.position >= at.until:
            return
        report, saved = Report(), trio.current_time()
        while rows := await self._rows(at.position, at.until):
            for position, row in rows:
                if row is not None:
                    await self._until_idle()
                    await self._check(row, report, self._after_idle)
                at.position = position
                if trio.current_time() - saved > SAVE_S:
                    await trio.to_thread.run_sync(self._save, at, limiter=self._limiter)
                    saved = trio.current_time()
        at.position = at.until
        await trio.to_thread.run_sync(self._save, at, limiter=self._limiter)
        logger.info(
            "scrub: %d cached objects checked, %.1f GB, %d of them wrong",
            report.objects, report.size_bytes / 1e9, report.bad_objects,
        )  # fmt: skip

    async def _rows(self, position: int, until: int) -> list[tuple[int, ObjectRow | None]]:
        return await trio.to_thread.run_sync(self._index.behind, position, until, ROWS, limiter=self._limiter)

    async def _after_asked(self, size_bytes: int, took_s: float) -> None:
        await trio.sleep(max(0.0, size_bytes / self._rate - took_s) if self._rate else 0)

    async def _after_idle(self, size_bytes: int, took_s: float) -> None:
        await trio.sleep(max(0.0, size_bytes / max(self.pace.bandwidth, 1) - took_s))
        await self._until_idle()

    async def _until_idle(self) -> None:
        """Wait until nothing was read for IDLE_S, and nothing else is checked; at once when nothing was since last."""
        while self._busy() != self._busy_before or self.report.running or not self.pace.bandwidth:
            self._busy_before = self._busy()
            await trio.sleep(IDLE_S)

    async def _check(self, row: ObjectRow, report: Report, after: Callable[[int, float], Awaitable[None]]) -> None:
        """Check one object, and see to it that a wrong one is believed no more. ``after`` each step is the pace."""
        recipe = await trio.to_thread.run_sync(self._recipe, row, limiter=self._limiter)
        if row.chunks == 0:
            reason = await trio.to_thread.run_sync(self._check_small, row, recipe, limiter=self._limiter)
            await after(row.size, 0)
        else:
            reason = await self._check_file(row, recipe, after)
        report.objects += 1
        report.size_bytes += row.present_bytes
        if reason is UNKNOWN:
            report.unknown += 1
            return
        self._counters.scrubbed_objects += 1
        self._counters.scrubbed_bytes += row.present_bytes
        if reason and await self._condemn(row, reason):
            report.bad_objects += 1
            if len(report.bad) < BAD_MAX:
                report.bad.append(Bad(row.tenant, str(Digest(row.content)), reason))
            if row.present_bytes == row.size:
                await self._fetch_again(row, recipe)

    def _recipe(self, row: ObjectRow) -> Recipe | None:
        return check.recipe_of(row.content, self._index.recipe(row.tenant, row.content))

    def _check_small(self, row: ObjectRow, recipe: Recipe | None) -> str:
        """In a thread: what is wrong with a small content; it goes then. One that is not there is no lie."""
        key = small_key(row.tenant, row.content)
        data = self._small.get(key)
        right = True if data is None else check.is_small_right(row.content, recipe, data)
        if right is None:
            return UNKNOWN
        if right:
            return RIGHT
        self._small.delete(key)
        return "its bytes are not what was written"

    async def _check_file(
        self, row: ObjectRow, recipe: Recipe | None, after: Callable[[int, float], Awaitable[None]]
    ) -> str:
        """What is wrong with an object's file."""
        spans = check.spans(row, recipe)
        if spans is None:
            return UNKNOWN
        try:
            file = await trio.to_thread.run_sync(
                check.Check, self._files.folder / row.file, row.size, spans, limiter=self._limiter
            )
        except FileNotFoundError:
            return "its file is gone"
        except OSError as error:
            logger.debug("%s cannot be checked: %s", row.file, error)
            return UNKNOWN
        with file:
            begun = time.monotonic()
            while count := await trio.to_thread.run_sync(file.advance, STEP_BYTES, limiter=self._limiter):
                await after(count, time.monotonic() - begun)
                begun = time.monotonic()
        if file.error is not None:
            self._files.on_failed(file.error)
        return file.reason

    async def _condemn(self, row: ObjectRow, reason: str) -> bool:
        """Have a wrong object believed no more. False when it is not that object any more: evicted, or dropped."""
        current = await trio.to_thread.run_sync(self._index.find, *row.key, limiter=self._limiter)
        content = self._contents.get(row.key)
        while content is not None and content.ready is not None:
            await content.ready.wait()
            content = self._contents.get(row.key)
        if current is None or current.id != row.id or self._flusher.is_dropped(row):
            return False
        if content is not None and content.file is not None:
            if content.file.name != row.file or content.doubted:
                return False
            self._flusher.distrust(content, reason)
        else:
            self._flusher.forget(row)
            logger.error(
                "cached file of show %s, content %s is dropped and fetched again: %s",
                row.tenant, Digest(row.content), reason,
            )  # fmt: skip
        self._counters.verification_failures["disk"] += 1
        self._counters.scrub_bad += 1
        return True

    async def _fetch_again(self, row: ObjectRow, recipe: Recipe | None) -> None:
        """Bring a content that was whole; where that does not work, its next reader does it."""
        try:
            content = await self._contents.open(row.tenant, Digest(row.content), row.size, recipe, "")
        except DamfsError as error:
            logger.warning("content %s is not fetched again yet: %s", Digest(row.content), error)
            return
        try:
            if not content.is_small and not content.lent:
                await self._refill(content, REFETCH_S)
        except DamfsError as error:
            logger.warning("content %s is not fetched again yet: %s", Digest(row.content), error)
        finally:
            self._contents.release(content)

    def _load(self) -> Pass:
        """In a thread: where the last pass was; nowhere, when that cannot be read."""
        try:
            known = json.loads(self._path.read_bytes())
            at = Pass(float(known["began_s"]), int(known["position"]), int(known["until"]))
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return Pass()
        return at if 0 <= at.position <= ID_MAX and 0 <= at.until <= ID_MAX else Pass()

    def _save(self, at: Pass) -> None:
        durable.write(self._path, json.dumps(asdict(at)).encode())
