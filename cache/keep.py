"""Keeping: verified bytes onto the disk, and into the index's care.

State: none of its own. Rules:
- Nothing here is an error of a reader's: what cannot be kept is counted, and logged once by who knows the reason.
- Room is admitted before a byte is written (``capacity``); what is written is claimed later (``flush``).
- A store that has begun is not cancelled: its bytes and its accounts stay in step. Nobody waits for one any more when
  the disk has failed (``retire``), which may never end: its bytes are in nobody's way then.
- A chunk of a content is stored by one at a time: a write that fails takes back what it wrote, and must not meet one of
  the same bytes that did not fail.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
from typing import TYPE_CHECKING

import trio

from cache.capacity import BLOCK_BYTES, span_charge
from cache.clone import write_shared
from cache.content import Prefix
from cache.files import NotOurs, mend_chunk, write_chunk
from cache.index import ObjectRow, Written
from cache.small import OVERHEAD_BYTES, small_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from cache.capacity import Capacity
    from cache.claim import ClaimChecker
    from cache.clone import Found
    from cache.content import Content
    from cache.files import ObjectFiles, OpenFile
    from cache.flush import Flusher
    from cache.index import Index
    from cache.metrics import Counters
    from cache.small import SmallStore
    from manifest.digest import Digest
    from manifest.recipe import Recipe

logger = logging.getLogger(__name__)

FILL_THREADS = 4
INDEX_THREADS = 2
_NO_SPACE = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


class _Store:
    """A store under way. ``kept`` counts once it has ``ended``."""

    __slots__ = ("ended", "kept")

    def __init__(self) -> None:
        self.ended = trio.Event()
        self.kept = False


class Keeper:
    """See the module's rules. ``retain`` and ``release`` count users of a content."""

    def __init__(
        self,
        nursery: trio.Nursery,
        files: ObjectFiles,
        small: SmallStore,
        index: Index,
        capacity: Capacity,
        flusher: Flusher,
        claims: ClaimChecker,
        counters: Counters,
        retain: Callable[[Content], None],
        release: Callable[[Content], None],
    ) -> None:
        self._files = files
        self._small = small
        self._index = index
        self._capacity = capacity
        self._flusher = flusher
        self._claims = claims
        self._counters = counters
        self.retain = retain
        self.release = release
        self._nursery = nursery
        self._stores: set[_Store] = set()
        self._retired = False
        self._fill_limiter = trio.CapacityLimiter(FILL_THREADS)
        self._index_limiter = trio.CapacityLimiter(INDEX_THREADS)

    async def store_chunk(
        self, content: Content, index: int, data: memoryview | bytes, found: Found | None = None
    ) -> bool:
        """Write a verified chunk, ``found`` in another file, to its place.

        False when it could not be kept; raises only Cancelled.
        """
        if self._retired:
            return False
        store = _Store()
        self.retain(content)
        if found is not None:
            found.file.use()
        self._stores.add(store)
        self._nursery.start_soon(self._run, store, content, index, data, found)
        await store.ended.wait()
        return store.kept

    def retire(self) -> None:
        """The disk has failed: nothing is stored, and nobody waits for what is under way."""
        self._retired = True
        for store in self._stores:
            store.ended.set()

    async def _run(
        self, store: _Store, content: Content, index: int, data: memoryview | bytes, found: Found | None
    ) -> None:
        try:
            store.kept = await self._store_once(content, index, data, found)
        except Exception:
            logger.exception("%s: a store ended with an error that is a bug", content.hint or content.content)
        finally:
            self._stores.discard(store)
            store.ended.set()
            if found is not None:
                found.file.done()
            self.release(content)

    async def _store_once(self, content: Content, index: int, data: memoryview | bytes, found: Found | None) -> bool:
        """As ``store_chunk``, when nobody else stores that chunk."""
        recipe = content.recipe
        assert recipe is not None
        assert len(data) == recipe[index].length, "a chunk of another length is another one's"
        while content.ready is not None:
            await content.ready.wait()
        while (under_way := content.storing.get(index)) is not None:
            await under_way.wait()
        if not content.registered:
            return False  # the index has room for one of two states of a content
        if content.has(index):
            return True
        content.storing[index] = trio.Event()
        try:
            return await self._store(content, recipe, index, data, found)
        finally:
            content.storing.pop(index).set()

    async def _store(
        self, content: Content, recipe: Recipe, index: int, data: memoryview | bytes, found: Found | None
    ) -> bool:
        """As ``store_chunk``, of a chunk that is not present and that nobody else stores."""
        if content.doubted:
            return await self._write_over(content, index, data)
        offset = recipe.offset(index)
        charge = span_charge(offset, len(data)) + (BLOCK_BYTES if content.present_count == 0 else 0)
        await self._flusher.room()
        if not await self._capacity.admit(charge, is_new_file=content.file is None):
            self._counters.not_stored["full"] += 1
            return False
        kept = False
        try:
            with trio.CancelScope(shield=True):
                kept = await self._write(content, index, data, offset, charge, found)
        except OSError as error:
            self._write_failed(error)
        finally:
            self._capacity.landed(charge)
            if not kept:
                self._capacity.give_back(charge)
        return kept or (content.file is not None and content.has(index))

    async def _write(
        self, content: Content, index: int, data: memoryview | bytes, offset: int, charge: int, found: Found | None
    ) -> bool:
        file = content.file or await self._make_file(content)
        epoch = content.epoch
        file.use()
        try:
            await self._put(file, data, offset, content.size, found)
        except NotOurs:
            if content.epoch == epoch:
                self._flusher.distrust(content, "its size was changed by somebody else")
            return False
        finally:
            file.done()
        if content.epoch != epoch or content.has(index):
            return False  # distrusted meanwhile
        content.add(index, len(data), charge)
        self._flusher.mark(content, len(data))
        self._claims.consider(content)
        return True

    async def _put(
        self, file: OpenFile, data: memoryview | bytes, offset: int, file_bytes: int, found: Found | None
    ) -> None:
        """Into the file; blocks that are found in another one are shared with it. Raises OSError, NotOurs."""
        if found is None:
            await trio.to_thread.run_sync(write_chunk, file.fd, data, offset, file_bytes, limiter=self._fill_limiter)
        else:
            shared_bytes = await trio.to_thread.run_sync(
                write_shared, file.fd, data, offset, file_bytes, found.file.fd, found.offset,
                limiter=self._fill_limiter,
            )  # fmt: skip
            self._counters.dedup_bytes["disk"] += shared_bytes

    async def _write_over(self, content: Content, index: int, data: memoryview | bytes) -> bool:
        """As ``_write``, in a file that the kernel reads: its blocks are counted already, and none is given back."""
        file, epoch, recipe = content.file, content.epoch, content.recipe
        assert file is not None
        assert recipe is not None
        file.use()
        try:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(
                    mend_chunk, file.fd, data, recipe.offset(index), content.size, limiter=self._fill_limiter
                )
        except NotOurs:
            return False
        except OSError as error:
            self._write_failed(error)
            return False
        finally:
            file.done()
        if content.epoch != epoch:
            return False
        if content.has(index):
            return True
        content.add(index, len(data), 0)
        self._flusher.mark(content, len(data))
        self._claims.consider(content)
        return True

    async def _make_file(self, content: Content) -> OpenFile:
        if content.making is None:
            content.making = trio.Lock()
        async with content.making:
            if content.file is None:
                file = await trio.to_thread.run_sync(
                    self._files.create, content.content, content.size, limiter=self._fill_limiter
                )
                assert content.present_count == 0
                if self._capacity.is_shut:
                    file.done()
                    raise OSError(errno.ESHUTDOWN, os.strerror(errno.ESHUTDOWN))
                content.file = file
                content.prefix = Prefix()
            return content.file

    def _write_failed(self, error: OSError) -> None:
        full = error.errno in _NO_SPACE
        self._counters.not_stored["no_space" if full else "error"] += 1
        self._files.on_failed(error)
        self._capacity.write_failed(error, full=full)

    async def keep_small(self, content: Content, data: bytes) -> bool:
        """Keep a whole small content, verified before. False when it could not be kept, or is being kept."""
        if 0 in content.storing:
            return False
        content.storing[0] = trio.Event()
        try:
            return await self._keep_small(content, data)
        finally:
            content.storing.pop(0).set()

    async def _keep_small(self, content: Content, data: bytes) -> bool:
        charge = span_charge(0, len(data) + OVERHEAD_BYTES)
        row = ObjectRow(0, *content.key, len(data), 0, b"", "", len(data), charge, b"", content.group)
        if content.key in self._capacity.evicting or not await self._capacity.admit(charge):
            self._counters.not_stored["full"] += 1
            return False
        try:
            with trio.CancelScope(shield=True):
                written, dropped = await trio.to_thread.run_sync(
                    self._keep_small_now, row, data, limiter=self._index_limiter
                )
        except sqlite3.Error as error:
            self._index.failed(error)
            self._counters.not_stored["index"] += 1
            self._capacity.give_back(charge)
            return False
        finally:
            self._capacity.landed(charge)
        if written.replaced is None:
            self._capacity.objects += 1
        else:
            self._capacity.give_back(written.replaced)
        if dropped is None:
            return True
        self._counters.not_stored["error"] += 1
        freed, objects = dropped
        self._capacity.objects -= objects
        self._capacity.give_back(freed)
        return False

    def _keep_small_now(self, row: ObjectRow, data: bytes) -> tuple[Written, tuple[int, int] | None]:
        """Row first, value after: a value without a row would be evicted by nobody.

        A row without a value says that something is cached which is not: it goes, and what was deleted is returned.
        """
        (written,) = self._index.commit([row], self._index.clock.now_ms(), durable=False)
        if self._small.put(small_key(row.tenant, row.content), data):
            return written, None
        try:
            return written, self._index.delete([written.id])
        except sqlite3.Error:
            return written, (0, 0)

    async def keep_recipe(self, tenant: str, content: Digest, packed: bytes) -> None:
        charge = span_charge(0, len(packed) + OVERHEAD_BYTES)
        if not await self._capacity.admit(charge):
            return
        freed = charge
        try:
            with trio.CancelScope(shield=True):
                replaced = await trio.to_thread.run_sync(
                    self._index.keep_recipe,
                    tenant,
                    content,
                    packed,
                    charge,
                    self._index.clock.now_ms(),
                    limiter=self._index_limiter,
                )
            freed = replaced
        except sqlite3.Error as error:
            self._index.failed(error)
        finally:
            self._capacity.landed(charge)
            self._capacity.give_back(freed)


