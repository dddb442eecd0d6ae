"""Pins on a real mount: they bring what they are of, keep it, follow the show, and outlive the daemon."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Mount, Studio, wait_until
from tests.mount.conftest import random_bytes, write_tree

PLATE = {f"plate.{n}.exr": random_bytes(1_000_000, n) for n in range(8)}
OTHER = {f"other.{n}.exr": random_bytes(1_000_000, 100 + n) for n in range(24)}
MORE = {f"more.{n}.exr": random_bytes(1_000_000, 200 + n) for n in range(24)}


def percent(path: Path) -> int:
    return int(os.getxattr(path, "user.damfs.cached"))


def pins(user: Studio) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(user.run("pins", "--json"))["pins"]
    return found


@pytest.fixture
def mounted(artist: Studio, tmp_path: Path) -> Mount:
    artist.run("publish", write_tree(tmp_path / "plate", PLATE), "apollo:plate/v001", "--tag", "latest")
    artist.run("publish", write_tree(tmp_path / "other", OTHER), "apollo:other/v001")
    return artist.mount("--cache-size", "24MB")


def read_all(folder: Path, files: dict[str, bytes]) -> None:
    """More than the cache can hold."""
    for name, data in files.items():
        assert (folder / name).read_bytes() == data


def test_a_pin_is_downloaded_and_stays_whatever_else_is_read(artist: Studio, mounted: Mount, tmp_path: Path) -> None:
    said = artist.run("pin", "apollo:plate/v001")
    assert "8 files of 7.6 MiB, 7.6 MiB to download" in said
    folder = mounted.path / "apollo/plate/v001"
    assert {percent(folder / name) for name in PLATE} == {100}
    read_all(mounted.path / "apollo/other/v001", OTHER)
    assert {percent(folder / name) for name in PLATE} == {100}
    assert sum(percent(mounted.path / "apollo/other/v001" / name) for name in OTHER) < 100 * len(OTHER)
    artist.run("unpin", "apollo:plate/v001")
    artist.run("publish", write_tree(tmp_path / "more", MORE), "apollo:more/v001")
    artist.run("sync", "apollo", "--at-least", "3")
    assert pins(artist) == []
    read_all(mounted.path / "apollo/more/v001", MORE)
    wait_until(lambda: sum(percent(folder / name) for name in PLATE) < 800, "what was pinned to be evicted")


def test_a_pin_follows_the_show_and_outlives_the_daemon(artist: Studio, mounted: Mount, tmp_path: Path) -> None:
    artist.run("pin", mounted.path / "apollo/plate/latest")
    newer = {f"plate.{n}.exr": random_bytes(1_000_000, 50 + n) for n in range(4)}
    artist.unmount(mounted)
    artist.run("publish", write_tree(tmp_path / "newer", newer), "apollo:plate/v002", "--tag", "latest")
    mount = artist.mount("--cache-size", "24MB")
    folder = mount.path / "apollo/plate/v002"
    wait_until(lambda: {percent(folder / name) for name in newer} == {100}, "the new version to be downloaded")
    wait_until(lambda: pins(artist)[0]["state"] == "complete", "the pin to be complete")
    assert (pins(artist)[0]["files"], pins(artist)[0]["cached_bytes"]) == (4, 4_000_000)
    newest = {f"plate.{n}.exr": random_bytes(1_000_000, 70 + n) for n in range(3)}
    artist.run("publish", write_tree(tmp_path / "newest", newest), "apollo:plate/v003", "--tag", "latest")
    wait_until(lambda: pins(artist)[0]["files"] == 3, "the pin to follow the tag")
    wait_until(lambda: pins(artist)[0]["state"] == "complete", "the pin to be complete")
    assert {percent(mount.path / "apollo/plate/v003" / name) for name in newest} == {100}


def test_how_large_a_pin_may_be_and_what_it_is_of(artist: Studio, mounted: Mount) -> None:
    done = artist.complete("pin", "apollo:other", "--recursive")
    assert done.returncode == 3
    assert "cache.pin_share" in done.stderr
    assert pins(artist) == []
    assert {percent(mounted.path / "apollo/other/v001" / name) for name in OTHER} == {0}
    size = json.loads(artist.run("pin", "apollo:plate", "--dry-run", "--json"))
    assert (size["files"], size["bytes"]) == (0, 0)
    size = json.loads(artist.run("pin", "apollo:plate", "--recursive", "--dry-run", "--json"))
    assert (size["files"], size["bytes"], size["cached_bytes"]) == (8, 8_000_000, 0)
    assert artist.complete("pin", "apollo:nowhere").returncode == 4
    assert artist.complete("unpin", "apollo:plate").returncode == 4
    assert artist.complete("unpin", "99").returncode == 4
