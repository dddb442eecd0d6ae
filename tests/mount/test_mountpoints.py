"""Mounting where it cannot be done says why and what to do, in one or two lines."""

from __future__ import annotations

import os
import subprocess
from functools import partial
from pathlib import Path

import pytest

from tests.harness import Mount, Studio, drilled, mounted_below, wait_until
from tests.mount.conftest import random_bytes, write_tree


def has_cached(mount: Mount, size_bytes: int) -> bool:
    used = mount.status()["cache"]["used_bytes"]
    assert isinstance(used, int)
    return used > size_bytes


def refuse(user: Studio, *arguments: str | Path, code: int = 3) -> str:
    """Run a mount that must fail; returns its message."""
    done = user.complete("mount", *arguments)
    assert done.returncode == code, done.stderr
    lines = done.stderr.strip().splitlines()
    assert 1 <= len(lines) <= 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_missing_mountpoint_is_refused(artist: Studio) -> None:
    assert "none" in refuse(artist, artist.folder / "none")


def test_a_file_as_mountpoint_is_refused(artist: Studio) -> None:
    write_tree(artist.folder, {"file": b""})
    assert "file" in refuse(artist, artist.folder / "file")


def test_a_mountpoint_that_is_not_empty_is_refused(artist: Studio) -> None:
    write_tree(artist.folder / "full", {"file": b""})
    assert "empty" in refuse(artist, artist.folder / "full")
    assert (artist.folder / "full/file").exists()


def test_a_mountpoint_in_use_is_refused_and_goes_on_working(artist: Studio) -> None:
    mount = artist.mount()
    assert "mounted" in refuse(artist, mount.path)
    assert os.listdir(mount.path) == ["apollo"]


def test_a_second_daemon_on_one_cache_folder_is_refused_and_told_who_holds_it(artist: Studio) -> None:
    mount = artist.mount()
    (artist.folder / "second").mkdir()
    message = refuse(artist, artist.folder / "second")
    assert str(mount.pid) in message
    assert str(mount.path) in message
    assert mounted_below(artist.folder) == [mount.path]


def test_a_folder_that_is_no_library_is_refused(artist: Studio) -> None:
    (artist.folder / "mnt").mkdir()
    (artist.folder / "elsewhere").mkdir()
    message = refuse(artist, artist.folder / "mnt", "--library", f"file://{artist.folder}/elsewhere", code=4)
    assert "damfs.json" in message


def test_wrong_credentials_are_refused(s3_user: Studio) -> None:
    s3_user.environment = {
        name: value for name, value in s3_user.environment.items() if not name.startswith("AWS_ACCESS_KEY")
    }
    (s3_user.folder / "mnt").mkdir()
    assert "credentials" in refuse(s3_user, s3_user.folder / "mnt")


def test_a_full_cache_disk_passes_the_bytes_on(artist: Studio, tmp_path: Path) -> None:
    """On a real file system of 24 MiB of which nothing is to stay free, with files of 30 MiB in all."""
    artist.expected.append("database or disk is full")
    image, disk = tmp_path / "disk.img", tmp_path / "disk"
    disk.mkdir()
    with image.open("wb") as file:
        file.truncate(24 * 1024 * 1024)
    subprocess.run(["mkfs.ext4", "-q", image], check=True, timeout=30)
    done = subprocess.run(["mount", "-o", "loop", image, disk], check=False, timeout=30, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no loop devices here: {done.stderr.strip()}")
    try:
        files = {f"plate.{n}.exr": random_bytes(3_000_000, n) for n in range(10)}
        artist.run("publish", write_tree(tmp_path / "source", files), "apollo:v001")
        artist.environment["DAMFS_CACHE__FREE_RESERVE"] = "0"
        mount = artist.mount("--cache", disk / "cache", "--cache-size", "20MB")
        for _ in range(2):
            for name, data in files.items():
                assert (mount.path / "apollo/v001" / name).read_bytes() == data
        artist.unmount(mount)
    finally:
        artist.close()
        subprocess.run(["umount", "-l", disk], check=False, timeout=30)


def test_a_crashed_daemon_leaves_a_mountpoint_that_mount_takes_over(artist: Studio, tmp_path: Path) -> None:
    write_tree(tmp_path, {"plate.exr": b"bytes"})
    artist.run("publish", tmp_path / "plate.exr", "apollo:v001")
    mount = artist.mount()
    mount.kill()
    with pytest.raises(OSError, match=r"not connected|connection abort"):
        os.listdir(mount.path)
    again = artist.mount()
    assert (again.path / "apollo/v001/plate.exr").read_bytes() == b"bytes"
    assert mounted_below(artist.folder) == [mount.path]


@pytest.mark.drill
def test_kill_9_while_filling_leaves_a_cache_that_serves_right_bytes(artist: Studio, tmp_path: Path) -> None:
    files = {f"plate.{n}.exr": random_bytes(4_000_000, n) for n in range(12)}
    artist.run("publish", write_tree(tmp_path / "source", files), "apollo:v001")
    for round_number in range(drilled(3, 50)):
        mount = artist.mount()
        folder = mount.path / "apollo/v001"
        readers = [subprocess.Popen(["cat", folder / name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                   for name in files]  # fmt: skip
        try:
            filled = round_number % 5 * 2_000_000
            wait_until(partial(has_cached, mount, filled), "the cache to fill", 20)
            mount.kill()
        finally:
            for reader in readers:
                reader.wait(30)
    mount = artist.mount()
    for name, data in files.items():
        assert (mount.path / "apollo/v001" / name).read_bytes() == data


def test_a_stop_signal_unmounts_first(artist: Studio) -> None:
    import signal

    mount = artist.mount()
    os.kill(mount.pid, signal.SIGTERM)
    wait_until(lambda: not mounted_below(artist.folder), "the mount to go")
    assert os.listdir(mount.path) == []
