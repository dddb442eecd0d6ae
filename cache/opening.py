"""What is open: the state of every open content, found or made.

State: ``_open``, by (tenant, content id); nothing is kept in memory for a content that is not open.

Invariant: of the states of one key at most one is *registered*, the one in ``_open``. Only a registered state takes
over a row of the index and gets a file: two could not both be what the index says. There is a second one when two
manifests give one content id two sizes. At least one of them lies, and its reads end with an error: whichever has
proved its size, by its recipe, is registered.

Touched on the event loop only; a look-up runs in a thread, and a disk that does not answer within LOOK_UP_S is not
waited for: what it has is fetched, until it is looked for again at the next opening.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from typing import TYPE_CHECKING

import trio

from cache.content import Content, require_size

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from cache.content import Key
    from cache.files import ObjectFiles, OpenFile
    from cache.index import Index, ObjectRow
    from manifest.digest import Digest
    from manifest.recipe import Recipe

logger = logging.getLogger(__name__)

OPEN_THREADS = 4
LOOK_UP_S = 5.0


class _LookUp:
    """What a thread found, or will find when nobody waits for it any more: then it closes the file itself."""

    __slots__ = ("_contents", "_given_up", "_lock", "file", "row")

    def __init__(self, contents: OpenContents) -> None:
        self._contents = contents
        self._lock = threading.Lock()
        self._given_up = False
        self.row: ObjectRow | None = None
        self.file: OpenFile | None = None

    def run(self, state: Content) -> None:
        """In the thread. Raises sqlite3.Error, OSError."""
        row, file = self._contents.find(*state.key, state.size)
        with self._lock:
            if not self._given_up:
                self.row, self.file = row, file
                return
        if file is not None:
            self._contents.close_now(file)

    def give_up(self) -> None:
        """What is found from now on is nobody's; ``row`` and ``file`` are what was found before."""
        with self._lock:
            self._given_up = True


