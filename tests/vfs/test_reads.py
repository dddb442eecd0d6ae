"""Bytes through a mount: exactly those that were published, or an error."""

from __future__ import annotations

import errno
import os
import random
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from manifest import layout
from manifest.digest import Digest
from tests.harness import wait_until
from tests.vfs.mounted import Mounted
from tests.vfs.publisher import CHUNK_BYTES

SIZES = [0, 1, 511, 4096, 65536, 65537, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 5 * CHUNK_BYTES + 12_345]


def noise(size_bytes: int, seed: int = 0) -> bytes:
    return random.Random(f"{size_bytes} {seed}").randbytes(size_bytes)


def read_error(path: Path) -> int | None:
    try:
        path.read_bytes()
    except OSError as error:
        return error.errno
    return None


def chunk_file(mount: Mounted, data: bytes) -> Path:
    """Where the library keeps a chunk."""
    return mount.folder / "library" / layout.chunk_key("apollo", Digest.of(data))


def test_files_of_all_sizes_have_exactly_their_bytes(mount: Mounted) -> None:
    mount.publish({f"d/{size}": noise(size) for size in SIZES})
    for _ in range(2):
        for size in SIZES:
            assert (mount.path / f"apollo/d/{size}").read_bytes() == noise(size)


def test_the_cache_is_told_which_frames_are_of_one_sequence(mount: Mounted) -> None:
    names = ["a/p.1001.exr", "a/p.1002.exr", "a/tiny.1001.exr", "a/tiny.1002.exr", "b/p.1001.exr", "b/p.mov"]
    mount.publish({name: noise(100 if "tiny" in name else 70_001 + n, n) for n, name in enumerate(names)})

    def groups() -> list[int]:
        """By size: the order in which rows are made is nobody's business."""
        with closing(sqlite3.connect(next(mount.folder.rglob("index.db")))) as index:
            rows = index.execute("SELECT grp FROM objects WHERE size > 70000 OR size = 100 ORDER BY size, content")
            return [group for (group,) in rows.fetchall()]

    for name in names:
        (mount.path / "apollo" / name).read_bytes()
    wait_until(lambda: len(groups()) == len(names), "everything to be in the index")
    tiny, other_tiny, first, second, other_folder, movie = groups()
    assert tiny == other_tiny
    assert first == second
    assert movie == 0
    assert len({tiny, first, other_folder, 0}) == 4


def test_any_range_is_exact_also_at_and_behind_the_end(mount: Mounted) -> None:
    data = noise(3 * CHUNK_BYTES + 777)
    mount.publish({"a": data})
    chance = random.Random(1)
    descriptor = os.open(mount.path / "apollo/a", os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        for _ in range(300):
            offset = chance.randrange(len(data) + 5000)
            size = chance.choice([1, 8, 4096, 100_000, CHUNK_BYTES])
            assert os.pread(descriptor, size, offset) == data[offset : offset + size]
    finally:
        os.close(descriptor)


def test_a_mapped_file_has_its_bytes(mount: Mounted) -> None:
    data = noise(2 * CHUNK_BYTES + 100)
    mount.publish({"a": data})
    script = """
import mmap, sys
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
    sys.stdout.buffer.write(mapped[1048566:1048586] + mapped[:])
"""
    command = [sys.executable, "-c", script, str(mount.path / "apollo/a")]  # an error would be a SIGBUS
    done = subprocess.run(command, capture_output=True, check=True, timeout=30)
    assert done.stdout == data[CHUNK_BYTES - 10 : CHUNK_BYTES + 10] + data


def test_many_readers_of_many_files_get_the_right_bytes(mount: Mounted) -> None:
    files = {f"d/{n}": noise(CHUNK_BYTES + n, n) for n in range(16)}
    mount.publish(dict(files))
    with ThreadPoolExecutor(16) as pool:
        seen = list(pool.map(lambda name: (mount.path / "apollo" / name).read_bytes(), [*files] * 4))
    assert seen == [*files.values()] * 4


def test_a_copy_of_the_file_is_the_file(mount: Mounted, tmp_path: Path) -> None:
    data = noise(4 * CHUNK_BYTES)
    mount.publish({"a": data})
    subprocess.run(["cp", "-p", mount.path / "apollo/a", tmp_path / "copy"], check=True, timeout=30)
    assert (tmp_path / "copy").read_bytes() == data
    assert (tmp_path / "copy").stat().st_mtime_ns == (mount.path / "apollo/a").stat().st_mtime_ns


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "missing"])
@pytest.mark.parametrize("size", [1000, CHUNK_BYTES], ids=["small", "large"])
def test_a_damaged_chunk_is_an_error_and_its_repair_heals(mount: Mounted, damage: str, size: int) -> None:
    data = noise(size)
    mount.publish({"a": data})
    stored = chunk_file(mount, data)
    if damage == "missing":
        stored.unlink()
    else:
        wrong = {"flipped": data[:-1] + bytes([data[-1] ^ 1]), "truncated": data[:-7], "empty": b""}[damage]
        stored.write_bytes(wrong)
    assert read_error(mount.path / "apollo/a") == errno.EIO
    stored.write_bytes(data)
    deadline = time.monotonic() + 10
    while (error := read_error(mount.path / "apollo/a")) is not None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert error is None
    assert (mount.path / "apollo/a").read_bytes() == data


