"""The seam between the file system and its bindings: what is answered inline, what is waited for, and the errors."""

from __future__ import annotations

import errno
import inspect
import itertools
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing
from prometheus_client import CollectorRegistry

import manifest.errors
from cache.limits import FolderLimits, Limits
from cache.owner import Owner
from cache.sources.central import CentralSource
from cache.store import CacheStore
from manifest.errors import DamfsError, IsAFolder, NotALink, NotFound, Unavailable
from manifest.library import Library
from manifest.names import Revision
from manifest.replica import Replica
from tests.vfs.publisher import Link, Publisher
from tests.vfs.test_notifier import Target
from vfs.errno import TABLE, ReadOnly, Stale, errno_of
from vfs.filesystem import Filesystem
from vfs.handles import RootHandle
from vfs.inodes import LIVE, ROOT_INO, Slots, folder_ino, row_ino
from vfs.invalidation import Notice, Notifier, plan
from vfs.loading import Wait
from vfs.metrics import Metrics
from vfs.views import ShowView


class Loader:
    """Loads one show, when and if it is told to."""

    def __init__(self, publisher: Publisher, path: Path) -> None:
        self.publisher = publisher
        self.path = path
        self.fs: Filesystem | None = None
        self.readers: list[Replica] = []
        self.error: DamfsError | None = None
        self.reached: list[tuple[str, int]] = []

    async def load(self, show: str) -> bool:
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        if show != "apollo":
            return False
        reader, planner = Replica.open_reader(self.path), Replica.open_reader(self.path)
        self.readers += [reader, planner]
        assert self.fs is not None
        await self.fs.attach(show, reader, reader.head, planner=planner)
        return True

    async def reach(self, show: str, revision: Revision, timeout_s: float) -> None:
        self.reached.append((show, revision))
        await trio.sleep(timeout_s)

    def known_shows(self) -> list[str]:
        return ["apollo"]


@pytest.fixture
async def loader(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Loader]:
    (tmp_path / "state").mkdir()
    publisher = Publisher(Library.open("memory://"), tmp_path / "state", "apollo")
    publisher.publish({"d/a": b"1", "link": Link("d")})
    made = Loader(publisher, tmp_path / "state/apollo.db")
    slots = Slots(tmp_path / "slots.json")
    slots.assign(["apollo"])
    cache = await CacheStore.open(
        [FolderLimits(tmp_path / "cache", Limits(2**20))],
        sources=[CentralSource(publisher.library)],
        nursery=nursery,
        holder="a test",
        owner=Owner("0" * 32, "a test"),
        registry=CollectorRegistry(),
    )
    metrics = Metrics(CollectorRegistry())
    made.fs = Filesystem(cache, made, slots, owner=(1, 2), read_deadline_s=1.0, metrics=metrics)
    yield made
    for reader in made.readers:
        reader.close()
    publisher.close()
    await cache.close()


def filesystem(loader: Loader) -> Filesystem:
    assert loader.fs is not None
    return loader.fs


def test_metadata_is_answered_by_plain_functions() -> None:
    for name in ("lookup", "getattr", "readlink", "open", "release", "opendir", "readdir", "getxattr", "statfs"):
        assert not inspect.iscoroutinefunction(getattr(Filesystem, name)), name


async def test_the_first_use_of_a_show_is_waited_for_and_the_next_is_not(loader: Loader) -> None:
    fs = filesystem(loader)
    with pytest.raises(Wait) as caught:
        fs.lookup(ROOT_INO, b"apollo")
    await fs.wait_for(caught.value)
    show = fs.lookup(ROOT_INO, b"apollo")
    assert show.ino == folder_ino(1, LIVE, 0)
    assert fs.lookup(show.ino, b"d").mode == 0o40755


async def test_an_inode_of_a_show_that_is_not_loaded_yet_is_waited_for(loader: Loader) -> None:
    fs = filesystem(loader)
    for call in (fs.getattr, fs.opendir):
        with pytest.raises(Wait):
            call(folder_ino(1, LIVE, 0))
    assert (await fs.patiently(fs.getattr, folder_ino(1, LIVE, 0))).uid == 1


async def test_a_show_that_is_not_there_is_not_there(loader: Loader) -> None:
    fs = filesystem(loader)
    with pytest.raises(NotFound):
        await fs.patiently(fs.lookup, ROOT_INO, b"gemini")


