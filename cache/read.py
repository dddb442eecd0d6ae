"""Reading: the bytes of a range from the file, from memory, or from a source.

State: none of its own. Rules:
- A read is exactly as long as asked (within the size) or an error.
- Reads of the cache disk have a limiter of their own: neither sources nor stores can hold them up.
- What the cache disk does not give back is not an error of the reader's: it is dropped and fetched. A recipe or a small
  content that the disk does not give within LOOK_UP_S is fetched, too.
"""

from __future__ import annotations

import logging
import sqlite3
from typing import TYPE_CHECKING

import trio

from cache.content import require_size
from cache.files import read_nowait
from cache.keep import ChunkSink, SmallSink
from cache.opening import LOOK_UP_S
from cache.queue import Priority
from cache.small import small_key
from cache.sources.protocol import ObjectRef
from cache.timings import ReadTimes
from manifest.digest import Digest
from manifest.errors import DamfsError, FormatError
from manifest.recipe import Recipe

if TYPE_CHECKING:
    from cache.claim import ClaimChecker
    from cache.content import Content
    from cache.fetch import Fetcher
    from cache.flush import Flusher
    from cache.index import Index
    from cache.keep import Keeper
    from cache.metrics import Counters
    from cache.opening import OpenContents
    from cache.small import SmallStore

logger = logging.getLogger(__name__)

DISK_THREADS = 16
SMALL_THREADS = 4
RECIPE_THREADS = 2
REFILL_AT_ONCE = 4


