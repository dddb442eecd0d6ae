"""What meets a job at a bad moment: a source that fails or stays away, a cache without room, a job too many."""

from __future__ import annotations

import sqlite3
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import trio
from starlette.requests import Request

from cache.pinned import Pinned
from cache.queue import Priority
from daemon import bringing, prefetch, prefetch_routes, serve
from daemon.prefetch import Prefetch
from daemon.wants import Missing, Want, Wanted
from daemon.warming import Warming
from manifest.errors import Busy, ConfigurationError, NotFound, Unavailable
from manifest.replica import ROOT, Kind, Row
from tests.cache.contents import SHOW, central, flip, missing, opened, put, quiet, sample, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from pathlib import Path

    from cache.store import CacheStore
    from manifest.library import Library
    from manifest.recipe import Recipe
    from tests.cache.contents import FaultySource, Sample

SIZE = 600_000
PLATE = [Want(SHOW, None, "plate")]
GROUP = 7
HERE = 0.05
"""Long enough for what is not to happen to have happened."""


@dataclass
class Show:
    """A show of one folder, as ``Places.snapshot`` and its reader tell it; ``files`` of daemon/wants.py is its own."""

    files: list[Sample]
    revision: int = 1
    show: str = SHOW
    counted: int = 0
    ranges: tuple[tuple[int, int], ...] | None = None
    reader: Show = field(init=False)

    def __post_init__(self) -> None:
        self.reader = self

    @asynccontextmanager
    async def snapshot(self, show: str, _at: str | None) -> AsyncIterator[Show]:
        if show != SHOW:
            raise NotFound(f"the mount has no show {show}")
        yield self

    async def ask(self, question: Callable[[], Any]) -> Any:
        return await trio.to_thread.run_sync(question)

    def recipe(self, content: bytes) -> Recipe | None:
        return next(one.recipe for one in self.files if one.content == content)

    def found(self, _reader: object, _revision: int, wants: Sequence[Want], absent: Missing) -> Iterator[Wanted]:
        self.counted += 1
        for want in wants:
            if want.path == "nowhere":
                absent.note("nowhere is not there")
                continue
            for i, one in enumerate(self.files):
                row = Row(i, 0, f"{i}.exr", 0, 1, None, Kind.FILE, 0, one.size, 0, one.digest, one.content, None)
                yield Wanted(row.name, row, self.ranges)


@pytest.fixture
def show(file_library: Library, monkeypatch: pytest.MonkeyPatch) -> Show:
    made = Show([put(file_library, sample(i, SIZE)) for i in range(6)])
    monkeypatch.setattr(bringing, "files", made.found)
    for name in ("LOOK_S", "RETRY_S", "RETRY_S_MAX"):
        monkeypatch.setattr(prefetch, name, 0.01)
    return made


@asynccontextmanager
async def running(
    tmp_path: Path, source: FaultySource, show: Show, *, size_bytes: int = 1 << 30, share: float = 0.5
) -> AsyncIterator[tuple[CacheStore, Prefetch]]:
    async with opened(tmp_path / "cache", [source], size_bytes=size_bytes) as cache, trio.open_nursery() as nursery:
        made = Prefetch(tmp_path / "jobs", cache, show, share)  # type: ignore[arg-type]
        await nursery.start(made.run)
        yield cache, made
        nursery.cancel_scope.cancel()


def state(found: Prefetch, number: int = 1) -> str:
    return str(found.get(number)["state"])


async def test_a_job_fetches_at_the_priority_of_a_prefetch_and_each_chunk_once(
    tmp_path: Path, file_library: Library, show: Show
) -> None:
    source = central(file_library)
    async with running(tmp_path, source, show) as (cache, found):
        source.gate = trio.Event()
        await found.add(PLATE, "plate")
        await until(lambda: cache._fetcher.queue.under_way(Priority.PREFETCH) > 0)
        assert cache._fetcher.queue.under_way(Priority.DEMAND) == 0
        source.gate.set()
        await until(lambda: state(found) == "complete")
        job = found.get(1)
        assert (job["bytes"], job["cached_bytes"], job["brought_bytes"]) == (6 * SIZE, 6 * SIZE, 6 * SIZE)
        assert len(source.asked) == len(set(source.asked))
        assert found.brought_bytes == 6 * SIZE
        assert cache.trace.asked_bytes == 0, "nobody has read"


