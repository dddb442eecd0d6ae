"""How places are written and read, and when two names are the same name."""

from __future__ import annotations

import hashlib
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifest.errors import UsageError
from manifest.names import Address, At, Revision, nfc, parse_address, parse_at

NOON_NS = 1_795_169_747_000_000_000
"""2026-11-20T10:15:47Z."""


@pytest.mark.parametrize(
    ("at", "time_ns"),
    [
        ("2026-11-20T10:15:47.081Z", NOON_NS + 81_000_000),
        ("2026-11-20T10:15:47,081Z", NOON_NS + 81_000_000),
        ("2026-11-20T10:15:47.081", NOON_NS + 81_000_000),
        ("2026-11-20T10:15:47.123456789Z", NOON_NS + 123_456_789),
        ("2026-11-20T11:15:47.081+01:00", NOON_NS + 81_000_000),
        ("2026-11-20T11:15:47+0100", NOON_NS),
        ("2026-11-20T05:45:47-04:30", NOON_NS),
        ("2026-11-20 10:15:47", NOON_NS),
        ("2026-11-20T11:15+01:00", NOON_NS - 47_000_000_000),
        ("20261120T101547Z", NOON_NS),
        ("2026-11-20", NOON_NS - (10 * 3600 + 15 * 60 + 47) * 1_000_000_000),
    ],
)
@pytest.mark.parametrize("path", ["", "plate/v001", "a:b"])
def test_the_path_of_an_address_begins_behind_the_whole_of_its_time(at: str, time_ns: int, path: str) -> None:
    address = parse_address(f"apollo@{at}" + (f":{path}" if path else ""))
    assert address == Address("apollo", At(time_ns), path)
    assert parse_address(str(address)) == address


def test_a_path_of_digits_stands_behind_a_whole_time() -> None:
    assert parse_address("apollo@2026-11-20T10:15:47:10:15") == Address("apollo", At(NOON_NS), "10:15")


@given(
    at=st.none() | st.integers(0, 2**22 - 2).map(Revision) | st.integers(0, 2**63 - 1).map(At),
    path=st.sampled_from(["", "a", "a/b", "a:b", "47", "Z", ".5Z", "v001/ü"]),
)
def test_what_is_written_of_an_address_is_read_as_the_same(at: Revision | At | None, path: str) -> None:
    address = Address("apollo", at, path)
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "at", ["", "x", "1e3", "2026-13-01", "2026-11-20T10:15:47.0000000001Z", "1969-12-31", "2262-04-12", "9999-01-01"]
)
def test_what_is_no_moment_that_a_log_can_have_is_refused(at: str) -> None:
    with pytest.raises(UsageError):
        parse_at(at)


@pytest.mark.parametrize(
    ("one", "other"), [("é", "e\u0301"), ("Å", "\u212b"), ("가", "\u1100\u1161"), ("ệ", "e\u0302\u0323")]
)
def test_names_that_unicode_3_2_calls_equal_have_one_form(one: str, other: str) -> None:
    assert nfc(one) == nfc(other) == one


def test_a_character_younger_than_unicode_3_2_stands_for_itself_and_parts_the_name() -> None:
    kaithi = "\U00011099\U000110ba"  # composed since Unicode 5.2
    assert unicodedata.normalize("NFC", kaithi) != kaithi
    assert nfc(kaithi) == kaithi
    marks = "a\u0358\u0323"  # U+0358 is of Unicode 4.1: other tables sort it behind U+0323
    assert unicodedata.normalize("NFC", marks) != marks
    assert nfc(marks) == marks


def test_the_form_of_every_character_is_the_one_of_every_other_machine() -> None:
    """The digest was made with Unicode 14; whoever sees another one must not join a log with this reader."""
    every = hashlib.sha256()
    for number in range(0x110000):
        if not 0xD800 <= number < 0xE000:
            character = chr(number)
            for text in (character, f"a{character}\u0323", f"{character}\u0338{character}", f"\u0301{character}\u0327"):
                every.update(nfc(text).encode() + b"\0")
    assert every.hexdigest() == "346774d46f7eba6666b57f919d4e81c6ccc0e517773b1c60faf5103f4befad1a"
