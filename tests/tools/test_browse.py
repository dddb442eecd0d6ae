"""ls, log and diff."""

from __future__ import annotations

import datetime
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from manifest.digest import Digest
from tests.tools.content import MTIME_NS, noise, publish
from tests.tools.test_library import error_of
from tools import browse, main

if TYPE_CHECKING:
    from tests.harness import Studio

ITEM_FILE = {"name", "kind", "revision", "mode", "size", "mtime", "mtime_ns", "digest"}


@pytest.fixture
def plate(user: Studio) -> Studio:
    """Three revisions: two versions of a plate, and the tag that moved."""
    publish(user, {"plate/v001/a.exr": noise(9000), "plate/v001/b.exr": b"", "plate/latest": "v001"}, message="one")
    publish(user, {"plate/v002/a.exr": noise(9000, 1), "plate/latest": "v002"}, message="two\n\nat length")
    publish(user, {"docs": 0o750, "note.txt": b"hello"}, message="three")
    return user


def names(user: Studio, *arguments: str) -> list[str]:
    return [entry["name"] for entry in user.json("ls", *arguments)["entries"]]


def test_ls_lists_a_folder_at_the_head(plate: Studio) -> None:
    assert names(plate, "apollo") == ["docs", "note.txt", "plate"]
    assert names(plate, "apollo:plate") == ["latest", "v001", "v002"]


def test_ls_of_a_new_show_is_empty(user: Studio) -> None:
    assert user.json("ls", "apollo") == {"show": "apollo", "revision": 0, "path": "", "entries": []}


def test_ls_tells_scripts_everything_of_a_file(plate: Studio) -> None:
    listed = plate.json("ls", "apollo:plate/v001/a.exr")
    assert listed.keys() == {"show", "revision", "path", "entries"}
    (entry,) = listed["entries"]
    assert entry.keys() == ITEM_FILE
    assert entry["size"] == 9000
    assert entry["mode"] == "0640"
    assert entry["revision"] == 1
    assert entry["mtime_ns"] == MTIME_NS
    assert entry["mtime"] == "2023-11-14T22:13:20.123456789Z"
    assert entry["digest"] == str(Digest.of(noise(9000)))


def test_ls_tells_scripts_of_links_and_folders(plate: Studio) -> None:
    entries = {entry["name"]: entry for entry in plate.json("ls", "apollo@3:plate", "-r")["entries"]}
    assert entries["latest"] == {"name": "latest", "kind": "link", "revision": 2, "target": "v002"}
    assert entries["v001"] == {"name": "v001", "kind": "folder", "revision": 1, "mode": "0755"}
    assert "v001/a.exr" in entries


def test_ls_prints_tab_separated_lines_into_a_pipe(plate: Studio) -> None:
    lines = plate.run("ls", "apollo:plate").splitlines()
    assert lines[0] == "lrwxrwxrwx\t\t\tlatest → v002"
    assert all(len(line.split("\t")) == 4 for line in lines)


def test_ls_of_a_revision_shows_the_past(plate: Studio) -> None:
    assert names(plate, "apollo@1") == ["plate"]
    assert names(plate, "apollo@0") == []


