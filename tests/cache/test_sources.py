"""The sources and their wrapper; where they wait, time is virtual."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from cache.fetch import Ring
from cache.sources import threads
from cache.sources.central import CentralSource
from cache.sources.protocol import ObjectRef, SourceStatus
from cache.sources.retry import Retrying
from manifest.digest import Digest
from manifest.errors import AccessDenied, DamfsError, FormatError, NotFound, Unavailable
from tests.cache.contents import MIB, SHOW, put, sample

if TYPE_CHECKING:
    from collections.abc import Iterator

    from manifest.library import Library

REF = ObjectRef(SHOW, "chunk", Digest.of(b"chunk"), 5)


class Scripted:
    """A source that answers as told, one answer a call."""

    name = "scripted"

    def __init__(self, *answers: DamfsError | bytes) -> None:
        self.answers = list(answers)
        self.times: list[float] = []

    async def fetch(self, ref: ObjectRef, deadline: float) -> bytes:  # noqa: ARG002 - as scripted
        await trio.lowlevel.checkpoint()
        self.times.append(trio.current_time())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, DamfsError):
            raise answer
        return answer

    def status(self) -> SourceStatus:
        raise NotImplementedError


async def test_what_is_unavailable_is_tried_again(autojump_clock: trio.testing.MockClock) -> None:
    source = Scripted(Unavailable("down"), Unavailable("down"), b"bytes")
    assert await Retrying(source).fetch(REF, trio.current_time() + 30) == b"bytes"
    assert len(source.times) == 3


@pytest.mark.parametrize("error", [NotFound("gone"), AccessDenied("no")])
async def test_an_answer_is_not_asked_for_again(error: DamfsError, autojump_clock: trio.testing.MockClock) -> None:
    source = Scripted(error)
    with pytest.raises(type(error)):
        await Retrying(source).fetch(REF, trio.current_time() + 30)
    assert len(source.times) == 1


async def test_retries_end_before_the_deadline_and_are_spread(autojump_clock: trio.testing.MockClock) -> None:
    source = Scripted(Unavailable("down"))
    begun = trio.current_time()
    with pytest.raises(Unavailable):
        await Retrying(source, uniform=lambda _, high: high).fetch(REF, begun + 30)
    assert trio.current_time() <= begun + 30
    pauses = [b - a for a, b in zip(source.times, source.times[1:], strict=False)]
    assert pauses[:4] == pytest.approx([0.1, 0.2, 0.4, 0.8])
    assert max(pauses) <= 5


async def test_when_the_store_answers_again_every_pause_ends_at_once(autojump_clock: trio.testing.MockClock) -> None:
    source = Scripted(Unavailable("down"))
    retrying = Retrying(source, uniform=lambda _, high: high)
    begun = trio.current_time()

    async def fetch(number: int, landed: list[float]) -> None:
        await retrying.fetch(ObjectRef(SHOW, "chunk", Digest.of(b"%d" % number), 5), begun + 60)
        landed.append(trio.current_time())

    landed: list[float] = []
    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(fetch, number, landed)
        await trio.sleep(15)  # by now each waits for seconds
        source.answers = [b"bytes"]
        retrying.hurry()
        await trio.testing.wait_all_tasks_blocked()
    assert landed == [begun + 15] * 10


async def test_pauses_are_short_again_after_the_store_came_back(autojump_clock: trio.testing.MockClock) -> None:
    source = Scripted(Unavailable("down"))
    retrying = Retrying(source, uniform=lambda _, high: high)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(retrying.fetch, REF, trio.current_time() + 60)
        await trio.sleep(15)
        source.times.clear()
        retrying.hurry()
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    pauses = [b - a for a, b in zip(source.times, source.times[1:], strict=False)]
    assert pauses == pytest.approx([0.1, 0.2, 0.4])


async def test_a_new_reader_shortens_the_pause_of_what_it_wants_and_many_no_more_than_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    source, other = Scripted(Unavailable("down")), ObjectRef(SHOW, "chunk", Digest.of(b"other"), 5)
    retrying = Retrying(source, uniform=lambda _, high: high)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(retrying.fetch, REF, trio.current_time() + 600)
        await trio.sleep(15)
        source.times.clear()
        asked = trio.current_time()
        for _ in range(100):
            retrying.hurry(REF)
            retrying.hurry(other)
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert source.times[0] == asked
    assert 5 <= len(source.times) <= 6
    assert all(b - a >= 0.199 for a, b in zip(source.times, source.times[1:], strict=False))


async def test_the_central_source_hands_out_chunks_and_recipes(library: Library) -> None:
    made = put(library, sample(1, MIB), recipe_object=True)
    source = CentralSource(library)
    digest, length = made.recipe[0]
    deadline = trio.current_time() + 20
    assert bytes(await source.fetch(ObjectRef(SHOW, "chunk", digest, length), deadline)) == made.data[:length]
    recipe = await source.fetch(ObjectRef(SHOW, "recipe", made.content, None), deadline)
    assert recipe == made.recipe.to_object()
    with pytest.raises(NotFound):
        await source.fetch(REF, deadline)
    with pytest.raises(FormatError):  # larger than it may be: refused before it is read
        await source.fetch(ObjectRef(SHOW, "chunk", digest, length - 1), deadline)
    status = source.status()
    assert (status.fetches, status.errors, status.healthy) == (2, 2, False)
    assert status.fetched_bytes == length + len(recipe)
    assert status.last_error
    assert "bytes" in status.last_error
    assert status.url == library.url


class SlowLibrary:
    """A library whose requests block their thread until they are let go."""

    url = "s3://slow"

    def __init__(self) -> None:
        self.go = threading.Event()
        self.timeouts: list[float] = []

    def get(self, key: str, *, timeout_s: float = 30, bytes_max: int | None = None) -> bytes:  # noqa: ARG002
        self.timeouts.append(timeout_s)
        self.go.wait(min(timeout_s, 20))
        raise Unavailable("timed out")

    def get_buffer(self, key: str, *, timeout_s: float = 30, bytes_max: int | None = None) -> memoryview:  # noqa: ARG002
        return memoryview(self.get(key, timeout_s=timeout_s))


@pytest.mark.alone
async def test_a_request_that_finds_no_thread_ends_at_its_deadline() -> None:
    library = SlowLibrary()
    source = CentralSource(library, limiter_threads=2)

    async def ask(deadline: float) -> None:
        with pytest.raises(Unavailable):
            await source.fetch(REF, deadline)

    begun = time.monotonic()
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(ask, trio.current_time() + 15)
        await trio.testing.wait_all_tasks_blocked(0.05)
        for _ in range(20):
            nursery.start_soon(ask, trio.current_time() + 0.3)
        await trio.sleep(0.6)
        assert len(library.timeouts) == 2
        assert source.status().errors == 20
        library.go.set()
    assert time.monotonic() - begun < 5
    assert all(timeout <= 15 for timeout in library.timeouts)


class HangingLibrary(SlowLibrary):
    """A library on a file system that hangs: no time-out counts."""

    def get(self, key: str, *, timeout_s: float = 30, bytes_max: int | None = None) -> bytes:  # noqa: ARG002
        self.timeouts.append(timeout_s)
        self.go.wait(60)
        return b"bytes"


@pytest.fixture
def hanging() -> Iterator[HangingLibrary]:
    library = HangingLibrary()
    yield library
    library.go.set()


async def test_a_request_that_heeds_no_timeout_is_given_up_behind_its_deadline_and_keeps_its_place(
    hanging: HangingLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "OVERTIME_S", 0.1)
    source = CentralSource(hanging, limiter_threads=1)
    for _ in range(2):
        with trio.fail_after(20), pytest.raises(Unavailable):
            await source.fetch(REF, trio.current_time() + 0.2)
    assert len(hanging.timeouts) == 1
    hanging.go.set()
    with trio.fail_after(20):
        assert await source.fetch(REF, trio.current_time() + 20) == b"bytes"


async def test_probes_that_hang_take_no_more_than_a_few_threads(hanging: HangingLibrary) -> None:
    source = CentralSource(hanging)
    for _ in range(3 * threads.BESIDE_MAX):
        with trio.move_on_after(0.05):
            await source.probe(trio.current_time() + 5)
    assert len(hanging.timeouts) <= threads.BESIDE_MAX
    hanging.go.set()
    with trio.fail_after(20):
        await source.probe(trio.current_time() + 20)


async def test_a_thread_that_the_machine_does_not_give_costs_no_place(
    file_library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = put(file_library, sample(1, MIB))
    chunk = ObjectRef(SHOW, "chunk", *made.recipe[0])
    source = CentralSource(file_library, limiter_threads=1)

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr("trio._threads.start_thread_soon", refuse)
        with pytest.raises(RuntimeError):
            await source.fetch(chunk, trio.current_time() + 5)
    assert await source.fetch(chunk, trio.current_time() + 5)


def test_the_ring_is_bounded_and_forgets_the_oldest() -> None:
    ring = Ring(100)
    for i in range(5):
        ring.put((SHOW, bytes([i]), 30), bytes(30))
    assert [ring.get((SHOW, bytes([i]), 30)) is not None for i in range(5)] == [False, False, True, True, True]
    ring.get((SHOW, b"\x02", 30))
    ring.put((SHOW, b"\x09", 30), bytes(30))
    assert ring.get((SHOW, b"\x02", 30)) is not None
    assert ring.get((SHOW, b"\x03", 30)) is None
    ring.put((SHOW, b"\x0a", 30), bytes(101))
    assert ring.get((SHOW, b"\x0a", 30)) is None
