"""The thread that writes notices: in order, bounded, and nobody else waits for it."""

from __future__ import annotations

import errno
import threading
from collections.abc import Sequence

import pytest
import trio
import trio.testing
from prometheus_client import CollectorRegistry

from manifest.errors import Unavailable
from manifest.names import Revision
from vfs.inodes import Ino
from vfs.invalidation import NOTICES_MAX, Notice, Notifier, Plan, Turn
from vfs.metrics import Metrics


class Target:
    """Takes notices; ``gate`` closed it blocks, as the kernel does behind an unanswered look-up."""

    def __init__(self) -> None:
        self.seen: list[Notice] = []
        self.told: list[tuple[int, Revision]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.refusal: int | None = None
        self.is_gone = False

    def notify(self, notices: Sequence[Notice]) -> list[tuple[Notice, int]]:
        assert self.gate.wait(30)
        assert 0 < len(notices) <= NOTICES_MAX
        self.seen.extend(notices)
        if self.is_gone:
            raise OSError(errno.ENOTCONN, "gone")
        return [] if self.refusal is None else [(notice, self.refusal) for notice in notices]

    def on_told(self, slot: int, revision: Revision) -> None:
        self.told.append((slot, revision))


def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


class Links:
    """What a turn of the links saw: their revision, and how much had been written by then."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.turns: list[tuple[Revision, int]] = []

    def turn(self, revision: Revision) -> None:
        self.turns.append((revision, len(self.target.seen)))


NOTICES = [Notice(Ino(n), b"name" if n % 2 else None) for n in range(2, 200)]


async def test_notices_are_written_in_order_and_settle_waits_for_them() -> None:
    target = Target()
    async with Notifier(target, metrics()) as notifier:
        for start in range(0, len(NOTICES), 10):
            await notifier.submit(NOTICES[start : start + 10])
        await notifier.settle(5)
        assert target.seen == NOTICES


async def test_a_kernel_that_blocks_holds_nobody_up_but_who_settles() -> None:
    target = Target()
    target.gate.clear()
    async with Notifier(target, metrics()) as notifier:
        with trio.fail_after(2):
            await notifier.submit(NOTICES)
        with pytest.raises(Unavailable):
            await notifier.settle(0.1)
        assert notifier.stuck_s() > 0
        target.gate.set()
        await notifier.settle(5)
        assert target.seen == NOTICES
        assert notifier.stuck_s() == 0


async def test_the_queue_is_bounded_and_drops_nothing() -> None:
    target = Target()
    target.gate.clear()
    async with Notifier(target, metrics()) as notifier:
        accepted = 0
        with trio.move_on_after(0.3):
            for notice in NOTICES:
                await notifier.submit([notice])
                accepted += 1
        assert 10 < accepted < 100
        target.gate.set()
        for notice in NOTICES[accepted:]:
            await notifier.submit([notice])
        await notifier.settle(5)
        assert target.seen == NOTICES


async def test_a_refused_notice_is_counted_and_the_next_is_written(caplog: pytest.LogCaptureFixture) -> None:
    target, counted = Target(), metrics()
    target.refusal = errno.EINVAL
    async with Notifier(target, counted) as notifier:
        await notifier.submit(NOTICES[:3])
        await notifier.settle(5)
    assert target.seen == NOTICES[:3]
    assert counted.notices_failed._value.get() == 3
    caplog.clear()


async def test_behind_the_end_of_the_mount_nothing_waits() -> None:
    target = Target()
    target.is_gone = True
    async with Notifier(target, metrics()) as notifier:
        await notifier.submit(NOTICES)
        with trio.fail_after(5):
            await notifier.settle(5)
            for _ in range(200):
                await notifier.submit(NOTICES)
            await notifier.settle(5)
    assert target.seen == NOTICES


async def test_leaving_does_not_wait_for_a_notice_that_blocks() -> None:
    target = Target()
    target.gate.clear()
    with trio.fail_after(2):
        async with Notifier(target, metrics()) as notifier:
            await notifier.submit(NOTICES)
    target.gate.set()


def turn_to(revision: int, links: Links, notices: list[Notice]) -> Turn:
    third = len(notices) // 3
    plan = Plan(notices[:third], notices[third : 2 * third], notices[2 * third :])
    return Turn(7, Revision(revision), plan, links.turn)


async def test_the_links_turn_behind_the_names_and_who_settles_finds_them_turned() -> None:
    target = Target()
    links = Links(target)
    async with Notifier(target, metrics(), on_told=target.on_told) as notifier:
        for revision in (1, 2, 3):
            await notifier.submit(turn_to(revision, links, NOTICES))
        await notifier.settle(5)
        third = len(NOTICES) // 3
        assert target.seen == NOTICES * 3
        assert [revision for revision, _ in links.turns] == [1, 2, 3]
        assert all(seen >= third + n * len(NOTICES) for n, (_, seen) in enumerate(links.turns)), (
            "the links turned before the names"
        )
        assert target.told == [(7, 1), (7, 2), (7, 3)]


async def test_a_turn_that_does_not_end_is_not_told() -> None:
    target = Target()
    target.is_gone = True
    links = Links(target)
    async with Notifier(target, metrics(), on_told=target.on_told) as notifier:
        await notifier.submit(turn_to(1, links, NOTICES))
        await notifier.settle(5)
    assert (target.told, links.turns) == ([], [])


async def test_a_turn_without_notices_is_told_too() -> None:
    target = Target()
    links = Links(target)
    async with Notifier(target, metrics(), on_told=target.on_told) as notifier:
        await notifier.submit(turn_to(1, links, []))
        await notifier.settle(5)
    assert (target.seen, target.told, links.turns) == ([], [(7, 1)], [(1, 0)])


async def test_many_notices_are_written_in_pieces() -> None:
    target = Target()
    async with Notifier(target, metrics()) as notifier:
        await notifier.submit(NOTICES * 10)
        await notifier.settle(5)
    assert target.seen == NOTICES * 10


async def test_what_was_to_be_told_before_comes_first_however_much_it_is() -> None:
    target = Target()
    links = Links(target)
    turns = [turn_to(revision, links, NOTICES[:3]) for revision in range(1, 500)]
    async with Notifier(target, metrics(), on_told=target.on_told) as notifier:
        notifier.begin_with(turns)
        await notifier.submit(turn_to(500, links, NOTICES[:3]))
        await notifier.settle(5)
    assert [revision for _, revision in target.told] == list(range(1, 501))
