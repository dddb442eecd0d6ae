"""The task that follows a show goes on, whatever an attempt meets."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import trio

from daemon.contact import Contact
from daemon.follow import FollowedShow
from manifest.errors import Busy, Unavailable
from manifest.identity import write_identity
from manifest.library import Library
from tests.manifest.logs import Scribe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from manifest.names import Revision
    from manifest.replica import ReplicaReader
    from manifest.show import Show


class Shown:
    """Takes what is served, as a file system does; ``fault`` is raised once in its place."""

    def __init__(self) -> None:
        self.heads: list[int] = []
        self.fault: BaseException | None = None
        self.told = trio.Event()
        self.told.set()

    async def attach(self, show: str, reader: ReplicaReader, head: Revision, *, planner: ReplicaReader) -> None:
        assert (show, reader.head, planner.head) == ("apollo", head, head)
        self.heads.append(head)

    async def replace(self, show: str, reader: ReplicaReader, *, planner: ReplicaReader) -> Sequence[ReplicaReader]:
        raise AssertionError((show, reader, planner))

    async def advance(self, show: str, head: Revision) -> int:
        assert show == "apollo"
        fault, self.fault = self.fault, None
        if fault is not None:
            raise fault
        self.heads.append(head)
        return 1

    async def settle(self, timeout_s: float) -> None:
        with trio.fail_after(timeout_s):
            await self.told.wait()


class Faulty:
    """Opens the show, once what is to be raised before is used up."""

    def __init__(self, open_show: Callable[[], Show], *faults: BaseException) -> None:
        self.open_show = open_show
        self.faults = list(faults)

    def __call__(self) -> Show:
        if self.faults:
            raise self.faults.pop(0)
        return self.open_show()


@pytest.fixture
def scribe(tmp_path: Path) -> Scribe:
    (tmp_path / "library").mkdir()
    library = Library.open((tmp_path / "library").as_uri())
    write_identity(library)
    return Scribe(library, tmp_path)


def followed(scribe: Scribe, shown: Shown, open_show: Callable[[], Show]) -> FollowedShow:
    threads = trio.CapacityLimiter(2)

    async def on_shows(shows: list[str]) -> None:
        assert shows == ["apollo"]

    contact = Contact(scribe.library, pace_s=5, threads=threads, on_shows=on_shows, on_return=lambda: None)
    return FollowedShow(
        "apollo", open_show=open_show, served_by=shown, contact=contact, interval_s=0.05, threads=threads
    )


FAULTS = [
    MemoryError(),
    RuntimeError("a thing that cannot be"),
    AssertionError(),
    KeyError("seq"),
    OSError(5, "Input/output error"),
    Busy("held"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
async def test_a_show_is_followed_on_after_any_error(
    scribe: Scribe, fault: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    scribe.publish("a")
    shown = Shown()
    show = followed(scribe, shown, Faulty(scribe.show, fault, fault))
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(show.run)
            while not show.loaded:
                with suppress(Unavailable):
                    await show.load(20)
            shown.fault = fault
            scribe.publish("b")
            assert await show.sync(2, 20) == 2
            nursery.cancel_scope.cancel()
    show.close()
    assert shown.heads == [1, 2]
    assert show.status(1).failed_attempts == 3
    is_bug = not isinstance(fault, (MemoryError, OSError, Busy))
    assert caplog.text.count("Traceback") == (2 if is_bug else 0)  # once for each time that it came anew


async def test_a_show_that_is_taken_over_is_looked_into_at_once_and_synced_once_the_kernel_was_told(
    scribe: Scribe,
) -> None:
    """What waits in the kernel for the show to be loaded may be what the notices wait for."""
    scribe.publish("a")
    shown = Shown()
    shown.told = trio.Event()
    show = followed(scribe, shown, scribe.show)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(show.run)
            await show.load(20)
            with pytest.raises(Unavailable, match="the kernel has not taken all notices"):
                await show.sync(1, 0.3)
            shown.told.set()
            assert await show.sync(1, 20) == 1
            nursery.cancel_scope.cancel()
    show.close()
    assert shown.heads == [1]


async def test_a_revision_from_the_future_is_warned_of_once(scribe: Scribe, caplog: pytest.LogCaptureFixture) -> None:
    hour_ns = 3_600_000_000_000
    now_ns = time.time_ns()
    shown = Shown()
    show = followed(scribe, shown, scribe.show)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(show.run)
            for number, ahead_ns in enumerate((0, 10 * hour_ns, 0, hour_ns // 2), 1):
                scribe.publish(f"file{number}", time_ns=now_ns + ahead_ns)
                assert await show.sync(number, 20) == number
            nursery.cancel_scope.cancel()
    show.close()
    warnings = [record.getMessage() for record in caplog.records if "ahead of this machine's clock" in record.message]
    assert len(warnings) == 1
    assert "revision 2 (by ann)" in warnings[0]


async def test_a_log_that_does_not_answer_in_time_is_no_contact(
    scribe: Scribe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.follow.SLICE_S_MIN", 0.3)
    scribe.publish("a")
    shown = Shown()
    show = followed(scribe, shown, scribe.show)
    contact = show._contact
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(show.run)
            assert await show.sync(1, 20) == 1
            assert show._show is not None
            show._show.log.library = Silent(scribe.library)
            contact.begin(offline_because="it was asked for its shows")
            with pytest.raises(Unavailable):
                await show.sync(None, 5)
            assert contact.offline
            assert show.status(1).error
            nursery.cancel_scope.cancel()
    show.close()


class Silent(Library):
    """A library of which no answer comes before the time-out."""

    def __init__(self, library: Library) -> None:
        self.__dict__.update(library.__dict__)

    def get(self, key: str, *, timeout_s: float = 30.0, bytes_max: int | None = None) -> bytes:
        time.sleep(timeout_s + 0.01)
        raise Unavailable(f"{key}: no answer, with {bytes_max}")