class Reader:
    """See the module's rules. The parts are the store's own."""

    def __init__(
        self,
        nursery: trio.Nursery,
        fetcher: Fetcher,
        keeper: Keeper,
        small: SmallStore,
        index: Index,
        flusher: Flusher,
        claims: ClaimChecker,
        contents: OpenContents,
        counters: Counters,
    ) -> None:
        self._nursery = nursery
        self._fetcher = fetcher
        self._keeper = keeper
        self._small = small
        self._index = index
        self._flusher = flusher
        self._claims = claims
        self._contents = contents
        self._counters = counters
        self._disk_limiter = trio.CapacityLimiter(DISK_THREADS)
        self._small_limiter = trio.CapacityLimiter(SMALL_THREADS)
        self._recipe_limiter = trio.CapacityLimiter(RECIPE_THREADS)
        self._parse_limiter = trio.CapacityLimiter(RECIPE_THREADS)

    def read_nowait(self, content: Content, offset: int, size: int) -> bytearray | bytes | None:
        """The bytes [offset, offset + size), within the size, if they are in memory; else None. Never blocks."""
        file = content.file
        if file is None:
            return None
        if not content.all_present:
            recipe = content.recipe
            if recipe is None or not content.has_all(recipe.covering(offset, size)):
                return None
        data = read_nowait(file.fd, offset, size)
        if data is not None:
            self._counters.hit(content.tenant, "disk", size)
        return data

    async def read(self, content: Content, offset: int, size: int, deadline: float) -> bytes | memoryview:
        """The bytes [offset, offset + size), which lie within the size and are at least one.

        Raises what ``Fetcher.get`` raises and IntegrityError for an impossible recipe. ``deadline`` is for fetches; the
        caller's scope ends the wait. Cancellation leaves shared fetches and stores to go on.
        """
        self._keeper.retain(content)
        times = ReadTimes(offset, size)
        try:
            if content.is_small:
                return await self._read_small(content, offset, size, deadline, times=times)
            if content.all_present and content.file is not None:
                epoch = content.epoch
                data = await content.file.read(offset, size, self._disk_limiter)
                if data is not None:
                    self._counters.hit(content.tenant, "disk", size)
                    return data
                if content.epoch == epoch:
                    self._flusher.distrust(content, "the cache disk did not give its bytes back")
            return await self._read_chunks(content, offset, size, deadline, times)
        except BaseException as error:
            times.error = str(error) or "it was given up"
            raise
        finally:
            times.end()
            self._counters.timings.read(content.key, times)
            self._keeper.release(content)

    async def refill(
        self, content: Content, within_s: float, span: tuple[int, int] | None = None, priority: Priority = Priority.PIN
    ) -> None:
        """Bring every chunk of the bytes [start, stop) of ``span``, or all, into the file: REFILL_AT_ONCE at a time.

        ``within_s`` is for each chunk, from when it is asked for. Raises what ``Fetcher.get`` raises; returns early
        when the disk does not take a chunk. Cancellation leaves shared fetches and stores to go on, but for fetches
        that have not begun and that nobody else wants.
        """
        recipe = content.recipe or await self._load_recipe(content, trio.current_time() + within_s, priority)
        start, stop = span or (0, content.size)
        missing = (i for i in recipe.covering(start, stop - start) if not content.has(i))
        failures: list[DamfsError] = []

        async def bring() -> None:
            for i in missing:
                deadline, sink = trio.current_time() + within_s, ChunkSink(self._keeper, content, i)
                try:
                    data = await self._fetcher.get(self._ref(content, i), sink, deadline, content.hint, priority)
                except DamfsError as error:
                    failures.append(error)
                    missing.close()
                    return
                if not await self._keeper.store_chunk(content, i, data):
                    missing.close()
                    return

        async with trio.open_nursery() as nursery:
            for _ in range(REFILL_AT_ONCE):
                nursery.start_soon(bring)
        if failures:
            raise failures[0]

    async def read_ahead(
        self, content: Content, start: int, stop: int, deadline: float, priority: Priority = Priority.READ_AHEAD
    ) -> int:
        """Begin to fetch what is missing of the bytes [start, stop); how many bytes of chunks were begun.

        Waits for the recipe, if it is not here yet, and for a small content; for nothing else. Raises what
        ``Fetcher.get`` raises for these. What there is no room for is not begun.
        """
        if content.is_small:
            await self._read_small(content, start, max(stop - start, 1), deadline, priority)
            return stop - start
        recipe = content.recipe or await self._load_recipe(content, deadline, priority)
        begun_bytes = 0
        for i in recipe.covering(start, stop - start):
            if content.has(i):
                continue
            ref = self._ref(content, i)
            if not self._fetcher.nudge(ref, ChunkSink(self._keeper, content, i), deadline, content.hint, priority):
                break
            begun_bytes += recipe[i].length
        return begun_bytes

    async def _read_chunks(
        self, content: Content, offset: int, size: int, deadline: float, times: ReadTimes
    ) -> bytes | memoryview:
        recipe = content.recipe
        if recipe is None:
            with times.fetching():
                recipe = await self._load_recipe(content, deadline)
        chunks = recipe.covering(offset, size)
        for i in chunks:
            if not content.has(i):
                self._fetcher.nudge(self._ref(content, i), ChunkSink(self._keeper, content, i), deadline, content.hint)
        parts: list[bytes | memoryview] = []
        i, position, end, missed = chunks.start, offset, offset + size, False
        while position < end:
            if content.has(i) and content.file is not None:
                stop = i + 1
                while stop < chunks.stop and content.has(stop):
                    stop += 1
                until = min(end, recipe.offset(stop))
                epoch = content.epoch
                data = await content.file.read(position, until - position, self._disk_limiter)
                if data is None:
                    if content.epoch == epoch:
                        self._flusher.distrust(content, "the cache disk did not give its bytes back")
                    continue
                self._counters.served(content.tenant, "disk", len(data))
                parts.append(data)
                i = stop
            else:
                ref = self._ref(content, i)
                until = min(end, recipe.offset(i + 1))
                recent = self._fetcher.recent(ref)
                if recent is not None:
                    self._counters.served(content.tenant, "memory", until - position)
                    chunk = recent
                else:
                    missed = True
                    with times.fetching():
                        sink = ChunkSink(self._keeper, content, i)
                        chunk = await self._fetcher.get(ref, sink, deadline, content.hint)
                    self._counters.waited_for(content.tenant, until - position)
                begin = recipe.offset(i)
                parts.append(memoryview(chunk)[position - begin : until - begin])
                i += 1
            position = until
        self._counters.answered(content.tenant, missed=missed)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _read_small(
        self, content: Content, offset: int, size: int, deadline: float, priority: Priority = Priority.DEMAND,
        *, times: ReadTimes | None = None,
    ) -> bytes | memoryview:  # fmt: skip
        times = times or ReadTimes(offset, size)
        recipe = content.recipe
        if recipe is None:
            with times.fetching():
                recipe = await self._load_recipe(content, deadline, priority)
        key = small_key(content.tenant, content.content)
        data: bytes | None = None
        with trio.move_on_after(LOOK_UP_S):
            data = await trio.to_thread.run_sync(
                self._get_small, key, recipe, abandon_on_cancel=True, limiter=self._small_limiter
            )
        if data is not None:
            self._counters.hit(content.tenant, "small", size)
            return data[offset : offset + size]
        missed = False
        parts = []
        for i in range(len(recipe)):
            part = self._fetcher.recent(self._ref(content, i))
            if part is None:
                missed = True
                sink = SmallSink(self._keeper, content) if len(recipe) == 1 else None
                with times.fetching():
                    part = await self._fetcher.get(self._ref(content, i), sink, deadline, content.hint, priority)
            parts.append(part)
        whole = bytes(parts[0]) if len(parts) == 1 else b"".join(parts)
        if len(parts) > 1 or not missed:  # what is only in memory could not be kept before
            self._nursery.start_soon(self._keeper.keep_small, content, whole)
        self._counters.answered(content.tenant, missed=missed)
        if missed:
            self._counters.waited_for(content.tenant, size)
        else:
            self._counters.served(content.tenant, "memory", size)
        return whole[offset : offset + size]

    def _get_small(self, key: bytes, recipe: Recipe) -> bytes | None:
        """A small content from the store, verified against its recipe now, in a thread."""
        data = self._small.get(key)
        if data is None:
            return None
        if _matches(recipe, data):
            return data
        self._counters.verification_failures["disk"] += 1
        logger.error("a small content in the cache is damaged; it is fetched again")
        self._small.delete(key)
        return None

    async def _load_recipe(self, content: Content, deadline: float, priority: Priority = Priority.DEMAND) -> Recipe:
        """The recipe of a content whose recipe is an object of its own: from the index, else from a source."""
        key = content.tenant, content.content
        recipe: Recipe | None = None
        try:
            with trio.move_on_after(LOOK_UP_S):
                recipe = await trio.to_thread.run_sync(
                    self._kept_recipe, *key, abandon_on_cancel=True, limiter=self._recipe_limiter
                )
        except sqlite3.Error as error:
            self._index.failed(error)
        if recipe is None:
            ref = ObjectRef(content.tenant, "recipe", content.content, None)
            data = bytes(await self._fetcher.get(ref, None, deadline, content.hint, priority))
            recipe = await trio.to_thread.run_sync(Recipe.from_object, data, limiter=self._parse_limiter)
            self._nursery.start_soon(self._keeper.keep_recipe, *key, recipe.packed)
        if content.recipe is not None:
            return content.recipe  # somebody else was faster
        require_size(recipe, content.size, content.hint)
        if not content.learn(recipe):
            self._flusher.distrust(content, "its index row is about another recipe")
        await self._contents.proved(content)
        self._claims.consider(content)
        return recipe

    def _kept_recipe(self, tenant: str, content: Digest) -> Recipe | None:
        packed = self._index.recipe(tenant, content)
        if packed is None:
            return None
        try:
            recipe = Recipe(packed)
        except FormatError:
            recipe = None
        if recipe is None or recipe.content != content:
            logger.warning("a recipe in the cache index is damaged; it is fetched again")
            return None
        return recipe

    def _ref(self, content: Content, index: int) -> ObjectRef:
        assert content.recipe is not None
        return ObjectRef(content.tenant, "chunk", *content.recipe[index])


def _matches(recipe: Recipe, data: bytes) -> bool:
    """Whether ``data`` is what the recipe describes, every chunk of it."""
    if len(data) != recipe.size:
        return False
    view = memoryview(data)
    return all(Digest.of(view[recipe.offset(i) : recipe.offset(i + 1)]) == recipe[i].digest for i in range(len(recipe)))
