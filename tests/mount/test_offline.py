"""``damfs offline``: no network is used, what is here is read as ever, and the rest fails at once."""

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
UNCACHED = {f"uncached.{n}.exr": random_bytes(3_000_000, 10 + n) for n in range(4)}
FILES = {"cached.exr": DATA, "small.nk": b"script", **UNCACHED}
AT_ONCE_S = 5.0
"""Far from either deadline, 30 s and 600 s, on any machine."""


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
    """A studio whose way to its library leads through the proxy, with the profile ``farm`` or a test's own."""
    make_bucket(s3_endpoint, bucket := f"studio-{os.urandom(6).hex()}")
    environment = {
        "AWS_ENDPOINT_URL_S3": wire.url, "DAMFS_READS__PROFILE": getattr(request, "param", "farm"), **KEYS
    }  # fmt: skip
    with studio(tmp_path / "studio", f"s3://{bucket}/dam", **environment) as made:
        made.run("init", made.url, "--show", "apollo")
        made.run("publish", write_tree(tmp_path / "files", FILES), "apollo:v001")
        yield made


@pytest.fixture
def mount(remote: Studio) -> Mount:
    """A mount with two files that were read and others that were not."""
    made = remote.mount()
    for name in ("cached.exr", "small.nk"):
        assert (made.path / "apollo/v001" / name).read_bytes() == FILES[name]
    wait_until(lambda: percent(made, "small.nk") == 100, "the script to be kept")
    return made


def percent(mount: Mount, name: str) -> int:
    return int(os.getxattr(mount.path / "apollo/v001" / name, "user.damfs.cached"))


def cut(wire: Proxy) -> int:
    """Refuse every request from now on; how many connections there were so far."""
    wire.mode = Mode.REFUSE
    return wire.connections


def fails_at_once(path: Path) -> bool:
    started = time.monotonic()
    return read_error(path) == errno.EIO and time.monotonic() - started < AT_ONCE_S


@pytest.mark.parametrize("remote", ["artist", "farm"], indirect=True)
def test_what_is_cached_is_read_and_the_rest_fails_at_once_and_nothing_is_asked(
    remote: Studio, mount: Mount, wire: Proxy
) -> None:
    folder = mount.path / "apollo/v001"
    assert "OFFLINE: uid" in remote.run("offline", "on")
    before = cut(wire)
    assert (folder / "cached.exr").read_bytes() == DATA
    assert (folder / "small.nk").read_bytes() == b"script"
    assert sorted(os.listdir(folder)) == sorted(FILES)
    assert not (mount.path / "apollo@7").exists()
    assert not (mount.path / "gemini").exists()
    assert all(fails_at_once(folder / f"uncached.{n}.exr") for n in range(4))
    synced = remote.complete("sync", "apollo")
    assert (synced.returncode, "offline off" in synced.stderr) == (6, True)
    assert remote.complete("sync", "apollo", "--at-least", "9").returncode == 6
    assert remote.complete("sync", "apollo", "--at-least", "1").returncode == 0
    status = mount.status()
    assert status["offline"] is True
    assert status["offline_switch"]["uid"] == os.getuid()
    assert "damfs offline off" in status["offline_reason"]
    assert "OFFLINE" in remote.run("status", mount.path)
    told = [line for line in remote.log().splitlines() if "nothing is fetched" in line]
    assert len(told) == 1
    assert "fetch failed" not in remote.log()
    assert wire.connections == before
    wire.mode = Mode.PASS
    remote.run("offline", "off", mount.path)
    wait_until(lambda: read_error(folder / "uncached.0.exr") == 0, "reads to go on", 5)
    wait_until(lambda: not mount.status()["offline"], "the status to say online", 5)
    assert mount.status()["offline_switch"] is None
    assert (folder / "uncached.0.exr").read_bytes() == FILES["uncached.0.exr"]


def test_who_waits_for_a_silent_store_is_answered_when_it_is_switched_on(
    remote: Studio, mount: Mount, wire: Proxy
) -> None:
    wire.mode = Mode.STALL
    errors: list[int] = []
    paths = [mount.path / f"apollo/v001/uncached.{n}.exr" for n in range(4)]
    readers = [threading.Thread(target=lambda path=path: errors.append(read_error(path))) for path in paths]
    for reader in readers:
        reader.start()
    wait_until(lambda: mount.status()["cache"]["inflight"] >= 4, "the reads to be waited for")
    remote.run("offline", "on")
    for reader in readers:
        reader.join(AT_ONCE_S)
    assert errors == [errno.EIO] * 4
    wire.mode = Mode.PASS
    remote.run("offline", "off")
    wait_until(lambda: read_error(paths[0]) == 0, "reads to go on", 5)


def test_it_outlives_a_crash_and_a_restart(remote: Studio, mount: Mount, wire: Proxy) -> None:
    uncached = mount.path / "apollo/v001/uncached.0.exr"
    remote.run("offline", "on")
    before = cut(wire)
    mount.crash()
    assert mount.status()["offline_switch"] is not None
    assert fails_at_once(uncached)
    assert (mount.path / "apollo/v001/cached.exr").read_bytes() == DATA
    remote.unmount(mount)
    again = remote.mount()
    assert again.status()["offline_switch"] is not None
    assert fails_at_once(uncached)
    assert (mount.path / "apollo/v001/cached.exr").read_bytes() == DATA
    assert remote.json("offline")["mounts"][0]["offline"] is True
    assert wire.connections == before
    wire.mode = Mode.PASS
    remote.run("offline", "off")
    wait_until(lambda: read_error(uncached) == 0, "reads to go on", 5)
    assert not list(Path(remote.folder / "cache").rglob("offline.json"))


def test_pins_and_publishes_wait_and_go_on_at_once(remote: Studio, mount: Mount, wire: Proxy, tmp_path: Path,
                                                   s3_endpoint: str) -> None:  # fmt: skip
    remote.run("offline", "on")
    before = cut(wire)
    done = remote.complete("pin", "apollo:v001/uncached.2.exr")
    assert (done.returncode, "offline off" in done.stderr) == (6, True)
    through, remote.environment["AWS_ENDPOINT_URL_S3"] = wire.url, s3_endpoint
    remote.run("publish", write_tree(tmp_path / "late", {"late.nk": b"late"}), "apollo:v002")
    remote.environment["AWS_ENDPOINT_URL_S3"] = through
    assert not (mount.path / "apollo/v002").exists()
    assert wire.connections == before
    assert "is not complete" not in remote.log()
    wire.mode = Mode.PASS
    remote.run("offline", "off")
    wait_until((mount.path / "apollo/v002/late.nk").exists, "the publish to be seen", 5)
    wait_until(lambda: percent(mount, "uncached.2.exr") == 100, "the pin to go on", 5)


def test_there_must_be_a_mount_to_switch(remote: Studio) -> None:
    assert remote.complete("offline", "on").returncode == 4
    assert remote.complete("offline", "perhaps").returncode == 2