async def test_parts_of_files_are_brought_alone(tmp_path: Path, file_library: Library, show: Show) -> None:
    show.ranges = ((0, 10), (SIZE - 10, SIZE))
    source = central(file_library)
    async with running(tmp_path, source, show) as (cache, found):
        await found.add(PLATE, "plate")
        await until(lambda: state(found) == "complete")
        assert len(source.asked) == 2 * len(show.files)
        await quiet(cache)
        await found.add(PLATE, "plate")
        await until(lambda: state(found) == "complete")
        assert len(source.asked) == 2 * len(show.files)


async def test_one_file_that_cannot_be_had_stops_no_other_and_ends_the_job_as_failed(
    tmp_path: Path, file_library: Library, show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch, "GIVE_UP_S", 0.0)
    source, bad = central(file_library), show.files[2].recipe[0].digest
    source.fault = lambda ref: missing(ref) if ref.digest == bad else None
    async with running(tmp_path, source, show) as (_, found):
        await found.add(PLATE, "plate")
        await until(lambda: state(found) == "failed")
        job = found.get(1)
        assert job["kind"] in ("NotFound", "IntegrityError")
        assert job["brought_bytes"] >= 5 * SIZE


async def test_wrong_bytes_are_no_part_of_it(
    tmp_path: Path, file_library: Library, show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch, "GIVE_UP_S", 0.0)
    source = central(file_library)
    source.fault = lambda ref: flip(bytes(ref.length or 1))
    async with running(tmp_path, source, show) as (_, found):
        await found.add(PLATE, "plate")
        await until(lambda: state(found) == "failed")
        assert (found.get(1)["brought_bytes"], found.get(1)["cached_bytes"]) == (0, 0)
        assert found.get(1)["kind"] in ("IntegrityError", "DigestMismatch")


async def test_a_source_that_stays_away_is_left_alone_and_asked_again(
    tmp_path: Path, file_library: Library, show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bringing, "FAULTS_MAX", 2)
    monkeypatch.setattr(bringing, "PARALLEL", 1)
    monkeypatch.setattr(prefetch, "RETRY_S", 1000.0)
    monkeypatch.setattr(prefetch, "RETRY_S_MAX", 0.01)
    source = central(file_library)
    source.fault = lambda _: Unavailable("no route")
    async with running(tmp_path, source, show) as (_, found):
        await found.add(PLATE, "plate")
        await until(lambda: state(found) == "waiting")
        assert "no route" in found.get(1)["error"]
        assert len({ref.digest for ref in source.asked}) <= 2 * 3 + 8, "two files, not six"
        assert found.states()["waiting"] == 1
        source.fault = lambda _: None
        found.hurry()
        await until(lambda: state(found) == "complete")


async def test_a_job_goes_on_when_the_source_is_back(tmp_path: Path, file_library: Library, show: Show) -> None:
    source = central(file_library)
    source.fault = lambda _: Unavailable("no route")
    async with running(tmp_path, source, show) as (_, found):
        await found.add(PLATE, "plate")
        await until(lambda: found.get(1)["error"] is not None)
        source.fault = lambda _: None
        await until(lambda: state(found) == "complete")
        assert found.get(1)["error"] is None


async def test_a_bug_that_a_job_meets_ends_nothing(
    tmp_path: Path, file_library: Library, show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_self: Show, _content: bytes) -> Recipe | None:
        raise RuntimeError("can't start new thread")

    async with running(tmp_path, central(file_library), show) as (_, found):
        with monkeypatch.context() as patch:
            patch.setattr(Show, "recipe", fail)
            await found.add(PLATE, "plate")
            await until(lambda: state(found) == "waiting")
            assert "can't start new thread" in found.get(1)["error"]
        await until(lambda: state(found) == "complete")


async def test_a_job_outlives_the_daemon_and_an_ended_one_is_remembered(
    tmp_path: Path, file_library: Library, show: Show
) -> None:
    source = central(file_library)
    source.gate = trio.Event()
    async with running(tmp_path, source, show) as (_, found):
        await found.add(PLATE, "plate")
    source.gate.set()
    async with running(tmp_path, source, show) as (_, found):
        await until(lambda: state(found) == "complete")
    async with running(tmp_path, source, show) as (_, found):
        job = found.get(1)
        assert (job["state"], job["name"], job["cached_bytes"]) == ("complete", "plate", 6 * SIZE)
        assert (await found.add([Want(SHOW, "1", "other")], "other"))["id"] == 2


