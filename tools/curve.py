"""The curve of hit rates by the size of a cache, drawn as text, as SVG or as PNG.

State: none. Sizes grow from left to right by factors, as they matter: a step is a doubling, not a terabyte.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from tools.canvas import PngCanvas, SvgCanvas
from tools.output import human_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cache.advise import Point
    from tools.canvas import Canvas

COLUMNS, ROWS = 64, 10
WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 60, 24, 40, 48
_TICKS = 5


class Curve(NamedTuple):
    """What is drawn: points ascending in size, the cache of today, what was measured of it, and what is wanted."""

    points: Sequence[Point]
    today: Point
    measured: float | None
    wanted: Point | None

    def part(self, size_bytes: float) -> float:
        """Where a size lies between the first point (0) and the last one (1); it may lie outside."""
        first, last = (math.log(self.points[i].size_bytes) for i in (0, -1))
        return (math.log(max(size_bytes, 1)) - first) / (last - first)

    def size(self, part: float) -> float:
        """The size that lies there."""
        first, last = (math.log(self.points[i].size_bytes) for i in (0, -1))
        return math.exp(first + part * (last - first))

    def hit_rate(self, size_bytes: float) -> float:
        """At a size between the first and the last point, in a straight line between its neighbours."""
        for before, after in zip(self.points, self.points[1:], strict=False):
            if size_bytes <= after.size_bytes:
                part = (size_bytes - before.size_bytes) / (after.size_bytes - before.size_bytes)
                return before.hit_rate + max(part, 0) * (after.hit_rate - before.hit_rate)
        return self.points[-1].hit_rate


def as_text(curve: Curve) -> Iterator[str]:
    """Lines for a terminal: today's size is a vertical line, the size that is wanted a dotted one."""
    marks = {round(curve.part(curve.today.size_bytes) * (COLUMNS - 1)): "│"}
    if curve.wanted is not None:
        marks.setdefault(round(curve.part(curve.wanted.size_bytes) * (COLUMNS - 1)), "┊")
    heights = [round(curve.hit_rate(curve.size(i / (COLUMNS - 1))) * ROWS) for i in range(COLUMNS)]
    for row in range(ROWS, -1, -1):
        cells = ["•" if height == row else marks.get(i, " ") for i, height in enumerate(heights)]
        yield f"{row * 100 // ROWS:4}% ┤{''.join(cells)}".rstrip()
    axis, labels = ["─"] * COLUMNS, [" "] * (COLUMNS + 12)
    for tick in range(_TICKS):
        column = round(tick / (_TICKS - 1) * (COLUMNS - 1))
        axis[column] = "┬"
        text = human_bytes(int(curve.size(tick / (_TICKS - 1))))
        start = max(0, column - len(text) // 2)
        labels[start : start + len(text)] = text
    yield f"      └{''.join(axis)}"
    yield f"       {''.join(labels)}".rstrip()


def as_svg(curve: Curve) -> bytes:
    """The file of an SVG."""
    return _drawn(curve, SvgCanvas(WIDTH, HEIGHT))


def as_png(curve: Curve) -> bytes:
    """The file of a PNG."""
    return _drawn(curve, PngCanvas(WIDTH, HEIGHT))


def _drawn(curve: Curve, canvas: Canvas) -> bytes:
    def place(size_bytes: float, hit_rate: float) -> tuple[float, float]:
        part = min(max(curve.part(size_bytes), 0), 1)
        return LEFT + part * (WIDTH - LEFT - RIGHT), TOP + (1 - hit_rate) * (HEIGHT - TOP - BOTTOM)

    canvas.text((WIDTH / 2, TOP / 4), "hit rate by the size of the cache", "black", "middle")
    first, last = curve.points[0].size_bytes, curve.points[-1].size_bytes
    for row in range(0, ROWS + 1, 2):
        canvas.line(place(first, row / ROWS), place(last, row / ROWS), "grey", dashed=False)
        canvas.text((LEFT - 8, place(first, row / ROWS)[1]), f"{row * 100 // ROWS}%", "black", "end")
    for tick in range(_TICKS):
        size = curve.size(tick / (_TICKS - 1))
        x, y = place(size, 0)
        canvas.line((x, y), (x, y + 6), "black", dashed=False)
        canvas.text((x, y + 18), human_bytes(int(size)), "black", "end" if tick == _TICKS - 1 else "middle")
    for before, after in zip(curve.points, curve.points[1:], strict=False):
        canvas.line(place(*before), place(*after), "blue", dashed=False)
    size = curve.today.size_bytes
    canvas.line(place(size, 0), place(size, 1), "red", dashed=True)
    x, y = place(size, 1)
    canvas.text((x, y - 8), f"today {human_bytes(size)}", "red", "middle")
    if curve.measured is not None:
        x, y = place(size, curve.measured)
        canvas.line((x - 5, y), (x + 5, y), "red", dashed=False)
        canvas.text((x + 8, y), f"measured {curve.measured * 100:.0f}%", "red", "start")
    if curve.wanted is not None:
        x, y = place(*curve.wanted)
        canvas.line((x, y), place(curve.wanted.size_bytes, 0), "green", dashed=True)
        text = f"{curve.wanted.hit_rate * 100:g}%: {human_bytes(curve.wanted.size_bytes)}"
        canvas.text((x - 6, place(curve.wanted.size_bytes, 0.1)[1]), text, "green", "end")
    return canvas.data()
