"""The scrub: what the disk does not give back as it was written is found, dropped and fetched again."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import trio

from cache import scrub
from cache.pace import Pace
from cache.small import small_key
from tests.cache.contents import (
    KIB,
    MIB,
    SHOW,
    FaultySource,
    Sample,
    accounts_agree,
    missing,
    open_sample,
    opened,
    put,
    quiet,
    read_all,
    read_sample,
    sample,
    settle,
    until,
)

if TYPE_CHECKING:
    from pathlib import Path

    from cache.store import CacheStore
    from manifest.library import Library


def file_of(folder: Path, made: Sample) -> Path:
    """The one file of a content."""
    (path,) = [p for p in (folder / "objects").rglob("*") if p.name.startswith(made.content.hex())]
    return path


def damage(path: Path, offset: int) -> None:
    """Other bytes on the disk, behind the cache's back."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


async def checked(cache: CacheStore) -> scrub.Report:
    """Check everything now."""
    report = cache.shelves[0].scrubber.begin()
    await until(lambda: not report.running)
    return report


async def test_sound_objects_pass_without_a_source(folder: Path, file_library: Library, source: FaultySource) -> None:
    made = [put(file_library, sample(i, size)) for i, size in enumerate((900, 70 * KIB, 3 * MIB, MIB + 1))]
    part = put(file_library, sample(9, 5 * MIB))
    async with opened(folder, [source]) as cache:
        for one in made:
            await read_sample(cache, one)
        handle = await open_sample(cache, part)
        await handle.read(2 * MIB, 100, trio.current_time() + 5)
        handle.release()
        await quiet(cache)
    source.fault = missing
    asked = len(source.asked)
    async with opened(folder, [source]) as cache:
        report = await checked(cache)
        assert (report.objects, report.bad_objects, report.unknown) == (5, 0, 0)
        assert report.objects_total == 5
        assert sum(one.size for one in made) < report.size_bytes < sum(one.size for one in made) + MIB
        assert len(source.asked) == asked


@pytest.mark.parametrize("offset", [0, MIB + 77, 3 * MIB - 1])
async def test_a_flipped_bit_is_found_and_the_object_fetched_again(
    offset: int, folder: Path, file_library: Library, source: FaultySource, expects_log: pytest.LogCaptureFixture
) -> None:
    made, other = put(file_library, sample(1, 3 * MIB)), put(file_library, sample(2, MIB))
    async with opened(folder, [source]) as cache:
        for one in (made, other):
            await read_sample(cache, one)
        await quiet(cache)
        was = file_of(folder, made)
        damage(was, offset)
        report = await checked(cache)
        assert [(bad.show, bad.content) for bad in report.bad] == [(SHOW, str(made.content))]
        assert cache.counters.scrub_bad == cache.stats().verification_failures == 1
        await quiet(cache)
        assert not was.exists()
        assert cache.percent(SHOW, made.content) == 100
        source.fault = missing
        assert await read_sample(cache, made) == made.data
        assert (await checked(cache)).bad_objects == 0
        await accounts_agree(cache)
    assert len([r for r in expects_log.records if r.levelname == "ERROR"]) == 1


async def test_an_open_object_that_is_wrong_is_dropped_under_its_readers(
    folder: Path, file_library: Library, source: FaultySource, expects_log: pytest.LogCaptureFixture
) -> None:
    made = put(file_library, sample(1, 3 * MIB))
    async with opened(folder, [source]) as cache:
        handle = await open_sample(cache, made)
        await read_all(handle)
        await quiet(cache)
        damage(file_of(folder, made), MIB)
        assert (await checked(cache)).bad_objects == 1
        assert await read_all(handle) == made.data
        await until(lambda: handle.complete)
        handle.release()
    assert "is dropped and fetched again" in expects_log.text


async def test_a_file_that_the_kernel_reads_is_mended_in_place(
    folder: Path, file_library: Library, source: FaultySource, expects_log: pytest.LogCaptureFixture
) -> None:
    made = put(file_library, sample(1, 3 * MIB))
    async with opened(folder, [source]) as cache:
        handle = await open_sample(cache, made)
        await read_all(handle)
        await until(lambda: handle.backing() is not None)
        damage(file_of(folder, made), MIB)
        assert (await checked(cache)).bad_objects == 1
        await until(lambda: handle.backing() is not None)
        assert file_of(folder, made).read_bytes() == made.data
        handle.release()
    assert "is mended" in expects_log.text


@pytest.mark.parametrize("how", ["cut", "longer", "gone"])
@pytest.mark.usefixtures("expects_log")
async def test_a_file_of_another_size_is_found(
    how: str, folder: Path, file_library: Library, source: FaultySource
) -> None:
    made = put(file_library, sample(1, 3 * MIB))
    async with opened(folder, [source]) as cache:
        await read_sample(cache, made)
        await quiet(cache)
        path = file_of(folder, made)
        if how == "gone":
            path.unlink()
        else:
            os.truncate(path, made.size + (4096 if how == "longer" else -4096))
        assert (await checked(cache)).bad_objects == 1
        assert await read_sample(cache, made) == made.data
        assert (await checked(cache)).bad_objects == 0