async def test_the_same_job_asked_twice_at_once_is_one(tmp_path: Path, file_library: Library, show: Show) -> None:
    source = central(file_library)
    source.gate = trio.Event()
    made: list[int] = []
    async with running(tmp_path, source, show) as (_, found):

        async def add() -> None:
            made.append((await found.add(PLATE, "plate"))["id"])

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(add)
        assert made == [1] * 5
        show.revision = 2
        assert (await found.add(PLATE, "plate"))["id"] == 2, "the show has something else now"
        source.gate.set()
        await until(lambda: (state(found), state(found, 2)) == ("complete", "complete"))


async def test_jobs_wait_for_their_turn_and_one_too_many_is_refused(
    tmp_path: Path, file_library: Library, show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch, "JOBS_MAX", 3)
    source = central(file_library)
    source.gate = trio.Event()
    async with running(tmp_path, source, show) as (_, found):
        for number in range(3):
            await found.add([Want(SHOW, None, f"{number}")], "x")
        with pytest.raises(Busy):
            await found.add([Want(SHOW, None, "3")], "x")
        await until(lambda: found.states()["downloading"] == 2)
        await trio.sleep(HERE)
        assert found.states()["queued"] == 1
        await found.cancel([3, 1])
        assert (state(found, 1), state(found, 3)) == ("cancelled", "cancelled")
        source.gate.set()
        await until(lambda: state(found, 2) == "complete")
        await found.cancel([2])
        assert state(found, 2) == "complete", "it has ended as it has"


async def test_all_jobs_under_way_want_no_more_than_their_share(
    tmp_path: Path, file_library: Library, show: Show
) -> None:
    source = central(file_library)
    source.gate = trio.Event()
    async with running(tmp_path, source, show, size_bytes=20 * SIZE) as (_, found):
        await found.add(PLATE, "plate")
        measured = await found.measure([Want(SHOW, None, "other")])
        assert "3,600,000 of them of other jobs" in measured["why_not"]
        with pytest.raises(ConfigurationError, match="prefetch_share"):
            await found.add([Want(SHOW, None, "other")], "other")
        await found.cancel([1])
        assert (await found.add([Want(SHOW, None, "other")], "other"))["id"] == 2


async def test_a_cache_that_does_not_keep_what_is_brought_ends_the_job(
    tmp_path: Path, file_library: Library, show: Show
) -> None:
    source = central(file_library)
    async with running(tmp_path, source, show, size_bytes=2 * SIZE, share=10.0) as (_, found):
        await found.add(PLATE, "plate")
        await until(lambda: state(found) in ("failed", "waiting"))
        assert "did not keep" in found.get(1)["error"]
        assert len(source.asked) < 5 * sum(len(one.recipe) for one in show.files)


async def test_what_is_not_there_is_told_and_the_rest_is_brought(
    tmp_path: Path, file_library: Library, show: Show
) -> None:
    async with running(tmp_path, central(file_library), show) as (_, found):
        await found.add([*PLATE, Want(SHOW, None, "nowhere"), Want("hubble", None, "x")], "plate")
        await until(lambda: state(found) == "complete")
        assert found.get(1)["missing"] == 2
        for wants in ([Want(SHOW, None, "nowhere")], [Want("hubble", None, "x")]):
            with pytest.raises(NotFound):
                await found.add(wants, "x")
        with pytest.raises(NotFound):
            found.get(2)


async def test_only_so_many_ended_jobs_are_remembered(
    tmp_path: Path, file_library: Library, show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch, "ENDED_MAX", 2)
    async with running(tmp_path, central(file_library), show) as (_, found):
        for number in range(5):
            job = await found.add([Want(SHOW, None, f"{number}")], "x")
            await until(lambda job=job: state(found, job["id"]) == "complete")  # type: ignore[misc]
        assert [job["id"] for job in found.all()] == [3, 4, 5]
        assert sorted(path.name for path in (tmp_path / "jobs").iterdir()) == ["3.json", "4.json", "5.json"]


async def test_a_job_that_cannot_be_written_down_is_refused(tmp_path: Path, file_library: Library, show: Show) -> None:
    (tmp_path / "jobs").write_text("in the way")
    async with running(tmp_path, central(file_library), show) as (_, found):
        with pytest.raises(ConfigurationError, match="cannot be written"):
            await found.add(PLATE, "plate")
        assert found.all() == []


