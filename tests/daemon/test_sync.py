"""Which shows are loaded when, and how many at a time."""

from __future__ import annotations

import threading
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from daemon import sync as module
from daemon.remembered import Remembered
from daemon.sync import AHEAD, Sync
from manifest.identity import add_show, write_identity
from manifest.library import Library
from manifest.trust import PinnedKeys, SigningKey
from vfs.inodes import Slots

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from manifest.names import Revision
    from manifest.replica import ReplicaReader
    from manifest.show import Show

NAMES = [f"show{number:02d}" for number in range(16)]
SLOW_S = 0.15


class Shown:
    """Takes what is served, as a file system does."""

    def __init__(self) -> None:
        self.shows: list[str] = []

    async def attach(self, show: str, reader: ReplicaReader, head: Revision, *, planner: ReplicaReader) -> None:
        assert reader.head == planner.head == head
        self.shows.append(show)

    async def replace(self, show: str, reader: ReplicaReader, *, planner: ReplicaReader) -> Sequence[ReplicaReader]:
        raise AssertionError((show, reader, planner))

    async def advance(self, show: str, head: Revision) -> int:
        raise AssertionError((show, head))

    async def settle(self, timeout_s: float) -> None:
        assert timeout_s


class SlowSync(Sync):
    """Whose replicas take a while to be opened."""

    def begin_to_count(self) -> None:
        self.opening, self.opening_max = 0, 0
        self.counting = threading.Lock()

    def _open(self, show: str) -> Show:
        with self.counting:
            self.opening += 1
            self.opening_max = max(self.opening_max, self.opening)
        try:
            time.sleep(SLOW_S)
            return super()._open(show)
        finally:
            with self.counting:
                self.opening -= 1


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[tuple[SlowSync, Shown]]:
    (folder / "library").mkdir()
    library = Library.open((folder / "library").as_uri())
    identity = write_identity(library)
    for name in NAMES:
        add_show(library, name)
    trust = PinnedKeys(identity.id, [SigningKey.generate().public])
    remembered = Remembered(folder / "replicas", library.url)
    remembered.library_folder(identity).mkdir()
    slots = Slots(remembered.library_folder(identity) / "slots.json")
    async with trio.open_nursery() as nursery:
        sync = SlowSync(
            library, identity, trust, remembered, slots, interval_s=600, nursery=nursery, on_return=lambda: None
        )
        sync.begin_to_count()
        shown = Shown()
        sync._served_by = shown
        await sync.begin(NAMES, offline_because=None)
        try:
            yield sync, shown
        finally:
            nursery.cancel_scope.cancel()
    await sync.close()


async def look_up(sync: Sync, shown: Shown, name: str) -> None:
    """As the file system does: a show that is there is not asked for."""
    if name not in shown.shows:
        assert await sync.load(name)


async def test_a_scan_of_the_root_has_the_next_shows_loaded_ahead(tmp_path: Path) -> None:
    async with running(tmp_path) as (sync, shown):
        for name in NAMES:
            await look_up(sync, shown, name)
        assert sorted(shown.shows) == NAMES
        assert AHEAD <= sync.opening_max <= AHEAD + 1


async def test_a_look_up_of_one_show_loads_no_other(tmp_path: Path) -> None:
    async with running(tmp_path) as (sync, shown):
        for name in (NAMES[3], NAMES[15], NAMES[1]):
            await look_up(sync, shown, name)
        await trio.sleep(3 * SLOW_S)
        assert shown.shows == [NAMES[3], NAMES[15], NAMES[1]]


async def test_the_next_show_much_later_is_no_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SCAN_S", 0.1)
    async with running(tmp_path) as (sync, shown):
        await look_up(sync, shown, NAMES[3])
        await trio.sleep(0.2)
        await look_up(sync, shown, NAMES[4])
        await trio.sleep(3 * SLOW_S)
        assert shown.shows == NAMES[3:5]


async def test_small_shows_are_loaded_a_few_at_a_time_after_the_start(tmp_path: Path) -> None:
    async with running(tmp_path) as (sync, shown):
        sync.start()
        with trio.fail_after(20):
            while len(shown.shows) < len(NAMES):  # noqa: ASYNC110  threads get there
                await trio.sleep(0.05)
        assert 1 < sync.opening_max <= AHEAD
