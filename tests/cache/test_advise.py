"""The sample of what is opened, and the advice that is drawn from it."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from blake3 import blake3

from cache import trace
from cache.advise import REFERENCES_MIN, Point, advise, predict, reaching, thinned
from cache.simulate import simulate
from cache.trace import KEYS, REFERENCES_MAX, SPAN_MS, TRACE_NAME, Reference, Trace, unpack
from tests.bench import traces
from tests.bench.policies import MARKS
from tests.cache.contents import KIB, MIB, SHOW, FaultySource, opened, put, read_sample, sample, settle

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from manifest.library import Library

START_MS = 1_700_000_000_000


def content(file: int) -> bytes:
    return blake3(file.to_bytes(8, "little")).digest()


def noted(references: Iterable[Reference]) -> Trace:
    made = Trace()
    for r in references:
        made.note(SHOW, content(r.file), r.size_bytes, r.group, here_bytes=None, when_ms=r.when_ms)
    return made


def test_of_a_file_every_open_is_in_the_sample_or_none() -> None:
    references = [Reference(START_MS + i, i % 30_000, 100, 0) for i in range(90_000)]
    found = unpack(noted(references).packed())
    counts: dict[int, int] = {}
    for r in found.references:
        counts[r.file] = counts.get(r.file, 0) + 1
    assert found.rate < 1
    assert set(counts.values()) == {3}
    assert len(counts) / found.rate == pytest.approx(30_000, rel=0.03)


def test_the_sample_is_bounded_and_spans_two_weeks_before_it_forgets() -> None:
    step_ms = SPAN_MS // 100_000
    made = noted(Reference(START_MS + i * step_ms, i, 100, 0) for i in range(300_000))
    found = unpack(made.packed())
    assert len(found.references) < REFERENCES_MAX
    span_ms = found.references[-1].when_ms - found.references[0].when_ms
    assert span_ms >= SPAN_MS / 2
    assert found.references[-1].when_ms > START_MS + 299_900 * step_ms


def test_two_shows_and_two_groups_are_kept_apart() -> None:
    made = Trace()
    for show in ("apollo", "gemini"):
        for group in (5, 6, 0):
            made.note(show, content(1), 10, group, here_bytes=None, when_ms=START_MS)
    found = unpack(made.packed()).references
    assert len({r.file for r in found}) == 2
    assert len({r.group for r in found}) == 5


def test_a_sample_survives_a_restart_and_rubbish_does_not_matter(
    tmp_path: Path, expects_log: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / TRACE_NAME
    made = noted([Reference(START_MS, 1, 100, -7), Reference(START_MS + 1, 2, 200, 0)])
    path.write_bytes(made.packed())
    again = Trace()
    again.load(path)
    assert unpack(again.packed()) == unpack(made.packed())
    header = struct.pack("<14sQQ", b"damfs reads 1\n", KEYS, 2)
    assert made.packed().startswith(header + struct.pack("<qq", START_MS, START_MS + 1))
    for damage in (b"", made.packed()[:-1], b"x" + made.packed(), made.packed()[:14] + bytes(96)):
        path.write_bytes(damage)
        empty = Trace()
        empty.load(path)
        assert unpack(empty.packed()).references == []
    assert len(expects_log.records) == 4


def test_an_empty_sample_is_a_sample(tmp_path: Path) -> None:
    assert unpack(Trace().packed()) == (1.0, [])


async def test_the_cache_notes_opens_and_what_of_them_was_here(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    large, small = put(file_library, sample(1, MIB)), put(file_library, sample(2, 9 * KIB))
    async with opened(folder, [source]) as cache:
        for _ in range(2):
            for one in (large, small):
                await read_sample(cache, one)
            await settle(cache)
        assert (cache.trace.asked_bytes, cache.trace.found_bytes) == (2 * MIB, MIB)
    async with opened(folder, [source]) as cache:
        assert [r.size_bytes for r in unpack(cache.trace.packed()).references] == [MIB, 9 * KIB] * 2


@pytest.mark.parametrize("name", ["mix", "textures"])
def test_the_advice_is_what_a_cache_of_that_size_does(name: str) -> None:
    """At two sizes here; at five of each trace in ``python -m tests.bench advice``."""
    references = traces.make(name)[:40_000]
    opened_bytes = sum({r.file: r.size_bytes for r in references}.values())
    found = thinned(unpack(noted(references).packed()), 20_000)
    assert found.rate < 0.7
    for share in (0.1, 0.4):
        size_bytes = int(opened_bytes * share)
        whole = simulate("sequences", references, size_bytes, marks=MARKS, warm_up=len(references) // 5)
        assert abs(predict(found, "sequences", size_bytes, MARKS) - whole.bytes) < 0.05


def test_an_advice_has_a_curve_today_and_the_size_that_is_wanted() -> None:
    plate = traces.Plate(1, [100] * 200)
    references = [r for i in range(10) for r in plate.play(START_MS + i * plate.play_ms())]
    steps: list[None] = []
    found = advise(
        trace.Sample(1.0, references), "lru", 10_000, 0.95, marks=MARKS, simulated=lambda: steps.append(None)
    )
    assert found.opened_bytes == 20_000
    assert found.today == Point(10_000, 0.0)
    assert found.today in found.points
    assert found.points == sorted(found.points)
    assert len(steps) == len(found.points)
    assert found.points[-1].hit_rate == 1
    assert found.wanted is not None
    assert 10_000 < found.wanted.size_bytes <= found.points[-1].size_bytes
    assert len(references) >= REFERENCES_MIN


def test_a_size_lies_between_the_points_that_were_simulated() -> None:
    points = [Point(100, 0.2), Point(200, 0.1), Point(300, 0.6), Point(400, 0.6)]
    assert reaching(points, 0.1) == Point(50, 0.1)
    assert reaching(points, 0.4) == Point(200, 0.4)
    assert reaching(points, 0.6) == Point(300, 0.6)
    assert reaching(points, 0.7) is None
