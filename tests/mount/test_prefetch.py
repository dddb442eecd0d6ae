"""Prefetch on a real mount: jobs that bring what will be read, say what they cannot, and outlive the daemon."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import DAMFS, Mount, Studio, wait_until
from tests.mount.conftest import random_bytes, write_tree

if TYPE_CHECKING:
    from collections.abc import Iterator

FRAMES = [*range(1001, 1005), *range(1007, 1009)]
"""1005 and 1006 are a gap."""
PLATE = {f"plate.{n}.exr": random_bytes(500_000, n) for n in FRAMES}
OTHER = {"script.nk": random_bytes(5_000, 1), "sub/grade.cube": random_bytes(90_000, 2)}


@pytest.fixture
def mounted(artist: Studio, tmp_path: Path) -> Mount:
    artist.run("publish", write_tree(tmp_path / "plate", PLATE), "apollo:plate/v001", "--tag", "latest")
    artist.run("publish", write_tree(tmp_path / "other", OTHER), "apollo:other")
    return artist.mount("--cache-size", "64MB")


@contextmanager
def without_store(user: Studio) -> Iterator[None]:
    """The library is gone, as when the network is."""
    user.expected.append("cannot be read: ")
    library = user.folder / "library"
    library.rename(user.folder / "elsewhere")
    try:
        yield
    finally:
        (user.folder / "elsewhere").rename(library)


def percent(path: Path) -> int:
    return int(os.getxattr(path, "user.damfs.cached"))


def jobs(user: Studio) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(user.run("prefetch", "--jobs", "--json"))["jobs"]
    return found


def test_a_plate_that_was_prefetched_is_read_without_the_store(artist: Studio, mounted: Mount) -> None:
    said = artist.run("prefetch", "apollo:plate/latest", mounted.path / "apollo/other", "-r", "--wait")
    assert "8 files of 3.0 MiB, 3.0 MiB to download" in said
    assert "all of it is here" in said
    with without_store(artist):
        for folder, files in (("plate/v001", PLATE), ("other", OTHER)):
            for name, data in files.items():
                assert (mounted.path / "apollo" / folder / name).read_bytes() == data


def test_what_is_here_costs_nothing_and_the_same_job_twice_is_one(artist: Studio, mounted: Mount) -> None:
    first = artist.json("prefetch", "apollo:plate/v001", "--wait")
    assert (first["state"], first["brought_bytes"]) == ("complete", 3_000_000)
    again = artist.json("prefetch", "apollo:plate/v001", "--wait")
    assert (again["id"], again["state"], again["brought_bytes"]) == (first["id"], "complete", 0)
    assert len(jobs(artist)) == 1


def test_frames_of_a_sequence_are_brought_and_those_that_are_not_there_are_named(
    artist: Studio, mounted: Mount
) -> None:
    folder = mounted.path / "apollo/plate/v001"
    done = artist.complete(
        "prefetch", "--sequence", "apollo:plate/v001/plate.####.exr", "--frames", "1003-1007", "--wait"
    )
    assert done.returncode == 4
    assert "2 things of it are not there" in done.stderr
    assert "no frames 1005-1006" in done.stderr
    wait_until(lambda: jobs(artist)[0]["state"] == "complete", "the job to end")
    assert {n: percent(folder / f"plate.{n}.exr") for n in FRAMES} == {
        1001: 0, 1002: 0, 1003: 100, 1004: 100, 1007: 100, 1008: 0
    }  # fmt: skip
    artist.run("prefetch", folder / "plate.1001.exr", "--frames", "1001-1008x7", "--wait")
    assert percent(folder / "plate.1001.exr") == percent(folder / "plate.1008.exr") == 100
    artist.run("prefetch", "--sequence", "apollo:plate/latest/plate.%04d.exr", "--wait")
    assert percent(folder / "plate.1002.exr") == 100


def test_a_list_names_the_line_that_is_off_and_nothing_is_begun(artist: Studio, mounted: Mount, tmp_path: Path) -> None:
    names = tmp_path / "needed.txt"
    names.write_text(
        f"# for shot 20\n\napollo:other/script.nk\n{mounted.path}/apollo/plate/v001/plate.1001.exr\nApollo\n"
    )
    done = artist.complete("prefetch", "--list", names, "--wait")
    assert (done.returncode, jobs(artist)) == (2, [])
    assert f"{names}, line 5: 'Apollo' is no address" in done.stderr
    names.write_text("\n".join([*names.read_text().splitlines()[:4], "apollo:plate/v009"]))
    done = artist.complete("prefetch", "--list", names, "--wait")
    assert done.returncode == 4
    assert "no plate/v009" in done.stderr
    assert percent(mounted.path / "apollo/plate/v001/plate.1001.exr") == 100
    assert percent(mounted.path / "apollo/other/script.nk") == 100


def test_a_list_can_come_from_stdin(artist: Studio, mounted: Mount) -> None:
    done = subprocess.run(
        [*DAMFS, "prefetch", "--list", "-", "--wait"],
        input=b"apollo:plate/v001\r\n", env=artist.env(), cwd=artist.folder, capture_output=True, timeout=60,
        check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert percent(mounted.path / "apollo/plate/v001/plate.1001.exr") == 100


def test_what_is_not_here_by_the_deadline_is_said_and_the_job_goes_on(artist: Studio, mounted: Mount) -> None:
    with without_store(artist):
        done = artist.complete("prefetch", "apollo:plate/v001", "--deadline", "1")
        assert done.returncode == 6
        assert "2.9 MiB of 2.9 MiB are not here after 1 s, job 1 goes on" in done.stderr
        assert jobs(artist)[0]["state"] in ("downloading", "waiting")
    wait_until(lambda: jobs(artist)[0]["state"] == "complete", "the job to go on", 40)


def test_a_job_is_cancelled_by_its_number_and_by_a_deadline_that_says_so(artist: Studio, mounted: Mount) -> None:
    with without_store(artist):
        artist.run("prefetch", "apollo:plate/v001")
        artist.run("prefetch", "--cancel", "1")
        done = artist.complete("prefetch", "apollo:other", "-r", "--deadline", "0.5", "--or-cancel")
        assert done.returncode == 6
        assert "it is cancelled" in done.stderr
    assert [job["state"] for job in jobs(artist)] == ["cancelled", "cancelled"]
    assert artist.complete("prefetch", "--cancel", "99").returncode == 4
    assert percent(mounted.path / "apollo/plate/v001/plate.1001.exr") == 0


def test_a_job_outlives_its_command_and_the_daemon(artist: Studio, mounted: Mount) -> None:
    with without_store(artist):
        waiting = artist.start("prefetch", "apollo:plate/v001", "--wait")
        wait_until(lambda: jobs(artist), "the job to be made")
        waiting.send_signal(signal.SIGINT)
        _, said = waiting.communicate(timeout=30)
        assert waiting.returncode == 130
        assert "job 1 goes on" in said
        mounted.kill()
    artist.mounts.remove(mounted)
    subprocess.run(["umount", "-l", mounted.path], check=False, capture_output=True, timeout=20)
    mount = artist.mount("--cache-size", "64MB")
    wait_until(lambda: jobs(artist)[0]["state"] == "complete", "the job to go on", 40)
    assert {percent(mount.path / "apollo/plate/v001" / name) for name in PLATE} == {100}


def test_a_job_outlives_a_crash_while_it_is_waited_for(artist: Studio, mounted: Mount) -> None:
    artist.expected.append("is not through")
    with without_store(artist):
        waiting = artist.start("prefetch", "apollo:plate/v001", "--wait")
        wait_until(lambda: jobs(artist), "the job to be made")
        mounted.crash()
    _, said = waiting.communicate(timeout=60)
    assert waiting.returncode == 0, said


def test_a_job_that_is_too_large_is_refused_before_it_begins(artist: Studio, tmp_path: Path) -> None:
    artist.run("publish", write_tree(tmp_path / "plate", PLATE), "apollo:plate/v001")
    mount = artist.mount("--cache-size", "10MB")
    done = artist.complete("prefetch", "apollo:plate", "-r", "--wait")
    assert done.returncode == 3
    assert "cache.prefetch_share" in done.stderr
    assert jobs(artist) == []
    assert {percent(mount.path / "apollo/plate/v001" / name) for name in PLATE} == {0}
    size = artist.json("prefetch", "apollo:plate/v001/plate.1001.exr", "--dry-run")
    assert (size["files"], size["bytes"], size["why_not"]) == (1, 500_000, None)
    assert artist.complete("prefetch", "apollo:nowhere").returncode == 4
    assert artist.complete("prefetch", "hubble").returncode == 4


def test_a_prefetch_does_not_evict_what_is_pinned_or_used_again(artist: Studio, tmp_path: Path) -> None:
    files = {f"f{n:02}.exr": random_bytes(1_000_000, 300 + n) for n in range(40)}
    artist.run("publish", write_tree(tmp_path / "many", files), "apollo:many")
    mount = artist.mount("--cache-size", "20MB")
    folder = mount.path / "apollo/many"
    artist.run("pin", "apollo:many/f00.exr")
    for _ in range(2):
        for n in range(1, 9):
            shutil.copy(folder / f"f{n:02}.exr", tmp_path / "copy")
    for start in (10, 14, 18, 22, 26, 30, 34):
        artist.run("prefetch", *(f"apollo:many/f{n:02}.exr" for n in range(start, start + 4)), "--wait")
    assert {percent(folder / f"f{n:02}.exr") for n in range(9)} == {100}
    assert {percent(folder / f"f{n:02}.exr") for n in range(34, 38)} == {100}
