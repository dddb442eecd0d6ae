"""Contents for the cache's tests, a library that has them, and a source whose faults can be chosen."""

from __future__ import annotations

import itertools
import math
import random
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import trio
import trio.testing
from prometheus_client import CollectorRegistry

from cache.fetch import INFLIGHT_BYTES_MAX
from cache.handle import CachedObject
from cache.limits import FolderLimits, Limits
from cache.owner import Owner
from cache.policies import DEFAULT
from cache.sources.central import CentralSource
from cache.sources.policy import ASKED_ONCE, Policy
from cache.store import CacheStore
from manifest.digest import Digest
from manifest.errors import DamfsError, NotFound, Unavailable
from manifest.layout import chunk_key, recipe_key
from manifest.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from cache.limits import Limits
    from cache.sources.protocol import ObjectRef, Source, SourceStatus
    from manifest.library import Library

KIB = 1024
MIB = 1024 * KIB
RANDOM_BYTES_MAX = 128 * MIB
"""So much at once: random.randbytes has a limit."""
SHOW = "apollo"
OWNER = Owner("0" * 32, "file:///srv/library")


@dataclass(frozen=True)
class Sample:
    """A content: its bytes and its recipe."""

    data: bytes
    recipe: Recipe
    digest: Digest

    @property
    def content(self) -> Digest:
        return self.recipe.content

    @property
    def size(self) -> int:
        return len(self.data)


