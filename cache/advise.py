"""What hit rate each size of the cache would give, by a sample of what was opened.

The sample is replayed, for each size, in a simulated cache that is smaller by the sample's rate, with the policy and
the water marks of the real one [miniature simulation: Waldspurger et al., USENIX ATC 2017]: a curve by stack distances
alone is LRU's, and wrong for any other policy. The hit rate is the part of the bytes of all files opened that were
here. The first WARM_UP of the references fill the simulated cache and are not counted; what is opened for the first
time after that is a miss in a cache of any size.

What was opened most can be in the sample or not, by chance, and a popular file weighs much. How many bytes all opens
were of is known: what the sample has less, or more, than its share of them is taken for hits [SHARDS-adj].

State: none. Blocks for seconds: it is for commands, not for the daemon.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cache.simulate import simulate
from cache.trace import KEYS, Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WARM_UP = 0.2
SIZES = 14
SMALLEST = 1 / 64
"""The first point of a curve, as a part of everything that was opened; the last one has room for all."""
SIMULATED_MAX = 32_768
"""So many references are replayed at most: with more a curve takes longer and is no better."""
REFERENCES_MIN = 100


class Point(NamedTuple):
    """A size of the cache and its hit rate, a part of 1."""

    size_bytes: int
    hit_rate: float


class Advice(NamedTuple):
    """A curve, ascending in size. ``today`` is the point of the size that the cache has.

    ``opened_bytes`` are all files that were opened, each once; ``rate`` the part of them that was replayed. ``wanted``
    is the smallest size that gives the hit rate that was asked for; None: no size does.
    """

    points: list[Point]
    today: Point
    wanted: Point | None
    opened_bytes: int
    rate: float
    references: int
    span_ms: int


def advise(
    sample: Sample,
    policy: str,
    size_bytes: int,
    hit_rate: float,
    *,
    marks: tuple[float, float],
    simulated: Callable[[], None] = lambda: None,
) -> Advice:
    """The advice by a sample of at least REFERENCES_MIN references, for a cache that has ``size_bytes`` today.

    ``marks`` are its (high, low) water marks. ``simulated`` is called after each of the SIZES + 1 simulations.
    """
    sample = thinned(sample)
    references = sample.references
    opened = sum({r.file: r.size_bytes for r in references}.values()) / sample.rate
    steps = (1 / SMALLEST) ** (1 / (SIZES - 1))
    sizes = [int(opened / marks[0] * SMALLEST * steps**i) + 1 for i in range(SIZES)]

    def point(size: int) -> Point:
        made = Point(size, predict(sample, policy, size, marks))
        simulated()
        return made

    points = sorted(point(size) for size in {*sizes, size_bytes})
    return Advice(
        points=points,
        today=next(p for p in points if p.size_bytes == size_bytes),
        wanted=reaching(points, hit_rate),
        opened_bytes=int(opened),
        rate=sample.rate,
        references=len(references),
        span_ms=references[-1].when_ms - references[0].when_ms,
    )


def predict(sample: Sample, policy: str, size_bytes: int, marks: tuple[float, float]) -> float:
    """The hit rate that a cache of this size would have."""
    rate, references = sample
    warm_up = int(len(references) * WARM_UP)
    rates = simulate(policy, references, int(size_bytes * rate), marks=marks, warm_up=warm_up)
    sampled = sum(r.size_bytes for r in references[warm_up:])
    share = (references[-1].all_bytes - references[warm_up - 1].all_bytes) * rate
    return min(max((rates.bytes * sampled + share - sampled) / share, 0.0), 1.0) if share > 0 else rates.bytes


def thinned(sample: Sample, references_max: int = SIMULATED_MAX) -> Sample:
    """The same sample, of fewer files, with so many references at most."""
    rate, references = sample
    while len(references) > references_max:
        rate *= references_max / len(references) * 0.98
        references = [r for r in references if r.file < KEYS * rate]
    return Sample(rate, references)


def reaching(points: Sequence[Point], hit_rate: float) -> Point | None:
    """The smallest size with this hit rate, between two points in a straight line; None when no point has it."""
    before = Point(0, 0.0)
    for point in points:
        if point.hit_rate >= hit_rate:
            part = (hit_rate - before.hit_rate) / (point.hit_rate - before.hit_rate)
            return Point(int(before.size_bytes + part * (point.size_bytes - before.size_bytes)), hit_rate)
        if point.hit_rate > before.hit_rate:
            before = point
    return None
