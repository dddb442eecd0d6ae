"""A handle on an open content: what is read through, and lent to the kernel.

State: which state of which content it stands for, on which shelf, and whether that was lent to it. A handle leaves a
shelf whose disk has failed, at its next read, unless the content's file is lent.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import trio

from cache.queue import Priority
from manifest.digest import EMPTY_DIGEST
from manifest.errors import Unavailable

if TYPE_CHECKING:
    from cache.content import Content
    from cache.shelf import Shelf
    from cache.store import CacheStore
    from manifest.digest import Digest

LENT_SHARE = 4
"""The kernel reads no file itself that is larger than this part of its shelf: such a one cannot be evicted."""


class CachedObject:
    """A handle on an open content. ``release`` it once; reads that are under way then still end properly."""

    __slots__ = ("_content", "_digest", "_lent", "_released", "_shelf", "_store")

    def __init__(self, store: CacheStore, shelf: Shelf, content: Content, digest: Digest) -> None:
        """On a state that was retained for it."""
        self._store = store
        self._shelf = shelf
        self._content = content
        self._digest = digest
        self._lent = False
        self._released = False

    @property
    def size(self) -> int:
        """Bytes of the content."""
        return self._content.size

    @property
    def complete(self) -> bool:
        """Whether the whole file lies in one local file and has the digest it was published with.

        Never so for small contents, which have no file of their own; an empty one is complete by its digest.
        """
        content = self._content
        if content.size == 0:
            return self._digest == EMPTY_DIGEST
        return content.whole == self._digest and content.all_present

    def backing(self) -> int | None:
        """The descriptor of the object's file, when the kernel may read it itself; else None. Costs an fstat.

        That is: the object is complete, and a committed row of the index says so, so that after a kill the successor
        finds the same file; on disk it has exactly ``size`` bytes; it is no small content, and at most a quarter of the
        cache. So None may become a descriptor soon after ``complete`` has become true, once the disk has the bytes.

        Until a handle that got a descriptor is released the object is not evicted, and its file is neither replaced,
        cut, punched nor unlinked. All handles on one content get the same file, whatever inodes they are for, so one
        backing id serves them all.

        When the file turns out to be wrong while it is lent (the disk gave other bytes back, or failed), it stays where
        it is and right bytes are written over it; until that is done this returns None, also to handles that got it
        before, and reads through the daemon are right. The caller goes on answering opens of an inode that the kernel
        reads itself with the id that it has: another mode would be an error, and another file cannot be had.
        """
        content, shelf = self._content, self._shelf
        assert not self._released
        if not content.settled or content.whole != self._digest or not content.registered or shelf.is_retired:
            return None
        if content.size > shelf.capacity.size_bytes // LENT_SHARE:
            return None
        file = content.file
        assert file is not None
        if os.fstat(file.fd).st_size != content.size:
            shelf.flusher.distrust(content, "its size was changed by somebody else")
            return None
        self._lend()
        return file.fd

    def was_lent(self) -> None:
        """A predecessor gave this object's file to the kernel, which still reads it: it is kept as behind ``backing``.

        Also when it is not whole: the predecessor then had begun to mend it, and that goes on.
        """
        content = self._content
        assert not self._released
        self._lend()
        if content.file is not None and not content.all_present:
            self._shelf.flusher.distrust(content, "a predecessor had begun to mend it")

    def _lend(self) -> None:
        if not self._lent:
            self._lent = True
            self._content.lent += 1

    async def read(self, offset: int, size: int, deadline: float) -> bytes | bytearray | memoryview:
        """Exactly min(size, self.size - offset) bytes (none behind the end).

        ``deadline`` is on trio's clock. Raises Unavailable when it passes, and NotFound, AccessDenied,
        IntegrityError. Neither the deadline nor cancellation ends a fetch that others share.
        """
        assert not self._released
        assert offset >= 0 <= size
        count = min(size, self._content.size - offset)
        if count <= 0:
            return b""
        with trio.CancelScope(deadline=deadline) as scope:
            await self._leave_if_retired()
            return await self._shelf.reader.read(self._content, offset, count, deadline)
        assert scope.cancelled_caught
        raise Unavailable(
            f"{self._content.hint or self._content.content}: bytes {offset} to {offset + count} did not come within "
            "the deadline; damfs status says which source is slow or unreachable"
        )

    async def fill(
        self, chunk_s: float, span: tuple[int, int] | None = None, priority: Priority = Priority.PIN
    ) -> bool:
        """Bring every byte that is not on the local disk, each chunk within ``chunk_s``; whether all of it was kept.

        ``span``: only the bytes [start, stop), which lie within the size. A small content may be kept a moment later.
        Raises Unavailable, NotFound, AccessDenied, IntegrityError. Cancellation leaves shared fetches to go on.
        """
        await self._leave_if_retired()
        content = self._content
        start, stop = span or (0, content.size)
        if content.is_small:
            await self._shelf.reader.read_ahead(content, 0, content.size, trio.current_time() + chunk_s, priority)
            return True
        await self._shelf.reader.refill(content, chunk_s, (start, stop), priority)
        return self.has(start, stop - start)

    async def read_ahead(
        self, offset: int, size: int, deadline: float, priority: Priority = Priority.READ_AHEAD
    ) -> int:
        """Begin to fetch what is missing of these bytes (cut at the end); how many bytes of chunks were begun.

        Waits for the recipe, if that is an object of its own and not here yet, and for a small content; for nothing
        else. What there is no room for is not begun. Raises Unavailable, NotFound, AccessDenied, IntegrityError.
        """
        assert not self._released
        count = min(size, self._content.size - offset)
        if count <= 0 or self.has(offset, count):
            return 0
        await self._leave_if_retired()
        return await self._shelf.reader.read_ahead(self._content, offset, offset + count, deadline, priority)

    async def _leave_if_retired(self) -> None:
        """Go on with the content as it is on a shelf that is in service, if this one is not any more."""
        content = self._content
        if not self._shelf.is_retired or content.lent or not self._store.shelves:
            return
        shelf, state = await self._store.open_state(
            content.tenant, content.content, content.size, content.recipe, content.hint, content.group
        )
        if content is self._content and not content.lent and not self._released:
            shelf.opened(state, self._digest, content.group)
            self._content, state = state, content
            self._shelf, shelf = shelf, self._shelf
        shelf.contents.release(state)

    def read_nowait(self, offset: int, size: int) -> bytes | bytearray | None:
        """As ``read``, but only from memory: None when anything would have to be waited for."""
        count = min(size, self._content.size - offset)
        if count <= 0:
            return b""
        return self._shelf.reader.read_nowait(self._content, offset, count)

    def has(self, offset: int, size: int) -> bool:
        """Whether these bytes, which lie within the size, are on the local disk, as far as memory knows."""
        content = self._content
        if content.all_present:
            return True
        return content.recipe is not None and content.has_all(content.recipe.covering(offset, size))

    def missing_bytes(self, offset: int, size: int) -> int | None:
        """The bytes of all chunks that a read of these would fetch, as far as memory knows; None: no recipe is here.

        ``offset`` and ``size`` lie within the size. What is in the store of small contents counts as missing.
        """
        content = self._content
        recipe = content.recipe
        if content.all_present:
            return 0
        if recipe is None:
            return None
        missing = (i for i in recipe.covering(offset, size) if not content.has(i))
        return sum(recipe.offset(i + 1) - recipe.offset(i) for i in missing)

    @property
    def is_here(self) -> bool:
        """Whether every byte is on the local disk, as far as memory knows; never so for small contents."""
        return self._content.all_present

    def chunks(self, offset: int, size: int) -> tuple[int, int] | None:
        """Where the chunks that hold any of these bytes begin and end; None: no recipe is here."""
        recipe = self._content.recipe
        if recipe is None:
            return None
        indexes = recipe.covering(offset, size)
        return recipe.offset(indexes.start), recipe.offset(indexes.stop)

    @property
    def chunk_bytes(self) -> int:
        """How large its chunks are on average; 0: no recipe is here."""
        recipe = self._content.recipe
        return self._content.size // len(recipe) if recipe else 0

    def hold(self) -> CachedObject:
        """A further handle on the same content, to be released by itself. It keeps a file lent that this one does."""
        assert not self._released
        self._shelf.contents.retain(self._content)
        other = CachedObject(self._store, self._shelf, self._content, self._digest)
        if self._lent:
            other._lend()
        return other

    def release(self) -> None:
        """Give the handle back. Idempotent."""
        if not self._released:
            self._released = True
            if self._lent:
                self._content.lent -= 1
            self._shelf.contents.release(self._content)
