"""Sizes as people write them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from daemon.sizes import parse_size
from manifest.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "count"),
    [("200GB", 200 * 10**9), ("1.5TiB", 3 * 2**39), ("64 kb", 64_000), ("10M", 10**7), ("1Ki", 1024), ("512", 512)],
)
def test_units_are_decimal_unless_they_say_otherwise(text: str, count: int) -> None:
    assert parse_size(text).bytes == count


def test_a_percentage_is_of_the_disk_that_will_hold_the_folder(tmp_path: Path) -> None:
    disk = os.statvfs(tmp_path)
    whole = disk.f_blocks * disk.f_frsize
    assert parse_size("20%").resolve(tmp_path / "not/yet/there") == pytest.approx(whole / 5, rel=0.001)


@pytest.mark.parametrize("text", ["", "GB", "1.5.5GB", "1,5GB", "0%", "96%", "100 PB PB", "9999999PB", "٣GB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="size"):
        parse_size(text)
