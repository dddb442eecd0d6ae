"""``damfs cache`` on a mount that is in use: nobody who reads notices, and what is in use stays."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.harness import Studio, wait_until
from tests.mount.conftest import random_bytes, write_tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness import Mount

FRAME_BYTES = 1_000_000
FRAMES = {f"plate.{n:04d}.exr": random_bytes(FRAME_BYTES, n) for n in range(20)}

HOLD = """
import sys
with open(sys.argv[1], "rb") as file:
    while file.read(1 << 20):
        pass
    print("open", flush=True)
    sys.stdin.read()
"""
LOOP = """
import pathlib, sys
folder, frames = pathlib.Path(sys.argv[1]), {}
while True:
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        assert frames.setdefault(path.name, data) == data
    print("round", flush=True)
    if not sys.stdin.readline():
        break
"""


@pytest.fixture
def mount(artist: Studio, tmp_path: Path) -> Iterator[Mount]:
    artist.run("publish", write_tree(tmp_path / "frames", FRAMES), "apollo:v001")
    made = artist.mount("--cache-size", "100MB")
    yield made
    artist.unmount(made)


def start(program: str, path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            text=True, cwd="/")  # fmt: skip


def used_bytes(mount: Mount) -> int:
    return int(mount.status()["cache"]["used_bytes"])


def test_opens_of_files_that_the_kernel_reads_itself_are_counted(mount: Mount) -> None:
    if mount.status()["binding"] != "kernel":
        pytest.skip("pyfuse3 answers every read itself")
    path = mount.path / "apollo/v001/plate.0001.exr"
    assert path.read_bytes() == FRAMES[path.name]

    def opens() -> int:
        assert path.read_bytes() == FRAMES[path.name]
        return int(mount.status()["cache"]["passthrough_opens"])

    wait_until(opens, "the kernel to read the frame itself")
    before = mount.status()["cache"]
    assert opens() == before["passthrough_opens"] + 1
    cache = mount.status()["cache"]
    assert cache["hits"] == before["hits"]
    assert cache["shows"]["apollo"]["passthrough_opens"] == cache["passthrough_opens"]


def test_a_file_that_a_program_has_open_is_not_evicted_and_goes_on(mount: Mount) -> None:
    path = mount.path / "apollo/v001/plate.0000.exr"
    assert path.read_bytes() == FRAMES[path.name]
    wait_until(lambda: os.getxattr(path, "user.damfs.cached") == b"100", "the frame to be kept")
    with start(HOLD, path) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "open\n"
        done = mount.studio.complete("cache", "evict", path)
        assert done.returncode == 3
        assert "1 of its files are in use: close what has them open" in done.stderr
        assert os.getxattr(path, "user.damfs.cached") == b"100"
        program.communicate(timeout=20)
    wait_until(lambda: mount.studio.complete("cache", "evict", path).returncode == 0, "the program to have closed it")
    assert os.getxattr(path, "user.damfs.cached") == b"0"


def test_a_cache_shrinks_and_grows_under_a_reader_who_gets_right_bytes(mount: Mount) -> None:
    folder = mount.path / "apollo/v001"
    with start(LOOP, folder) as reader:
        assert reader.stdout is not None
        assert reader.stdin is not None

        def play() -> None:
            assert reader.stdin is not None
            assert reader.stdout is not None
            reader.stdin.write("\n")
            reader.stdin.flush()
            assert reader.stdout.readline() == "round\n"

        assert reader.stdout.readline() == "round\n"
        mount.studio.run("cache", "resize", "8MB", "--wait")
        assert used_bytes(mount) <= 8_000_000
        play()
        mount.studio.run("cache", "resize", "90MB")
        mount.studio.run("cache", "set", "--show", "apollo", "quota=5MB")
        play()
        wait_until(lambda: used_bytes(mount) <= 5_000_000, "the quota to be kept")
        reader.stdin.close()
        assert reader.wait(20) == 0
    for name, data in FRAMES.items():
        assert (folder / name).read_bytes() == data