def sample(seed: int, size: int, chunk_bytes: int = 256 * KIB) -> Sample:
    """``size`` random bytes, cut at ``chunk_bytes`` more or less, at odd places."""
    rng = random.Random(seed)
    data = b"".join(rng.randbytes(min(size - i, RANDOM_BYTES_MAX)) for i in range(0, size, RANDOM_BYTES_MAX))
    cuts = [0]
    while cuts[-1] < size:
        cuts.append(min(size, cuts[-1] + max(1, chunk_bytes + rng.randrange(-chunk_bytes // 8, chunk_bytes // 8 + 1))))
    pieces = [data[a:b] for a, b in itertools.pairwise(cuts)]
    return Sample(data, Recipe.of((Digest.of(piece), len(piece)) for piece in pieces), Digest.of(data))


def put(library: Library, made: Sample, show: str = SHOW, *, recipe_object: bool = False) -> Sample:
    """Put a content's chunks (and its recipe object) into a library."""
    position = 0
    for i in range(len(made.recipe)):
        digest, length = made.recipe[i]
        library.put(chunk_key(show, digest), made.data[position : position + length])
        position += length
    if recipe_object:
        library.put(recipe_key(show, made.content), made.recipe.to_object())
    return made


class FaultySource:
    """Passes requests on, but for what ``fault`` says: an error to raise, bytes to answer with, or None.

    ``gate``: when set to an Event, requests hang until it is set, as those to a server that does not answer.
    """

    def __init__(self, source: Source, *, name: str | None = None) -> None:
        self.source = source
        self.fault: Callable[[ObjectRef], DamfsError | bytes | None] = lambda _: None
        self.gate: trio.Event | None = None
        self.asked: list[ObjectRef] = []
        self.answered = 0
        self.blames: list[str] = []
        self._name = name or source.name

    @property
    def name(self) -> str:
        return self._name

    async def fetch(self, ref: ObjectRef, deadline: float) -> memoryview | bytes:
        self.asked.append(ref)
        if self.gate is not None:
            with trio.move_on_at(deadline) as scope:
                await self.gate.wait()
            if scope.cancelled_caught:
                raise Unavailable("the server does not answer")
        fault = self.fault(ref)
        if isinstance(fault, DamfsError):
            raise fault
        data = await self.source.fetch(ref, deadline) if fault is None else fault
        self.answered += 1
        return data

    def rejected(self, reason: str) -> None:
        self.blames.append(reason)

    def status(self) -> SourceStatus:
        return self.source.status()


def flip(data: bytes) -> bytes:
    """``data`` with one bit wrong."""
    wrong = bytearray(data)
    wrong[len(wrong) // 2] ^= 1
    return bytes(wrong)


def missing(ref: ObjectRef) -> DamfsError:
    """What a store says that has not got it."""
    return NotFound(f"{ref} is not there")


@asynccontextmanager
async def opened(
    folder: Path,
    sources: Sequence[Source],
    *,
    size_bytes: int = 1 << 30,
    limits: Limits | None = None,
    inflight_bytes_max: int = INFLIGHT_BYTES_MAX,
    ring_bytes_max: int = 32 * MIB,
    owner: Owner = OWNER,
    lock: int | None = None,
    others: Sequence[FolderLimits] = (),
    policy: str = DEFAULT,
    asking: Policy = ASKED_ONCE,
) -> AsyncIterator[CacheStore]:
    """A running cache in ``folder``, and in ``others``, closed at the end."""
    async with trio.open_nursery() as nursery:
        cache = await CacheStore.open(
            [FolderLimits(folder, replace(limits or Limits(size_bytes), size_bytes=size_bytes)), *others],
            sources=sources,
            nursery=nursery,
            holder="/mnt/test",
            owner=owner,
            locks=[] if lock is None else [lock],
            registry=CollectorRegistry(),
            inflight_bytes_max=inflight_bytes_max,
            ring_bytes_max=ring_bytes_max,
            policy=policy,
            asking=asking,
        )
        try:
            yield cache
        finally:
            await cache.close()
            nursery.cancel_scope.cancel()


async def open_sample(cache: CacheStore, made: Sample, *, show: str = SHOW, with_recipe: bool = True) -> CachedObject:
    """A handle on a sample."""
    return await cache.open_object(
        show, made.content, made.size, made.digest, made.recipe if with_recipe else None, path_hint="plate/a.exr"
    )


async def read_all(handle: CachedObject, *, step: int = 128 * KIB, deadline_s: float = 20) -> bytes:
    """The whole content, in reads as a kernel makes them."""
    parts = [
        bytes(await handle.read(offset, step, trio.current_time() + deadline_s))
        for offset in range(0, handle.size, step)
    ]
    return b"".join(parts)


async def read_sample(cache: CacheStore, made: Sample, *, with_recipe: bool = True) -> bytes:
    """Open, read the whole, release."""
    handle = await open_sample(cache, made, with_recipe=with_recipe)
    try:
        return await read_all(handle)
    finally:
        handle.release()


def never() -> float:
    """A deadline that does not come."""
    return math.inf


def central(library: Library) -> FaultySource:
    """The library as the last source, with faults to be chosen."""
    return FaultySource(CentralSource(library))


async def settle(cache: CacheStore) -> None:
    """Wait until everything that was written is claimed."""
    await cache.shelves[0].flusher.flush()
    await trio.testing.wait_all_tasks_blocked(0.01)
    await cache.shelves[0].flusher.flush()


async def until(condition: Callable[[], bool], *, within_s: float = 20) -> None:
    """Wait for what happens in the background."""
    with trio.fail_after(within_s):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await trio.sleep(0.01)


async def quiet(cache: CacheStore) -> None:
    """Wait until every fetch has ended, everything is claimed, and nothing is open that nobody holds."""
    await until(lambda: cache.stats().inflight == 0)
    shelf = cache.shelves[0]
    while shelf.flusher._dirty or shelf.flusher._dropped or shelf.capacity.evicting or shelf.claims._queue:
        await shelf.flusher.flush()
        await trio.sleep(0.005)
    await settle(cache)


async def accounts_agree(cache: CacheStore) -> None:
    """Wait until what is counted in memory is what the index says; a leak in the accounts never is."""

    def agree() -> bool:
        return (cache.stats().used_bytes, cache.stats().objects) == cache.shelves[0].index.totals()

    await until(agree)
