"""All that is in flight has a bound: what readers wait for, what is fetched for later, what waits to be told."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests import stores
from tests.harness import Mount, Studio, drilled, studio, wait_until
from tests.mount.conftest import KEYS
from tests.proxy import Fault, Proxy, proxy

FILE_BYTES = 8 * 1024 * 1024
STREAMS = drilled(40, 200)
PINNED = drilled(10, 40)
BYTES_PER_S = 100e6
STREAM_BYTES_PER_S = 4e6
MEMORY_BYTES_MAX = drilled(350, 700) * 1024 * 1024
"""Above what the daemon has at its start. All that is read here is more than that."""


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[tuple[Studio, Proxy]]:
    """A studio whose library is far away, with a show of large files."""
    source = tmp_path / "source"
    source.mkdir()
    for number in range(STREAMS + PINNED):
        (source / f"plate.{number:04d}.dpx").write_bytes(os.urandom(FILE_BYTES))
    with studio(tmp_path / "studio") as publisher:
        publisher.run("init", publisher.url, "--show", "apollo")
        names = sorted(path.name for path in source.iterdir())
        publisher.run("publish", *(source / name for name in names[:STREAMS]), "apollo:read/v001")
        publisher.run("publish", *(source / name for name in names[STREAMS:]), "apollo:pinned/v001")
        trust = next((publisher.folder / "config").rglob("trust/*.json"))
        bucket = Path(urlsplit(publisher.url).path)
        with stores.rclone_server(bucket.parent) as server:
            parts = urlsplit(server.endpoint)
            assert parts.hostname
            assert parts.port
            with proxy((parts.hostname, parts.port), bytes_per_s=BYTES_PER_S) as wire:
                wire.inject(Fault(bytes_per_s=STREAM_BYTES_PER_S), "chunks")
                environment = {"AWS_ENDPOINT_URL_S3": wire.url, "DAMFS_LIBRARY__TRUST": str(trust), **KEYS}
                with studio(
                    tmp_path / "far", f"s3://{bucket.name}", DAMFS_READS__DEADLINE_S="300", **environment
                ) as far:
                    yield far, wire


def memory_bytes(mount: Mount, what: str) -> int:
    """``VmRSS`` or ``VmHWM`` (the most that it ever was) of the daemon."""
    lines = Path(f"/proc/{mount.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))


@pytest.mark.alone
@pytest.mark.drill
@pytest.mark.timeout(300)
def test_many_slow_streams_and_what_is_fetched_beside_them_take_a_bounded_memory(
    slow: tuple[Studio, Proxy], tmp_path: Path
) -> None:
    far, wire = slow
    mount = far.mount()
    before = memory_bytes(mount, "VmRSS")
    folder = mount.path / "apollo/read/v001"
    right: list[str] = []

    def read(name: str) -> None:
        if (folder / name).read_bytes() == (tmp_path / "source" / name).read_bytes():
            right.append(name)

    names = sorted(os.listdir(folder))
    readers = [threading.Thread(target=read, args=(name,)) for name in names]
    pinning = far.start("pin", "apollo:pinned", "--recursive")
    for reader in readers:
        reader.start()
    wait_until(lambda: mount.status()["cache"]["inflight"] >= 20, "many to be under way", 60)
    wire.calm()
    for reader in readers:
        reader.join(240)
    assert sorted(right) == names
    pinning.communicate(timeout=120)
    assert pinning.returncode == 0
    grown = memory_bytes(mount, "VmHWM") - before
    print(f"the daemon grew by {grown / 2**20:.0f} MiB while {STREAMS + PINNED} x {FILE_BYTES / 2**20:.0f} MiB came")
    assert grown < MEMORY_BYTES_MAX
