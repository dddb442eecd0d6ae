"""Which source is asked, when the next one is, and what becomes of a fetch when none answers. All time is virtual."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from cache.sources.breaker import FRESH_S
from cache.sources.measured import Numbers
from manifest.errors import AccessDenied, DamfsError, DigestMismatch, KnownDown, NotFound, Unavailable
from tests.cache.contents import MIB
from tests.cache.played import ARTIST, DATA, FARM, FOREVER, Played, chained, ref

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cache.sources.chain import Chain

pytestmark = pytest.mark.usefixtures("expects_log")

Clock = trio.testing.MockClock


class Readers:
    """What came of many fetches: the seconds that each took, and the errors."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.errors: list[DamfsError] = []

    async def read(self, chain: Chain, number: int, within_s: float) -> None:
        begun = trio.current_time()
        try:
            assert await chain.fetch(ref(number), begun + within_s) == DATA
        except DamfsError as error:
            self.errors.append(error)
        self.seconds.append(trio.current_time() - begun)


async def read_all(chain: Chain, numbers: Iterable[int], *, within_s: float = 30) -> Readers:
    """Fetches at the same time, until all have ended."""
    readers = Readers()
    async with trio.open_nursery() as nursery:
        for number in numbers:
            nursery.start_soon(readers.read, chain, number, within_s)
    return readers


@pytest.mark.parametrize("fault", [NotFound("no"), AccessDenied("no"), DigestMismatch("html"), Unavailable("refused")])
async def test_what_the_site_has_not_got_is_asked_of_the_central_store_at_once(
    fault: DamfsError, autojump_clock: Clock
) -> None:
    site, central = Played("site", fault=fault, delay_s=0.01), Played()
    async with chained(site, central) as chain:
        readers = await read_all(chain, [1])
        assert readers.errors == []
        assert readers.seconds[0] < 0.2
        assert (len(site.asked), len(central.asked)) == (1, 1)


async def test_a_site_that_is_down_is_not_asked_and_costs_no_time(autojump_clock: Clock) -> None:
    site, central = Played("site"), Played()
    site.down()
    async with chained(site, central) as chain:
        for number in range(8):
            await read_all(chain, [number])
        asked = len(site.asked)
        readers = await read_all(chain, range(10, 20))
        assert len(site.asked) == asked
        assert max(readers.seconds) == pytest.approx(central.delay_s)
        assert chain.available() is None
        site.up()
        await trio.sleep(6)
        await read_all(chain, [30])
        assert len(site.asked) == asked + 1


async def test_a_wrong_answer_counts_against_the_site_when_the_central_store_has_it_right(
    autojump_clock: Clock,
) -> None:
    site, central = Played("site", fault=DigestMismatch("flipped")), Played()
    numbers: dict[str, Numbers] = {}
    async with chained(site, central, numbers=numbers) as chain:
        for number in range(200):
            assert (await read_all(chain, [number])).errors == []
        assert numbers["site"].opened
        assert len(site.asked) < 20


async def test_what_is_damaged_in_the_library_is_not_blamed_on_the_site(autojump_clock: Clock) -> None:
    site, central = Played("site", fault=DigestMismatch("x")), Played(fault=DigestMismatch("y"))
    async with chained(site, central) as chain:
        for number in range(20):
            (error,) = (await read_all(chain, [number])).errors
            assert isinstance(error, DigestMismatch)
        assert chain.status()[0].breaker == "closed"
        assert len(central.asked) == 40  # each is asked once more


async def test_a_site_that_is_merely_slow_is_left_within_the_budget_only(autojump_clock: Clock) -> None:
    site, central = Played("site", delay_s=6), Played()
    numbers: dict[str, Numbers] = {}
    async with chained(site, central, numbers=numbers, relief_bytes_max=4 * MIB) as chain:
        readers = await read_all(chain, range(200))
        assert readers.errors == []
        assert len(central.asked) <= 4 + 0.05 * 200
        assert 4 <= numbers["site"].relieved == len(central.asked)
        assert numbers["site"].not_relieved == 200 - numbers["site"].relieved
        assert chain.status()[0].breaker == "closed"
        assert max(readers.seconds) == pytest.approx(site.delay_s)


async def test_what_the_budget_allows_comes_from_the_central_store_without_the_wait(autojump_clock: Clock) -> None:
    site, central = Played("site", delay_s=20), Played()
    async with chained(site, central) as chain:
        readers = await read_all(chain, range(8))
        assert max(readers.seconds) == pytest.approx(ARTIST.slow_s + central.delay_s)
        assert site.given_up == 8