async def test_a_prefetch_evicts_neither_what_is_pinned_nor_what_was_read_again_nor_what_it_brought(
    tmp_path: Path, file_library: Library, show: Show
) -> None:
    pinned, *again = (put(file_library, sample(50 + i, SIZE)) for i in range(6))
    source = central(file_library)
    async with running(tmp_path, source, show, size_bytes=14 * SIZE, share=0.25) as (cache, found):
        index = cache.shelves[0].index
        Pinned(index).add(1, 1, SHOW, [(pinned.content, SIZE)])
        await bring(cache, [pinned, *again])
        await quiet(cache)
        later = index.clock.now_ms() + 10_000
        index.touch({(SHOW, one.content): later for one in again})
        for start in range(0, 15, 3):
            show.files = [put(file_library, sample(100 + start + i, SIZE)) for i in range(3)]
            number = (await found.add([Want(SHOW, None, f"{start}")], "part"))["id"]
            await until(lambda number=number: state(found, number) == "complete")  # type: ignore[misc]
            await quiet(cache)
        wanted = [(one.content, SIZE) for one in (pinned, *again, *show.files)]
        assert await cache.admin.present_bytes(SHOW, wanted) == [SIZE] * len(wanted)
        assert cache.stats().evicted_bytes > 0


async def bring(cache: CacheStore, files: Sequence[Sample]) -> None:
    """Read these, as frames of one sequence."""
    for one in files:
        handle = await cache.open_object(SHOW, one.content, one.size, one.digest, one.recipe, group=GROUP)
        assert await handle.read(0, one.size, trio.current_time() + 10) == one.data
        handle.release()


async def test_what_was_prefetched_joins_its_sequence_with_its_first_read_which_is_its_first_use(
    tmp_path: Path, file_library: Library, show: Show
) -> None:
    async with running(tmp_path, central(file_library), show) as (cache, found):
        await found.add(PLATE, "plate")
        await until(lambda: state(found) == "complete")
        await quiet(cache)
        index = cache.shelves[0].index
        assert {(c.group, c.visited) for c in index.candidates("1", (), "id", 9)} == {(0, 0)}
        later = index.clock.now_ms() + 10_000
        keys = [(SHOW, one.content) for one in show.files]
        index.touch(dict.fromkeys(keys, later), dict.fromkeys(keys, GROUP))
        assert {(c.group, c.visited) for c in index.candidates("1", (), "id", 9)} == {(GROUP, 0)}
        index.touch(dict.fromkeys(keys, later + 10_000), dict.fromkeys(keys, 9))
        assert {(c.group, c.visited) for c in index.candidates("1", (), "id", 9)} == {(GROUP, 1)}


async def test_a_read_of_what_was_prefetched_tells_its_group(tmp_path: Path, file_library: Library, show: Show) -> None:
    async with running(tmp_path, central(file_library), show) as (cache, found):
        await found.add(PLATE, "plate")
        await until(lambda: state(found) == "complete")
        await bring(cache, show.files)
        await quiet(cache)
        await cache.shelves[0].flusher.flush_touches()
        assert {c.group for c in cache.shelves[0].index.candidates("1", (), "id", 9)} == {GROUP}


@pytest.mark.parametrize("fault", [sqlite3.OperationalError("disk I/O error"), OSError("no"), RuntimeError("a bug")])
async def test_a_replica_that_fails_while_a_version_is_warmed_ends_nothing(
    fault: Exception, tmp_path: Path, file_library: Library, show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Exception] = []

    async def fail(_self: Show, _question: object) -> None:
        asked.append(fault)
        raise fault

    monkeypatch.setattr(Show, "ask", fail)
    async with running(tmp_path, central(file_library), show) as (_, found), trio.open_nursery() as nursery:
        warming = Warming(found, show)  # type: ignore[arg-type]
        nursery.start_soon(warming.run)
        for parent in range(2):
            warming.opened(SimpleNamespace(show=SHOW), ROOT._replace(parent=parent))  # type: ignore[arg-type]
        await until(lambda: len(asked) == 2)
        nursery.cancel_scope.cancel()


async def test_who_will_be_refused_fills_no_memory_before() -> None:
    pieces = 0

    async def receive() -> dict[str, Any]:
        nonlocal pieces
        await trio.lowlevel.checkpoint()
        pieces += 1
        return {"type": "http.request", "body": b" " * serve.BODY_BYTES_MAX, "more_body": pieces < 100}

    for route in prefetch_routes.routes(SimpleNamespace()):  # type: ignore[arg-type]
        if route.methods is None or "POST" not in route.methods or route.path.endswith("cancel"):
            continue
        pieces = 0
        scope = {"type": "http", "method": "POST", "path": route.path, "headers": [], "query_string": b"",
                 "state": {"surface": "view", "peer": None}}  # fmt: skip
        answer = await route.endpoint(Request(scope, receive))
        assert (answer.status_code, pieces) == (400, 2)
