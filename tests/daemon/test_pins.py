"""What meets a pin at a bad moment: a folder that comes or goes, a replica that fails, a show that goes on."""

from __future__ import annotations

import sqlite3
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import trio

from cache.pinned import Pinned
from daemon import pins
from daemon.pins import Pins
from manifest.replica import Kind, Row
from tests.cache.contents import SHOW, central, opened, put, sample, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from cache.store import CacheStore
    from manifest.library import Library
    from manifest.recipe import Recipe
    from tests.cache.contents import Sample


@dataclass
class Batches:
    """Can be left at any time."""

    left: list[list[tuple[str, Row]]]

    def __aiter__(self) -> Batches:
        return self

    async def __anext__(self) -> list[tuple[str, Row]]:
        if not self.left:
            raise StopAsyncIteration
        return self.left.pop()


@dataclass
class Show:
    """One folder of a show, as ``Places`` and ``Place`` tell it. ``look`` is passed by whoever asks what changed."""

    files: list[Sample]
    revision: int = 1
    show: str = SHOW
    path: str = "plate"
    look: trio.Event = field(default_factory=trio.Event)
    looking: trio.Event = field(default_factory=trio.Event)
    counted: int = 0
    fault: Exception | None = None
    goes_on: bool = False

    @asynccontextmanager
    async def at(self, _show: str, _at: str | None, _path: str) -> AsyncIterator[Show]:
        yield self

    async def is_as_of(self, revision: int, _path: str) -> bool:
        self.looking.set()
        await self.look.wait()
        return revision == self.revision

    def batches(self) -> AsyncIterator[list[tuple[str, Row]]]:
        self.counted += 1
        rows = [
            Row(i, 0, f"{i}.exr", 0, 1, None, Kind.FILE, 0, one.size, 0, one.digest, one.content, None)
            for i, one in enumerate(self.files)
        ]
        return Batches([[(row.name, row) for row in rows]])

    async def recipe(self, content: bytes) -> Recipe | None:
        if self.fault:
            raise self.fault
        if self.goes_on:
            self.revision = 2
        return next(one.recipe for one in self.files if one.content == content)

    def served(self, _show: str) -> int:
        return self.revision


@pytest.fixture
def show(file_library: Library) -> Show:
    return Show([put(file_library, sample(i, 100_000)) for i in range(3)])


@pytest.fixture(autouse=True)
def _in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pins, "LOOK_S", 0.01)
    monkeypatch.setattr(pins, "RETRY_S", 0.01)


@asynccontextmanager
async def kept(tmp_path: Path, library: Library, show: Show) -> AsyncIterator[tuple[CacheStore, Pins]]:
    """A cache with pins of a show."""
    async with opened(tmp_path / "cache", [central(library)]) as cache, trio.open_nursery() as nursery:
        found = Pins(tmp_path / "pins.json", cache, show, show.served, 0.5)  # type: ignore[arg-type]
        await nursery.start(found.run)
        yield cache, found
        nursery.cancel_scope.cancel()


def state(found: Pins) -> str:
    return str(found.all()[0]["state"])


async def test_folders_that_change_while_a_pin_looks_at_its_show_have_it_counted_anew(
    tmp_path: Path, file_library: Library, show: Show
) -> None:
    async with kept(tmp_path, file_library, show) as (cache, found):
        await found.add(SHOW, None, "plate", recursive=True)
        await show.looking.wait()
        counted = show.counted
        cache._recount()
        await trio.sleep(0.05)
        show.look.set()
        await until(lambda: state(found) == "complete" and show.counted >= counted + 2)


async def test_a_replica_that_fails_leaves_a_pin_incomplete(tmp_path: Path, file_library: Library, show: Show) -> None:
    show.look.set()
    show.fault = sqlite3.OperationalError("disk I/O error")
    async with kept(tmp_path, file_library, show) as (_, found):
        await found.add(SHOW, None, "plate", recursive=True)
        await until(lambda: state(found) == "incomplete")
        assert "disk I/O error" in found.all()[0]["error"]
        show.fault = None
        await until(lambda: state(found) == "complete")


async def test_a_bug_that_a_pin_meets_ends_nothing(tmp_path: Path, file_library: Library, show: Show) -> None:
    show.look.set()
    show.fault = RuntimeError("can't start new thread")
    async with kept(tmp_path, file_library, show) as (_, found):
        await found.add(SHOW, None, "plate", recursive=True)
        await until(lambda: state(found) == "incomplete")
        assert "can't start new thread" in found.all()[0]["error"]
        show.fault = None
        await until(lambda: state(found) == "complete")


async def test_a_show_that_goes_on_while_a_pin_downloads_is_looked_at_again(
    tmp_path: Path, file_library: Library, show: Show
) -> None:
    show.look.set()
    async with kept(tmp_path, file_library, show) as (_, found):
        show.goes_on = True
        await found.add(SHOW, None, "plate", recursive=True)
        await until(lambda: found.all()[0]["revision"] == 2, within_s=5)


async def test_a_pin_that_is_removed_at_once_is_gone(tmp_path: Path, file_library: Library, show: Show) -> None:
    show.look.set()
    async with kept(tmp_path, file_library, show) as (_, found):
        await found.add(SHOW, None, "plate", recursive=True)
    async with kept(tmp_path, file_library, show) as (_, found):
        (pin,) = found.all()
        with trio.fail_after(5):
            await found.remove([pin["id"]])
        assert found.all() == []


async def test_pins_are_removed_while_the_index_cannot_note_it(
    tmp_path: Path, file_library: Library, show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_self: Pinned, *_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    show.look.set()
    async with kept(tmp_path, file_library, show) as (cache, found):
        for path in ("plate", "plate/a"):
            await found.add(SHOW, None, path, recursive=True)
        await until(lambda: {pin["state"] for pin in found.all()} == {"complete"})
        with monkeypatch.context() as patch:
            for name in ("drop", "keep_only"):
                patch.setattr(Pinned, name, fails)
            await found.remove([1, 2])
        assert found.all() == []
        counted = show.counted
        show.revision = 2
        await trio.sleep(0.1)
        assert show.counted == counted, "nobody looks after it any more"
        cache._recount()
        await until(lambda: Pinned(cache.shelves[0].index).total_bytes() == 0)


async def test_a_pin_is_not_complete_while_the_cache_has_not_kept_what_is_small(
    tmp_path: Path, file_library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    show = Show([put(file_library, sample(i, 1000)) for i in range(3)])
    show.look.set()
    async with kept(tmp_path, file_library, show) as (_, found):
        with monkeypatch.context() as patch:
            patch.setattr("cache.small.SmallStore.put", lambda *_: False)
            await found.add(SHOW, None, "plate", recursive=True)
            await until(lambda: state(found) == "incomplete")
            assert "did not keep" in found.all()[0]["error"]
        await until(lambda: state(found) == "complete")
        assert found.all()[0]["cached_bytes"] == 3000
