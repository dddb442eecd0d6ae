"""Inode numbers and show slots."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifest.errors import ConfigurationError, FormatError
from manifest.names import REVISION_MAX, Revision
from vfs import inodes
from vfs.inodes import ID_MAX, LIVE, SLOT_MAX, Slots

slots = st.integers(1, SLOT_MAX)
views = st.one_of(st.just(LIVE), st.integers(0, REVISION_MAX))


@given(slots, st.integers(1, ID_MAX))
def test_a_file_says_its_show_and_its_row(slot: int, row: int) -> None:
    where = inodes.decode(inodes.row_ino(slot, row))
    assert where == (slot, 0, row)
    assert not inodes.is_folder(where)
    assert not inodes.is_time_link(where)


@given(slots, views, st.integers(1, ID_MAX))
def test_a_folder_says_its_show_its_view_and_its_node(slot: int, view: int, node: int) -> None:
    where = inodes.decode(inodes.folder_ino(slot, view, node))
    assert where == (slot, view, node)
    assert inodes.is_folder(where) == (view != 0)  # revision 0 has no folder but the root


@given(slots, views)
def test_the_root_folder_of_every_view_is_a_folder(slot: int, view: int) -> None:
    assert inodes.is_folder(inodes.decode(inodes.folder_ino(slot, view, 0)))


@given(slots, st.integers(0, REVISION_MAX))
def test_the_link_of_a_time_is_neither_file_nor_folder(slot: int, revision: int) -> None:
    where = inodes.decode(inodes.time_link_ino(slot, Revision(revision)))
    assert inodes.is_time_link(where)
    assert not inodes.is_folder(where)
    assert where.view == revision


@given(st.tuples(slots, views, st.integers(0, ID_MAX)), st.tuples(slots, views, st.integers(0, ID_MAX)))
def test_two_folders_never_share_a_number(one: tuple[int, int, int], other: tuple[int, int, int]) -> None:
    assert (inodes.folder_ino(*one) == inodes.folder_ino(*other)) == (one == other)


@given(slots, views, st.integers(0, ID_MAX))
def test_no_number_is_that_of_the_mount_and_all_fit_64_bits(slot: int, view: int, node: int) -> None:
    assert 1 < inodes.folder_ino(slot, view, node) < 2**63


@pytest.mark.parametrize(("slot", "row"), [(1, ID_MAX + 1), (1, 0), (0, 1), (SLOT_MAX + 1, 1)])
def test_an_overflow_is_refused(slot: int, row: int) -> None:
    with pytest.raises(FormatError):
        inodes.row_ino(slot, row)


def test_slots_are_kept_and_never_given_twice(tmp_path: Path) -> None:
    path = tmp_path / "slots.json"
    first = Slots(path)
    first.assign(["zulu", "apollo"])
    first.assign(["apollo", "gemini"])
    again = Slots(path)
    again.assign(["mercury"])
    assert [again.get(show) for show in ("zulu", "apollo", "gemini", "mercury")] == [1, 2, 3, 4]
    assert again.show(2) == "apollo"
    assert again.get("nobody") is None


def test_the_file_of_the_slots_is_not_written_when_nothing_is_new(tmp_path: Path) -> None:
    path = tmp_path / "slots.json"
    known = Slots(path)
    known.assign(["apollo"])
    before = path.stat().st_ino
    known.assign(["apollo"])
    assert path.stat().st_ino == before


def test_more_shows_than_slots_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    known = Slots(tmp_path / "slots.json")
    known.assign([f"s{number}" for number in range(SLOT_MAX)])
    with pytest.raises(ConfigurationError):
        known.assign(["one-more"])
    assert known.get("one-more") is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b'{"_type":"damfs.slots/2","slots":{}}\n',
        b'{"_type":"damfs.slots/1","slots":[]}\n',
        b'{"_type":"damfs.slots/1","slots":{"apollo":0}}\n',
        b'{"_type":"damfs.slots/1","slots":{"apollo":1,"gemini":1}}\n',
        b'{"_type":"damfs.slots/1","slots":{"apollo":true}}\n',
        b'{"_type":"damfs.slots/1","slots":{"../x":1}}\n',
    ],
)
def test_a_damaged_file_of_slots_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "slots.json"
    path.write_bytes(data)
    with pytest.raises(ConfigurationError, match=r"slots\.json"):
        Slots(path)


def test_no_slot_behind_the_last_one_is_given_though_lower_ones_are_free(tmp_path: Path) -> None:
    path = tmp_path / "slots.json"
    path.write_text(f'{{"_type":"damfs.slots/1","slots":{{"apollo":{SLOT_MAX}}}}}\n')
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="4095 inode slots are used up, so gemini cannot be mounted"):
        Slots(path).assign(["gemini"])
    assert path.read_bytes() == before
    assert Slots(path).show(SLOT_MAX) == "apollo"
