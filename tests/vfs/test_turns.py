"""While a commit is told to the kernel, name by name: nothing stale is kept, and no link is seen before its target."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manifest.errors import NotFound
from manifest.library import Library
from manifest.names import Revision
from manifest.replica import ROOT_NODE, Kind, Replica, Row
from tests.harness import drilled
from tests.vfs.mounted import Mounted
from tests.vfs.publisher import Change, Link, Publisher
from vfs import inodes
from vfs.handles import FolderHandle
from vfs.inodes import LIVE
from vfs.invalidation import Notice, plan
from vfs.views import ShowView

SLOT = 7
OWNER = (0, 0)


class Kernel:
    """A live view, what a kernel keeps of it, and the turns that it is yet to be told of, notice by notice."""

    def __init__(self, folder: Path) -> None:
        self.publisher = Publisher(Library.open("memory://"), folder, "apollo")
        self.reader = Replica.open_reader(folder / "apollo.db")
        self.view = ShowView("apollo", SLOT, self.reader, Revision(0), self.reader)
        self.kept: dict[tuple[int, bytes], int] = {}
        self.steps: list[Notice | Revision] = []

    def close(self) -> None:
        self.reader.close()
        self.publisher.close()

    def publish(self, changes: dict[str, Change]) -> None:
        self.publisher.publish(changes)

    def advance(self) -> None:
        """As ``Filesystem.advance`` does."""
        head = self.publisher.head
        if head > self.view.head:
            made = plan(SLOT, self.reader, self.view.head, head)
            self.view.head = head
            self.steps += [*made.names, head, *made.links, *made.folders]

    def tell(self, steps: int = 1_000_000) -> None:
        """As the notifier does, so many steps of it."""
        for step in self.steps[:steps]:
            if isinstance(step, Notice):
                self.kept.pop((step.ino, step.name or b""), None)
            else:
                self.view.turn_links(step)
        del self.steps[:steps]

    def look_up(self, path: str) -> Row | None:
        """Walk a path of names, as far as it goes, without following links; what is kept is not asked for."""
        parent, ino = 0, int(inodes.folder_ino(SLOT, LIVE, ROOT_NODE))
        for name in path.split("/"):
            parent = ino
            found = self.kept.get((parent, name.encode()))
            ino = self._ask(parent, name) if found is None else found
            if not ino:
                return None
        where = inodes.decode(ino)
        return self.reader.folder(where.id, self.view.head) if inodes.is_folder(where) else self.reader.get(where.id)

    def _ask(self, parent: int, name: str) -> int:
        node = inodes.decode(parent).id
        try:
            answer = self.view.lookup(LIVE, node, name, OWNER)
        except NotFound:
            return 0
        if answer.entry_timeout_s:
            self._keep(parent, name.encode(), answer.ino)
        return answer.ino

    def list(self, path: str) -> None:
        """READDIRPLUS of a whole folder, whose names are kept if they may be."""
        row = self.reader.resolve(path, self.view.head)
        if row is None or row.kind != Kind.FOLDER:
            return
        parent = inodes.folder_ino(SLOT, LIVE, row.node)
        entries, _, timeout_s = FolderHandle(self.view, LIVE, row.node).batch(0)
        for name, ino, *_ in entries[2:] if timeout_s else ():
            self._keep(parent, name, ino)

    def _keep(self, parent: int, name: bytes, ino: int) -> None:
        assert ino == self.ino_at(inodes.decode(parent).id, name, self.view.head), f"{name!r} is kept, and is not so"
        self.kept[parent, name] = ino

    def ino_at(self, node: int, name: bytes, revision: int) -> int:
        """What a name was at a revision; 0 where it was not."""
        row = self.reader.lookup(node, name.decode(), revision)
        return 0 if row is None else self.view.describe(row, LIVE, Revision(revision))[0]

    def assert_no_target_is_older_than(self, link: Row) -> None:
        """Of what the kernel keeps, all but links is at least as new as a link that it was shown."""
        for (parent, name), ino in self.kept.items():
            node, since = inodes.decode(parent).id, link.since
            if self.reader.folder(node, self.view.head) is None:
                continue
            rows = [self.reader.lookup(node, name.decode(), revision) for revision in range(since, self.view.head + 1)]
            if not any(row is not None and row.kind == Kind.LINK for row in rows):
                inos = {self.ino_at(node, name, revision) for revision in range(since, self.view.head + 1)}
                assert ino in inos, f"{name!r} is kept as before revision {since}, of which {link.name} is"

    def assert_nothing_is_stale(self) -> None:
        for (parent, name), ino in self.kept.items():
            node = inodes.decode(parent).id
            if self.reader.folder(node, self.view.head) is not None:
                assert ino == self.ino_at(node, name, self.view.head), f"{name!r} is stale"


@contextmanager
def kernel_of(folder: Path) -> Iterator[Kernel]:
    made = Kernel(folder)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    with kernel_of(tmp_path) as made:
        yield made


def target_of(row: Row | None) -> str | None:
    return None if row is None else row.target or "no link"


def published(kernel: Kernel, *publishes: dict[str, Change]) -> None:
    for changes in publishes:
        kernel.publish(changes)
    kernel.advance()


def test_a_moved_link_stays_until_the_names_are_told(kernel: Kernel) -> None:
    published(kernel, {"v1/a": b"1", "latest": Link("v1")})
    kernel.tell()
    assert kernel.look_up("v2") is None
    published(kernel, {"v2/a": b"2", "latest": Link("v2")})
    assert target_of(kernel.look_up("latest")) == "v1"
    assert kernel.look_up("v2") is None, "this is what the kernel kept"
    kernel.tell()
    assert target_of(kernel.look_up("latest")) == "v2"
    assert kernel.look_up("v2") is not None


def test_a_new_link_is_not_there_and_a_removed_one_is_until_the_names_are_told(kernel: Kernel) -> None:
    published(kernel, {"v1/a": b"1", "old": Link("v1")})
    kernel.tell()
    published(kernel, {"v2/a": b"2", "new": Link("v2"), "old": None, "n/link": Link("../v2")})
    assert kernel.look_up("new") is None
    assert target_of(kernel.look_up("old")) == "v1"
    assert kernel.look_up("n") is not None
    assert kernel.look_up("n/link") is None, "no notice will come for what is in a new folder"
    kernel.tell()
    assert [target_of(kernel.look_up(name)) for name in ("new", "old", "n/link")] == ["v2", None, "../v2"]


def test_what_becomes_a_link_and_what_was_one_turn_with_the_links(kernel: Kernel) -> None:
    published(kernel, {"file": b"1", "link": Link("file"), "folder/a": b"1", "tag": Link("folder")})
    kernel.tell()
    published(
        kernel,
        {"folder/a": None, "folder": None, "tag": None},
        {"file": Link("x"), "link": b"2", "folder": Link("x"), "tag/a": b"1", "x": b"3"},
    )
    assert [target_of(kernel.look_up(name)) for name in ("file", "link", "folder", "tag")] == [
        "no link", "file", None, "folder",
    ]  # fmt: skip
    kernel.tell()
    assert [target_of(kernel.look_up(name)) for name in ("file", "link", "folder", "tag")] == [
        "x", "no link", "x", "no link",
    ]  # fmt: skip


def test_turns_that_wait_are_shown_one_behind_the_other(kernel: Kernel) -> None:
    published(kernel, {"latest": Link("v0")})
    kernel.tell()
    for n in (1, 2, 3):
        published(kernel, {f"v{n}": b"x", "latest": Link(f"v{n}")})
    seen = []
    while kernel.steps:
        kernel.tell(1)
        seen.append(target_of(kernel.look_up("latest")))
    assert list(dict.fromkeys(seen)) == ["v0", "v1", "v2", "v3"]


def test_a_pinned_view_has_its_links_at_once(kernel: Kernel) -> None:
    published(kernel, {"latest": Link("v0")}, {"latest": Link("v1")})
    assert kernel.view.lookup(2, ROOT_NODE, "latest", OWNER).ino == kernel.ino_at(ROOT_NODE, b"latest", 2)


PATHS = ["a", "b", "c", "d/x", "d/y"]
contents = st.sampled_from(["file", "link a", "link b", "link d/x", "nothing", "nothing"])
changes = st.dictionaries(st.sampled_from(PATHS), contents, min_size=1, max_size=4)
some = st.lists(st.sampled_from(PATHS), min_size=1, max_size=5, unique=True)
actions = st.one_of(
    st.tuples(st.just("publish"), changes),
    st.tuples(st.just("publish and advance"), changes),
    st.tuples(st.just("tell"), st.integers(1, 4)),
    st.tuples(st.just("look up"), some),
    st.tuples(st.just("list"), st.sampled_from(["", "d"])),
)
numbers = count()


def changes_of(kernel: Kernel, wanted: dict[str, str]) -> dict[str, Change]:
    """What to publish so that it changes something, and no folder is left empty."""
    posts = kernel.publisher.posts
    changes: dict[str, Change] = {}
    for path, content in wanted.items():
        kind, _, target = content.partition(" ")
        if kind == "file":
            changes[path] = str(next(numbers)).encode()
        elif kind == "link" and posts.get(path) != Link(target):
            changes[path] = Link(target)
        elif kind == "nothing" and path in posts:
            changes[path] = None
    left = {path for path in posts if path.startswith("d/")} | {path for path in changes if path.startswith("d/")}
    if "d" in posts and all(changes.get(path, posts.get(path)) is None for path in left):
        changes["d"] = None
    return changes


@pytest.mark.drill
@settings(
    max_examples=drilled(60, 3000), deadline=None, suppress_health_check=list(HealthCheck), print_blob=False
)  # fmt: skip
@given(st.lists(actions, min_size=8, max_size=40))
def test_whatever_is_published_and_asked_meanwhile(script: list[tuple[str, Any]]) -> None:
    with TemporaryDirectory(prefix="damfs-test-") as folder, kernel_of(Path(folder)) as kernel:
        for what, argument in script:
            if what.startswith("publish"):
                if wanted := changes_of(kernel, argument):
                    kernel.publish(wanted)
                if what == "publish and advance":
                    kernel.advance()
            elif what == "tell":
                kernel.tell(argument)
            elif what == "list":
                kernel.list(argument)
            for path in argument if what == "look up" else ():
                row = kernel.look_up(path)
                if row is not None and row.kind == Kind.LINK:
                    kernel.assert_no_target_is_older_than(row)
        kernel.advance()
        kernel.tell()
        kernel.assert_nothing_is_stale()
        for path in PATHS:
            row = kernel.look_up(path)
            assert (row and row.id) == ((now := kernel.reader.resolve(path, kernel.view.head)) and now.id)


def test_on_a_mount_a_tag_is_not_seen_before_its_target(mount: Mounted) -> None:
    mount.publish({"v000/a": b"0", "latest": Link("v000"), "gone": Link("v000")})
    root = mount.path / "apollo"
    assert not (root / "v001").exists()
    mount.command(do="hold notices")
    mount.publish({"v001/a": b"1", "latest": Link("v001"), "new": Link("v001"), "gone": None}, settle=False)
    for _ in range(3):
        assert sorted(os.listdir(root)) == ["latest", "new", "v000", "v001"]
        assert os.readlink(root / "latest") == os.readlink(root / "gone") == "v000"
        assert (root / "latest/a").read_bytes() == b"0"
        assert not os.path.lexists(root / "new")
    mount.command(do="let notices go")
    mount.advance()
    assert os.readlink(root / "latest") == os.readlink(root / "new") == "v001"
    assert (root / "latest/a").read_bytes() == b"1"
    assert not os.path.lexists(root / "gone")
