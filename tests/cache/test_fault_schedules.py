"""Any sequence of faults, at any time, under any reads: right bytes or an error in time, and all is well afterwards.

hypothesis makes the schedules: what fails from when to when, and who reads what with how much patience.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache.store import CacheStore
from manifest.errors import DamfsError
from tests.cache.contents import KIB, Sample, open_sample, opened, sample
from tests.cache.faulty_way import (
    ASKING,
    LATE_S,
    NAMES,
    Stock,
    Way,
    recovered,
    scaled,
    sources,
    stocked,
    ways,
)
from tests.harness import drilled

CHUNK_BYTES = 100 * KIB
CONTENTS = [sample(100 + seed, 350 * KIB, CHUNK_BYTES) for seed in range(4)]
INFLIGHT_BYTES_MAX = 3 * CHUNK_BYTES
RING_BYTES_MAX = 2 * CHUNK_BYTES
REQUESTS_MAX = 2 * (INFLIGHT_BYTES_MAX // (CHUNK_BYTES * 7 // 8))
"""What may be asked for at a time on each way: what is in flight, each chunk perhaps once more (a hedge)."""
__all__ = ["scaled"]


class Step(NamedTuple):
    """One fault: from ``begins_s`` on for ``lasts_s``."""

    tier: str
    name: str
    begins_s: float
    lasts_s: float


class Read(NamedTuple):
    """One read of a part (in 1/16) of a content, from ``begins_s`` on, by a deadline."""

    begins_s: float
    content: int
    start: int
    stop: int
    deadline_s: float


def moments(longest_s: float, shortest_s: float = 0.0) -> st.SearchStrategy[float]:
    return st.integers(int(shortest_s * 20), int(longest_s * 20)).map(lambda n: n / 20)


TIERS = ("site", "central")
STEPS = st.lists(st.builds(Step, st.sampled_from(TIERS), st.sampled_from(NAMES), moments(0.8), moments(0.5, 0.05)),
                 min_size=1, max_size=5)  # fmt: skip
READS = st.lists(st.builds(Read, moments(1.2), st.integers(0, len(CONTENTS) - 1), st.integers(0, 14),
                           st.integers(1, 16), moments(1.5, 0.1)), min_size=1, max_size=12)  # fmt: skip


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stock]:
    with stocked(tmp_path_factory.mktemp("stock"), CONTENTS) as made:
        yield made


@pytest.mark.drill
@pytest.mark.usefixtures("scaled", "expects_log")
@given(profile=st.sampled_from(sorted(ASKING)), steps=STEPS, reads=READS)
@settings(max_examples=drilled(6, 300), deadline=None, suppress_health_check=[HealthCheck.too_slow])
async def test_any_schedule_of_faults_gives_right_bytes_or_errors_in_time(
    stock: Stock, profile: str, steps: list[Step], reads: list[Read]
) -> None:
    with tempfile.TemporaryDirectory(prefix="damfs-schedule-") as folder, ways(stock, *TIERS) as found:
        async with opened(
            Path(folder),
            sources(found),
            asking=ASKING[profile],
            inflight_bytes_max=INFLIGHT_BYTES_MAX,
            ring_bytes_max=RING_BYTES_MAX,
        ) as cache:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail, found, steps)
                for one in reads:
                    nursery.start_soon(check, cache, one)
            for way in found.values():
                way.heal()
            for made in CONTENTS:
                await recovered(cache, made)
            assert cache._fetcher.queue.free_bytes >= 0
            assert cache._fetcher._ring._bytes <= RING_BYTES_MAX
        for way in found.values():
            assert way.wire.busy_max <= REQUESTS_MAX


async def fail(found: dict[str, Way], steps: Sequence[Step]) -> None:
    """Of faults that overlap the last one to begin counts, until one of them ends."""

    async def one(step: Step) -> None:
        await trio.sleep(step.begins_s)
        found[step.tier].hit(step.name)
        await trio.sleep(step.lasts_s)
        found[step.tier].heal()

    async with trio.open_nursery() as nursery:
        for step in steps:
            nursery.start_soon(one, step)


async def check(cache: CacheStore, asked: Read) -> None:
    """A read gives what was published, or an error by its deadline."""
    made: Sample = CONTENTS[asked.content]
    start, stop = sorted((made.size * asked.start // 16, made.size * asked.stop // 16))
    await trio.sleep(asked.begins_s)
    handle = await open_sample(cache, made)
    started = time.monotonic()
    try:
        data = bytes(await handle.read(start, max(stop - start, 1), trio.current_time() + asked.deadline_s))
    except DamfsError:
        pass
    else:
        assert data == made.data[start : max(stop, start + 1)], "wrong bytes"
    finally:
        handle.release()
    assert time.monotonic() - started < asked.deadline_s + LATE_S, "the read ended too late"
