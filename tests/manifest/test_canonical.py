"""Canonical JSON: what has a spelling, and that nothing else is given one."""

from __future__ import annotations

import sys

import pytest

from manifest import canonical
from manifest.errors import FormatError


@pytest.mark.parametrize(
    "value",
    [
        1.0, 0.0, float("nan"), {"a": [1.5]}, {1: "a"}, {None: 1}, {True: 1}, {"a": {2: 3}}, 2**63, -(2**63),
        {"a": [2**64]}, b"bytes", {1, 2}, object(), "\ud800", {"\udfff": 1},
    ],
)  # fmt: skip
def test_what_no_reader_would_take_is_not_written(value: object) -> None:
    with pytest.raises(FormatError):
        canonical.encode(value)


@pytest.mark.parametrize("value", [None, True, 0, 2**63 - 1, -(2**63 - 1), "é\n", [], {}, {"b": [1, {"a": None}]}])
def test_what_is_written_is_read_again(value: object) -> None:
    assert canonical.decode(canonical.encode(value), bytes_max=1000) == value


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def test_nesting_has_one_limit_whoever_asks() -> None:
    deepest = nested(canonical.DEPTH_MAX)
    assert canonical.encode(canonical.decode(deepest, bytes_max=1000)) == deepest
    for depth in (canonical.DEPTH_MAX + 1, 10 * sys.getrecursionlimit()):
        with pytest.raises(FormatError, match="100 deep"):
            canonical.decode(nested(depth), bytes_max=1_000_000)


def test_a_value_that_is_nested_too_deep_is_not_written() -> None:
    value: list[object] = [0]
    for _ in range(canonical.DEPTH_MAX - 1):
        value = [value]
    assert canonical.encode(value).startswith(b"[" * canonical.DEPTH_MAX + b"0")
    for more in (1, 10 * sys.getrecursionlimit()):
        for _ in range(more):
            value = [value]
        with pytest.raises(FormatError, match="100 deep"):
            canonical.encode(value)


def test_brackets_side_by_side_or_in_text_are_no_nesting() -> None:
    for data in (b"[" + b",".join([b"[]"] * 500) + b"]", b'["' + b'[{\\"' * 500 + b'"]'):
        assert canonical.encode(canonical.decode(data, bytes_max=10_000)) == data
