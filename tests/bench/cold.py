"""Cold reads through the mount, of what the site's nginx has: against curl, s3fs and rclone, and to the first byte.

All of them read the same bytes from the same nginx and write them to the same disk: curl one object that is the whole
file, the others in pieces. A warm read finds them on the disk and not in the kernel's page cache.
"""

from __future__ import annotations

import http.client
import os
import shutil
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from manifest.digest import Digest
from manifest.layout import chunk_key
from tests.bench import peers
from tests.bench.measure import RUNS, Ratio, drop_kernel_caches, forget_pages, from_times, read_through, scaled, seconds
from tests.bench.site import Site, artist, network, site, warm, why_not
from tests.harness import Mount, Studio, wait_until

MIB = 1024 * 1024
FILE_MIB = scaled(256, 1024)
FRAMES = 10
FRAME_BYTES = 30 * 1000 * 1000
FIRST_BYTES = 64 * 1024
"""The first chunk of a large file."""
FIRST_READS = 4096, FIRST_BYTES
"""With the second one the kernel asks for as much again, and so for the next chunk."""
LATENCY_S = 0.01
BYTES_PER_S = 400e6
CURL_AIM = 0.7
FIRST_BYTE_AIM = 1.5
Note = Callable[[str], None]
Times = dict[str, list[float]]


def measure(user: Studio, work: Path, note: Note) -> list[Ratio]:
    """All of it. ``user``'s library is a folder with the show ``apollo``."""
    missing = why_not("curl", *peers.PROGRAMS)
    if missing:
        note(f"no cold reads: {missing}")
        return []
    folder = work / "cold"
    folder.mkdir()
    with site(user, folder) as at:
        return sequential(user, folder, at, note) + first_byte(user, folder, at, note)