@pytest.mark.parametrize("fetched", [False, True], ids=["recipe at hand", "recipe fetched"])
def test_a_file_that_is_not_as_long_as_its_recipe_is_an_error_and_one_line_in_the_log(
    mount: Mounted, fetched: bool
) -> None:
    honest = mount.show().post_of(noise(100))
    assert honest.recipe is not None
    mount.library.put(layout.recipe_key("apollo", honest.content), honest.recipe.to_object())
    lie = replace(honest, size=1000, recipe=None)
    mount.publish({"b": lie} if fetched else {"a": honest, "b": lie})
    descriptor = os.open(mount.path / "apollo/b", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for _ in range(3):
            with pytest.raises(OSError, match="Input/output error"):
                os.pread(descriptor, 1000, 0)
    finally:
        os.close(descriptor)
    lines = [line for line in mount.log.read_text().splitlines() if "ERROR" in line]
    assert len(lines) == 1
    assert "apollo@1:b cannot be read: b: its recipe describes 100 bytes, the manifest says 1000" in lines[0]
    if not fetched:
        assert (mount.path / "apollo/a").read_bytes() == noise(100)


def test_a_damaged_chunk_spoils_only_what_it_holds(mount: Mounted) -> None:
    data = noise(3 * CHUNK_BYTES)
    mount.publish({"a": data})
    chunk_file(mount, data[CHUNK_BYTES : 2 * CHUNK_BYTES]).unlink()
    descriptor = os.open(mount.path / "apollo/a", os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        assert os.pread(descriptor, 4096, 0) == data[:4096]
        assert os.pread(descriptor, 4096, 2 * CHUNK_BYTES) == data[2 * CHUNK_BYTES : 2 * CHUNK_BYTES + 4096]
        with pytest.raises(OSError, match="Input/output error"):
            os.pread(descriptor, 4096, CHUNK_BYTES)
    finally:
        os.close(descriptor)


def test_what_was_read_once_needs_no_library(mount: Mounted) -> None:
    data = noise(2 * CHUNK_BYTES)
    mount.publish({"a": data})
    assert (mount.path / "apollo/a").read_bytes() == data
    for start in range(0, len(data), CHUNK_BYTES):
        chunk_file(mount, data[start : start + CHUNK_BYTES]).unlink()
    descriptor = os.open(mount.path / "apollo/a", os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # the cache answers, not the kernel
        assert os.pread(descriptor, len(data), 0) == data
    finally:
        os.close(descriptor)
