"""``damfs cache scrub`` and ``verify`` on a real mount: what is wrong on the disk is told, dropped, and right again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.harness import wait_until
from tests.mount.conftest import random_bytes, write_tree

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness import Studio

FILES = {"plate/a.exr": random_bytes(3_000_000, 1), "plate/b.exr": random_bytes(700_000, 2), "note.txt": b"small"}


def largest_object(user: Studio) -> Path:
    """The cache's file of the largest content."""
    objects = [path for path in (user.folder / "cache").rglob("objects/*/*") if path.is_file()]
    return max(objects, key=lambda path: path.stat().st_size)


def damage(path: Path) -> None:
    """Another byte on the disk, behind the cache's back."""
    with path.open("r+b") as file:
        file.seek(1_000_000)
        byte = file.read(1)
        file.seek(1_000_000)
        file.write(bytes([byte[0] ^ 1]))


@pytest.fixture
def reader(artist: Studio, tmp_path: Path) -> Studio:
    """A user with a mount, who has read everything in it."""
    artist.run("publish", write_tree(tmp_path / "source", FILES), "apollo:v001")
    mount = artist.mount()
    for name, data in FILES.items():
        assert (mount.path / "apollo/v001" / name).read_bytes() == data
    wait_until(lambda: artist.json("cache", "verify")["objects"] == len(FILES), "all to be kept")
    artist.expected.append(r"ERROR .*cached file of show apollo.*")
    return artist


def test_what_is_wrong_is_told_dropped_and_right_again(reader: Studio) -> None:
    damage(largest_object(reader))
    done = reader.complete("cache", "verify", "--json")
    assert done.returncode == 7
    report = json.loads(done.stdout)
    assert (report["objects"], report["bad_objects"], report["unknown"]) == (3, 1, 0)
    assert report["bad"][0]["show"] == "apollo"
    assert "not what was written" in report["bad"][0]["reason"]
    assert "look after the disk" in report["error"]["message"]
    assert "checked 3 cached files" in reader.run("cache", "verify")
    path = reader.mounts[0].path / "apollo/v001/plate/a.exr"
    assert path.read_bytes() == FILES["plate/a.exr"]


def test_a_place_is_checked_by_itself(reader: Studio) -> None:
    damage(largest_object(reader))
    assert reader.json("cache", "verify", "apollo:v001/plate/b.exr")["objects"] == 1
    where = reader.mounts[0].path / "apollo/v001/plate"
    done = reader.complete("cache", "scrub", where, "--wait", "--rate", "1GB", "--json")
    assert done.returncode == 7
    assert json.loads(done.stdout)["objects"] == 2
    assert "is being checked" in reader.run("cache", "scrub")
    assert "checked" in reader.run("cache", "scrub", "--wait")
    assert "no bandwidth" in reader.complete("cache", "scrub", "--rate", "10%").stderr