def make(folder: Path, names: Sequence[str], size_bytes: int) -> list[str]:
    """Files of random bytes."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("wb") as file:
            for start in range(0, size_bytes, MIB):
                file.write(os.urandom(min(MIB, size_bytes - start)))
    return list(names)


def singles(count: int) -> list[str]:
    """Names that are no sequence, each in a folder of its own: none is fetched because another one was read."""
    return [f"{chr(ord('a') + number)}/plate.dpx" for number in range(count)]


def warm_site(at: Site) -> None:
    """Have nginx fetch every chunk of the library."""
    for path in (at.folder / "shows/apollo/chunks").rglob("*"):
        if path.is_file():
            warm(f"{at.nginx}/{at.bucket}/{path.relative_to(at.folder)}")


def sequential(user: Studio, work: Path, at: Site, note: Note) -> list[Ratio]:
    """Large files from end to end, 1 MiB at a time."""
    note(f"cold: {RUNS} files of {FILE_MIB} MiB, by curl, damfs, s3fs and rclone")
    names = make(work / "source", singles(RUNS), FILE_MIB * MIB)
    user.run("publish", work / "source", "apollo:cold/v001", timeout_s=600)
    plain = at.folder / "plain"
    (work / "source").rename(plain)
    warm_site(at)
    for name in names:
        warm(f"{at.nginx}/{at.bucket}/plain/{name}")
    times: Times = defaultdict(list)
    with ExitStack() as stack:
        reader = stack.enter_context(artist(user, work / "artist", at, at.nginx))
        mount = reader.mount()
        ways = {
            "mount": mount.path / "apollo/cold/v001",
            "s3fs": stack.enter_context(peers.s3fs(at, work)) / "plain",
            "rclone": stack.enter_context(peers.rclone(at, work)) / "plain",
        }
        for name in names:
            copy = work / "copy"
            url = f"{at.nginx}/{at.bucket}/plain/{name}"
            drop_kernel_caches()
            times["curl cold"].append(seconds(partial(_curl, url, copy)))
            copy.unlink()
            for way, folder in ways.items():
                drop_kernel_caches()
                times[f"{way} cold"].append(seconds(partial(read_through, folder / name)))
        wait_until(lambda: all(_is_whole(ways["mount"] / name) for name in names), "all to be kept", 120)
        for name in names:
            for way, folder in ways.items():
                drop_kernel_caches()
                forget_pages(folder / name)
                times[f"{way} warm"].append(seconds(partial(read_through, folder / name)))
        reader.unmount(mount)
    shutil.rmtree(plain)
    against = [
        ("cold", "curl", CURL_AIM),
        *((kind, way, 1.0) for way in ("s3fs", "rclone") for kind in ("cold", "warm")),
    ]
    return [
        from_times(f"sequential read, {kind}, from the site's nginx (rate)", "mount", way, times[f"mount {kind}"],
                   times[f"{way} {kind}"], aim=aim, at_most=False, rate=True)
        for kind, way, aim in against
    ]  # fmt: skip


def first_byte(user: Studio, work: Path, at: Site, note: Note) -> list[Ratio]:
    """open and the first read of a frame, against one GET of its first chunk."""
    note(f"first byte: {FRAMES} frames of {FRAME_BYTES // 10**6} MB, on loopback and over {LATENCY_S * 1e3:g} ms")
    results = []
    for number, latency_s in enumerate((0.0, LATENCY_S)):
        names = make(work / f"frames{number}", singles(FRAMES), FRAME_BYTES)
        version = f"frames/v{number + 1:03d}"
        user.run("publish", work / f"frames{number}", f"apollo:{version}")
        warm_site(at)
        firsts = {name: _first_chunk(at, work / f"frames{number}" / name) for name in names}
        ours: dict[int, list[float]] = defaultdict(list)
        theirs: dict[int, list[float]] = defaultdict(list)
        with (
            network(at.nginx, latency_s=latency_s, bytes_per_s=BYTES_PER_S if latency_s else None) as wire,
            artist(user, work / f"viewer{number}", at, wire.url) as viewer,
        ):
            mount = viewer.mount()
            for name in names:
                (mount.path / "apollo" / version / name).stat()
            connection = http.client.HTTPConnection(urlsplit(wire.url).netloc, timeout=60)
            _get(connection, firsts[names[0]])
            for i, name in enumerate(names):
                size_bytes = FIRST_READS[i % len(FIRST_READS)]
                theirs[size_bytes].append(_get(connection, firsts[name]))
                ours[size_bytes].append(_first_read(mount, f"apollo/{version}/{name}", size_bytes))
                wait_until(lambda: mount.status()["cache"]["inflight"] == 0, "the rest to come", 60)  # noqa: B023
            connection.close()
            viewer.unmount(mount)
        kind = f"over {latency_s * 1e3:g} ms and {BYTES_PER_S / 1e6:g} MB/s" if latency_s else "on loopback"
        results += [
            from_times(f"first {size_bytes // 1024} KiB of a cold frame, {kind}", "open and read",
                       "GET of its first chunk", ours[size_bytes], theirs[size_bytes], aim=FIRST_BYTE_AIM)
            for size_bytes in FIRST_READS
        ]  # fmt: skip
    return results


def _curl(url: str, to: Path) -> None:
    subprocess.run(["curl", "--silent", "--fail", "--output", to, url], check=True)


def _is_whole(path: Path) -> bool:
    return os.getxattr(path, "user.damfs.cached") == b"100"


def _first_read(mount: Mount, name: str, size_bytes: int) -> float:
    """The seconds of open and of the first read, as hosts read headers."""
    started = time.perf_counter()
    descriptor = os.open(mount.path / name, os.O_RDONLY)
    try:
        assert len(os.pread(descriptor, size_bytes, 0)) == size_bytes
        return time.perf_counter() - started
    finally:
        os.close(descriptor)


def _first_chunk(at: Site, path: Path) -> str:
    """The path of the URL of a file's first chunk, which is its first 64 KiB (docs/FORMAT.md)."""
    with path.open("rb") as file:
        key = chunk_key("apollo", Digest.of(file.read(FIRST_BYTES)))
    assert (at.folder / key).is_file()
    return f"/{at.bucket}/{key}"


def _get(connection: http.client.HTTPConnection, path: str) -> float:
    """The seconds of a GET on a connection that is there already."""
    started = time.perf_counter()
    connection.request("GET", path)
    answer = connection.getresponse()
    assert len(answer.read()) == FIRST_BYTES
    assert answer.status == 200
    return time.perf_counter() - started
