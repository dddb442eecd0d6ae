"""What a studio reads, made up: opens of files in the order of time, by which policies of eviction are compared.

A trace is made of a seed and is the same every time. Sizes are those of the trade, in KiB: a frame of a 4K plate is
20 to 60 MiB, a texture has a median of 8 MiB and a long tail, a script has tens of kilobytes. A trace is scaled down in
the number of files, not in their sizes: some hundred GiB in all, where a studio has a hundred times as much.
"""

from __future__ import annotations

import heapq
import random
from typing import TYPE_CHECKING, NamedTuple

from cache.trace import Reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KIB, MIB = 1024, 1024 * 1024
FRAME_MS = 42
"""24 frames a second."""
SLOW_FRAME_MS = 250
"""A frame that is rendered, or fetched, not played."""
MINUTE_MS = 60_000


class Plate(NamedTuple):
    """A sequence: its group and the sizes of its frames; frame i is file ``group * 10_000 + i``."""

    group: int
    sizes: list[int]

    def play(
        self, when_ms: int, first: int = 0, last: int | None = None, step_ms: int = FRAME_MS
    ) -> Iterator[Reference]:
        """Frames one after the other, from ``when_ms`` on."""
        for i, size in enumerate(self.sizes[first:last]):
            yield Reference(when_ms + i * step_ms, self.group * 10_000 + first + i, size, self.group)

    def play_ms(self, step_ms: int = FRAME_MS) -> int:
        return len(self.sizes) * step_ms


def plates(rng: random.Random, count: int, frames: tuple[int, int]) -> list[Plate]:
    """Plates of so many frames each, of about the same size within one."""
    made = []
    for group in range(1, count + 1):
        typical = rng.uniform(20, 60) * MIB
        sizes = [int(typical * rng.uniform(0.9, 1.1)) for _ in range(rng.randint(*frames))]
        made.append(Plate(group, sizes))
    return made


def loops(rng: random.Random) -> list[Reference]:
    """An artist plays plates, each for some rounds, often the last few again, sometimes a part of one."""
    shots = plates(rng, 60, (60, 400))
    recent: list[Plate] = []
    out: list[Reference] = []
    now = 0
    while len(out) < 60_000:
        plate = rng.choice(recent[-4:]) if recent and rng.random() < 0.6 else rng.choice(shots)
        recent.append(plate)
        first = 0 if rng.random() < 0.7 else rng.randrange(len(plate.sizes) // 2)
        last = None if first == 0 else first + len(plate.sizes) // 3
        for _ in range(min(12, 1 + int(rng.expovariate(1 / 3)))):
            out += plate.play(now, first, last)
            now += plate.play_ms()
        now += int(rng.expovariate(1 / (3 * MINUTE_MS)))
    return out


def long_loop(rng: random.Random) -> list[Reference]:
    """Playback of one plate round and round that is larger than the cache."""
    (plate,) = plates(rng, 1, (4_000, 4_000))
    return [access for i in range(10) for access in plate.play(i * plate.play_ms())]


def moving_range(rng: random.Random) -> list[Reference]:
    """One long plate; the artist loops a range of it, then moves on to the next one, and back at times."""
    (plate,) = plates(rng, 1, (6_000, 6_000))
    out: list[Reference] = []
    now = 0
    while len(out) < 40_000:
        first = rng.randrange(0, 20) * 250
        for _ in range(rng.randint(2, 6)):
            out += plate.play(now, first, first + 700)
            now += 700 * FRAME_MS
        now += MINUTE_MS
    return out


def _drawn(
    rng: random.Random, draws: int, count: int, skew: float, median_bytes: int, sigma: float, base: int, step_ms: int
) -> list[Reference]:
    """Single files by popularity."""
    order = list(range(count))
    rng.shuffle(order)
    chosen = rng.choices(order, [1 / (i + 1) ** skew for i in range(count)], k=draws)
    sizes = [min(int(median_bytes * rng.lognormvariate(0, sigma)), 512 * MIB) for _ in range(count)]
    return [Reference(i * step_ms, base + file, sizes[file], 0) for i, file in enumerate(chosen)]


def textures(rng: random.Random) -> list[Reference]:
    """Renders that read textures: few are popular, and they are of all sizes."""
    return _drawn(rng, 60_000, 12_000, 0.9, 8 * MIB, 1.4, 10**9, 120)


def scripts(rng: random.Random) -> list[Reference]:
    """Many small files: popular modules and presets, and a long tail."""
    return _drawn(rng, 60_000, 20_000, 1.0, 24 * KIB, 1.2, 2 * 10**9, 120)


def farm(rng: random.Random) -> list[Reference]:
    """A render node: textures all the time, and three waves that read every plate of a show once."""
    work = _drawn(rng, 45_000, 3_000, 0.9, 8 * MIB, 1.2, 10**9, 240)
    shots = plates(rng, 40, (100, 300))
    waves: list[Reference] = []
    for wave in range(3):
        now = (wave + 1) * len(work) * 240 // 4
        some = shots[wave * 13 : wave * 13 + 13]
        for plate in some:
            waves += plate.play(now, step_ms=SLOW_FRAME_MS)
            now += plate.play_ms(SLOW_FRAME_MS)
    return list(heapq.merge(work, sorted(waves)))


def mix(rng: random.Random) -> list[Reference]:
    """A workstation: playback, comps that read textures and scripts, and in between a wave over the whole show."""
    played = loops(rng)
    end = played[-1].when_ms
    textured = _drawn(rng, 20_000, 4_000, 0.9, 8 * MIB, 1.2, 10**9, end // 20_000)
    scripted = _drawn(rng, 20_000, 8_000, 1.0, 24 * KIB, 1.2, 2 * 10**9, end // 20_000)
    show = [Plate(plate.group + 1_000, plate.sizes) for plate in plates(rng, 50, (60, 200))]
    now = end // 2
    scan: list[Reference] = []
    for plate in show:
        scan += plate.play(now, step_ms=SLOW_FRAME_MS)
        now += plate.play_ms(SLOW_FRAME_MS)
    return list(heapq.merge(played, textured, scripted, scan))


TRACES: dict[str, Callable[[random.Random], list[Reference]]] = {
    "loops": loops,
    "long loop": long_loop,
    "moving range": moving_range,
    "textures": textures,
    "scripts": scripts,
    "farm": farm,
    "mix": mix,
}


def make(name: str, seed: int = 1) -> list[Reference]:
    """The trace of this name."""
    return TRACES[name](random.Random(f"{name} {seed}"))