async def test_a_show_that_cannot_be_loaded_is_an_error_and_not_an_empty_folder(loader: Loader) -> None:
    fs = filesystem(loader)
    loader.error = Unavailable("no network")
    with pytest.raises(Unavailable):
        await fs.patiently(fs.lookup, ROOT_INO, b"apollo")


async def test_a_revision_above_the_head_is_waited_for_once_and_two_seconds(
    loader: Loader, autojump_clock: trio.testing.MockClock
) -> None:
    fs = filesystem(loader)
    started = trio.current_time()
    with pytest.raises(NotFound):
        await fs.patiently(fs.lookup, ROOT_INO, b"apollo@7")
    assert trio.current_time() - started <= 2.0
    assert loader.reached == [("apollo", 7)]


async def test_wrong_uses_of_inodes_are_errors(loader: Loader) -> None:
    fs = filesystem(loader)
    await fs.patiently(fs.lookup, ROOT_INO, b"apollo")
    root = folder_ino(1, LIVE, 0)
    folder, link = fs.lookup(root, b"d"), fs.lookup(root, b"link")
    file = fs.lookup(folder.ino, b"a")
    for error, call, arguments in (
        (IsAFolder, fs.open, (folder.ino, os.O_RDONLY, 1)),
        (IsAFolder, fs.open, (ROOT_INO, os.O_RDONLY, 1)),
        (ReadOnly, fs.open, (file.ino, os.O_RDWR, 1)),
        (NotALink, fs.readlink, (file.ino,)),
        (Stale, fs.getattr, (row_ino(1, 99),)),
        (Stale, fs.getattr, (folder_ino(1, 7, 0),)),
        (Stale, fs.getattr, (folder_ino(2, LIVE, 0),)),
        (Stale, fs.opendir, (folder_ino(1, LIVE, 99),)),
        (Stale, fs.opendir, (folder_ino(1, LIVE, file.ino & 0xFF),)),
        (Stale, fs.readdir, (12345, 0)),
    ):
        with pytest.raises(error):
            call(*arguments)
    assert fs.readlink(link.ino) == b"d"
    with pytest.raises(Stale):
        await fs.read(12345, 0, 1)


async def test_missing_names_may_be_remembered_but_not_in_the_root(loader: Loader) -> None:
    fs = filesystem(loader)
    await fs.patiently(fs.lookup, ROOT_INO, b"apollo")
    absent = fs.lookup(folder_ino(1, LIVE, 0), b"nothing")
    assert absent.ino == 0
    assert absent.entry_timeout_s > 10**9
    for name in (b"Nothing", b"\xff", b"apollo@x"):
        with pytest.raises(NotFound):
            fs.lookup(ROOT_INO, name)


def test_every_error_of_ours_has_an_errno() -> None:
    ours = [kind for kind in vars(manifest.errors).values() if inspect.isclass(kind) and issubclass(kind, DamfsError)]
    assert len(ours) > 15
    for kind in ours:
        assert any(parent in TABLE for parent in kind.__mro__), kind
        assert errno_of(kind("x")) in errno.errorcode


def test_the_errno_of_the_nearest_ancestor_counts() -> None:
    assert errno_of(NotFound("x")) == errno.ENOENT
    assert errno_of(Unavailable("x")) == errno.EIO
    assert errno_of(ReadOnly("x")) == errno.EROFS
    assert errno_of(KeyError("x")) == errno.EIO


def names_behind(fs: Filesystem, handle: int, offset: int) -> list[bytes]:
    """What a listing has behind an offset, batch by batch."""
    names: list[bytes] = []
    while True:
        entries, start, _ = fs.readdir(handle, offset)
        if start >= len(entries):
            return names
        names += [entry[0] for entry in entries[start:]]
        offset = entries[-1][5]


