"""Every fault of the network and of stores, at the site cache, at the central store and at both, for artist and farm.

Each cell is a cache of its own with the real sources over real HTTP: a read gives the right bytes, or an error by its
deadline; what is cached is read meanwhile as ever; and after the fault everything is read again. The cells of a test
run at the same time. ``make drill`` runs the matrix on real mounts (tests/mount/test_fault_drill.py).
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.cache.faulty_way import (
    ARTIST_S,
    FARM_S,
    FINAL,
    LATE_S,
    NAMES,
    OUTAGE_S,
    Stock,
    at_once,
    cell,
    read,
    recovered,
    scaled,
    stocked,
    ways,
)

CELLS_AT_ONCE = 50
PROFILES = ("artist", "farm")
__all__ = ["scaled"]


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stock]:
    with stocked(tmp_path_factory.mktemp("stock")) as made:
        yield made


@pytest.mark.usefixtures("scaled", "expects_log")
@pytest.mark.parametrize("where", ["site", "central", "both"])
async def test_whatever_fails_reads_are_right_or_fail_in_time_and_all_is_well_afterwards(
    stock: Stock, tmp_path: Path, where: str
) -> None:
    problems: list[str] = []
    cells = [partial(one, problems, name, stock, tmp_path, where, profile) for profile in PROFILES for name in NAMES]
    await at_once(cells, CELLS_AT_ONCE)
    assert not problems, "\n".join(problems)


async def one(problems: list[str], name: str, stock: Stock, folder: Path, where: str, profile: str) -> None:
    """A cell; what is not as it should be goes into ``problems``."""
    try:
        await attempt(name, stock, folder / f"{name}-{profile}".replace(" ", "-"), where, profile)
    except* AssertionError as group:
        problems += [f"{name} at {where}, {profile}: {error} ({place_of(error)})" for error in leaves(group)]


def leaves(group: BaseExceptionGroup[AssertionError]) -> Iterator[AssertionError]:
    """The exceptions themselves."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from leaves(error)
        else:
            yield error


def place_of(error: BaseException) -> str:
    """Where it was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(last.filename).name}:{last.lineno}"


async def attempt(name: str, stock: Stock, folder: Path, where: str, profile: str) -> None:
    tiers = ("central",) if where == "central" else ("site", "central")
    deadline_s = ARTIST_S if profile == "artist" else FARM_S
    with ways(stock, *tiers) as found:
        hit = [way for tier, way in found.items() if where in (tier, "both")]
        async with cell(folder, stock, found, profile) as (cache, watch), trio.open_nursery() as nursery:
            for way in hit:
                way.hit(name)
            ends = time.monotonic() + OUTAGE_S

            async def heal() -> None:
                await trio.sleep(ends - time.monotonic())
                for way in hit:
                    way.heal()

            nursery.start_soon(heal)
            outcome = await read(cache, stock.first, deadline_s)
            assert outcome.took_s < deadline_s + LATE_S, f"the read ended after {outcome.took_s:.1f} s"
            assert outcome.data in (None, stock.first.data), "wrong bytes"
            if where == "site" or (profile == "farm" and name not in FINAL):
                assert outcome.error is None, f"the read failed after {outcome.took_s:.1f} s: {outcome.error}"
            assert any(way.was_hit for way in hit), "the fault met nobody"
            await trio.sleep(max(0.0, ends + 0.05 - time.monotonic()))
            took_s = [await recovered(cache, made) for made in (stock.second, stock.first)]
            print(
                f"{name} at {where}, {profile}: {outcome.took_s:.1f} s; after it {took_s[0]:.1f} and {took_s[1]:.1f} s"
            )
            watch.check()
