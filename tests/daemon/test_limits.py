"""Limits as people write them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cache.limits import NO_LIMITS, Priority, Reserve, ShowLimits
from daemon.config import CacheSettings, Settings
from daemon.limits import configured, parse_inodes, parse_reserve, parse_show, parse_values
from manifest.errors import ConfigurationError, DamfsError, UsageError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "reserve"),
    [
        ("10%", Reserve(part=0.1)),
        ("50GB", Reserve(count=50 * 10**9)),
        ("5%, 10GB", Reserve(count=10**10, part=0.05)),
        ("10GB,5%", Reserve(count=10**10, part=0.05)),
        ("0", Reserve()),
    ],
)
def test_a_reserve_is_a_share_a_size_or_both(text: str, reserve: Reserve) -> None:
    assert parse_reserve(text) == reserve


@pytest.mark.parametrize("text", ["", "much", "10%,5%", "1GB,2GB", "1GB,", "-1GB", "99%"])
def test_what_is_no_reserve_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_reserve(text)


def test_inodes_have_no_unit() -> None:
    assert parse_inodes("5%,100000") == Reserve(count=100000, part=0.05)
    with pytest.raises(ConfigurationError, match="100000"):
        parse_inodes("5GB")


def test_values_are_read_by_name(tmp_path: Path) -> None:
    words = {"size": "1.5GB", "free_reserve": "10%", "free_inodes": "0", "high_water": "0.9", "low_water": "0.8"}
    assert parse_values(words, tmp_path) == {
        "size_bytes": 1_500_000_000, "free_reserve": Reserve(part=0.1), "free_inodes": Reserve(), "high_water": 0.9,
        "low_water": 0.8,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ({"colour": "blue"}, UsageError),
        ({"size": "much"}, ConfigurationError),
        ({"high_water": "90%"}, ConfigurationError),
        ({"low_water": "nan"}, ConfigurationError),
        ({"low_water": "0"}, ConfigurationError),
    ],
)
def test_what_cannot_be_set_is_refused(words: dict[str, str], kind: type[DamfsError], tmp_path: Path) -> None:
    with pytest.raises(kind):
        parse_values(words, tmp_path)


def test_of_a_show_only_what_is_named_changes() -> None:
    limits = parse_show({"quota": "200GB"}, NO_LIMITS)
    assert limits == ShowLimits(200 * 10**9)
    limits = parse_show({"priority": "low"}, limits)
    assert limits == ShowLimits(200 * 10**9, Priority.LOW)
    assert parse_show({"quota": "none"}, limits) == ShowLimits(None, Priority.LOW)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"quota": "20%"}, "quota=200GB"),
        ({"priority": "odd"}, "low, normal, high"),
        ({"size": "1GB"}, "quota"),
    ],
)
def test_what_cannot_be_set_of_a_show_is_refused(words: dict[str, str], said: str) -> None:
    with pytest.raises(DamfsError, match=said):
        parse_show(words, NO_LIMITS)


def test_a_share_of_the_disk_is_a_size_also_before_the_folder_is_there(tmp_path: Path) -> None:
    ((folder, limits),) = configured(Settings(cache=CacheSettings(folder=tmp_path / "a/b", size="10%")))
    assert folder == tmp_path / "a/b"
    assert limits.size_bytes > 0
    assert limits.free_reserve == Reserve(count=10**10, part=0.05)


@pytest.mark.parametrize(("size", "said"), [("5", "write the unit"), ("900PB", "larger than the disk")])
def test_a_configured_size_that_cannot_be_is_refused(size: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=said):
        configured(Settings(cache=CacheSettings(folder=tmp_path, size=size)))
