"""Which notices a change of the head needs, and in which order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from manifest.library import Library
from manifest.names import Revision
from manifest.replica import Replica
from tests.vfs.publisher import Change, Folder, Link, Publisher
from vfs import inodes
from vfs.inodes import LIVE, Ino
from vfs.invalidation import FENCE, Notice, plan

SLOT = 7


class Planned:
    """A show, and the plan of each further publish."""

    def __init__(self, folder: Path) -> None:
        self.publisher = Publisher(Library.open("memory://"), folder, "apollo")
        self.reader = Replica.open_reader(folder / "apollo.db")

    def publish(self, *publishes: dict[str, Change]) -> list[Notice]:
        before = self.publisher.head
        for changes in publishes:
            self.publisher.publish(changes)
        made = plan(SLOT, self.reader, before, self.publisher.head)
        return [*made.names, *made.links, *made.folders]

    def folder(self, path: str, revision: int | None = None) -> Ino:
        row = self.reader.resolve(path, self.publisher.head if revision is None else Revision(revision))
        assert row is not None
        return inodes.folder_ino(SLOT, LIVE, row.node)

    def close(self) -> None:
        self.reader.close()
        self.publisher.close()


@pytest.fixture
def planned(tmp_path: Path) -> Iterator[Planned]:
    made = Planned(tmp_path)
    yield made
    made.close()


def test_changed_new_and_removed_names_are_forgotten_then_their_folder(planned: Planned) -> None:
    planned.publish({"d/a": b"1", "d/b": b"2"})
    notices = planned.publish({"d/a": b"3", "d/b": None, "d/c": b"4"})
    folder, root = planned.folder("d"), planned.folder("")
    assert notices == [
        Notice(folder, b"a"),
        Notice(folder, b"b"),
        Notice(folder, b"c"),
        Notice(root, FENCE),
        Notice(folder),
    ]


def test_of_a_new_or_removed_subtree_only_the_topmost_name_is_forgotten(planned: Planned) -> None:
    planned.publish({"x": b"1"})
    assert planned.publish({f"new/{n}/{n}": b"1" for n in range(9)}) == [
        Notice(planned.folder(""), b"new"),
        Notice(planned.folder("")),
    ]
    removed = {f"new/{n}/{n}": None for n in range(9)} | {f"new/{n}": None for n in range(9)} | {"new": None}
    assert planned.publish(dict(removed)) == [Notice(planned.folder(""), b"new"), Notice(planned.folder(""))]


def test_a_folder_that_goes_on_existing_is_never_forgotten_by_name(planned: Planned) -> None:
    planned.publish({"d/e/a": b"1"})
    notices = planned.publish({"d": Folder(0o700), "d/e": Folder(0o700), "d/e/a": b"2"})
    assert {notice.name for notice in notices if notice.name != FENCE} == {b"a", None}
    assert {Notice(planned.folder(path)) for path in ("d", "d/e")} <= set(notices)


def test_a_folder_made_anew_under_its_old_name_is_forgotten_by_name(planned: Planned) -> None:
    planned.publish({"d/a": b"1"})
    notices = planned.publish({"d/a": None, "d": None}, {"d/b": b"2"})
    assert notices == [Notice(planned.folder(""), b"d"), Notice(planned.folder(""))]


def test_links_are_turned_last(planned: Planned) -> None:
    planned.publish({"a/latest": Link("v001"), "a/v001/x": b"1", "z/latest": Link("v001"), "z/v001/x": b"1"})
    notices = planned.publish({"a/latest": Link("v002"), "a/v002/x": b"2", "z/latest": Link("v002"), "z/v002/x": b"2"})
    names = [notice.name for notice in notices if notice.name not in (None, FENCE)]
    assert names == [b"v002", b"v002", b"latest", b"latest"]


def test_each_folder_below_the_root_is_fenced_before_its_attributes_are_forgotten(planned: Planned) -> None:
    planned.publish({"a/b/c/x": b"1", "a/y": b"1"})
    notices = planned.publish({"a/b/c/x": b"2", "a/y": b"2"})
    for path, parent in (("a/b/c", "a/b"), ("a", "")):
        at = notices.index(Notice(planned.folder(path)))
        assert notices[at - 1] == Notice(planned.folder(parent), FENCE)


def test_a_name_that_came_and_went_in_between_leaves_its_folder_with_another_time(planned: Planned) -> None:
    planned.publish({"d/a": b"1"})
    notices = planned.publish({"d/b": b"2"}, {"d/b": None})
    assert notices == [Notice(planned.folder(""), FENCE), Notice(planned.folder("d"))]
