"""mount, umount, status, sync, and paths in a mount; on real mounts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests import stores
from tests.harness import DAMFS, Studio, mounted_below, process_lives, studio, wait_until
from tests.tools.content import noise, publish
from tests.tools.test_library import error_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness import Mount

DATA = noise(20_000)


@pytest.fixture
def plate(user: Studio) -> Studio:
    publish(user, {"plate/v001/a.exr": DATA, "plate/latest": "v001"}, message="one")
    return user


@pytest.fixture
def mount(plate: Studio) -> Iterator[Mount]:
    made = plate.mount()
    yield made
    if made in plate.mounts and process_lives(made.pid):
        plate.unmount(made)


def test_a_mount_answers_when_the_command_returns(mount: Mount) -> None:
    assert (mount.path / "apollo/plate/latest/a.exr").read_bytes() == DATA


def test_mount_tells_scripts_what_is_up(plate: Studio) -> None:
    path = plate.folder / "mnt"
    path.mkdir()
    told = plate.json("mount", path)
    try:
        assert told.keys() == {"mountpoint", "pid", "supervisor_pid", "binding", "binding_reason", "offline", "log"}
        assert process_lives(told["pid"])
        assert process_lives(told["supervisor_pid"])
        assert told["offline"] is False
        assert plate.json("status", path)["pid"] == told["pid"]
    finally:
        plate.run("umount", path)


def test_umount_returns_when_the_daemon_is_gone(plate: Studio) -> None:
    mount = plate.mount()
    assert plate.json("umount", mount.path) == {"mountpoint": str(mount.path), "pid": mount.pid, "serving": False}
    assert not process_lives(mount.pid)
    assert mounted_below(plate.folder) == []
    plate.mounts.clear()


def test_umount_of_a_busy_mount_changes_nothing_and_lazy_detaches_it(plate: Studio) -> None:
    mount = plate.mount()
    with (mount.path / "apollo/plate/v001/a.exr").open("rb") as file:
        assert "--lazy" in error_of(plate, "umount", mount.path, code=3)
        assert file.read() == DATA
        assert f"pid {mount.pid} serves what is open there" in plate.run("umount", mount.path, "--lazy")
        assert mounted_below(plate.folder) == []
    wait_until(lambda: not process_lives(mount.pid), "the daemon to end", 30)
    plate.mounts.clear()


def test_umount_where_nothing_is_mounted_is_not_found(user: Studio) -> None:
    error_of(user, "umount", user.folder, code=4)


def test_a_folder_in_a_mount_is_not_unmounted(mount: Mount) -> None:
    error_of(mount.studio, "umount", mount.path / "apollo", code=4)
    assert process_lives(mount.pid)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda _path: None, "mkdir"),
        (lambda path: path.write_text(""), "folder"),
        (lambda path: (path / "something").mkdir(parents=True), "empty"),
    ],
    ids=["missing", "file", "not empty"],
)
def test_a_mountpoint_that_cannot_be_used_says_why(user: Studio, make: object, word: str) -> None:
    path = user.folder / "mnt"
    make(path)  # type: ignore[operator]
    assert word in error_of(user, "mount", path, code=3)


def test_a_mountpoint_in_use_is_refused(mount: Mount) -> None:
    assert "already mounted" in error_of(mount.studio, "mount", mount.path, code=3)


def test_a_second_daemon_on_one_cache_is_told_who_holds_it(mount: Mount) -> None:
    path = mount.studio.folder / "other"
    path.mkdir()
    assert str(mount.pid) in error_of(mount.studio, "mount", path, code=3)


def test_a_dead_mount_is_cleaned_up_by_the_next(mount: Mount) -> None:
    mount.kill()
    assert mount.path in mounted_below(mount.studio.folder)
    again = mount.studio.mount()
    assert (again.path / "apollo/plate/v001/a.exr").read_bytes() == DATA
    assert mounted_below(mount.studio.folder) == [mount.path]


def test_a_dead_mount_is_unmounted_and_shown_in_the_status(mount: Mount) -> None:
    mount.kill()
    assert str(mount.path) in mount.studio.json("status")["dead"]
    assert "umount" in error_of(mount.studio, "status", mount.path, code=6)
    mount.studio.run("umount", mount.path)
    assert mounted_below(mount.studio.folder) == []


@pytest.mark.parametrize("options", [("-o", "colour=blue"), ("-o", "uid=me"), ("--cache-size",)])
def test_wrong_mount_options_are_a_usage_error(user: Studio, options: tuple[str, ...]) -> None:
    (user.folder / "mnt").mkdir()
    assert user.complete("mount", user.folder / "mnt", *options).returncode == 2


@pytest.mark.parametrize("options", [("--binding", "magic"), ("--cache-size", "much")])
def test_wrong_settings_are_a_configuration_error(user: Studio, options: tuple[str, ...]) -> None:
    (user.folder / "mnt").mkdir()
    error_of(user, "mount", user.folder / "mnt", *options, code=3)


def test_mount_options_reach_the_mount(plate: Studio) -> None:
    cache = plate.folder / "elsewhere"
    mount = plate.mount("-o", "uid=1234,gid=4321", "-o", "allow_other", "--cache", cache, "--cache-size", "1GB")
    found = (mount.path / "apollo/plate").stat()
    assert (found.st_uid, found.st_gid) == (1234, 4321)
    status = mount.status()
    assert status["cache"]["folder"] == str(cache)
    assert status["cache"]["size_bytes"] == 10**9


def test_a_mount_in_the_foreground_stays_until_it_is_ended(plate: Studio) -> None:
    path = plate.folder / "mnt"
    path.mkdir()
    with plate.start("mount", path, "--foreground") as process:
        try:
            wait_until(lambda: path in mounted_below(plate.folder), "the mount")
            wait_until(lambda: plate.complete("status", path).returncode == 0, "the status", 30)
            assert plate.json("status", path)["supervisor_pid"] == process.pid
        finally:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 0
    assert mounted_below(plate.folder) == []


def test_an_error_of_the_daemon_becomes_the_commands_own(newcomer: Studio) -> None:
    (newcomer.folder / "mnt").mkdir()
    (newcomer.folder / "library").mkdir()
    assert "damfs init" in error_of(newcomer, "mount", newcomer.folder / "mnt", code=4)


def test_the_first_mount_of_an_unreachable_library_fails_soon(newcomer: Studio) -> None:
    (newcomer.folder / "mnt").mkdir()
    newcomer.environment |= stores.ENVIRONMENT
    arguments = ("--library", "s3://bucket", "--endpoint", "http://127.0.0.1:9")
    started = time.monotonic()
    error_of(newcomer, "mount", newcomer.folder / "mnt", *arguments, code=6)
    assert time.monotonic() - started < 30


def test_a_later_mount_of_an_unreachable_library_says_that_it_is_offline(plate: Studio) -> None:
    mount = plate.mount()
    assert (mount.path / "apollo/plate/v001/a.exr").read_bytes() == DATA
    plate.unmount(mount)
    shutil.move(plate.folder / "library", plate.folder / "away")
    again = plate.mount()
    assert again.status()["offline"] is True
    assert "OFFLINE" in plate.run("status", again.path)
    assert (again.path / "apollo/plate/v001/a.exr").read_bytes() == DATA


def test_a_missing_trust_file_is_told(plate: Studio) -> None:
    for file in (plate.folder / "config/damfs/trust").iterdir():
        file.unlink()
    (plate.folder / "mnt").mkdir()
    assert "trust" in error_of(plate, "mount", plate.folder / "mnt", code=3)


# ---------------------------------------------------------------------------- status


def test_status_has_what_scripts_rely_on(mount: Mount) -> None:
    status = mount.status()
    assert {"pid", "version", "binding", "shows", "cache", "sources", "offline", "library"} <= status.keys()
    (mount.path / "apollo").stat()
    wait_until(lambda: mount.status()["shows"]["apollo"]["revision"] == 1, "the show")
    assert {"used_bytes", "size_bytes", "hits", "misses"} <= mount.status()["cache"].keys()


def test_status_without_a_mountpoint_lists_every_mount(mount: Mount) -> None:
    told = mount.studio.json("status")
    assert told.keys() == {"mounts", "dead"}
    assert str(mount.path) in [one["mountpoint"] for one in told["mounts"]]
    assert str(mount.path) in mount.studio.run("status")


def test_status_of_what_is_no_mount_is_not_found(user: Studio) -> None:
    error_of(user, "status", user.folder, code=4)


# ---------------------------------------------------------------------------- sync


def test_sync_waits_for_a_revision(mount: Mount) -> None:
    (mount.path / "apollo").stat()
    revision = publish(mount.studio, {"more.txt": b"more"})
    told = mount.studio.json("sync", "apollo", "--at-least", str(revision))
    assert told["revision"] == revision
    assert told["mounts"] == [{"mountpoint": str(mount.path), "revision": revision}]
    assert (mount.path / "apollo/more.txt").read_bytes() == b"more"


def test_sync_takes_a_path_in_the_mount(mount: Mount) -> None:
    assert mount.studio.json("sync", str(mount.path / "apollo"))["revision"] == 1


def test_sync_ends_at_its_timeout(mount: Mount) -> None:
    started = time.monotonic()
    error_of(mount.studio, "sync", "apollo", "--at-least", "9", "--timeout", "1", code=6)
    assert time.monotonic() - started < 15


def test_sync_of_a_show_that_is_not_there_is_not_found(mount: Mount) -> None:
    error_of(mount.studio, "sync", "zephyr", "--timeout", "5", code=4)


def test_sync_without_a_mount_is_not_found(user: Studio) -> None:
    assert "mount" in error_of(user, "sync", "apollo", code=4)


# ---------------------------------------------------------------------------- paths in a mount


def test_every_reading_command_takes_a_path_in_the_mount(mount: Mount) -> None:
    user, plate = mount.studio, str(mount.path / "apollo/plate")
    user.environment["DAMFS_LIBRARY"] = "file:///nowhere"  # the mount's library counts
    assert [entry["name"] for entry in user.json("ls", plate)["entries"]] == ["latest", "v001"]
    assert user.json("ls", f"{mount.path}/apollo@1/plate")["revision"] == 1
    assert [one["revision"] for one in user.json("log", plate)["revisions"]] == [1]
    assert len(user.json("diff", plate, "0", "1")["changes"]) > 0
    assert user.json("export", f"{plate}/latest", "out")["files"] == 1
    assert user.json("verify", str(mount.path / "apollo"))["ok"] is True
    command = [*DAMFS, "cat", "latest/a.exr"]
    done = subprocess.run(command, env=user.env(), cwd=plate, capture_output=True, timeout=60, check=False)
    assert done.stdout == DATA, done.stderr


def test_a_path_in_a_mount_needs_no_option_of_the_mount_again(tmp_path: Path, s3_server: stores.Server) -> None:
    url = f"s3://{s3_server.new_bucket()}/dam"
    with studio(tmp_path / "s", url, **stores.ENVIRONMENT) as user:
        trust = user.folder / "elsewhere/trust.json"
        options = ("--endpoint", s3_server.endpoint, "--region", "eu-west-1", "--trust", trust)
        user.run("init", url, "--show", "apollo", *options)
        (user.folder / "a.txt").write_bytes(DATA)
        user.run("publish", user.folder / "a.txt", "apollo:notes", "-m", "one", *options)
        mount = user.mount(*options)
        user.environment["DAMFS_LIBRARY"] = "file:///nowhere"
        assert [entry["name"] for entry in user.json("ls", mount.path / "apollo")["entries"]] == ["notes"]
        assert user.json("verify", mount.path / "apollo")["ok"] is True
        status = mount.status()
        told = (status["endpoint"], status["region"], status["trust"])
        assert told == (s3_server.endpoint, "eu-west-1", str(trust))


def test_a_link_that_leads_into_the_mount_is_followed(mount: Mount) -> None:
    link = mount.studio.folder / "shortcut"
    link.symlink_to(mount.path / "apollo/plate")
    assert mount.studio.json("ls", str(link))["path"] == "plate"
    assert mount.studio.json("status", str(link))["pid"] == mount.pid


def test_a_path_in_a_dead_mount_says_so_and_does_not_hang(mount: Mount) -> None:
    os.kill(mount.pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        error_of(mount.studio, "ls", str(mount.path / "apollo"), code=6)
        assert time.monotonic() - started < 20
    finally:
        os.kill(mount.pid, signal.SIGCONT)


def test_the_mount_itself_names_no_show(mount: Mount) -> None:
    error_of(mount.studio, "ls", str(mount.path), code=2)


def test_status_json_is_the_daemons_own(mount: Mount) -> None:
    printed = mount.studio.run("status", mount.path, "--json")
    assert json.loads(printed)["mountpoint"] == str(mount.path)