class ChunkSink:
    """Keeps one chunk of one content. See ``fetch.Sink``."""

    __slots__ = ("_content", "_index", "_keeper")

    def __init__(self, keeper: Keeper, content: Content, index: int) -> None:
        self._keeper = keeper
        self._content = content
        self._index = index

    @property
    def sink_key(self) -> tuple[str, bytes, int]:
        return *self._content.key, self._index

    def adopt(self) -> None:
        self._keeper.retain(self._content)

    async def keep(self, data: memoryview | bytes, found: Found | None) -> bool:
        return await self._keeper.store_chunk(self._content, self._index, data, found)

    def drop(self) -> None:
        self._keeper.release(self._content)


class SmallSink:
    """Keeps a small content of one chunk. See ``fetch.Sink``."""

    __slots__ = ("_content", "_keeper")

    def __init__(self, keeper: Keeper, content: Content) -> None:
        self._keeper = keeper
        self._content = content

    @property
    def sink_key(self) -> tuple[str, bytes, int]:
        return *self._content.key, 0

    def adopt(self) -> None:
        """Nothing is needed but what the sink holds itself."""

    async def keep(self, data: memoryview | bytes, found: Found | None) -> bool:  # noqa: ARG002 - it has no file
        return await self._keeper.keep_small(self._content, bytes(data))

    def drop(self) -> None:
        """Nothing was held."""
