"""How people name a sequence, and which names are frames of it."""

from __future__ import annotations

import pytest

from manifest.errors import UsageError
from manifest.patterns import parse


@pytest.mark.parametrize(
    ("pattern", "frames", "others"),
    [
        ("plate.####.exr", {"plate.1001.exr": 1001, "plate.0001.exr": 1, "plate.12345.exr": 12345},
         ["plate.1.exr", "plate.01001.exr", "plate.1001.dpx", "other.1001.exr", "plate..exr", "plate.exr"]),
        ("plate.#.exr", {"plate.1001.exr": 1001}, ["plate.1.exr"]),
        ("plate.##.exr", {"plate.01.exr": 1, "plate.100.exr": 100}, ["plate.1.exr"]),
        ("plate.@.exr", {"plate.1.exr": 1, "plate.1001.exr": 1001}, ["plate.0001.exr"]),
        ("plate.@@@.exr", {"plate.001.exr": 1}, ["plate.1.exr"]),
        ("plate.%04d.exr", {"plate.0999.exr": 999, "plate.-001.exr": -1}, ["plate.999.exr", "plate.x.exr"]),
        ("plate.%d.exr", {"plate.999.exr": 999}, ["plate.0999.exr"]),
        ("sim.$F4.bgeo.sc", {"sim.0001.bgeo.sc": 1}, ["sim.1.bgeo.sc"]),
        ("sim.$F.bgeo.sc", {"sim.1.bgeo.sc": 1}, ["sim.0001.bgeo.sc"]),
        ("skin.<UDIM>.tx", {"skin.1011.tx": 1011}, ["skin.11.tx"]),
        ("skin.%(UDIM)d.tx", {"skin.1011.tx": 1011}, ["skin.tx"]),
        ("plate.1001.exr", {"plate.1002.exr": 1002, "plate.7.exr": 7, "plate.0007.exr": 7},
         ["plate.exr", "plate.a.exr"]),
        ("comp_v###.nk", {"comp_v012.nk": 12}, ["comp_v12.nk"]),
    ],
)  # fmt: skip
def test_a_pattern_has_these_frames_and_no_others(pattern: str, frames: dict[str, int], others: list[str]) -> None:
    made = parse(pattern)
    assert {name: made.number(name) for name in frames} == frames
    assert [made.number(name) for name in others] == [None] * len(others)


@pytest.mark.parametrize("name", ["plate.exr", "comp_v012.nk", "plate.####.%04d.exr", ""])
def test_what_names_no_sequence_or_two_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        parse(name)
