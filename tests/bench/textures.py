"""Reads of tiles out of mip-mapped 8K textures, as renderers make them: bytes fetched per byte asked, by chunk profile.

The same texture is published twice: under its own name, by which it is cut for reads at random, and under one that
says nothing, by which it is cut as a stream. Tiles are read near each other, at the level of detail that a camera
needs: a walk over the texture, a block of tiles at a time.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.bench.measure import Ratio
from tests.bench.playback import is_quiet, share
from tests.bench.site import artist, network, site, why_not
from tests.harness import Studio, wait_until

SIDE = 8192
TILE_BYTES = 64 * 64 * 3
BLOCKS = 12
BLOCK_TILES = 16
"""A row of tiles in the file; a bucket of a renderer sees some rows."""
BLOCK_ROWS = 4
RUNS = 3
NAMES = {"random": "wood.tx", "stream": "wood.bin"}
Note = Callable[[str], None]


def measure(user: Studio, work: Path, note: Note) -> list[Ratio]:
    """All of it. ``user``'s library is a folder with the show ``apollo``."""
    missing = why_not("oiiotool", "maketx")
    if missing:
        note(f"no textures: {missing}")
        return []
    note(f"textures: {SIDE} x {SIDE} pixels, tiles of {TILE_BYTES // 1024} KiB, {RUNS} walks")
    folder = work / "textures"
    (folder / "source").mkdir(parents=True)
    texture = make(folder)
    for name in NAMES.values():
        shutil.copy(texture, folder / "source" / name)
    user.run("publish", folder / "source", "apollo:textures/v001", timeout_s=600)
    results = []
    with site(user, folder) as at, network(at.nginx) as wire:
        for profile, name in NAMES.items():
            fetched: list[float] = []
            asked: list[float] = []
            for run in range(RUNS):
                with artist(user, folder / f"{profile}{run}", at, wire.url) as viewer:
                    mount = viewer.mount()
                    wire.counts()
                    asked.append(walk(mount.path / "apollo/textures/v001" / name, random.Random(run)) / 1e6)
                    wait_until(lambda: is_quiet(mount), "what is under way to come", 60)  # noqa: B023
                    fetched.append(wire.counts()["sent_bytes"]["chunks"] / 1e6)
                    viewer.unmount(mount)
            results.append(share(f"tiles of a mip-mapped texture, cut by the profile {profile}", "fetched", "asked",
                                 fetched, asked, None, "MB"))  # fmt: skip
    return results


def make(folder: Path) -> Path:
    """A texture of noise, tiled and with all its levels, not compressed: each tile has TILE_BYTES."""
    image, texture = folder / "wood.tif", folder / "wood.tx"
    noise = ["--pattern", "noise:type=uniform:min=0:max=1", f"{SIDE}x{SIDE}", "3", "-d", "uint8", "-o", str(image)]
    subprocess.run(["oiiotool", *noise], check=True, timeout=600, stdout=subprocess.DEVNULL)
    options = ["--format", "tiff", "--compression", "none", "--tile", "64", "64", "--threads", "2"]
    subprocess.run(["maketx", *options, str(image), "-o", str(texture)], check=True, timeout=600,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    image.unlink()
    return texture


def walk(path: Path, rng: random.Random) -> int:
    """Read blocks of tiles here and there; the bytes that were asked for."""
    tiles_across = SIDE // 64
    asked = 0
    descriptor = os.open(path, os.O_RDONLY)
    try:
        for _ in range(BLOCKS):
            row, column = rng.randrange(tiles_across - BLOCK_ROWS), rng.randrange(tiles_across - BLOCK_TILES)
            for y in range(row, row + BLOCK_ROWS):
                for x in range(column, column + BLOCK_TILES):
                    asked += len(os.pread(descriptor, TILE_BYTES, (y * tiles_across + x) * TILE_BYTES))
    finally:
        os.close(descriptor)
    return asked
