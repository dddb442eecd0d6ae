"""The gate before the sources, with the cache's own fetcher behind it."""

from __future__ import annotations

import logging

import pytest
import trio
import trio.testing
from prometheus_client import CollectorRegistry

from cache.fetch import Fetcher
from cache.metrics import CacheMetrics, Counters
from cache.sources.gate import TOLD_S, Gate
from cache.sources.policy import Policy
from cache.sources.protocol import ObjectRef, SourceStatus
from manifest.digest import Digest
from manifest.errors import Offline, Unavailable

DATA = b"the bytes of a chunk"
REF = ObjectRef("apollo", "chunk", Digest.of(DATA), len(DATA))
PATIENCE_S = 600.0

pytestmark = pytest.mark.usefixtures("expects_log")


class Store:
    """A source that answers when it is told to."""

    name = "central"

    def __init__(self) -> None:
        self.answers = trio.Event()
        self.asked = 0

    async def fetch(self, ref: ObjectRef, deadline: float) -> bytes:
        self.asked += 1
        with trio.move_on_at(deadline):
            await self.answers.wait()
            return DATA
        raise Unavailable(f"{ref}: silent")

    def status(self) -> SourceStatus:
        return SourceStatus("central", "", healthy=True, last_error=None, last_error_time=None, fetched_bytes=0,
                            fetches=0, errors=0)  # fmt: skip


@pytest.fixture
async def store() -> Store:
    return Store()


@pytest.fixture
async def fetcher(store: Store, nursery: trio.Nursery) -> Fetcher:
    counters = Counters()
    metrics = CacheMetrics(counters, dict, dict, dict, dict, CollectorRegistry())
    return Fetcher(nursery, [store], counters, metrics)


async def get(fetcher: Fetcher) -> bytes:
    return bytes(await fetcher.get(REF, None, trio.current_time() + PATIENCE_S, "plate.exr"))


async def test_nothing_passes_a_shut_gate_however_patient_the_reader(
    fetcher: Fetcher, store: Store, autojump_clock: trio.testing.MockClock
) -> None:
    del autojump_clock
    fetcher.forbid("by wish")
    began = trio.current_time()
    with pytest.raises(Offline, match=r"plate\.exr: not in the cache, and nothing is fetched: by wish"):
        await get(fetcher)
    assert (trio.current_time() - began, store.asked) == (0, 0)


async def test_who_waits_behind_the_gate_is_told_when_it_is_shut(
    fetcher: Fetcher, store: Store, autojump_clock: trio.testing.MockClock
) -> None:
    del autojump_clock
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        refused: list[Offline] = []

        async def read() -> None:
            try:
                await get(fetcher)
            except Offline as error:
                refused.append(error)

        nursery.start_soon(read)
        nursery.start_soon(read)
        await trio.sleep(5)
        assert store.asked == 1
        fetcher.forbid("by wish")
    assert len(refused) == 2
    assert trio.current_time() - began == 5


async def test_a_gate_that_opens_lets_the_next_reader_through_at_once(
    fetcher: Fetcher, store: Store, autojump_clock: trio.testing.MockClock
) -> None:
    del autojump_clock
    store.answers.set()
    fetcher.forbid("by wish")
    with pytest.raises(Offline):
        await get(fetcher)
    fetcher.forbid(None)
    began = trio.current_time()
    assert await get(fetcher) == DATA
    assert trio.current_time() == began


async def test_the_log_has_one_line_a_minute_for_all_refusals(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    del autojump_clock
    gate = Gate()
    gate.shut("by wish")
    for _ in range(2):
        for n in range(50):
            with pytest.raises(Offline), gate.passing(REF, f"plate.{n}.exr"):
                pass
        await trio.sleep(TOLD_S)
    with pytest.raises(Offline), gate.passing(REF, "plate.last.exr"):
        pass
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [line.split(" ")[0] for line in lines] == ["plate.0.exr", "plate.0.exr", "plate.last.exr"]
    assert "(49 more were refused before)" in lines[1]


async def test_who_waits_when_the_cache_closes_is_told_so_however_many_requests_are_under_way(
    store: Store, autojump_clock: trio.testing.MockClock
) -> None:
    counters, told = Counters(), []
    metrics = CacheMetrics(counters, dict, dict, dict, dict, CollectorRegistry())

    async def wait(made: Fetcher) -> None:
        with pytest.raises(Unavailable, match="the cache is being closed"):
            await get(made)
        told.append(True)

    async with trio.open_nursery() as outer, trio.open_nursery() as nursery:
        outer.start_soon(wait, Fetcher(nursery, [store], counters, metrics, policy=Policy()))
        await trio.sleep(20)  # by now a second request is under way beside the first
        assert store.asked == 2
        nursery.cancel_scope.cancel()
    assert told
