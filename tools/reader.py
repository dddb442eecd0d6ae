"""Verified bytes out of a library: what ``cat``, ``export`` and ``verify`` share.

State: a pool of threads that fetch, and a budget of bytes that are fetched and not yet consumed. Rules: nothing leaves
this module that was not checked against its digest and its length; memory stays within the budget however large the
files and however many readers; a fetch that fails on the way is tried again, with jitter, until its deadline.

Invariant: a reader waits for budget only when it holds none, so two readers never wait for each other.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Self, TypeVar

from blake3 import blake3

from manifest import layout
from manifest.digest import Digest
from manifest.errors import DigestMismatch, IntegrityError, NotFound, Unavailable
from manifest.recipe import CHUNK_BYTES_MAX, OBJECT_BYTES_MAX, Chunk, Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from manifest.library import Library
    from manifest.replica import ReplicaReader, Row

T = TypeVar("T")

THREADS = 16
AHEAD_BYTES_MAX = 8 * CHUNK_BYTES_MAX
BUDGET_BYTES = 16 * CHUNK_BYTES_MAX
DEADLINE_S = 60.0
ATTEMPT_S = 30.0
BACKOFF_S = 0.2
BACKOFF_MAX_S = 5.0


class ByteBudget:
    """So many bytes may be in memory at once. Thread-safe."""

    def __init__(self, bytes_max: int) -> None:
        self._free = bytes_max
        self._changed = threading.Condition()

    def take(self, count: int, *, wait: bool) -> bool:
        """Take ``count`` bytes (at most the whole budget); False when there are not enough and it may not wait."""
        with self._changed:
            if not wait and self._free < count:
                return False
            self._changed.wait_for(lambda: self._free >= count)
            self._free -= count
            return True

    def give(self, count: int) -> None:
        """Give back ``count`` bytes."""
        with self._changed:
            self._free += count
            self._changed.notify_all()


class Reader:
    """Fetches and verifies the objects of one library. Thread-safe; a context manager that ends its threads."""

    def __init__(self, library: Library, *, threads: int = THREADS, deadline_s: float = DEADLINE_S) -> None:
        self._library = library
        self._deadline_s = deadline_s
        self._budget = ByteBudget(BUDGET_BYTES)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="fetch")
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # On the way out of an error nobody waits for fetches that nobody wants; they end at their time-outs.
        self._closed.set()
        self._pool.shutdown(wait=kind is None, cancel_futures=True)

    def chunk(self, show: str, chunk: Chunk) -> memoryview:
        """The bytes of a chunk, verified. Raises IntegrityError (missing or wrong), Unavailable, AccessDenied."""
        key = layout.chunk_key(show, chunk.digest)
        data = self._fetched(key, lambda timeout_s: self._library.get_buffer(key, timeout_s=timeout_s))
        if len(data) != chunk.length:
            raise DigestMismatch(f"{key}: {len(data)} bytes where {chunk.length} are expected")
        if (found := Digest.of(data)) != chunk.digest:
            raise DigestMismatch(f"{key}: its bytes have the digest {found}")
        return data

    def recipe(self, show: str, content: Digest) -> Recipe:
        """The recipe object with this content id, verified. Raises as ``chunk`` does, and FormatError."""
        key = layout.recipe_key(show, content)
        data = self._fetched(
            key, lambda timeout_s: self._library.get(key, timeout_s=timeout_s, bytes_max=OBJECT_BYTES_MAX)
        )
        if (found := Digest.of(data)) != content:
            raise DigestMismatch(f"{key}: its bytes have the digest {found}")
        return Recipe.from_object(data)

    def recipe_of(self, show: str, row: Row, replica: ReplicaReader) -> Recipe:
        """The recipe of a file's row: from the replica, else from the library; its lengths sum to the file's size."""
        assert row.content is not None
        content = Digest(row.content)
        inline = inline_recipe(row, replica)
        recipe = self.recipe(show, content) if inline is None else inline
        if recipe.size != row.size:
            raise IntegrityError(f"{row.name}: the recipe {content} has {recipe.size} bytes, the file {row.size}")
        return recipe

    def chunks(self, show: str, recipe: Recipe) -> Iterator[memoryview]:
        """The chunks of a file in order, each verified, fetched in parallel ahead of whoever consumes them."""
        waiting: deque[tuple[Future[memoryview], int]] = deque()
        ahead = position = 0
        try:
            while position < len(recipe) or waiting:
                while position < len(recipe) and ahead < AHEAD_BYTES_MAX:
                    chunk = recipe[position]
                    if not self._budget.take(chunk.length, wait=not waiting):
                        break
                    waiting.append((self._pool.submit(self.chunk, show, chunk), chunk.length))
                    ahead += chunk.length
                    position += 1
                future, length = waiting[0]
                yield future.result()
                waiting.popleft()
                ahead -= length
                self._budget.give(length)
        finally:
            for future, length in waiting:
                future.cancel()
                self._budget.give(length)

    def file(self, show: str, recipe: Recipe, digest: Digest) -> Iterator[memoryview]:
        """As ``chunks``, and raises DigestMismatch behind the last one when the whole file has another digest."""
        hasher = blake3()
        for data in self.chunks(show, recipe):
            hasher.update(data)
            yield data
        if (found := Digest(hasher.digest())) != digest:
            raise DigestMismatch(f"the chunks are right but the file has the digest {found}, published as {digest}")

    def submit(self, check: Callable[[], None]) -> Future[None]:
        """Run ``check`` on one of the fetching threads."""
        return self._pool.submit(check)

    def _fetched(self, key: str, fetch: Callable[[float], T]) -> T:
        try:
            return self._retrying(fetch)
        except NotFound as error:
            # The library itself says so (see manifest/library.py): what was published is no longer there.
            raise IntegrityError(f"{key}: missing in the store") from error

    def _retrying(self, fetch: Callable[[float], T]) -> T:
        deadline = time.monotonic() + self._deadline_s
        backoff_s = BACKOFF_S
        while True:
            left_s = deadline - time.monotonic()
            try:
                return fetch(min(ATTEMPT_S, max(left_s, 1.0)))
            except Unavailable:
                pause_s = random.uniform(0, backoff_s)  # noqa: S311 - jitter
                if self._closed.wait(0) or time.monotonic() + pause_s >= deadline:
                    raise
                self._closed.wait(pause_s)
                backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)


def inline_recipe(row: Row, replica: ReplicaReader) -> Recipe | None:
    """The recipe of a file as the replica has it; None when it is an object of its own in the library."""
    assert row.content is not None
    recipe = replica.recipe(Digest(row.content))
    return Recipe(b"") if recipe is None and row.size == 0 else recipe
