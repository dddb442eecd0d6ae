"""A store that is known to be down: reads of an artist fail at once, the rest goes on, and it comes back by itself."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.harness import Mount, Studio, studio, wait_until
from tests.mount.conftest import KEYS, make_bucket, random_bytes, read_error, write_tree
from tests.proxy import Mode, Proxy, proxy

OUTAGE_S = 8.0
AT_ONCE_S = 4.0
"""Far from a read's deadline, 30 s, and from the time that an outage must have lasted."""
FARM_DEADLINE_S = 7.0
"""Longer than an outage of an artist."""
CACHED = random_bytes(2_000_000)
UNCACHED = {f"uncached.{n}.exr": random_bytes(2_000_000, 1 + n) for n in range(6)}


@pytest.fixture
def wire(s3_endpoint: str) -> Iterator[Proxy]:
    """A proxy in front of the S3 server."""
    parts = urlsplit(s3_endpoint)
    assert parts.hostname
    assert parts.port
    with proxy((parts.hostname, parts.port)) as made:
        yield made


@pytest.fixture
def remote(request: pytest.FixtureRequest, s3_endpoint: str, wire: Proxy, tmp_path: Path) -> Iterator[Studio]:
    """An artist, or who a test wants, whose way to the library leads through the proxy."""
    make_bucket(s3_endpoint, bucket := f"studio-{os.urandom(6).hex()}")
    reads = getattr(request, "param", {"DAMFS_READS__OUTAGE_S": str(OUTAGE_S)})
    environment = {"AWS_ENDPOINT_URL_S3": wire.url, **reads, **KEYS}
    with studio(tmp_path / "studio", f"s3://{bucket}/dam", **environment) as made:
        made.run("init", made.url, "--show", "apollo")
        made.run("publish", write_tree(tmp_path / "files", {"cached.exr": CACHED, **UNCACHED}), "apollo:v001")
        made.expected.append("cannot be read: ")
        yield made


def took(path: Path) -> tuple[int, float]:
    """The errno of reading a file, 0 if that went well, and the seconds."""
    started = time.monotonic()
    return read_error(path), time.monotonic() - started


def read_again(path: Path) -> bytes:
    """The bytes as the daemon or the cache's disk has them, not the kernel's page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    return path.read_bytes()


@pytest.mark.parametrize("mode", [Mode.REFUSE, Mode.STALL])
def test_once_an_outage_is_known_uncached_reads_fail_at_once_until_the_store_is_back(
    remote: Studio, wire: Proxy, mode: Mode
) -> None:
    mount: Mount = remote.mount()
    folder = mount.path / "apollo/v001"
    assert (folder / "cached.exr").read_bytes() == CACHED
    wire.mode = mode
    first, first_s = took(folder / "uncached.0.exr")
    assert first == errno.EIO
    assert first_s < 29
    wait_until(lambda: mount.status()["offline"], "the status to say offline", 20)
    for n in range(1, 5):
        error, seconds = took(folder / f"uncached.{n}.exr")
        assert error == errno.EIO
        assert seconds < AT_ONCE_S
        assert read_again(folder / "cached.exr") == CACHED
        assert (folder / "uncached.5.exr").stat().st_size == 2_000_000
    found = remote.json("explain", folder / "uncached.1.exr")
    assert found["sources"][0]["breaker"] != "closed"
    assert "central is down since" in found["sources_why_not"]
    assert "no source answers (central is down since" in found["advice"]
    assert "DOWN: central is down since" in remote.run("explain", folder / "uncached.1.exr")
    wire.mode = Mode.PASS
    wait_until(lambda: read_error(folder / "uncached.5.exr") == 0, "the mount to recover by itself", 10)
    assert (folder / "uncached.5.exr").read_bytes() == UNCACHED["uncached.5.exr"]


@pytest.mark.parametrize(
    "remote", [{"DAMFS_READS__PROFILE": "farm", "DAMFS_READS__DEADLINE_S": str(FARM_DEADLINE_S)}], indirect=True
)
def test_a_farm_waits_until_its_deadline_however_long_the_outage_has_lasted(remote: Studio, wire: Proxy) -> None:
    mount = remote.mount()
    wire.mode = Mode.REFUSE
    for n in range(2):
        error, seconds = took(mount.path / f"apollo/v001/uncached.{n}.exr")
        assert error == errno.EIO
        assert seconds > FARM_DEADLINE_S - 0.5
    wire.mode = Mode.PASS
    wait_until(lambda: read_error(mount.path / "apollo/v001/uncached.0.exr") == 0, "the mount to recover by itself", 10)
