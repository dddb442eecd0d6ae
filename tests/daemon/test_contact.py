"""What counts as contact with the library, and what follows from its return."""

from __future__ import annotations

import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from daemon.contact import Contact
from manifest.errors import AccessDenied, DamfsError, Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from manifest.library import Library


class Store:
    """The part of a library that is asked for its shows: fails as told, and answers when it is let go."""

    url = "s3://studio"

    def __init__(self, fault: DamfsError | None = None) -> None:
        self.fault = fault
        self.go = threading.Event()
        self.go.set()
        self.asked = 0

    def folders(self, prefix: str, *, timeout_s: float) -> list[str]:
        assert prefix
        self.asked += 1
        fault = self.fault
        assert self.go.wait(timeout_s)
        if fault is not None:
            raise fault
        return ["apollo"]

    def size(self, key: str, *, timeout_s: float) -> int:
        assert key
        assert timeout_s
        return 1


class Contacted:
    """A contact with a store, and how often the store came back."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.returns = 0
        self.shows: list[str] = []
        library: Library = store  # type: ignore[assignment]
        self.contact = Contact(
            library, pace_s=5, threads=trio.CapacityLimiter(1), on_shows=self._shows, on_return=self._return
        )

    async def _shows(self, shows: list[str]) -> None:
        self.shows = shows

    def _return(self) -> None:
        self.returns += 1


@asynccontextmanager
async def contacted(fault: DamfsError | None = None) -> AsyncIterator[Contacted]:
    made = Contacted(Store(fault))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.contact.run)
        with trio.fail_after(10):
            await made.contact.ask(5)
            yield made
        nursery.cancel_scope.cancel()


async def test_an_answer_that_somebody_else_had_is_contact_at_once() -> None:
    async with contacted(Unavailable("down")) as made:
        assert made.contact.offline
        made.contact.answered()
        made.contact.answered()
        assert not made.contact.offline
        assert made.returns == 1


async def test_a_listing_that_fails_after_somebody_had_an_answer_is_no_outage() -> None:
    async with contacted() as made:
        made.store.fault, made.store.go = Unavailable("it took too long"), threading.Event()
        made.contact.nudge()
        asked = made.store.asked
        while made.store.asked == asked:  # noqa: ASYNC110  a thread gets there
            await trio.sleep(0.01)
        made.contact.answered()
        made.store.go.set()
        await trio.sleep(0.1)
        assert not made.contact.offline
        made.contact.nudge()
        while not made.contact.offline:  # noqa: ASYNC110
            await trio.sleep(0.01)


async def test_who_may_not_list_the_shows_is_told_so_though_other_requests_work() -> None:
    async with contacted(AccessDenied("not yours")) as made:
        made.contact.answered()
        assert made.contact.reason == "not yours"


async def test_the_library_is_asked_on_after_a_bug(caplog: pytest.LogCaptureFixture) -> None:
    async with contacted() as made:
        made.store.go = None  # type: ignore[assignment]
        await made.contact.ask(5)
        assert "a bug of damfs" in caplog.text
        made.store.go = threading.Event()
        made.store.go.set()
        made.shows = []
        await made.contact.ask(5)
        assert made.shows == ["apollo"]


async def test_while_it_is_shut_nothing_is_asked_and_nothing_counts_as_an_answer() -> None:
    async with contacted() as made:
        made.contact.shut("by wish")
        made.contact.nudge()
        await trio.testing.wait_all_tasks_blocked(0.1)
        asked = made.store.asked
        made.contact.nudge()
        made.contact.answered()
        await made.contact.ask(0.3)
        assert made.store.asked == asked
        assert (made.contact.offline, made.contact.reason) == (True, "by wish")
        made.contact.open()
        assert made.contact.offline, "nobody has answered yet"
        returns = made.returns
        while made.contact.offline:  # noqa: ASYNC110  a thread gets there
            await trio.sleep(0.01)
        assert made.store.asked > asked
        assert made.returns == returns + 1