async def test_a_listing_goes_on_behind_any_entry_in_a_handle_that_never_saw_it(loader: Loader) -> None:
    fs = filesystem(loader)
    loader.publisher.publish({f"many/{n:04d}": b"" for n in range(2500)})
    await fs.patiently(fs.lookup, ROOT_INO, b"apollo")
    for ino in (ROOT_INO, folder_ino(1, LIVE, 0), fs.lookup(folder_ino(1, LIVE, 0), b"many").ino):
        whole, offset = [], 0
        while True:
            entries, start, _ = fs.readdir(handle := fs.opendir(ino), offset)
            if start >= len(entries):
                break
            whole += [(entry[0], entry[5]) for entry in entries[start:]]
            offset = whole[-1][1]
        names = [name for name, _ in whole]
        assert names[:2] == [b".", b".."]
        assert names[2:] == sorted(set(names) - {b".", b".."})
        assert len({offset for _, offset in whole}) == len(whole)
        assert names_behind(fs, handle, 0) == names
        for n in (0, 1, 2, len(whole) // 2, len(whole) - 1):
            assert names_behind(fs, fs.opendir(ino), whole[n][1]) == names[n + 1 :]


def test_a_listing_of_the_root_goes_on_where_other_shows_are_known() -> None:
    before = RootHandle([("apollo", 7), ("gemini", 2), ("zulu", 3)])
    after = RootHandle([("aaa", 9), ("apollo", 7), ("gemini", 2), ("zulu", 3)])
    offsets = {entry[0]: entry[5] for entry in before.batch(0).entries}
    entries, start, _ = after.batch(offsets[b"apollo"])
    assert [entry[0] for entry in entries[start:]] == [b"gemini", b"zulu"]
    entries, start, _ = RootHandle([("apollo", 7)]).batch(offsets[b"zulu"])
    assert not entries[start:]


async def attached(loader: Loader, path: Path, told: list[int]) -> ShowView:
    """The show as it is attached by a process that takes a mount over."""
    fs = filesystem(loader)
    reader, planner = Replica.open_reader(path), Replica.open_reader(path)
    loader.readers += [reader, planner]
    await fs.attach("apollo", reader, reader.head, planner=planner, told=[Revision(revision) for revision in told])
    view = fs.views.get("apollo")
    assert view is not None
    return view


def planned(loader: Loader, *revisions: int) -> list[Notice]:
    """All notices of the turns from each revision to the next."""
    made = [plan(1, loader.readers[0], Revision(a), Revision(b)) for a, b in itertools.pairwise(revisions)]
    return [notice for one in made for notice in (*one.names, *one.links, *one.folders)]


async def test_what_a_predecessor_did_not_tell_is_told_in_its_steps(loader: Loader) -> None:
    fs, target = filesystem(loader), Target()
    for n in range(2, 6):
        loader.publisher.publish({f"new{n}": b"", "link": Link(f"new{n}")})
    target.gate.clear()
    async with Notifier(target, Metrics(CollectorRegistry()), on_told=target.on_told) as notifier:
        fs.notify_through(notifier)
        view = await attached(loader, loader.path, [2, 3])
        assert (view.head, view.links) == (5, 2)
        assert fs.readlink(fs.lookup(folder_ino(1, LIVE, 0), b"link").ino) == b"new2"
        target.gate.set()
        await notifier.settle(5)
    assert target.seen == planned(loader, 2, 3, 5)
    assert target.told == [(1, 3), (1, 5)]
    assert view.links == 5
    assert fs.readlink(fs.lookup(folder_ino(1, LIVE, 0), b"link").ino) == b"new5"


async def test_what_is_to_be_told_waits_for_a_notifier(loader: Loader) -> None:
    fs, target = filesystem(loader), Target()
    loader.publisher.publish({"link": Link("e")})
    view = await attached(loader, loader.path, [1])
    loader.publisher.publish({"link": Link("f")})
    await fs.advance("apollo", loader.publisher.head)
    assert (view.head, view.links) == (3, 1)
    async with Notifier(target, Metrics(CollectorRegistry()), on_told=target.on_told) as notifier:
        fs.notify_through(notifier)
        await notifier.settle(5)
    assert target.seen == planned(loader, 1, 2, 3)
    assert (target.told, view.links) == ([(1, 2), (1, 3)], 3)


async def test_links_turn_at_once_where_nobody_is_told(loader: Loader) -> None:
    fs = filesystem(loader)
    await fs.patiently(fs.lookup, ROOT_INO, b"apollo")
    loader.publisher.publish({"link": Link("e")})
    await fs.advance("apollo", loader.publisher.head)
    assert fs.readlink(fs.lookup(folder_ino(1, LIVE, 0), b"link").ino) == b"e"


async def test_a_replica_that_has_less_than_the_kernel_was_told_is_not_served(loader: Loader) -> None:
    with pytest.raises(Unavailable, match="was served at revision 9, and the replica has 1 only"):
        await attached(loader, loader.path, [1, 9])
    assert filesystem(loader).views.get("apollo") is None
