"""``make demo``: the main job on real media, in the folder ``demo/``.

Makes a plate, renders, a movie and a script, publishes them twice, moves a tag, mounts the library, reads every
file of both versions through the mount, cold and warm, and compares each with its source. Exit status 0 means
that every byte was right.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from blake3 import blake3
from rich.console import Console
from rich.table import Column, Table

from manifest.digest import Digest
from tests.harness import REPOSITORY, Studio, studio, wait_until
from tests.media import DEMO, make_version_1, make_version_2

FOLDER = REPOSITORY / "demo"
PLATE = "seq010/sh020/plate"
FIRST_READ_BYTES = 64 * 1024
READ_BYTES = 1024 * 1024
console = Console(width=None if sys.stdout.isatty() else 150)


@dataclass(frozen=True)
class Reading:
    """One pass over a file: seconds in open and read, seconds to the first byte, and the digest of what came."""

    seconds: float
    first_byte_s: float
    digest: Digest


def read(path: Path) -> Reading:
    """Read a file from its first byte to its last, through the daemon and not the kernel's page cache."""
    hasher = blake3()
    started = time.perf_counter()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        piece = os.read(descriptor, FIRST_READ_BYTES)
        first_byte_s = time.perf_counter() - started
        seconds = first_byte_s
        while piece:
            hasher.update(piece)
            before = time.perf_counter()
            piece = os.read(descriptor, READ_BYTES)
            seconds += time.perf_counter() - before
    finally:
        os.close(descriptor)
    return Reading(seconds, first_byte_s, Digest(hasher.digest()))


CACHED = "NVMe cache"
"""Readers have their bytes before the cache's disk has."""


def came_from(path: Path) -> str:
    """Where the bytes are that the next read will get, as the mount itself tells."""
    percent = int(os.getxattr(path, "user.damfs.cached"))
    return {0: "central store", 100: CACHED}.get(percent, f"NVMe cache {percent}%, central store")


def show(command: str) -> None:
    console.print(f"[bold]$ damfs {command}[/]")


def is_cached(path: Path) -> bool:
    return came_from(path) == CACHED


def publish(user: Studio, media: Path) -> None:
    """Publish two versions of the plate and move the tag."""
    show(f"init {user.url} --show apollo")
    user.run("init", user.url, "--show", "apollo")
    for version, words in (("v001", "as scanned"), ("v002", "second half regraded")):
        target = f"apollo:{PLATE}/{version}"
        show(f'publish media/{version} {target} -m "{words}" --tag latest')
        started = time.perf_counter()
        console.print(user.run("publish", media / version, target, "-m", words, "--tag", "latest").strip())
        console.print(f"  in {time.perf_counter() - started:.1f} s\n")


def compare(user: Studio, media: Path) -> int:
    """Mount, read everything twice, print the table. Returns the number of files that were wrong."""
    show("mount mnt")
    mount = user.mount()
    root = mount.path / "apollo" / PLATE
    link = (root / "latest").readlink()
    console.print(f"latest → {link}\n")
    headings = ("size", "cold", "first byte", "came from", "warm", "warm from", "equal")
    table = Table(Column("file", no_wrap=True), *headings)
    wrong = 0 if str(link) == "v002" else 1
    for source in sorted(path for path in media.rglob("*") if path.is_file()):
        name = source.relative_to(media)
        path = root / name
        origin = came_from(path)
        cold = read(path)
        wait_until(partial(is_cached, path), f"{name} to be stored")
        origin_warm = came_from(path)
        warm = read(path)
        expected = Digest.of_file(source)
        claimed = os.getxattr(path, "user.damfs.digest").decode()
        equal = cold.digest == warm.digest == expected and claimed == str(expected)
        wrong += not equal
        table.add_row(
            str(name), f"{source.stat().st_size / 1e6:.2f} MB", f"{cold.seconds * 1e3:.1f} ms",
            f"{cold.first_byte_s * 1e3:.1f} ms", origin, f"{warm.seconds * 1e3:.1f} ms", origin_warm,
            "yes" if equal else "[red]NO[/]")  # fmt: skip
    console.print(table)
    show("umount mnt")
    user.unmount(mount)
    return wrong


def main() -> int:
    """Run the demo; 0 when every file was equal to its source."""
    media = FOLDER / "media"
    console.print(f"making media in {media.relative_to(REPOSITORY)} (once) …")
    make_version_1(media, DEMO)
    make_version_2(media, DEMO)
    work = FOLDER / "studio"
    shutil.rmtree(work, ignore_errors=True)
    with studio(work) as user:
        publish(user, media)
        wrong = compare(user, media)
    shutil.rmtree(work, ignore_errors=True)
    console.print("[green]every file is equal to its source[/]" if not wrong else f"[red]{wrong} files differ[/]")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
