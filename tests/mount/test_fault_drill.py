"""The matrix of faults on real mounts, with a real nginx as the site cache: see tests/cache/test_fault_matrix.py.

`make drill` goes through all cells, one after the other on one mount; `make test` through a few.
"""

from __future__ import annotations

import errno
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from manifest.library import Library
from tests import stores
from tests.harness import Mount, drilled, studio, wait_until
from tests.mount.conftest import KEYS, random_bytes, read_error
from tests.mount.test_outages import drop_kernel_cache
from tests.nginx import nginx
from tests.proxy import FAULTS, Mode, Proxy, proxy

DEADLINES_S = {"artist": 3.0, "farm": 60.0}
OUTAGE_S = 3.5
LATE_S = 3.0
CACHED_S, CACHED_S_MAX = 1.5, 10.0
RECOVERY_S = 45.0
FILE_BYTES = 150_000
NAMES = (*FAULTS, "refused")
FINAL = {
    "403", "403 page", "404", "truncated, length agrees", "too long", "flipped", "200 page",
}  # fmt: skip
CELLS = [(name, where) for where in ("site", "central", "both") for name in NAMES]
FEW = [("silence", "both"), ("flipped", "site")]
SETTINGS = {
    "DAMFS_SOURCES__SLOW_S": "0.4", "DAMFS_SOURCES__SILENCE_S": "1", "DAMFS_SOURCES__PROBE_S_MAX": "0.5",
}  # fmt: skip


@dataclass
class Studio:
    """A mount, the ways from it to the site's nginx and to the store, and what it shows."""

    mount: Mount
    wires: dict[str, Proxy]
    files: dict[str, bytes]

    def path(self, name: str) -> Path:
        return self.mount.path / "apollo/v001" / name


def cells() -> list[tuple[str, str]]:
    return CELLS if drilled(0, 1) else FEW


@pytest.fixture(params=["artist", "farm"])
def far(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Studio]:
    profile: str = request.param
    numbers = range(2 * len(cells()))
    files = {f"f{n:03d}.nk": random_bytes(FILE_BYTES, n) for n in numbers} | {
        "cached.nk": random_bytes(FILE_BYTES, 999)
    }
    source = tmp_path / "source"
    source.mkdir()
    for name, data in files.items():
        (source / name).write_bytes(data)
    with ExitStack() as stack:
        publisher = stack.enter_context(studio(tmp_path / "studio"))
        publisher.run("init", publisher.url, "--show", "apollo")
        publisher.run("publish", source, "apollo:v001")
        trust = next((publisher.folder / "config").rglob("trust/*.json"))
        bucket = Path(urlsplit(publisher.url).path)
        store = stack.enter_context(stores.rclone_server(bucket.parent)).endpoint
        library = Library.open(f"s3://{bucket.name}", endpoint=store)
        site = stack.enter_context(nginx(tmp_path / "nginx", library)).url
        wires = {
            "site": stack.enter_context(proxy(_address(site))),
            "central": stack.enter_context(proxy(_address(store))),
        }
        environment = {
            "AWS_ENDPOINT_URL_S3": wires["central"].url, "DAMFS_SITE__URL": wires["site"].url,
            "DAMFS_LIBRARY__TRUST": str(trust), "DAMFS_READS__PROFILE": profile,
            "DAMFS_READS__DEADLINE_S": str(DEADLINES_S[profile]), **KEYS, **SETTINGS,
        }  # fmt: skip
        if profile == "artist":
            environment["DAMFS_READS__OUTAGE_S"] = "0.5"
        artist = stack.enter_context(studio(tmp_path / "far", f"s3://{bucket.name}", **environment))
        artist.expected.append("cannot be read: ")
        made = Studio(artist.mount(), wires, files)
        assert made.path("cached.nk").read_bytes() == files["cached.nk"]
        yield made


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    return parts.hostname, parts.port


@pytest.mark.drill
@pytest.mark.alone
def test_whatever_fails_a_mount_gives_right_bytes_or_eio_in_time_and_recovers(
    far: Studio, request: pytest.FixtureRequest
) -> None:
    profile: str = request.node.callspec.params["far"]
    problems = []
    for number, (name, where) in enumerate(cells()):
        try:
            attempt(far, profile, name, where, number)
        except AssertionError as error:
            problems.append(f"{name} at {where}, {profile}: {error}")
    assert not problems, "\n".join(problems)


def attempt(far: Studio, profile: str, name: str, where: str, number: int) -> None:
    """A cell. Raises AssertionError."""
    first, second = (f"f{2 * number + i:03d}.nk" for i in range(2))
    deadline_s = DEADLINES_S[profile]
    hit = [wire for tier, wire in far.wires.items() if where in (tier, "both")]
    over = threading.Event()
    took_s: list[float] = []
    watch = threading.Thread(target=read_cached, args=(far, over, took_s))
    heal = threading.Timer(OUTAGE_S, calm, hit)
    for wire in hit:
        if name == "refused":
            wire.mode = Mode.REFUSE
        else:
            wire.inject(FAULTS[name])
    watch.start()
    heal.start()
    try:
        started = time.monotonic()
        error = read_error(far.path(first))
        elapsed_s = time.monotonic() - started
    finally:
        heal.join(30)
        over.set()
        watch.join(30)
    assert elapsed_s < deadline_s + LATE_S, f"the read ended after {elapsed_s:.1f} s"
    assert error in (0, errno.EIO)
    if where == "site" or (profile == "farm" and name not in FINAL):
        assert error == 0, f"the read failed after {elapsed_s:.1f} s"
    for file in (second, first):
        wait_until(lambda: read_error(far.path(file)) == 0, f"{file} to be read again", RECOVERY_S)  # noqa: B023
        assert far.path(file).read_bytes() == far.files[file], "wrong bytes"
    assert len(took_s) >= 2, "reads of cached bytes failed, or were few"
    assert statistics.median(took_s) < CACHED_S
    assert max(took_s) < CACHED_S_MAX


def calm(*wires: Proxy) -> None:
    for wire in wires:
        wire.calm()
        if wire.mode is not Mode.PASS:
            wire.mode = Mode.PASS


def read_cached(far: Studio, over: threading.Event, took_s: list[float]) -> None:
    """Read what is cached over and over, past the kernel's pages; stops counting at wrong bytes or an error."""
    path = far.path("cached.nk")
    while not over.wait(0.1):
        drop_kernel_cache(path)
        started = time.monotonic()
        if path.read_bytes() != far.files["cached.nk"]:
            took_s.clear()
            return
        took_s.append(time.monotonic() - started)
