"""Ranges of frames as people write them."""

from __future__ import annotations

import time

import pytest

from manifest.errors import UsageError
from tools.frames import parse_frames


@pytest.mark.parametrize(
    ("text", "frames"),
    [
        ("1001-1003", [1001, 1002, 1003]),
        ("1-20x5", [1, 6, 11, 16]),
        ("7", [7]),
        ("7,1-3, 2-4", [1, 2, 3, 4, 7]),
        ("-2-1", [-2, -1, 0, 1]),
        ("10-7", [7, 8, 9, 10]),
        ("1-10y3", [2, 3, 5, 6, 8, 9]),
    ],
)
def test_a_range_is_these_frames(text: str, frames: list[int]) -> None:
    assert parse_frames(text) == frames


@pytest.mark.parametrize(
    "text", ["", "a", "1001-", "1-2x0", "1..5", "1-2x0.5", "1,,2", "1-999999999", "9" * 99, "1," * 200_000]
)
def test_what_is_none_or_too_many_is_refused_at_once(text: str) -> None:
    begun = time.process_time()
    with pytest.raises(UsageError):
        parse_frames(text)
    assert time.process_time() - begun < 1
