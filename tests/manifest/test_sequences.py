"""What is a frame of a sequence, and which frames belong together."""

from __future__ import annotations

import time

import pytest
from fileseq import constants
from hypothesis import given
from hypothesis import strategies as st

from manifest.sequences import Frame, key, parse


@pytest.mark.parametrize(
    ("name", "frame"),
    [
        ("plate.1001.exr", Frame("plate.", 1001, ".exr")),
        ("plate_1001.exr", Frame("plate_", 1001, ".exr")),
        ("plate1001.exr", Frame("plate", 1001, ".exr")),
        ("1001.exr", Frame("", 1001, ".exr")),
        ("beauty.v003.-12.exr", Frame("beauty.v003.", -12, ".exr")),
        ("sim.0001.bgeo.sc", Frame("sim.", 1, ".bgeo.sc")),
        ("skin.1011.tx", Frame("skin.", 1011, ".tx")),
        ("comp_v012.nk", None),
        ("v012.nk", None),
        ("rev012.nk", Frame("rev", 12, ".nk")),
        ("plate.mov", None),
        ("a.tar.gz", None),
        ("1001\n.exr", None),
    ],
)
def test_a_frame_ends_in_a_number_that_is_no_version(name: str, frame: Frame | None) -> None:
    assert parse(name) == frame


@given(st.text(st.sampled_from("ab_1-9.v"), min_size=1, max_size=12))
def test_the_grammar_is_that_of_fileseq_but_for_versions(name: str) -> None:
    found = constants.DISK_RE.match(name)
    assert found is not None
    _, prefix, number, suffix = found.groups()
    if number is None:
        assert parse(name) is None
    elif (frame := parse(name)) is not None:
        assert frame == (prefix, int(number), suffix)
    else:
        assert prefix[-1:] == "v"


def test_frames_of_one_sequence_have_one_key_and_others_have_others() -> None:
    assert key(7, "plate.1001.exr") == key(7, "plate.1002.exr") != 0
    others = {key(8, "plate.1001.exr"), key(7, "plate_1001.exr"), key(7, "plate.1001.dpx"), key(7, "plate.1001.exr")}
    assert len(others) == 4
    assert all(-(2**63) <= each < 2**63 for each in others)
    assert key(7, "plate.mov") == 0


@pytest.mark.parametrize("name", [".aa" * 84 + ".1.", "-1" * 127, "1" * 255, ".1a1" * 63 + "..", "." * 255])
def test_no_name_takes_long(name: str) -> None:
    begun = time.process_time()
    parse(name)
    assert time.process_time() - begun < 0.1
