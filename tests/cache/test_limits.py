"""What limits mean, what contradicts itself, and what is kept of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from cache.accounts import Held
from cache.limits import Limits, Overrides, Priority, Reserve, ShowLimits, check_size
from cache.shares import EVERYTHING, Scope, in_turn, over_quota
from manifest.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

GB = 10**9


def test_of_a_share_and_a_number_the_lesser_stays_free() -> None:
    reserve = Reserve(count=10 * GB, part=0.05)
    assert reserve.of(100 * GB) == 5 * GB
    assert reserve.of(1000 * GB) == 10 * GB
    assert Reserve().of(1000 * GB) == 0


@pytest.mark.parametrize(("low", "high"), [(0.9, 0.9), (0.95, 0.9), (0.0, 0.5), (0.5, 1.1)])
def test_water_marks_that_contradict_each_other_are_refused(low: float, high: float) -> None:
    with pytest.raises(ConfigurationError, match="low_water < high_water"):
        Limits(GB, low_water=low, high_water=high)


@pytest.mark.parametrize(("size_bytes", "word"), [(5, "at least"), (2 * GB, "larger than the disk")])
def test_a_size_that_cannot_work_is_refused(size_bytes: int, word: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=word):
        check_size(size_bytes, GB, tmp_path)


def test_what_was_set_is_kept_for_this_user_only_and_wins(tmp_path: Path) -> None:
    made = Overrides().merged(
        {"size_bytes": 5 * GB, "free_reserve": Reserve(part=0.1)}, {"apollo": ShowLimits(GB, Priority.LOW)}
    )
    made.save(tmp_path)
    assert (tmp_path / "limits.json").stat().st_mode & 0o777 == 0o600
    found = Overrides.load(tmp_path)
    assert found == made
    limits = found.over(Limits(9 * GB, high_water=0.8, low_water=0.7))
    assert (limits.size_bytes, limits.free_reserve, limits.high_water) == (5 * GB, Reserve(part=0.1), 0.8)
    assert limits.show("apollo").priority is Priority.LOW
    assert limits.show("gemini") == ShowLimits()


def test_a_show_whose_limits_are_taken_away_is_forgotten() -> None:
    made = Overrides().merged({}, {"apollo": ShowLimits(GB)}).merged({}, {"apollo": ShowLimits()})
    assert made.shows == {}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": 2, "values": {}, "shows": {}}',
        '{"format": 1, "values": {"size_bytes": "much"}, "shows": {}}',
        '{"format": 1, "values": {"colour": 1}, "shows": {}}',
        '{"format": 1, "values": {"free_reserve": {"colour": 1}}, "shows": {}}',
        '{"format": 1, "values": {}, "shows": {"apollo": {"quota_bytes": 1, "priority": "odd"}}}',
        '{"format": 1, "values": {}, "shows": {"apollo": {"quota_bytes": -1, "priority": "low"}}}',
        '{"format": 1, "values": {"size_bytes": 0}, "shows": {}}',
        '{"format": 1, "values": {"size_bytes": 1e999}, "shows": {}}',
        '{"format": 1, "values": {"free_inodes": {"count": -1}}, "shows": {}}',
        '{"format": 1, "values": {"free_reserve": {"part": NaN}}, "shows": {}}',
        pytest.param("[" * 100_000, id="deep"),
    ],
)
def test_a_file_that_cannot_be_understood_is_as_good_as_none(
    text: str, tmp_path: Path, expects_log: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "limits.json").write_text(text)
    assert Overrides.load(tmp_path) == Overrides()
    assert "the configuration counts" in expects_log.text


def test_what_was_set_gives_way_when_the_configuration_contradicts_it(expects_log: pytest.LogCaptureFixture) -> None:
    made = Overrides({"low_water": 0.9}, {"apollo": ShowLimits(GB)})
    assert made.unless_refuted(Limits(GB)) == made
    assert made.unless_refuted(Limits(GB, low_water=0.5, high_water=0.6)) == Overrides({}, made.shows)
    assert "does not go with its configuration" in expects_log.text


def test_quotas_are_divided_among_folders_and_priorities_are_not() -> None:
    limits = Limits(GB, shows={"apollo": ShowLimits(100), "gemini": ShowLimits(None, Priority.HIGH)})
    assert limits.for_part(0.25).shows == {"apollo": ShowLimits(25), "gemini": ShowLimits(None, Priority.HIGH)}


def test_limits_are_told_as_plain_values() -> None:
    told = Limits(GB, Reserve(count=1, part=0.5)).to_json()
    assert json.loads(json.dumps(told)) == {
        "size_bytes": GB, "free_reserve": {"count": 1, "part": 0.5}, "free_inodes": {}, "high_water": 0.95,
        "low_water": 0.9,
    }  # fmt: skip


def test_a_show_over_its_quota_loses_down_to_the_low_water_mark() -> None:
    limits = Limits(GB, shows={"apollo": ShowLimits(1000), "gemini": ShowLimits(1000), "odd": ShowLimits(1)})
    held = {"apollo": Held(1001, 3), "gemini": Held(1000, 3)}
    assert list(over_quota(held, limits)) == [(Scope(frozenset({"apollo"}), is_rest=False), 101)]


def test_low_priority_goes_before_normal_and_normal_before_high() -> None:
    shows = {"cheap": ShowLimits(priority=Priority.LOW), "dear": ShowLimits(priority=Priority.HIGH)}
    limits = Limits(GB, shows=shows)
    low, not_high = Scope(frozenset({"cheap"}), is_rest=False), Scope(frozenset({"dear"}))
    every = {"cheap": Held(1, 1), "dear": Held(1, 1), "plain": Held(1, 1)}
    assert list(in_turn(every, limits)) == [low, not_high, EVERYTHING]
    assert list(in_turn({"plain": Held(1, 1)}, limits)) == [EVERYTHING]
    assert list(in_turn(every, Limits(GB))) == [EVERYTHING]
