"""Two cache disks under a mount, one of which fails: right bytes all the time, and no new mount when it works again."""

from __future__ import annotations

import errno
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.cache.disk import loop_disk
from tests.harness import Mount, Studio, wait_until
from tests.mount.conftest import random_bytes, write_tree

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cache.disk import LoopDisk

FILES = {f"plate.{n:04d}.exr": random_bytes(2_000_000 if n % 3 else 20_000, n) for n in range(12)}
DISK_MIB = 64
SEEN_S, BACK_S = 15, 30


@pytest.fixture
def disks() -> Iterator[list[LoopDisk]]:
    """Two disks of their own."""
    with loop_disk(DISK_MIB) as one, loop_disk(DISK_MIB) as two:
        yield [one, two]


@pytest.fixture
def mount(artist: Studio, disks: list[LoopDisk], tmp_path: Path) -> Iterator[Mount]:
    """A mount over both disks, with everything cached. It is gone before the disks are."""
    artist.run("publish", write_tree(tmp_path / "source", FILES), "apollo:v001")
    artist.environment["DAMFS_CACHE__FREE_RESERVE"] = "0"
    artist.expected += ["is out of service: ", "is dropped and fetched again: ", "the cache index fails "]
    options = [word for disk in disks for word in ("--cache", f"{disk.path / 'cache'}=50MB")]
    made = artist.mount(*options)
    assert read_every(made) == 0
    wait_until(lambda: made.status()["cache"]["objects"] == len(FILES), "everything to be cached")
    assert all(folder["objects"] for folder in folders(made))
    yield made
    artist.close()


def read_every(mount: Mount) -> int:
    """Read all files: right bytes, or an error of the disk that the kernel reads itself. How many errors there were."""
    errors = 0
    for name, data in FILES.items():
        try:
            assert (mount.path / "apollo/v001" / name).read_bytes() == data
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            errors += 1
    return errors


def folders(mount: Mount) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = mount.status()["cache"]["folders"]
    return found


def dies(disk: LoopDisk) -> None:
    """Every access is an error from now on."""
    disk.cut_power()


def turns_read_only(disk: LoopDisk) -> None:
    disk.meet_an_error()


def is_deleted(disk: LoopDisk) -> None:
    shutil.rmtree(disk.path / "cache")


FAULTS = [
    pytest.param(dies),
    pytest.param(turns_read_only, marks=pytest.mark.drill),
    pytest.param(is_deleted, marks=pytest.mark.drill),
]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_disk_that_fails_costs_no_reader_its_bytes_and_comes_back_without_a_new_mount(
    fault: Any, mount: Mount, disks: list[LoopDisk]
) -> None:
    broken = disks[0]
    assert read_every(mount) == 0
    fault(broken)
    deadline = time.monotonic() + SEEN_S
    while folders(mount)[0]["in_service"] and fault is not is_deleted:
        assert time.monotonic() < deadline, "the failure is not noticed"
        read_every(mount)
    assert read_every(mount) == 0
    if fault is not is_deleted:
        assert folders(mount)[0]["reason"]
        assert folders(mount)[1]["in_service"]
        assert "OUT OF SERVICE" in mount.studio.run("status", mount.path)
        wait_until(lambda: can_unmount(broken), "the disk to be let go of", SEEN_S)
        assert read_every(mount) == 0
        broken.mount()
    else:
        wait_until((broken.path / "cache/lock").exists, "the folder to be made anew", BACK_S)
    wait_until(lambda: folders(mount)[0]["in_service"], "the disk to be used again", BACK_S)
    assert read_every(mount) == 0
    mount.crash()  # the successor has the locks of both
    assert read_every(mount) == 0
    assert all(folder["in_service"] for folder in folders(mount))


def can_unmount(disk: LoopDisk) -> bool:
    """Whether nobody has anything open there any more; then it is unmounted."""
    done = subprocess.run(["umount", disk.path], check=False, capture_output=True, timeout=30)
    disk.mounted = done.returncode != 0
    return not disk.mounted