async def test_without_a_budget_a_slow_site_is_asked_again_until_the_deadline_and_never_left(
    autojump_clock: Clock,
) -> None:
    site, central = Played("site", delay_s=FOREVER), Played()
    async with chained(site, central, relief_bytes_max=0) as chain:
        readers = await read_all(chain, [1])
        assert isinstance(readers.errors[0], Unavailable)
        assert readers.seconds[0] <= 30
        assert central.asked == []
        assert len(site.asked) > 2


async def test_one_slow_drip_holds_its_fetch_for_no_longer_than_its_part_of_the_deadline(
    autojump_clock: Clock,
) -> None:
    site, central = Played("site"), Played()
    calls: list[int] = []

    def first_drips(_: object) -> float:
        calls.append(1)
        return FOREVER if len(calls) == 1 else 0.1

    site.delay_of = first_drips
    async with chained(site, central, relief_bytes_max=0) as chain:
        readers = await read_all(chain, [1])
        assert readers.errors == []
        assert readers.seconds[0] <= 15.5
        assert central.asked == []


async def test_a_slow_drip_of_the_only_source_is_asked_for_beside_itself(autojump_clock: Clock) -> None:
    central = Played()
    async with chained(central) as chain:
        await read_all(chain, range(40))  # it knows by now how long it takes
        calls: list[int] = []

        def first_drips(_: object) -> float:
            calls.append(1)
            return FOREVER if len(calls) == 1 else 0.1

        central.delay_of = first_drips
        readers = await read_all(chain, [50])
        assert readers.seconds[0] <= 0.5
        assert chain.status()[0].hedges_won == 1


async def test_a_site_that_says_nothing_at_all_is_left_for_good_within_seconds(autojump_clock: Clock) -> None:
    site, central = Played("site"), Played()
    site.mute()
    async with chained(site, central, relief_bytes_max=0) as chain:
        readers = await read_all(chain, range(100))
        assert readers.errors == []
        assert max(readers.seconds) <= 15
        readers = await read_all(chain, range(100, 200))
        assert max(readers.seconds) < 1


async def test_an_artist_waits_a_moment_for_the_return_and_later_readers_fail_at_once(autojump_clock: Clock) -> None:
    site, central = Played("site"), Played()
    site.down()
    central.down()
    async with chained(site, central, policy=ARTIST) as chain:
        readers = await read_all(chain, range(10))
        assert len(readers.errors) == 10
        assert max(readers.seconds) <= ARTIST.outage_s + 0.5
        readers = await read_all(chain, range(10, 20))
        assert {type(error) for error in readers.errors} == {KnownDown}
        assert max(readers.seconds) == 0
        assert "central is down since" in str(readers.errors[0])
        assert "connection refused" in (chain.available() or "")


async def test_a_short_outage_is_no_error_for_an_artist(autojump_clock: Clock) -> None:
    central = Played()
    central.down()
    async with chained(central, policy=ARTIST) as chain, trio.open_nursery() as nursery:
        readers = Readers()
        for number in range(20):
            nursery.start_soon(readers.read, chain, number, 30)
        await trio.sleep(3)
        central.up()
        chain.hurry()
        await trio.sleep(2)
        assert len(readers.seconds) == 20
        assert readers.errors == []


async def test_a_renderer_waits_for_minutes_and_goes_on_at_once_when_the_store_is_back(autojump_clock: Clock) -> None:
    central = Played()
    central.down()
    async with chained(central, policy=FARM) as chain, trio.open_nursery() as nursery:
        readers = Readers()
        for number in range(200):
            nursery.start_soon(readers.read, chain, number, 600)
        await trio.sleep(500)
        assert readers.seconds == []
        assert len(central.asked) <= 200 + 10  # once each at first, and not stormed then
        central.up()
        chain.hurry()
        await trio.sleep(1)
        assert len(readers.seconds) == 200
        assert readers.errors == []


async def test_a_renderer_goes_on_within_seconds_without_any_sign_but_a_probe(autojump_clock: Clock) -> None:
    site, central = Played("site"), Played()
    site.down()
    central.down()
    async with chained(site, central, policy=FARM) as chain, trio.open_nursery() as nursery:
        readers = Readers()
        for number in range(20):
            nursery.start_soon(readers.read, chain, number, 600)
        await trio.sleep(120)
        site.up()
        await trio.sleep(7)
        assert len(readers.seconds) == 20
        assert readers.errors == []


