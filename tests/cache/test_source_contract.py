"""What every source and every wrapper around one does: one suite over all of them, on a real library."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from cache.fetch import Verified
from cache.metrics import Counters
from cache.sources import stack
from cache.sources.allowance import Allowance
from cache.sources.breaker import Breaker, BreakerLimits
from cache.sources.central import CentralSource
from cache.sources.chain import Chain
from cache.sources.hedged import Hedged
from cache.sources.measured import Measured, Numbers
from cache.sources.policy import ASKED_ONCE, Policy
from cache.sources.protocol import ObjectRef, Source
from cache.sources.retry import Retrying
from manifest.digest import Digest
from manifest.errors import FormatError, IntegrityError, NotFound, Unavailable
from tests.cache.contents import MIB, SHOW, put, sample
from tests.cache.played import DATA, FOREVER, Played, ref, unobserved

if TYPE_CHECKING:
    from manifest.library import Library

pytestmark = pytest.mark.usefixtures("expects_log")

Wrap = Callable[[Source], Source]


def verified(source: Source) -> Source:
    return Verified(source, Counters(), trio.CapacityLimiter(2))


def measured(source: Source) -> Source:
    return Measured(source, Numbers(), unobserved)


def breaker(source: Source) -> Source:
    return Breaker(source, Numbers(), BreakerLimits(), raw=source)


def hedged(source: Source) -> Source:
    return Hedged(source, Numbers(), Allowance(0.05, 0, 10))


def stacked(source: Source) -> Source:
    """All wrappers as the daemon has them, in one stack."""
    made: Source = the_chain([source], Policy())._last
    return made


def the_chain(sources: list[Source], policy: Policy) -> Chain:
    return stack.chain(sources, policy, verified=lambda source: source, numbers={}, observe=unobserved)


WRAPPERS: dict[str, Wrap] = {
    "alone": lambda source: source,
    "verified": verified,
    "measured": measured,
    "breaker": breaker,
    "hedged": hedged,
    "retrying": Retrying,
    "stack": stacked,
}
wrapped = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())


@wrapped
async def test_it_hands_out_the_bytes_of_a_chunk_and_of_a_recipe(wrap: Wrap, library: Library) -> None:
    made = put(library, sample(1, MIB), recipe_object=True)
    source = wrap(CentralSource(library))
    digest, length = made.recipe[0]
    deadline = trio.current_time() + 30
    assert bytes(await source.fetch(ObjectRef(SHOW, "chunk", digest, length), deadline)) == made.data[:length]
    recipe = await source.fetch(ObjectRef(SHOW, "recipe", made.content, None), deadline)
    assert bytes(recipe) == made.recipe.to_object()
    assert (source.name, source.status().fetches) == ("central", 2)


@wrapped
async def test_what_is_not_there_is_not_found_and_what_is_too_long_is_refused(wrap: Wrap, library: Library) -> None:
    made = put(library, sample(1, MIB))
    source = wrap(CentralSource(library))
    digest, length = made.recipe[0]
    with pytest.raises(NotFound):
        await source.fetch(ObjectRef(SHOW, "chunk", Digest.of(b"nobody"), 6), trio.current_time() + 30)
    with pytest.raises(IntegrityError):
        await source.fetch(ObjectRef(SHOW, "chunk", digest, length - 1), trio.current_time() + 30)
    assert source.status().errors >= 2  # who verifies counts the wrong answer once more


@wrapped
async def test_a_source_that_says_nothing_is_unavailable_at_the_deadline(
    wrap: Wrap, autojump_clock: trio.testing.MockClock
) -> None:
    source, begun = wrap(Played(delay_s=FOREVER)), trio.current_time()
    with pytest.raises(Unavailable):
        await source.fetch(ref(), begun + 30)
    assert 29 <= trio.current_time() - begun <= 30.001


@wrapped
async def test_who_gives_up_leaves_nothing_under_way(wrap: Wrap, autojump_clock: trio.testing.MockClock) -> None:
    played = Played(delay_s=FOREVER)
    source = wrap(played)
    with trio.move_on_after(16):
        await source.fetch(ref(), trio.current_time() + 30)
    assert played.given_up == len(played.asked) > 0
    assert source.status().in_flight == 0


@pytest.mark.parametrize("wrap", [wrap for wrap in WRAPPERS.values() if wrap is not verified])  # whom DATA is wrong for
async def test_many_at_the_same_time_do_not_disturb_each_other(
    wrap: Wrap, autojump_clock: trio.testing.MockClock
) -> None:
    source, done = wrap(Played()), list[bytes]()

    async def fetch(number: int) -> None:
        done.append(bytes(await source.fetch(ref(number), trio.current_time() + 30)))

    async with trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(fetch, number)
    assert done == [DATA] * 100


@asynccontextmanager
async def running(chain: Chain) -> AsyncIterator[Chain]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(chain.run)
        yield chain
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("policy", [Policy(), Policy(outage_s=5), ASKED_ONCE])
async def test_two_real_sources_as_one(policy: Policy, s3_library: Library, file_library: Library) -> None:
    made = put(file_library, sample(1, MIB))
    digest, length = made.recipe[0]
    empty = CentralSource(s3_library, name="site")
    async with running(the_chain([empty, CentralSource(file_library)], policy)) as chain:
        data = await chain.fetch(ObjectRef(SHOW, "chunk", digest, length), trio.current_time() + 30)
        assert bytes(data) == made.data[:length]
        assert [status.name for status in chain.status()] == ["site", "central"]


async def test_a_request_that_was_given_up_holds_its_place_until_its_thread_is_through(file_library: Library) -> None:
    class Slow:
        url = "s3://slow"

        def get(self, key: str, *, timeout_s: float = 30, bytes_max: int | None = None) -> bytes:  # noqa: ARG002
            raise FormatError(key)

        def get_buffer(self, key: str, *, timeout_s: float = 30, bytes_max: int | None = None) -> memoryview:  # noqa: ARG002
            trio.from_thread.run_sync(begun.set)
            trio.from_thread.run(go.wait, trio_token=token)
            return memoryview(DATA)

    begun, go, token = trio.Event(), trio.Event(), trio.lowlevel.current_trio_token()
    source = CentralSource(Slow(), limiter_threads=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.fetch, ref(), trio.current_time() + 30)
        with trio.fail_after(10):
            await begun.wait()
        nursery.cancel_scope.cancel()
    with pytest.raises(Unavailable, match="busy"):
        await source.fetch(ref(), trio.current_time() + 0.1)
    go.set()
    assert bytes(await source.fetch(ref(), trio.current_time() + 10)) == DATA