@pytest.mark.usefixtures("expects_log")
async def test_a_small_content_that_is_wrong_is_found(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    made = put(file_library, sample(1, 5000))
    async with opened(folder, [source]) as cache:
        await read_sample(cache, made)
        await settle(cache)
        cache.shelves[0].small.put(small_key(SHOW, made.content), bytes(5000))
        assert (await checked(cache)).bad_objects == 1
        await quiet(cache)
        assert cache.percent(SHOW, made.content) == 0
        assert await read_sample(cache, made) == made.data


async def test_without_a_recipe_the_whole_is_compared_and_a_part_is_unknown(
    folder: Path, file_library: Library, source: FaultySource, expects_log: pytest.LogCaptureFixture
) -> None:
    whole, part = put(file_library, sample(1, 2 * MIB)), put(file_library, sample(2, 2 * MIB))
    async with opened(folder, [source]) as cache:
        handle = await open_sample(cache, whole)
        await read_all(handle)
        await until(lambda: handle.backing() is not None)
        handle.release()
        handle = await open_sample(cache, part)
        await handle.read(0, 100, trio.current_time() + 5)
        handle.release()
        await quiet(cache)
        cache.shelves[0].index._writer.execute("DELETE FROM recipes")
        report = await checked(cache)
        assert (report.objects, report.unknown, report.bad_objects) == (2, 1, 0)
        damage(file_of(folder, whole), MIB)
        assert (await checked(cache)).bad_objects == 1
    assert "is dropped" in expects_log.text


async def test_idle_passes_find_damage_go_on_after_a_restart_and_come_once_an_interval(
    folder: Path, file_library: Library, source: FaultySource, monkeypatch: pytest.MonkeyPatch,
    expects_log: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(scrub, "START_S", 0.3)
    monkeypatch.setattr(scrub, "IDLE_S", 0.02)
    monkeypatch.setattr(scrub, "SAVE_S", 0.0)
    monkeypatch.setattr(scrub, "LOOK_S", 0.05)
    made = [put(file_library, sample(i, MIB)) for i in range(6)]
    async with opened(folder, [source]) as cache:
        cache.shelves[0].scrubber.pace = Pace(0)
        for one in made:
            await read_sample(cache, one)
        await quiet(cache)
        *_, (_, last) = cache.shelves[0].index.behind(0, 100, 100)
        assert last is not None
        await trio.sleep(0.4)
        assert cache.counters.scrubbed_objects == 0, "0 is never"
        cache.shelves[0].scrubber.pace = Pace(8 * MIB)
        await until(lambda: cache.counters.scrubbed_objects >= 2)
        cache.shelves[0].scrubber.pace = Pace(0)
    first = cache.counters.scrubbed_objects
    damage(folder / "objects" / last.file, MIB // 2)
    async with opened(folder, [source]) as cache:
        await until(lambda: cache.counters.scrub_bad == 1)
        await until(lambda: "scrub: " in expects_log.text)
        assert cache.counters.scrubbed_objects <= 7 - first, "it went on where it was, at most one object behind"
        await trio.sleep(0.2)
        assert cache.counters.scrubbed_objects <= 7 - first, "the interval is not over"


async def test_an_idle_pass_yields_to_readers_and_keeps_to_its_bandwidth(
    folder: Path, file_library: Library, source: FaultySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrub, "START_S", 0.0)
    monkeypatch.setattr(scrub, "IDLE_S", 0.1)
    made = put(file_library, sample(1, 12 * MIB, MIB))
    async with opened(folder, [source]) as cache:
        cache.shelves[0].scrubber.pace = Pace(0)
        handle = await open_sample(cache, made)
        await read_all(handle, step=MIB)
        await quiet(cache)
        cache.shelves[0].scrubber.pace = Pace(16 * MIB)
        scrub_began = cache.counters.scrubbed_objects
        with trio.move_on_after(0.6):
            while True:
                handle.read_nowait(0, 100)
                await trio.sleep(0.01)
        assert cache.counters.scrubbed_objects == scrub_began, "somebody reads"
        handle.release()


async def test_a_clock_that_is_set_back_or_years_ahead_neither_stops_nor_repeats_the_scrub(
    folder: Path, file_library: Library, source: FaultySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = put(file_library, sample(1, MIB))
    async with opened(folder, [source]) as cache:
        await read_sample(cache, made)
        await quiet(cache)
        scrubber = cache.shelves[0].scrubber
        scrubber.pace = Pace(interval_s=1000.0)
        with monkeypatch.context() as patch:
            patch.setattr("time.time", lambda: 5000.0)
            begun = await scrubber._begun(scrub.Pass())
            assert (begun.began_s, begun.position) == (5000.0, 0)
            begun.position = begun.until
            patch.setattr("time.time", lambda: 100.0)
            back = await scrubber._begun(begun)
            assert (back.began_s, back.position) == (100.0, begun.until)
            patch.setattr("time.time", lambda: 1e9)
            assert (await scrubber._begun(back)).position == 0


@pytest.mark.parametrize("text", ['{"began_s": 0, "position": 1e999, "until": 1}',
                                  '{"began_s": 1, "position": 99999999999999999999, "until": 1}'])  # fmt: skip
async def test_a_scrub_that_finds_no_sense_in_where_it_was_begins_anew(
    folder: Path, source: FaultySource, text: str
) -> None:
    async with opened(folder, [source]) as cache:
        (folder / "scrub.json").write_text(text)
        assert cache.shelves[0].scrubber._load() == scrub.Pass()