async def test_what_is_silent_from_the_start_is_known_to_be_down_without_a_first_victim(autojump_clock: Clock) -> None:
    central = Played()
    central.down()
    async with chained(central) as chain:
        chain.silent("the host name cannot be resolved", known_before=True)
        readers = await read_all(chain, [1])
        assert isinstance(readers.errors[0], KnownDown)
        assert readers.seconds[0] <= 0.1, "a look at it is all that is waited for"
        central.up()
        chain.hurry()
        assert (await read_all(chain, [2])).errors == []


async def test_a_line_that_is_full_of_chunks_is_not_down_because_a_listing_took_too_long(
    autojump_clock: Clock,
) -> None:
    central = Played(delay_s=15)
    async with chained(central) as chain, trio.open_nursery() as nursery:
        readers = Readers()
        for number in range(8):
            nursery.start_soon(readers.read, chain, number, 30)
        for _ in range(3):
            await trio.sleep(4)
            chain.silent("no answer in time")
        await trio.sleep(4)
        assert chain.available() is None
        assert len(readers.seconds) == 8
        assert readers.errors == []


async def test_what_does_not_answer_a_listing_and_is_not_asked_for_anything_else_is_down(autojump_clock: Clock) -> None:
    central = Played()
    central.mute()
    async with chained(central) as chain:
        chain.silent("no answer in time")
        assert "no answer in time" in (chain.available() or "")


async def test_what_has_just_come_back_is_no_error_for_a_reader(autojump_clock: Clock) -> None:
    central = Played()
    central.down()
    async with chained(central) as chain:
        chain.silent("connection refused", known_before=True)
        await trio.sleep(60)
        central.up()
        await trio.sleep(FRESH_S)
        readers = await read_all(chain, range(20))
        assert readers.errors == []
        assert max(readers.seconds) < 1


async def test_readers_of_what_says_nothing_are_kept_for_a_second_only(autojump_clock: Clock) -> None:
    central = Played()
    central.mute()
    async with chained(central) as chain:
        chain.silent("no route to host", known_before=True)
        await trio.sleep(60)
        readers = await read_all(chain, range(20))
        assert len(readers.errors) == 20
        assert max(readers.seconds) <= 1.1
        assert central.asked == []
        assert central.probes_at_once == 1


async def test_what_is_forbidden_asks_nobody_and_ends_what_waits(autojump_clock: Clock) -> None:
    central = Played()
    central.down()
    async with chained(central, policy=FARM) as chain, trio.open_nursery() as nursery:
        readers = Readers()
        nursery.start_soon(readers.read, chain, 1, 600)
        await trio.sleep(60)
        chain.forbid("offline, as asked for")
        await trio.sleep(0.1)
        assert [str(error).rpartition(": ")[2] for error in readers.errors] == ["offline, as asked for"]
        assert chain.available() == "offline, as asked for"
        central.up()
        chain.forbid(None)
        await trio.sleep(6)
        assert (await read_all(chain, [2])).errors == []


async def test_a_reader_that_gives_up_leaves_nothing_under_way(autojump_clock: Clock) -> None:
    site, central = Played("site", delay_s=20), Played(delay_s=20)
    numbers: dict[str, Numbers] = {}
    async with chained(site, central, numbers=numbers) as chain:
        with trio.move_on_after(5):
            await chain.fetch(ref(), trio.current_time() + 30)
        assert [one.in_flight for one in numbers.values()] == [0, 0]
        assert (site.given_up, central.given_up) == (1, 1)


@pytest.mark.parametrize("seed", range(5))
async def test_under_any_weather_every_fetch_ends_by_its_deadline_and_the_budgets_hold(
    seed: int, autojump_clock: Clock
) -> None:
    weather, numbers = random.Random(seed), dict[str, Numbers]()
    site, central = Played("site"), Played()
    async with chained(site, central, numbers=numbers) as chain, trio.open_nursery() as nursery:
        readers = Readers()
        for number in range(300):
            for source in (site, central):
                if weather.random() < 0.05:
                    source.probe_delay_s = 0.01
                    weather.choice([source.up, source.down, source.mute])()
                    source.delay_s = weather.choice([source.delay_s, source.delay_s * 30])
            nursery.start_soon(readers.read, chain, number, 30)
            await trio.sleep(weather.choice([0, 0.1, 1]))
        await trio.sleep(31)
        assert len(readers.seconds) == 300
        assert max(readers.seconds) <= 30.001
        assert numbers["site"].relieved <= 64 + 0.05 * 300
        assert numbers["central"].retries <= 50 + 0.1 * 300 + 2 * trio.current_time()
        for source in (site, central):
            source.up()
            source.probe_delay_s = 0.01
        await trio.sleep(35)
        assert (await read_all(chain, range(1000, 1010))).errors == []
        assert all(one.in_flight == 0 for one in numbers.values())