def test_ls_of_a_time_shows_the_last_revision_by_then(plate: Studio) -> None:
    newest = plate.json("log", "apollo")["revisions"][0]
    second = newest["time_ns"] // 10**9 + 1
    later = datetime.datetime.fromtimestamp(second, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert plate.json("ls", f"apollo@{later}")["revision"] == 3
    assert [entry["name"] for entry in plate.json("ls", f"apollo@{later}:plate/v001")["entries"]] == ["a.exr", "b.exr"]
    assert plate.json("ls", "apollo@2000-01-01")["revision"] == 0


def test_ls_follows_links_inside_the_show(plate: Studio) -> None:
    listed = plate.json("ls", "apollo:plate/latest")
    assert listed["path"] == "plate/v002"
    assert [entry["name"] for entry in listed["entries"]] == ["a.exr"]


def test_a_link_out_of_the_show_is_not_followed(user: Studio) -> None:
    publish(user, {"out": "../../etc", "absolute": "/etc", "around": "around"})
    for name in ("out/passwd", "absolute/passwd", "around/x"):
        error_of(user, "ls", f"apollo:{name}", code=4)


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("apollo:plate/v009", 4),
        ("apollo:note.txt/below", 4),
        ("apollo@99", 4),
        ("zephyr", 4),
        ("Apollo", 2),
        ("apollo@yesterday", 2),
        ("apollo:../etc", 2),
        ("apollo:a//b", 2),
        ("/tmp/not/in/a/mount", 4),
    ],
)
def test_a_place_that_is_not_there_has_a_status_of_its_own(plate: Studio, address: str, code: int) -> None:
    error_of(plate, "ls", address, code=code)


def test_a_missing_show_names_those_that_are_there(plate: Studio) -> None:
    assert "apollo" in error_of(plate, "ls", "zephyr", code=4)


def test_a_name_cannot_drive_the_terminal(user: Studio) -> None:
    publish(user, {"\x1b[31mred\nline": b"x"})
    printed = user.run("ls", "apollo")
    assert "\x1b" not in printed
    assert len(printed.splitlines()) == 1
    assert names(user, "apollo") == ["\x1b[31mred\nline"]


# ---------------------------------------------------------------------------- log


def revisions(user: Studio, *arguments: str) -> list[int]:
    return [entry["revision"] for entry in user.json("log", *arguments)["revisions"]]


def test_log_is_newest_first(plate: Studio) -> None:
    assert revisions(plate, "apollo") == [3, 2, 1]
    assert revisions(plate, "apollo", "-n", "2") == [3, 2]
    assert revisions(plate, "apollo@2") == [2, 1]


def test_log_of_a_path_has_only_what_changed_there(plate: Studio) -> None:
    assert revisions(plate, "apollo:plate") == [2, 1]
    assert revisions(plate, "apollo:plate/latest") == [2, 1]
    assert revisions(plate, "apollo:note.txt") == [3]


def test_log_of_a_path_that_never_was_is_not_found(plate: Studio) -> None:
    assert "apollo has no plate/v009" in error_of(plate, "log", "apollo:plate/v009", code=4)
    assert "up to 1" in error_of(plate, "log", "apollo@1:plate/v002", code=4)


def test_log_of_a_path_that_is_gone_still_tells_of_it(plate: Studio) -> None:
    publish(plate, {"note.txt": None}, message="four")
    assert [one["revision"] for one in plate.json("log", "apollo:note.txt")["revisions"]] == [4, 3]


def test_log_follows_the_links_on_the_way_but_not_the_last(plate: Studio) -> None:
    logged = plate.json("log", "apollo:plate/latest/a.exr")
    assert logged["path"] == "plate/v002/a.exr"
    assert [one["revision"] for one in logged["revisions"]] == [2]
    assert [one["revision"] for one in plate.json("log", "apollo:plate/latest")["revisions"]] == [2, 1]


@pytest.mark.parametrize("address", ["apollo@approved", "apollo@approved:plate", "apollo@", "apollo@-1", "apollo@1.5"])
def test_a_word_for_a_revision_is_refused_and_says_what_is_expected(plate: Studio, address: str) -> None:
    message = error_of(plate, "ls", address, code=2)
    assert "expected its number (@412)" in message


