"""Prefetch on a real mount: jobs that bring what will be read, say what they cannot, and outlive the daemon."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import DAMFS, Mount, Studio, detach, studio, wait_until
from tests.mount.conftest import evict, random_bytes, write_tree

if TYPE_CHECKING:
    from collections.abc import Iterator

FRAMES = [*range(1001, 1005), *range(1007, 1009)]
"""1005 and 1006 are a gap."""
PLATE = {f"plate.{n}.exr": random_bytes(500_000, n) for n in FRAMES}
OTHER = {"script.nk": random_bytes(5_000, 1), "sub/grade.cube": random_bytes(90_000, 2)}


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Studio, Mount]]:
    folder = tmp_path_factory.mktemp("source")
    with studio(tmp_path_factory.mktemp("studio") / "studio") as user:
        user.run("init", user.url, "--show", "apollo")
        publish(user, folder)
        yield user, user.mount("--cache-size", "64MB")


def publish(user: Studio, folder: Path) -> None:
    user.run("publish", write_tree(folder / "plate", PLATE), "apollo:plate/v001", "--tag", "latest")
    user.run("publish", write_tree(folder / "other", OTHER), "apollo:other")


@pytest.fixture
def user(shown: tuple[Studio, Mount]) -> Studio:
    """Nothing is cached, and no job is under way."""
    evict(shown[0], "apollo")
    return shown[0]


@pytest.fixture
def live(shown: tuple[Studio, Mount]) -> Path:
    return shown[1].path / "apollo"


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


def job(user: Studio, number: int) -> dict[str, Any]:
    return next(one for one in jobs(user) if one["id"] == number)


def jobs(user: Studio) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(user.run("prefetch", "--jobs", "--json"))["jobs"]
    return found


def test_a_plate_that_was_prefetched_is_read_without_the_store(user: Studio, live: Path) -> None:
    said = user.run("prefetch", "apollo:plate/latest", live / "other", "-r", "--wait")
    assert "8 files of 3.0 MiB, 3.0 MiB to download" in said
    assert "all of it is here" in said
    with without_store(user):
        for folder, files in (("plate/v001", PLATE), ("other", OTHER)):
            for name, data in files.items():
                assert (live / folder / name).read_bytes() == data


def test_what_is_here_costs_nothing_and_the_same_job_twice_is_one(user: Studio, live: Path) -> None:
    first = user.json("prefetch", "apollo:plate/v001", "--wait")
    assert (first["state"], first["brought_bytes"]) == ("complete", 3_000_000)
    before = len(jobs(user))
    again = user.json("prefetch", live / "plate/v001", "--wait")
    assert (again["id"], again["state"], again["brought_bytes"]) == (first["id"], "complete", 0)
    assert len(jobs(user)) == before


def test_frames_of_a_sequence_are_brought_and_those_that_are_not_there_are_named(user: Studio, live: Path) -> None:
    folder = live / "plate/v001"
    pattern = "apollo:plate/v001/plate.####.exr"
    done = user.complete("prefetch", "--sequence", pattern, "--frames", "1003-1007", "--wait")
    assert done.returncode == 4
    assert "2 things of it are not there" in done.stderr
    assert "no frames 1005-1006" in done.stderr
    assert {n: percent(folder / f"plate.{n}.exr") for n in FRAMES} == {
        1001: 0, 1002: 0, 1003: 100, 1004: 100, 1007: 100, 1008: 0
    }  # fmt: skip
    user.run("prefetch", folder / "plate.1001.exr", "--frames", "1001-1008x7", "--wait")
    assert percent(folder / "plate.1001.exr") == percent(folder / "plate.1008.exr") == 100
    user.run("prefetch", "--sequence", "apollo:plate/latest/plate.%04d.exr", "--wait")
    assert percent(folder / "plate.1002.exr") == 100


def test_a_list_names_the_line_that_is_off_and_nothing_is_begun(user: Studio, live: Path, tmp_path: Path) -> None:
    names, before = tmp_path / "needed.txt", len(jobs(user))
    places = ["# for shot 20", "", "apollo:other/script.nk", f"{live}/plate/v001/plate.1001.exr"]
    names.write_text("\n".join([*places, "Apollo", ""]))
    done = user.complete("prefetch", "--list", names, "--wait")
    assert done.returncode == 2
    assert f"{names}, line 5: 'Apollo' is no address" in done.stderr
    assert len(jobs(user)) == before
    names.write_text("\n".join([*places, "apollo:plate/v009"]))
    done = user.complete("prefetch", "--list", names, "--wait")
    assert done.returncode == 4
    assert "no plate/v009" in done.stderr
    assert percent(live / "plate/v001/plate.1001.exr") == percent(live / "other/script.nk") == 100


def test_a_list_can_come_from_stdin(user: Studio, live: Path) -> None:
    done = subprocess.run(
        [*DAMFS, "prefetch", "--list", "-", "--wait"],
        input=b"apollo:plate/v001\r\n", env=user.env(), cwd=user.folder, capture_output=True, timeout=60,
        check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert percent(live / "plate/v001/plate.1001.exr") == 100


def test_what_is_not_here_by_the_deadline_is_said_and_the_job_goes_on(user: Studio) -> None:
    with without_store(user):
        done = user.complete("prefetch", "apollo:plate/v001", "--deadline", "1", "--json")
        found = json.loads(done.stdout)
        assert done.returncode == found["error"]["exit_code"] == 6
        assert f"2.9 MiB of 2.9 MiB are not here after 1 s, job {found['id']} goes on" in done.stderr
        assert job(user, found["id"])["state"] in ("downloading", "waiting")
    wait_until(lambda: job(user, found["id"])["state"] == "complete", "the job to go on", 60)


def test_a_job_is_cancelled_by_its_number_and_by_a_deadline_that_says_so(user: Studio) -> None:
    with without_store(user):
        made = user.json("prefetch", "apollo:plate/v001")
        assert user.json("prefetch", "--cancel", str(made["id"]))["jobs"][0]["state"] == "cancelled"
        done = user.complete("prefetch", "apollo:other", "-r", "--deadline", "0.5", "--or-cancel")
        assert done.returncode == 6
        assert "it is cancelled" in done.stderr
    assert job(user, made["id"])["state"] == "cancelled"
    assert user.complete("prefetch", "--cancel", "99").returncode == 4


def test_a_job_that_is_too_large_is_refused_before_it_begins(user: Studio, live: Path) -> None:
    before = len(jobs(user))
    user.run("cache", "resize", "10MB")
    try:
        done = user.complete("prefetch", "apollo:plate", "-r", "--wait")
        assert done.returncode == 3
        assert "cache.prefetch_share" in done.stderr
        size = user.json("prefetch", "apollo:plate/v001/plate.1001.exr", "--dry-run")
        assert (size["files"], size["bytes"], size["why_not"]) == (1, 500_000, None)
    finally:
        user.run("cache", "resize", "64MB")
    assert len(jobs(user)) == before
    assert {percent(live / "plate/v001" / name) for name in PLATE} == {0}
    assert user.complete("prefetch", "apollo:nowhere").returncode == 4
    assert user.complete("prefetch", "hubble").returncode == 4


def test_a_crash_of_the_daemon_is_waited_over(user: Studio, shown: tuple[Studio, Mount]) -> None:
    with without_store(user):
        waiting = user.start("prefetch", "apollo:plate/v001", "--wait")
        wait_until(lambda: any(one["ended_ns"] is None for one in jobs(user)), "the job to be made")
        shown[1].crash()
    _, said = waiting.communicate(timeout=60)
    assert waiting.returncode == 0, said


def test_a_job_outlives_its_command_and_the_daemon(artist: Studio, tmp_path: Path) -> None:
    publish(artist, tmp_path)
    mounted = artist.mount("--cache-size", "64MB")
    with without_store(artist):
        waiting = artist.start("prefetch", "apollo:plate/v001", "--wait")
        wait_until(lambda: jobs(artist), "the job to be made")
        waiting.send_signal(signal.SIGINT)
        _, said = waiting.communicate(timeout=30)
        assert waiting.returncode == 130
        assert "job 1 goes on" in said
        mounted.kill()
    artist.mounts.remove(mounted)
    detach(mounted.path)
    mount = artist.mount("--cache-size", "64MB")
    wait_until(lambda: jobs(artist)[0]["state"] == "complete", "the job to go on", 40)
    assert {percent(mount.path / "apollo/plate/v001" / name) for name in PLATE} == {100}
