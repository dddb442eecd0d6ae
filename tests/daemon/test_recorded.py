"""A trace on disk: what was written is read, and whatever else is refused, with its line."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon import recorded
from daemon.recorded import TracedFile, TraceFile
from manifest.digest import Digest
from manifest.errors import FormatError

FILE = TracedFile("apollo", 3, "plate/a.exr", Digest(bytes(32)), 1000, ((0, 10), (20, 1000)))


def with_line(**values: object) -> bytes:
    head, line = recorded.encode([FILE], cut=False).splitlines(keepends=True)
    return head + json.dumps(json.loads(line) | values, sort_keys=True, separators=(",", ":")).encode() + b"\n"


@given(
    st.lists(
        st.tuples(
            st.sampled_from("ab"),
            st.text("xyzä/", min_size=1).map(lambda text: "p" + text.replace("/", "s")),
            st.sets(st.integers(0, 2**40), min_size=2).map(sorted),
        ),
        unique_by=lambda one: one[:2],
        max_size=5,
    ),
    st.booleans(),
)
def test_what_was_written_is_read(made: list[tuple[str, str, list[int]]], cut: bool) -> None:
    files = [
        TracedFile(show, 1, path, Digest(bytes(32)), numbers[-1], tuple(zip(numbers[::2], numbers[1::2], strict=False)))
        for show, path, numbers in made
    ]
    assert recorded.parse(recorded.encode(files, cut=cut)) == TraceFile(files, cut)


@pytest.mark.parametrize(
    "values",
    [
        {"show": "../x"},
        {"show": 1},
        {"path": "/etc/passwd"},
        {"path": "a/../b"},
        {"path": ""},
        {"path": "a\0b"},
        {"content": "b3:00"},
        {"content": None},
        {"revision": 0},
        {"revision": 2**40},
        {"revision": True},
        {"size": -1},
        {"size": 999},
        {"ranges": []},
        {"ranges": [[0, 0]]},
        {"ranges": [[5, 1]]},
        {"ranges": [[-1, 5]]},
        {"ranges": [[0, 5], [5, 9]]},
        {"ranges": [[10, 20], [0, 5]]},
        {"ranges": [[0, 1, 2]]},
        {"ranges": [0, 1]},
        {"ranges": "all"},
        {"ranges": [["0", "1"]]},
        {"ranges": [[0, 2**63 - 1]]},
        {"more": 1},
    ],
)
def test_a_line_that_is_off_is_named(values: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match="line 2: "):
        recorded.parse(with_line(**values))


WHOLE = recorded.encode([FILE], cut=False)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"[]\n",
        b"{}\n",
        b"\xff\n",
        WHOLE[:-1],
        WHOLE[:-2],
        WHOLE + b"\n",
        WHOLE + WHOLE,
        WHOLE.split(b"\n")[0],
        WHOLE.replace(b"trace/1", b"trace/2"),
        WHOLE.replace(b'"cut":0', b'"cut":2'),
        WHOLE.replace(b'"cut":0', b'"cut":[]'),
        WHOLE.replace(b",", b", "),
        WHOLE + WHOLE.split(b"\n")[1] + b"\n",
        b"[" * 10**6,
        b"x" * (recorded.TRACE_BYTES_MAX + 1),
    ],
)
def test_what_is_no_trace_is_refused_as_a_whole(data: bytes) -> None:
    with pytest.raises(FormatError):
        recorded.parse(data)


def test_what_has_no_room_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [FILE._replace(path=f"{n:05}") for n in range(20)]
    monkeypatch.setattr(recorded, "FILES_MAX", 10)
    assert recorded.parse(recorded.encode(files, cut=False)) == TraceFile(files[:10], cut=True)
    monkeypatch.setattr(recorded, "TRACE_BYTES_MAX", 1000)
    data = recorded.encode(files, cut=False)
    assert len(data) <= 1000
    assert recorded.parse(data).cut


def test_a_trace_of_too_many_files_or_ranges_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = recorded.encode([FILE._replace(path=f"{n}") for n in range(5)], cut=False)
    monkeypatch.setattr(recorded, "RANGES_MAX", 9)
    with pytest.raises(FormatError, match="ranges"):
        recorded.parse(data)
    monkeypatch.setattr(recorded, "FILES_MAX", 4)
    with pytest.raises(FormatError, match="files"):
        recorded.parse(data)