def test_log_of_a_path_is_bounded_and_says_how_to_go_on(
    plate: Studio, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(browse, "SEARCHED_MAX", 2)
    for name, value in plate.env().items():
        monkeypatch.setenv(name, value)
    main.app(["log", "apollo:plate", "--json"], standalone_mode=False)
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert (told["oldest"], [one["revision"] for one in told["revisions"]]) == (2, [2])
    assert "damfs log apollo@1:plate" in printed.err
    assert revisions(plate, "apollo@1:plate") == [1]


def test_log_tells_scripts_everything(plate: Studio) -> None:
    entry: dict[str, Any] = plate.json("log", "apollo")["revisions"][1]
    assert entry.keys() == {
        "revision", "publish_id", "author", "message", "key", "time", "time_ns", "status", "reason"
    }  # fmt: skip
    assert entry["message"] == "two\n\nat length"
    assert entry["author"] == "somebody@example.com"
    assert entry["key"] == plate.json("key", "show")["keyid"]
    assert entry["status"] == "applied"


def test_log_for_people_has_one_line_a_revision(plate: Studio) -> None:
    assert len(plate.run("log", "apollo").splitlines()) == 3


# ---------------------------------------------------------------------------- diff


def test_diff_tells_what_was_added_changed_and_removed(plate: Studio) -> None:
    publish(plate, {"note.txt": b"changed", "docs": None})
    changed = plate.json("diff", "apollo", "1", "4")
    assert changed.keys() == {"show", "path", "a", "b", "changes"}
    words = {change["path"]: change["change"] for change in changed["changes"]}
    assert words["note.txt"] == "added"
    assert words["plate/latest"] == "changed"
    assert words["plate/v002/a.exr"] == "added"
    backward = plate.json("diff", "apollo", "4", "3")["changes"]
    assert {change["path"]: change["change"] for change in backward} == {"docs": "added", "note.txt": "changed"}


def test_diff_shows_both_sides(plate: Studio) -> None:
    (change,) = plate.json("diff", "apollo:plate/latest", "1", "2")["changes"]
    assert change["before"]["target"] == "v001"
    assert change["after"]["target"] == "v002"


def test_diff_of_equal_revisions_is_empty(plate: Studio) -> None:
    assert plate.json("diff", "apollo", "2", "2")["changes"] == []


@pytest.mark.parametrize(
    ("arguments", "code"), [(("apollo", "1", "99"), 4), (("apollo", "x", "1"), 2), (("apollo", "1"), 2)]
)
def test_diff_of_what_is_not_there_fails(plate: Studio, arguments: tuple[str, ...], code: int) -> None:
    assert plate.complete("diff", *arguments).returncode == code


# ---------------------------------------------------------------------------- while the library is away


def test_names_are_shown_from_the_replica_while_the_library_is_away(plate: Studio) -> None:
    expected = plate.run("ls", "apollo"), plate.run("log", "apollo"), plate.run("diff", "apollo", "1", "3")
    shutil.move(plate.folder / "library", plate.folder / "away")
    for arguments, text in zip(
        (("ls", "apollo"), ("log", "apollo"), ("diff", "apollo", "1", "3")), expected, strict=True
    ):
        done = plate.complete(*arguments)
        assert done.returncode == 0
        assert done.stdout == text
    assert "revision 3" in plate.complete("ls", "apollo").stderr


def test_an_unknown_revision_is_unreachable_while_the_library_is_away(plate: Studio) -> None:
    plate.run("ls", "apollo")
    shutil.move(plate.folder / "library", plate.folder / "away")
    done = plate.complete("ls", "apollo@9")
    assert done.returncode == 6


@pytest.mark.parametrize("command", [("ls", "apollo"), ("cat", "apollo:note.txt"), ("verify", "apollo")])
def test_without_a_replica_nothing_works_while_the_library_is_away(plate: Studio, command: tuple[str, ...]) -> None:
    shutil.move(plate.folder / "library", plate.folder / "away")
    error_of(plate, *command, code=6)


def test_the_same_on_s3(s3_user: Studio) -> None:
    publish(s3_user, {"plate/v001/a.exr": noise(9000)}, endpoint=s3_user.environment["AWS_ENDPOINT_URL_S3"])
    assert names(s3_user, "apollo", "-r") == ["plate", "plate/v001", "plate/v001/a.exr"]
    assert revisions(s3_user, "apollo") == [1]
