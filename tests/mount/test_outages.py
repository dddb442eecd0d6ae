"""The network goes away: cached bytes go on, the rest fails in time, and everything comes back by itself."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.harness import Mount, Studio, studio, wait_until
from tests.mount.conftest import KEYS, make_bucket, random_bytes, read_error, write_tree
from tests.proxy import Mode, Proxy, proxy

DATA = random_bytes(3_000_000)
DEADLINE_S = 3
STALLED_READERS = 200


@pytest.fixture
def wire(s3_endpoint: str) -> Iterator[Proxy]:
    """A proxy in front of the S3 server."""
    parts = urlsplit(s3_endpoint)
    assert parts.hostname
    assert parts.port
    with proxy((parts.hostname, parts.port)) as made:
        yield made


@pytest.fixture
def remote(s3_endpoint: str, wire: Proxy, tmp_path: Path) -> Iterator[Studio]:
    """A studio whose way to its library leads through the proxy, with reads that give up after DEADLINE_S."""
    make_bucket(s3_endpoint, bucket := f"studio-{os.urandom(6).hex()}")
    environment = {"AWS_ENDPOINT_URL_S3": wire.url, "DAMFS_READS__DEADLINE_S": str(DEADLINE_S), **KEYS}
    with studio(tmp_path / "studio", f"s3://{bucket}/dam", **environment) as made:
        made.run("init", made.url, "--show", "apollo")
        made.expected.append("cannot be read: ")
        yield made


@pytest.fixture
def mount(remote: Studio, tmp_path: Path) -> Mount:
    """A mount with one file that was read and one that was not."""
    write_tree(tmp_path, {"cached.exr": DATA, "small.nk": b"script", "uncached.exr": random_bytes(3_000_000, 2)})
    names = ("cached.exr", "small.nk", "uncached.exr")
    remote.run("publish", *(tmp_path / name for name in names), "apollo:v001")
    made = remote.mount()
    assert (made.path / "apollo/v001/cached.exr").read_bytes() == DATA
    assert (made.path / "apollo/v001/small.nk").read_bytes() == b"script"
    return made


def drop_kernel_cache(path: Path) -> None:
    """The next read of the file asks the daemon."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


@pytest.mark.alone
@pytest.mark.parametrize("mode", [Mode.STALL, Mode.REFUSE])
def test_cached_files_read_on_and_uncached_ones_fail_by_their_deadline(mount: Mount, wire: Proxy, mode: Mode) -> None:
    folder = mount.path / "apollo/v001"
    wire.mode = mode
    for name, data in (("cached.exr", DATA), ("small.nk", b"script")):
        drop_kernel_cache(folder / name)
        started = time.monotonic()
        assert (folder / name).read_bytes() == data
        assert time.monotonic() - started < 1
    assert sorted(os.listdir(folder)) == ["cached.exr", "small.nk", "uncached.exr"]
    started = time.monotonic()
    assert read_error(folder / "uncached.exr") == errno.EIO
    assert time.monotonic() - started < DEADLINE_S + 2
    wait_until(lambda: mount.status()["offline"], "the status to say offline", 15)
    wire.mode = Mode.PASS
    wait_until(lambda: read_error(folder / "uncached.exr") == 0, "the mount to recover by itself", 10)
    assert (folder / "uncached.exr").read_bytes() == random_bytes(3_000_000, 2)
    wait_until(lambda: not mount.status()["offline"], "the status to say online", 10)


def test_a_publish_during_an_outage_is_seen_after_it(remote: Studio, mount: Mount, wire: Proxy, tmp_path: Path,
                                                     s3_endpoint: str) -> None:  # fmt: skip
    wire.mode = Mode.REFUSE
    remote.environment["AWS_ENDPOINT_URL_S3"] = s3_endpoint
    write_tree(tmp_path, {"late.exr": b"late"})
    remote.run("publish", tmp_path / "late.exr", "apollo:v002")
    assert not (mount.path / "apollo/v002").exists()
    wire.mode = Mode.PASS
    wait_until((mount.path / "apollo/v002/late.exr").exists, "the publish to be seen", 10)


@pytest.mark.alone
def test_200_readers_stalled_on_a_dead_source_do_not_hold_up_a_cached_read_or_a_stat(
    mount: Mount, remote: Studio, wire: Proxy, tmp_path: Path
) -> None:
    files = {f"cold.{n:04d}.exr": random_bytes(200_000, n) for n in range(STALLED_READERS)}
    remote.run("publish", write_tree(tmp_path / "cold", files), "apollo:v002")
    remote.run("sync", "apollo", "--at-least", "2")
    folder = mount.path / "apollo/v002"
    assert len(os.listdir(folder)) == STALLED_READERS
    wire.mode = Mode.STALL
    errors: list[int] = []
    readers = [threading.Thread(target=lambda path=folder / name: errors.append(read_error(path))) for name in files]
    for reader in readers:
        reader.start()
    time.sleep(0.5)
    cached = mount.path / "apollo/v001/cached.exr"
    try:
        slowest = 0.0
        while any(reader.is_alive() for reader in readers):
            drop_kernel_cache(cached)
            started = time.monotonic()
            assert cached.read_bytes() == DATA
            assert (folder / "cold.0000.exr").stat().st_size == 200_000
            assert not (folder / "no-such-name").exists()
            slowest = max(slowest, time.monotonic() - started)
        assert 0 < slowest < 1
    finally:
        for reader in readers:
            reader.join(60)
    assert errors == [errno.EIO] * STALLED_READERS


def test_an_unreachable_library_at_the_first_mount_is_a_clear_error(
    remote: Studio, wire: Proxy, tmp_path: Path
) -> None:
    wire.mode = Mode.REFUSE
    (tmp_path / "mnt").mkdir()
    started = time.monotonic()
    done = remote.complete("mount", tmp_path / "mnt")
    assert done.returncode == 6
    assert remote.url in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2
    assert time.monotonic() - started < 30
    assert not os.path.ismount(tmp_path / "mnt")


def test_a_later_mount_without_the_library_serves_what_it_has(remote: Studio, mount: Mount, wire: Proxy) -> None:
    remote.unmount(mount)
    wire.mode = Mode.REFUSE
    again = remote.mount()
    assert again.status()["offline"] is True
    folder = again.path / "apollo/v001"
    assert (folder / "cached.exr").read_bytes() == DATA
    assert (folder / "uncached.exr").stat().st_size == 3_000_000
    assert read_error(folder / "uncached.exr") == errno.EIO
    wire.mode = Mode.PASS
    wait_until(lambda: read_error(folder / "uncached.exr") == 0, "the mount to recover by itself", 10)
