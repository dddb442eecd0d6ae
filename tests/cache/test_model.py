"""Random opens, reads, closes, evictions, restarts and faults against the plain bytes: never a wrong one."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
import trio.lowlevel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache.sources.protocol import ObjectRef, SourceStatus
from manifest.digest import Digest
from manifest.errors import DamfsError, IntegrityError, NotFound, Unavailable
from tests.cache.contents import KIB, SHOW, Sample, accounts_agree, flip, open_sample, opened, quiet, sample, settle
from tests.harness import drilled

if TYPE_CHECKING:
    from cache.handle import CachedObject
    from cache.store import CacheStore

SIZES = [0, 1, 1000, 64 * KIB, 64 * KIB + 1, 100 * KIB, 300 * KIB, 700 * KIB]
SAMPLES = [sample(i, size, 48 * KIB) for i, size in enumerate(SIZES)]
CACHE_BYTES = 512 * KIB
LENDABLE = [made for made in SAMPLES if 64 * KIB < made.size <= CACHE_BYTES // 4]
FAULTS = ("none", "unavailable", "missing", "flipped", "truncated", "late", "bug")


class ModelSource:
    """Chunks and recipes out of memory; ``fault`` is what happens to every answer."""

    name = "model"

    def __init__(self) -> None:
        self.fault = "none"
        self.objects: dict[Digest, bytes] = {}
        for made in SAMPLES:
            position = 0
            for i in range(len(made.recipe)):
                digest, length = made.recipe[i]
                self.objects[digest] = made.data[position : position + length]
                position += length
            self.objects[made.content] = made.recipe.to_object()

    async def fetch(self, ref: ObjectRef, deadline: float) -> bytes:  # noqa: ARG002 - answers at once
        await trio.lowlevel.checkpoint()
        data = self.objects[ref.digest]
        match self.fault:
            case "unavailable":
                raise Unavailable("down")
            case "missing":
                raise NotFound("gone")
            case "flipped":
                return flip(data)
            case "truncated":
                return data[:-1]
            case "late":
                await trio.sleep(0.01)
            case "bug":
                raise ZeroDivisionError
        return data

    def status(self) -> SourceStatus:
        raise NotImplementedError


@dataclass(frozen=True)
class Step:
    """One thing that happens."""

    what: str
    number: int
    offset: int
    size: int


steps = st.lists(
    st.builds(
        Step,
        what=st.sampled_from(
            [
                "open",
                "open",
                "read",
                "read",
                "read",
                "read",
                "nowait",
                "storm",
                "release",
                "fault",
                "heal",
                "settle",
                "restart",
                "evict",
                "play",
                "play",
                "lend",
                "distrust",
                "distrust",
                "now",
                "impatient",
                "damage",
                "percent",
            ]
        ),
        number=st.integers(0, 7),
        offset=st.integers(0, 700 * KIB),
        size=st.integers(0, 200 * KIB),
    ),
    min_size=10,
    max_size=60,
)


class Run:
    """A cache that is put through steps, and what it has to answer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source = ModelSource()
        self.handles: list[tuple[CachedObject, Sample]] = []
        self.stack = AsyncExitStack()
        self.lent: dict[CachedObject, tuple[int, Sample]] = {}
        self.cache: CacheStore

    async def start(self) -> None:
        self.cache = await self.stack.enter_async_context(
            opened(self.folder, [self.source], size_bytes=CACHE_BYTES, ring_bytes_max=100 * KIB)
        )

    async def stop(self) -> None:
        for handle, _ in self.handles:
            handle.release()
        self.handles.clear()
        self.lent.clear()
        await self.stack.aclose()
        self.stack = AsyncExitStack()

    async def apply(self, step: Step) -> None:
        match step.what:
            case "open":
                made = SAMPLES[step.number]
                self.handles.append((await open_sample(self.cache, made, with_recipe=step.size % 3 != 0), made))
            case "now":
                made = SAMPLES[step.number]
                recipe = made.recipe if step.size % 3 != 0 else None
                handle = self.cache.open_now(SHOW, made.content, made.size, made.digest, recipe)
                if handle is not None:
                    self.handles.append((handle, made))
            case "fault":
                self.source.fault = FAULTS[step.number % len(FAULTS)]
            case "heal":
                self.source.fault = "none"
            case "settle":
                await settle(self.cache)
            case "restart":
                await self.stop()
                await self.start()
            case "evict":
                self.cache.shelves[0].capacity.write_failed(OSError(28, "as if"), full=True)
                await trio.sleep(0.005)
            case "damage":
                await quiet(self.cache)
                self.cut_a_file(step.number)
            case "play":
                made = LENDABLE[step.number % len(LENDABLE)]
                handle = await open_sample(self.cache, made)
                self.handles.append((handle, made))
                await self.read(handle, 0, made.size, made.data)
                with trio.move_on_after(0.3):
                    while not self.try_lend(handle, made):  # noqa: ASYNC110 - there is no event
                        await trio.sleep(0.005)
            case "distrust":
                handles = list(self.lent) or [handle for handle, _ in self.handles]
                if handles:
                    self.cache.shelves[0].flusher.distrust(handles[step.number % len(handles)]._content, "as if")
            case "percent":
                made = SAMPLES[step.number]
                assert 0 <= self.cache.percent(SHOW, made.content) <= 100
            case _ if self.handles:
                await self.use(step, *self.handles[step.number % len(self.handles)])
        self.check_lent()
        assert self.cache.stats().used_bytes <= CACHE_BYTES

    def cut_a_file(self, number: int) -> None:
        """Someone truncates a cached file: seen as such, never read as zeros."""
        lent = {os.fstat(fd).st_ino for fd, _ in self.lent.values()}
        files = sorted(path for path in (self.folder / "objects").rglob("*") if path.is_file())
        files = [path for path in files if path.stat().st_ino not in lent]
        if files:
            with files[number % len(files)].open("r+b") as file:
                file.truncate(70 * KIB)

    def try_lend(self, handle: CachedObject, made: Sample) -> bool:
        """Have the kernel given the file, if it may have it."""
        fd = handle.backing()
        if fd is not None:
            assert made in LENDABLE
            self.lent[handle] = fd, made
        return fd is not None

    def check_lent(self) -> None:
        """What the kernel has been given is there, where it was, and right."""
        self.lent = {handle: lent for handle, lent in self.lent.items() if not handle._released}
        for handle, (fd, made) in self.lent.items():
            status = os.fstat(fd)
            assert (status.st_size, status.st_nlink) == (made.size, 1)
            assert os.pread(fd, made.size, 0) == made.data
            assert handle.backing() in (fd, None)

    async def use(self, step: Step, handle: CachedObject, made: Sample) -> None:
        expected = made.data[step.offset : step.offset + step.size]
        match step.what:
            case "release":
                self.handles.remove((handle, made))
                handle.release()
            case "lend":
                self.try_lend(handle, made)
            case "nowait":
                found = handle.read_nowait(step.offset, step.size)
                assert found is None or bytes(found) == expected
            case "impatient":
                with trio.move_on_after(0.002):
                    await self.read(handle, step.offset, step.size, expected)
            case "storm":
                async with trio.open_nursery() as nursery:
                    for shift in range(0, 5000, 1000):
                        begin = step.offset + shift
                        nursery.start_soon(
                            self.read, handle, begin, step.size, made.data[begin : begin + step.size]
                        )  # fmt: skip
            case "read":
                await self.read(handle, step.offset, step.size, expected)

    async def read(self, handle: CachedObject, offset: int, size: int, expected: bytes) -> None:
        """The right bytes, or an error that the source is the reason of."""
        try:
            data = await handle.read(offset, size, trio.current_time() + 0.3)
        except (Unavailable, NotFound, IntegrityError):
            return
        except DamfsError as error:
            pytest.fail(f"an error that no fault explains: {error!r}")
        assert bytes(data) == expected


@pytest.mark.drill
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("expects_log")
@settings(max_examples=drilled(15, 1000), deadline=None, suppress_health_check=list(HealthCheck))
@given(script=steps)
def test_no_reader_ever_gets_a_wrong_byte(script: list[Step]) -> None:
    async def main() -> None:
        folder = Path(tempfile.mkdtemp(prefix="damfs-model-"))
        run = Run(folder / "cache")
        try:
            await run.start()
            for step in script:
                await run.apply(step)
            run.source.fault = "none"
            await run.stop()
            await run.start()
            await trio.lowlevel.checkpoint()
            for made in SAMPLES:
                handle = await open_sample(run.cache, made)
                for offset in range(0, made.size, 64 * KIB):
                    data = await handle.read(offset, 64 * KIB, trio.current_time() + 5)
                    assert bytes(data) == made.data[offset : offset + 64 * KIB]
                handle.release()
            await quiet(run.cache)
            assert run.cache.stats().open_objects == 0
            await accounts_agree(run.cache)
        finally:
            await run.stop()
            shutil.rmtree(folder)

    trio.run(main)
