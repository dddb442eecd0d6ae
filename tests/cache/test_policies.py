"""Policies of eviction: one contract for all, and what each is there for."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING, get_args

import pytest

from cache.index import Index, ObjectRow
from cache.policies import DEFAULT, POLICIES, make
from cache.simulate import simulate
from cache.trace import Reference
from daemon.config import CacheSettings
from tests.bench import traces
from tests.bench.policies import MARKS, belady
from tests.bench.traces import Plate
from tests.cache.contents import KIB, MIB, FaultySource, accounts_agree, opened, put, read_all, sample, settle, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cache.policies.protocol import Policy
    from manifest.library import Library

SECOND_MS = 1000
START_MS = 1_700_000_000_000
HOUR_MS = 3600 * SECOND_MS


class Shelf:
    """An index with objects of one byte each, by number."""

    def __init__(self, path: Path) -> None:
        self.index = Index(path)

    def put(self, *numbers: int, when_s: float = 0, group: int = 0) -> None:
        for number in numbers:
            row = ObjectRow(0, "apollo", bytes([number]), 1, 1, b"", f"f{number}", 1, 1, b"\1", group)
            self.index.commit([row], START_MS + int(when_s * SECOND_MS))

    def use(self, *numbers: int, when_s: float) -> None:
        for number in numbers:
            self.index.touch({("apollo", bytes([number])): START_MS + int(when_s * SECOND_MS)})

    def pin(self, number: int) -> None:
        self.index.arrange([("UPDATE objects SET pins = 1 WHERE content = ?", (bytes([number]),))])

    def evict(self, policy: Policy, count: int, kept: frozenset[int] = frozenset()) -> list[int]:
        """What a run evicts that needs ``count`` bytes and passes over what is ``kept`` open."""
        policy.begin()
        gone: list[int] = []
        while len(gone) < count and (found := policy.victims(4, count - len(gone))):
            assert len(found) <= 4
            chosen = [c for c in found if c.content[0] not in kept]
            self.index.delete([c.id for c in chosen])
            gone += [c.content[0] for c in chosen]
        return gone


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    made = Shelf(tmp_path / "index.db")
    yield made
    made.index.close()


@pytest.mark.parametrize("name", POLICIES)
def test_everything_goes_in_the_end_but_what_is_pinned_or_open(name: str, shelf: Shelf) -> None:
    shelf.put(*range(10))
    shelf.put(*range(10, 30), group=7)
    shelf.use(*range(5), *range(10, 20), when_s=10)
    shelf.use(*range(3), *range(12, 15), when_s=20)
    shelf.pin(2)
    shelf.pin(11)
    gone = shelf.evict(make(name, shelf.index), 1000, kept=frozenset({4, 9, 13, 29}))
    assert sorted(gone) == sorted(set(range(30)) - {2, 11, 4, 9, 13, 29})


@pytest.mark.parametrize("name", POLICIES)
def test_no_more_goes_than_is_needed(name: str, shelf: Shelf) -> None:
    shelf.put(*range(20), group=3)
    policy = make(name, shelf.index)
    for _ in range(4):
        assert len(shelf.evict(policy, 3)) == 3
    assert shelf.index.totals() == (8, 8)


@pytest.mark.parametrize("name", POLICIES)
def test_what_is_open_is_passed_over_and_comes_again_in_the_next_run(name: str, shelf: Shelf) -> None:
    shelf.put(*range(8))
    policy = make(name, shelf.index)
    gone = Counter(shelf.evict(policy, 6, kept=frozenset({0, 1})))
    assert sorted(gone) == [2, 3, 4, 5, 6, 7]
    assert sorted(shelf.evict(policy, 6)) == [0, 1]


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_takes_over_from_each_other_one(name: str, shelf: Shelf) -> None:
    shelf.put(*range(100), group=5)
    shelf.use(*range(50), when_s=10)
    for other in POLICIES:
        assert len(shelf.evict(make(other, shelf.index), 5)) == 5
        assert len(shelf.evict(make(name, shelf.index), 5)) == 5
        found = {i for (i,) in shelf.index._reader.execute("SELECT name FROM sqlite_master WHERE type = 'index'")}
        assert POLICIES[name].indexes.keys() <= found
        assert all(found.isdisjoint(p.indexes.keys() - POLICIES[name].indexes.keys()) for p in POLICIES.values())


def test_the_configuration_knows_all_policies() -> None:
    assert set(get_args(CacheSettings.model_fields["policy"].annotation)) == set(POLICIES)
    assert CacheSettings().policy == DEFAULT


def test_lru_takes_the_oldest_use(shelf: Shelf) -> None:
    shelf.put(*range(6))
    shelf.use(0, 3, when_s=5)
    assert shelf.evict(make("lru", shelf.index), 5) == [1, 2, 4, 5, 0]


@pytest.mark.parametrize("name", ["sieve", "s3fifo", "sequences"])
def test_what_was_used_again_outlives_what_came_later(name: str, shelf: Shelf) -> None:
    shelf.put(*range(4))
    shelf.use(1, 2, when_s=5)
    shelf.put(*range(10, 20), when_s=10)
    assert set(shelf.evict(make(name, shelf.index), 10)).isdisjoint({1, 2})


def test_what_comes_back_from_the_trial_soon_is_not_on_trial_again(shelf: Shelf) -> None:
    policy = make("s3fifo", shelf.index)
    shelf.put(*range(8))
    assert shelf.evict(policy, 1) == [0]
    shelf.put(0, when_s=1)
    assert 0 not in shelf.evict(policy, 7)


def test_a_sequence_goes_as_a_whole_from_its_end(shelf: Shelf) -> None:
    shelf.put(*range(10, 20), group=1)
    shelf.put(50, when_s=20)
    shelf.put(*range(20, 30), when_s=30, group=2)
    assert shelf.evict(make("sequences", shelf.index), 13) == [*range(19, 9, -1), 50, 29, 28]


def test_of_a_sequence_that_was_played_in_two_sittings_the_older_frames_go(shelf: Shelf) -> None:
    shelf.put(*range(10, 15), group=1)
    shelf.put(*range(15, 20), when_s=7200, group=1)
    assert shelf.evict(make("sequences", shelf.index), 5) == [14, 13, 12, 11, 10]


def test_of_a_sequence_of_which_a_range_is_played_the_rest_goes(shelf: Shelf) -> None:
    for i in range(10, 30):
        shelf.put(i, when_s=i, group=1)
    for again in (40, 60, 80):
        for i in range(20, 30):
            shelf.use(i, when_s=i - 20 + again)
    for i in range(10, 20):
        shelf.use(i, when_s=20 + i)  # on trial no more, and before the range was played again
    assert sorted(shelf.evict(make("sequences", shelf.index), 10)) == list(range(10, 20))


async def test_the_index_learns_what_a_content_is_used_with(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    made = [put(file_library, sample(1, 300 * KIB)), put(file_library, sample(2, 9 * KIB, 2 * KIB))]
    async with opened(folder, [source]) as cache:
        for group, one in enumerate(made, 7):
            handle = await cache.open_object("apollo", one.content, one.size, one.digest, one.recipe, group=group)
            await read_all(handle)
            handle.release()
        await settle(cache)
        await until(lambda: cache.stats().objects == 2)
        found = cache.shelves[0].index.candidates("1", (), "size DESC", 9)
    assert [(c.content, c.group) for c in found] == [(made[0].content, 7), (made[1].content, 8)]


@pytest.mark.parametrize("name", POLICIES)
async def test_a_cache_works_with_each_policy(
    name: str, folder: Path, file_library: Library, source: FaultySource
) -> None:
    made = [put(file_library, sample(i, 200 * KIB if i % 3 else 20 * KIB)) for i in range(24)]
    async with opened(folder, [source], size_bytes=MIB, policy=name) as cache:
        for _ in range(2):
            for group, one in enumerate(made, 1):
                handle = await cache.open_object(
                    "apollo", one.content, one.size, one.digest, one.recipe, group=group // 8
                )
                assert await read_all(handle) == one.data
                handle.release()
                assert cache.stats().used_bytes <= MIB
        await settle(cache)
        await until(lambda: cache.stats().used_bytes <= 0.95 * MIB)
        assert cache.stats().evicted_bytes > MIB / 2
        await accounts_agree(cache)


def test_a_loop_that_is_larger_than_the_cache_finds_a_part_of_it_every_time() -> None:
    plate = Plate(1, [100] * 400)
    trace = [access for i in range(8) for access in plate.play(i * plate.play_ms())]
    size_bytes = 40_000 // 2
    assert simulate("lru", trace, size_bytes, marks=MARKS).bytes == 0
    ours, best = (simulate("sequences", trace, size_bytes, marks=MARKS), belady(trace, size_bytes))
    assert ours.bytes > 0.85 * best.bytes > 0.3


@pytest.mark.parametrize("name", ["s3fifo", "sequences"])
def test_a_scan_of_a_whole_show_does_not_flush_what_is_worked_with(name: str) -> None:
    """Work on 60 files in a cache for 100; then a wave reads 2,000 frames once; then the work goes on."""
    work = [Reference(i * 10 * SECOND_MS, i % 60, 100, 0) for i in range(300)]
    begin = 300 * 10 * SECOND_MS
    scan = [Reference(begin + i * 250, 10_000 + i, 100, i // 200 + 1) for i in range(2000)]
    later = [Reference(begin + 600 * SECOND_MS + i * 10 * SECOND_MS, i, 100, 0) for i in range(60)]
    trace = [*work, *scan, *later]

    def hits_after(policy: str) -> int:
        parts = trace, trace[: -len(later)]
        whole, before = (round(simulate(policy, part, 10_000, marks=MARKS).opens * len(part)) for part in parts)
        return whole - before

    assert hits_after("lru") == 0
    assert hits_after(name) > 0.9 * len(later)


def test_a_trace_is_the_same_every_time_and_in_order() -> None:
    first, again = traces.make("farm"), traces.make("farm")
    assert first == again
    assert all(a.when_ms <= b.when_ms for a, b in itertools.pairwise(first))
    sizes = {access.file: access.size_bytes for access in first}
    assert all(sizes[access.file] == access.size_bytes for access in first)