class OpenContents:
    """See the module's rules.

    ``evicting``: what is being evicted is opened as if it were not there. ``is_dropped`` tells of a row whether it is
    about to be deleted; ``forget`` has one deleted. ``on_closed`` is called when something was closed.
    """

    def __init__(
        self,
        index: Index,
        files: ObjectFiles,
        *,
        is_dropped: Callable[[ObjectRow], bool],
        forget: Callable[[ObjectRow], None],
        on_closed: Callable[[], None],
    ) -> None:
        self.evicting: Container[Key] = ()
        self.limiter = trio.CapacityLimiter(OPEN_THREADS)
        self._index = index
        self._files = files
        self._is_dropped = is_dropped
        self._forget = forget
        self._on_closed = on_closed
        self._open: dict[Key, Content] = {}
        self._retired = False

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, key: object) -> bool:
        return key in self._open

    def get(self, key: Key) -> Content | None:
        """The registered state of a content, if it is open."""
        return self._open.get(key)

    async def open(
        self, tenant: str, content: Digest, size: int, recipe: Recipe | None, hint: str, group: int = 0
    ) -> Content:
        """The state of a content, retained for the caller. Raises IntegrityError for a recipe of another size."""
        if recipe is not None:
            assert recipe.content == content, "the caller mixes contents up"
            require_size(recipe, size, hint)
        key = (tenant, content)
        state = self._open.get(key)
        first = state is None or state.size != size
        if state is None or state.size != size:
            other, state = state, Content(tenant, content, size, recipe, hint, group)
            if other is None or (recipe is not None and other.file is None):
                self._register(state)
        self.retain(state)
        try:
            if first and state.registered:
                await self._look_up(state)
            while state.ready is not None:
                await state.ready.wait()
        except BaseException:
            self.release(state)
            raise
        return state

    def open_now(
        self, tenant: str, content: Digest, size: int, recipe: Recipe | None, hint: str, group: int = 0
    ) -> Content | None:
        """As ``open``, without waiting and raising nothing: None where ``open`` would wait, raise, or mend something.

        One look-up in the index at most, and no disk but what that needs.
        """
        key = (tenant, content)
        state = self._open.get(key)
        if state is not None:
            if state.size != size or state.ready is not None:
                return None
            state.refs += 1
            return state
        if recipe is not None:
            assert recipe.content == content, "the caller mixes contents up"
            if recipe.size != size:
                return None
        state = Content(tenant, content, size, recipe, hint, group)
        if not state.is_small and not self._retired:
            if key in self.evicting:
                return None
            try:
                row = self._index.find_now(tenant, content)
            except sqlite3.Error:
                return None
            if row is not None:
                file = None if self._is_dropped(row) else self._files.open_now(row.file, size)
                if file is None:
                    return None
                if not state.adopt(row, file):
                    file.done()
                    return None
        self._register(state)
        state.refs += 1
        return state

    async def proved(self, content: Content) -> None:
        """``content`` has just got its recipe, and has the size that it says: see to it that it is registered."""
        if content.registered or content.is_small:
            return
        other = self._open.get(content.key)
        if other is None or (other.size != content.size and other.file is None):
            self._register(content)
            await self._look_up(content)

    def retain(self, content: Content) -> None:
        """One more user of a state."""
        content.refs += 1

    def release(self, content: Content) -> None:
        """One user less; behind the last one nothing of it is kept."""
        content.refs -= 1
        assert content.refs >= 0
        if content.refs:
            return
        if content.registered:
            content.registered = False
            del self._open[content.key]
        if content.file is not None:
            content.file.done()
            content.file = None
        self._on_closed()

    def retire(self) -> None:
        """The disk has failed: what is open is believed no more, and nothing is found; what is lent stays."""
        self._retired = True
        for content in self._open.values():
            if not content.lent:
                file = content.clear()
                if file is not None:
                    file.done()

    def clear(self) -> None:
        """Close every file. What is open must not be used any more."""
        for content in self._open.values():
            file = content.clear()
            if file is not None:
                file.done()

    def _register(self, content: Content) -> None:
        other = self._open.get(content.key)
        if other is not None:
            assert other.file is None
            other.registered = False
        self._open[content.key] = content
        content.registered = True

    async def _look_up(self, state: Content) -> None:
        """What the index and the disk have of a content that has just been registered."""
        if state.is_small or state.key in self.evicting or self._retired:
            return
        state.ready = trio.Event()
        found = _LookUp(self)
        try:
            with trio.CancelScope(shield=True), trio.move_on_after(LOOK_UP_S) as patience:
                await trio.to_thread.run_sync(found.run, state, abandon_on_cancel=True, limiter=self.limiter)
            found.give_up()
            if patience.cancelled_caught:
                logger.warning(
                    "the cache's disk did not say within %g s what it has of show %s, path %s: it is fetched",
                    LOOK_UP_S, state.tenant, state.hint or "?",
                )  # fmt: skip
            self._take(state, found.row, found.file)
        except sqlite3.Error as error:
            self._index.failed(error)
        except OSError as error:
            logger.warning("a cached file cannot be opened, its bytes are fetched: %s", error)
            self._files.on_failed(error)
        finally:
            state.ready.set()
            state.ready = None

    def _take(self, state: Content, row: ObjectRow | None, file: OpenFile | None) -> None:
        """Have the state take over what was found, or let it go."""
        if row is None:
            return
        if self._retired or self._is_dropped(row):
            if file is not None:
                file.done()
        elif file is None or not state.adopt(row, file):
            if file is not None:
                file.done()
            if row.size == state.size:
                self._forget(row)

    def find(self, tenant: str, content: bytes, size: int) -> tuple[ObjectRow | None, OpenFile | None]:
        """In a thread: the row and its file, open; (row, None) for a row that is not true."""
        row = self._index.find(tenant, content)
        return row, None if row is None else self._files.open(row.file, size)

    def close_now(self, file: OpenFile) -> None:
        """In a thread: close a file that nobody uses."""
        self._files.close_now(file)
