"""The advice on the size of a cache against the hit rate at that size, at five sizes each.

- Of the cache itself: files are opened and read through a real one, which measures its hit rate and keeps its sample.
- Of traces of a studio, which are too long for that: the advice sees what the daemon would keep, a bounded sample,
  replayed in a smaller cache. The hit rate is that of the whole trace in a simulated cache of the whole size.

Both count the same part of the trace: what comes after the warm-up.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import trio
from blake3 import blake3

from cache.advise import WARM_UP, predict, thinned
from cache.policies import DEFAULT
from cache.simulate import simulate
from cache.sources.central import CentralSource
from cache.trace import Trace, unpack
from manifest.library import Library
from tests.bench import traces
from tests.bench.measure import Ratio
from tests.bench.policies import MARKS, TENANT
from tests.cache.contents import KIB, MIB, open_sample, opened, put, sample, settle

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from cache.trace import Reference, Sample
    from tests.cache.contents import Sample as Content
    from tests.harness import Studio

TRACES = ("mix", "textures", "loops", "farm")
SHARES = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Five sizes, as parts of all that a trace opens."""
AIM_POINTS = 3.0
FILES, OPENS, FLUSH_EVERY = 300, 3000, 16


def measure(user: Studio, work: Path, say: Callable[[str], None]) -> list[Ratio]:
    """The points by which the advice is off: all five, and the worst of them as the result."""
    del user
    return [_measured(work / "advice", say), *(_simulated(name, say) for name in TRACES)]


def sampled(references: Sequence[Reference]) -> Sample:
    """What the daemon would have kept of these opens, as far as it is replayed."""
    trace = Trace()
    for r in references:
        content = blake3(r.file.to_bytes(8, "little")).digest()
        trace.note(TENANT, content, r.size_bytes, r.group, here_bytes=None, when_ms=r.when_ms)
    return thinned(unpack(trace.packed()))


def _measured(folder: Path, say: Callable[[str], None]) -> Ratio:
    """Single files by popularity, of 70 to 300 KiB, through the cache itself."""
    rng = random.Random(1)
    (folder / "library").mkdir(parents=True)
    (folder / "library" / "damfs.json").touch()
    library = Library.open((folder / "library").as_uri())
    made = [put(library, sample(i, rng.randint(70, 300) * KIB, MIB)) for i in range(FILES)]
    order = rng.choices(made, [1 / (i + 1) ** 0.8 for i in range(FILES)], k=OPENS)
    opened_bytes = sum(one.size for one in made)
    advised, found = [], []
    for share in SHARES:
        size_bytes = int(opened_bytes * share)
        hit_rate, kept = trio.run(_read_through, folder / f"{share:g}", library, order, size_bytes)
        found.append(100 * hit_rate)
        advised.append(100 * predict(kept, DEFAULT, size_bytes, MARKS))
        say(f"a real cache for {share:.0%}: advice {advised[-1]:.1f}%, measured {found[-1]:.1f}%")
    return _result("a real cache", advised, found)


async def _read_through(
    folder: Path, library: Library, order: Sequence[Content], size_bytes: int
) -> tuple[float, Sample]:
    """Open and read files one after the other: the measured hit rate after the warm-up, and the sample."""
    async with opened(folder, [CentralSource(library)], size_bytes=size_bytes, ring_bytes_max=0) as cache:
        trace, before = cache.trace, (0, 0)
        for i, one in enumerate(order):
            if i == int(len(order) * WARM_UP):
                before = trace.found_bytes, trace.asked_bytes
            handle = await open_sample(cache, one)
            await handle.read(0, one.size, trio.current_time() + 20)
            handle.release()
            if i % FLUSH_EVERY == 0:  # as INTERVAL_S does where it takes time to look at a file
                await settle(cache)
        return (trace.found_bytes - before[0]) / (trace.asked_bytes - before[1]), unpack(trace.packed())


def _simulated(name: str, say: Callable[[str], None]) -> Ratio:
    references = traces.make(name)
    kept = sampled(references)
    opened_bytes = sum({r.file: r.size_bytes for r in references}.values())
    advised, found = [], []
    for share in SHARES:
        size_bytes = int(opened_bytes * share)
        advised.append(100 * predict(kept, DEFAULT, size_bytes, MARKS))
        rates = simulate(DEFAULT, references, size_bytes, marks=MARKS, warm_up=int(len(references) * WARM_UP))
        found.append(100 * rates.bytes)
        say(f"{name}, a cache for {share:.0%}: advice {advised[-1]:.1f}%, found {found[-1]:.1f}%")
    return _result(f"{name}, by {kept.rate:.0%} of its files", advised, found)


def _result(name: str, advised: list[float], found: list[float]) -> Ratio:
    off = [abs(ours - theirs) for ours, theirs in zip(advised, found, strict=True)]
    worst = off.index(max(off))
    return Ratio(
        f"advice on {name}, at {SHARES[worst]:.0%} of what is opened: points off",
        "advice", "hit rate", max(off), off, advised[worst], found[worst], AIM_POINTS, unit="%",
    )  # fmt: skip
