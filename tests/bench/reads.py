"""Sequential reads through the mount, against the native file."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.bench.measure import RUNS, Ratio, drop_kernel_caches, forget_pages, from_times, read_through, seconds
from tests.harness import Studio

FILE_BYTES = 256 * 1024 * 1024


def measure(user: Studio, work: Path, note: Callable[[str], None]) -> list[Ratio]:
    """Cold, warm through the daemon, and warm from the kernel's page cache: 1 MiB reads of files of 256 MiB."""
    note(f"reads: {RUNS} files of {FILE_BYTES >> 20} MiB")
    source = work / "reads"
    source.mkdir()
    names = [f"plate.{number:04d}.dpx" for number in range(RUNS)]
    for name in names:
        with (source / name).open("wb") as file:
            for _ in range(FILE_BYTES >> 20):
                file.write(os.urandom(1 << 20))
    user.run("publish", source, "apollo:reads/v001")
    mount = user.mount()
    folder = mount.path / "apollo/reads/v001"
    passes: dict[str, tuple[list[float], list[float]]] = {}

    def both(kind: str, name: str, prepare: Callable[[Path], object]) -> None:
        ours, native = passes.setdefault(kind, ([], []))
        for times, path in ((native, source / name), (ours, folder / name)):
            prepare(path)
            times.append(seconds(partial(read_through, path)))

    for name in names:
        if drop_kernel_caches():
            both("cold", name, lambda _: None)
        else:
            both("cold", name, forget_pages)
        both("warm, through the daemon", name, lambda path: forget_pages(path) if path.parent == folder else None)
        both("warm, kernel page cache", name, lambda _: None)
    user.unmount(mount)
    return [
        from_times(f"sequential read, {kind} (rate)", "mount", "native file", *times, rate=True, at_most=False)
        for kind, times in passes.items()
    ]
