"""``damfs cache``: what it says and what it refuses, on one real mount; tests/mount/ has it under use."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from daemon import client as clients
from daemon import paths
from manifest.errors import AccessDenied
from tests.harness import Studio, studio, wait_until
from tests.tools.content import noise, publish
from tests.tools.test_library import error_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness import Mount

FRAME_BYTES = 200_000
OLD = {f"v001/b.{n}.exr": noise(FRAME_BYTES, 10 + n) for n in range(3)} | {"v001/notes.txt": b"old"}
FILES = {f"plate/v001/a.{n}.exr": noise(FRAME_BYTES, n) for n in range(4)} | {"notes.txt": b"read me"}


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """A mount of 50 MB of cache, with a show that has one version and a note."""
    with studio(tmp_path_factory.mktemp("cache") / "studio") as user:
        user.run("init", user.url, "--show", "apollo")
        user.run("show", "add", "gemini")
        publish(user, FILES)
        publish(user, {**OLD, "latest": "v001"}, show="gemini")
        yield user.mount("--cache-size", "50MB")


@pytest.fixture
def filled(mount: Mount) -> Studio:
    """The same with everything cached, and no limits set."""
    read(mount, "apollo", FILES)
    return mount.studio


def read(mount: Mount, show: str, files: dict[str, bytes]) -> None:
    """Read all these, and wait until they are kept, and nothing has any of it open."""
    for path, data in files.items():
        assert (mount.path / show / path).read_bytes() == data
    wait_until(lambda: cached(mount, show) == dict.fromkeys(files, 100), "everything to be kept")
    wait_until(lambda: mount.status()["cache"]["open_objects"] == 0, "everything to be closed", 30)


def cached(mount: Mount, show: str) -> dict[str, int]:
    """What ``cache ls`` says of every file, in percent; and that the mount says the same."""
    entries = mount.studio.json("cache", "ls", show, "-r")["entries"]
    found = {entry["name"]: entry["percent"] for entry in entries}
    for path, percent in found.items():
        assert int(os.getxattr(mount.path / show / path, "user.damfs.cached")) == percent
    return found


def test_ls_sums_up_what_is_cached_below_a_folder(mount: Mount, filled: Studio) -> None:
    told = filled.json("cache", "ls", "apollo")
    assert (told["show"], told["path"], told["revision"]) == ("apollo", "", 1)
    plate = {"name": "plate", "kind": "folder", "files": 4, "size": 4 * FRAME_BYTES, "cached_bytes": 4 * FRAME_BYTES}
    assert told["entries"] == [
        {"name": "notes.txt", "kind": "file", "files": 1, "size": 7, "cached_bytes": 7, "percent": 100},
        {**plate, "percent": 100},
    ]
    assert filled.run("cache", "ls", mount.path / "apollo/plate").split("\t")[-1] == "v001/\n"


def test_evict_lets_go_of_what_lies_at_a_place_and_says_how_much(mount: Mount) -> None:
    read(mount, "gemini", OLD)
    told = mount.studio.json("cache", "evict", "gemini:latest/b.1.exr")  # links are followed
    assert (told["objects"], told["in_use"], told["pinned"]) == (1, 0, 0)
    assert told["bytes"] >= FRAME_BYTES
    assert cached(mount, "gemini") == {path: 0 if path.endswith("b.1.exr") else 100 for path in OLD}
    assert "evicted 3 files" in mount.studio.run("cache", "evict", mount.path / "gemini")
    assert set(cached(mount, "gemini").values()) == {0}
    for path, data in OLD.items():
        assert (mount.path / "gemini" / path).read_bytes() == data


def test_stats_tell_what_each_show_has_and_where_limits_come_from(mount: Mount, filled: Studio) -> None:
    wait_until(lambda: filled.json("cache", "stats")["shows"]["apollo"]["objects"] == 5, "the shows to be counted")
    told = filled.json("cache", "stats")
    assert told["mountpoint"] == str(mount.path)
    shows = {name: (show["used_bytes"], show["objects"]) for name, show in told["shows"].items() if show["objects"]}
    listed = filled.json("cache", "ls")["shows"]
    assert {show["show"]: (show["used_bytes"], show["objects"]) for show in listed} == shows
    assert sum(show["used_bytes"] for show in told["shows"].values()) == told["used_bytes"]
    assert told["shows"]["apollo"]["fetched_bytes"]["central"] >= 4 * FRAME_BYTES
    (folder,) = told["folders"]
    assert (folder["size_bytes"], folder["set"]) == (50_000_000, [])
    assert folder["limits"]["free_reserve"] == {"count": 10**10, "part": 0.05}
    printed = filled.run("cache", "stats")
    assert "of 47.7 MiB in " in printed
    assert "keeps free 5% or 9.3 GiB, the lesser, of its disk" in printed


def test_a_size_is_in_force_at_once_and_after_the_next_mount_until_it_is_unset(filled: Studio) -> None:
    assert "38.1 MiB (set)" in filled.run("cache", "resize", "40MB", "--wait")
    told = filled.json("cache", "set", "high_water=0.8", "low_water=0.5", "free_reserve=1%,1GB")
    (folder,) = told["folders"]
    assert folder["set"] == ["free_reserve", "high_water", "low_water", "size_bytes"]
    assert folder["limits"]["free_reserve"] == {"count": 10**9, "part": 0.01}
    assert os.stat(f"{folder['folder']}/limits.json").st_mode & 0o777 == 0o600
    (folder,) = filled.json("cache", "set", "--default")["folders"]
    assert (folder["size_bytes"], folder["set"]) == (50_000_000, [])


def test_a_show_has_a_quota_and_a_priority_until_they_are_unset(filled: Studio) -> None:
    filled.run("cache", "set", "--show", "apollo", "quota=20MB", "priority=low")
    told = filled.json("cache", "stats")["shows"]["apollo"]
    assert (told["quota_bytes"], told["priority"]) == (20_000_000, "low")
    filled.run("cache", "set", "--show", "apollo", "quota=none")
    told = filled.json("cache", "stats")["shows"]["apollo"]
    assert (told["quota_bytes"], told["priority"]) == (None, "low")
    filled.run("cache", "set", "--show", "apollo", "--default")
    assert filled.json("cache", "stats")["shows"]["apollo"]["priority"] == "normal"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("resize", "5"), 3, "at least 1,048,576"),
        (("resize", "900PB"), 3, "larger than the disk"),
        (("set", "low_water=0.99"), 3, "low_water < high_water"),
        (("set", "size"), 2, "NAME=VALUE"),
        (("evict", "odyssey"), 4, "apollo"),
        (("ls", "apollo@9"), 4, "newest is 1"),
    ],
)
def test_what_cannot_be_is_refused_with_a_remedy(mount: Mount, words: tuple[str, ...], code: int, said: str) -> None:
    assert said in error_of(mount.studio, "cache", *words, code=code)


def test_a_mount_with_a_cache_of_five_bytes_is_refused(mount: Mount) -> None:
    (mount.studio.folder / "other").mkdir()
    other = mount.studio.folder / "other-cache"
    said = error_of(mount.studio, "mount", "other", "--cache", other, "--cache-size", "5", code=3)
    assert "write the unit, as in 200GB" in said


def test_without_a_mount_there_is_no_cache_to_ask(newcomer: Studio) -> None:
    assert "damfs mount" in error_of(newcomer, "cache", "stats", code=4)


def test_limits_and_names_of_files_are_for_those_who_may_administer_the_mount(
    mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(mount.studio.folder / "run"))
    view = paths.socket_path(mount.path, "view", os.geteuid())
    for name, body in (
        ("limits", {"set": {"size": "8MB"}}), ("ls", {"show": "apollo"}), ("evict", {"show": "apollo"})
    ):  # fmt: skip
        with pytest.raises(AccessDenied, match="admin socket"):
            clients._ask(view, "POST", f"/v1/cache/{name}", body, 5)
