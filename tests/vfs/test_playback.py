"""Players of sequences: what they open next, told from what they opened. No clock, no files."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vfs.playback import PLAYERS_MAX, STOP_S_MIN, Player, Players, Wanted

FRAMES_MAX = 48
FETCH_S = 0.05
PACE_S = 1 / 24


class Model:
    """A program that opens frames at a pace, and is seen to read them, or not, since they are ``here``."""

    def __init__(self, *, reads: bool = True, here: bool = True) -> None:
        self.here = here
        self.players = Players(FRAMES_MAX)
        self.reads = reads
        self.now_s = 100.0
        self.player = Player(0, 0.0, FRAMES_MAX)

    def open(self, *numbers: int, pace_s: float = PACE_S) -> list[int]:
        """Open these; what is wanted after the last one."""
        for number in numbers:
            self.now_s += pace_s
            self.player, _ = self.players.opened(number, self.now_s)
            if self.reads:
                self.player.read_body()
            else:
                self.player.found(here=self.here)
        return self.wanted()

    def wanted(self) -> list[int]:
        if self.player.wanted != Wanted.BODIES:
            return []
        return list(islice(self.player.following(), self.player.frames_ahead(FETCH_S)))


@pytest.mark.parametrize(
    ("opened", "following"),
    [
        ([1001, 1002], [1003, 1004]),
        ([1010, 1009, 1008], [1007, 1006, 1005]),
        ([1, 3, 5], [7, 9, 11]),
        ([100, 90, 80], [70, 60, 50]),
        ([1001, 1003, 1002], [1004, 1005, 1006]),  # threads
        ([1001, 1001, 1002, 1002], [1003, 1004]),  # a header first, then all of it
        ([1, 2, 3, 5], [6, 7]),  # one was dropped
        ([1, 2, 3, 4, 6, 8, 10], [12, 14, 16]),  # faster
        ([1, 2, 3, 4, 5, 4, 3], [2, 1, 0]),  # back
        ([-3, -2], [-1, 0]),
    ],
)
def test_the_direction_and_the_step_are_those_of_the_opens(opened: list[int], following: list[int]) -> None:
    assert Model().open(*opened) == following


@pytest.mark.parametrize("opened", [[1001], [1001, 1001, 1001], [1, 4], [1, 500, 3000], [10, 13, 19, 11, 17, 4, 20, 9]])
def test_opens_without_an_order_are_no_playing(opened: list[int]) -> None:
    assert Model().open(*opened) == []


def test_scrubbing_stops_what_playing_began() -> None:
    model = Model()
    assert model.open(*range(1001, 1011))
    assert model.open(1007, 1014, 1003, 1009, 1000) == []


def test_a_loop_goes_on_at_its_beginning_and_is_known_the_second_time() -> None:
    model = Model()
    model.open(*range(1001, 1021))
    assert model.open(1001)[:2] == [1002, 1003]
    assert model.open(*range(1002, 1020))[:3] == [1020, 1001, 1002]
    assert model.open(1020, 1021)[:2] == [1022, 1023], "it played on"


def test_a_sequence_that_ends_is_expected_to_begin_again() -> None:
    model = Model()
    model.open(*range(1001, 1021))
    model.player.ends_at(1020)
    assert model.wanted()[:2] == [1001, 1002]


def test_whoever_jumps_is_a_new_player_and_the_old_one_wants_nothing() -> None:
    model = Model()
    model.open(*range(1001, 1011))
    before = model.player
    assert model.open(1500) == []
    assert before.wanted == Wanted.NOTHING
    assert model.open(1501) == [1502, 1503]


def test_players_that_alternate_are_told_apart() -> None:
    model = Model()
    first = second = model.player
    for step in range(6):
        model.open(1001 + step)
        first = model.player
        model.open(1200 - step)
        second = model.player
    assert (first.step, second.step) == (1, -1)
    assert first.wanted == second.wanted == Wanted.BODIES


def test_whoever_reads_headers_only_gets_headers() -> None:
    model = Model(reads=False)
    for number in range(1001, 1011):
        model.open(number)
        model.player.looked()
    assert model.player.wanted == Wanted.HEADERS
    model.reads = True
    assert model.open(1011)[:1] == [1012]


@pytest.mark.parametrize(("pace_s", "is_player"), [(PACE_S, True), (0.002, False), (100.0, False)])
def test_frames_that_are_here_are_read_unseen_and_only_a_players_pace_counts(pace_s: float, is_player: bool) -> None:
    model = Model(reads=False)
    assert model.open(1001, 1002, 1003, pace_s=pace_s) == []
    assert bool(model.open(1004, 1005, pace_s=pace_s)) == is_player
    unread = Model(reads=False, here=False)
    assert unread.open(*range(1001, 1020), pace_s=pace_s) == []


def test_more_frames_are_wanted_the_longer_it_plays_the_slower_they_come_and_after_a_late_one() -> None:
    model = Model()
    assert len(model.open(1, 2)) == 2
    short = len(model.open(*range(3, 9)))
    long = len(model.open(*range(9, 200)))
    assert short < long <= FRAMES_MAX
    assert model.player.frames_ahead(10 * FETCH_S) > model.player.frames_ahead(FETCH_S)
    model.player.was_late(long)
    assert len(model.wanted()) == min(2 * long, FRAMES_MAX)


def test_it_has_stopped_when_nothing_was_opened_for_some_frames_time() -> None:
    model = Model()
    model.open(*range(1001, 1011))
    assert model.now_s + 4 * PACE_S < model.player.stops_s <= model.now_s + max(STOP_S_MIN, 10 * PACE_S)
    slow = Model()
    slow.open(1, 2, 3, pace_s=2.0)
    assert slow.player.stops_s > slow.now_s + 8.0, "a renderer takes its time"


@given(
    start=st.integers(-50, 5000), step=st.integers(-20, 20).filter(bool), frames=st.integers(3, 60),
    pace_s=st.floats(0.0001, 5.0),
)  # fmt: skip
def test_every_player_is_known_by_its_third_frame(start: int, step: int, frames: int, pace_s: float) -> None:
    model = Model()
    for i in range(frames):
        wanted = model.open(start + i * step, pace_s=pace_s)
        assert len(wanted) <= min(i + 1, FRAMES_MAX)
        if i >= 2:
            expected = [start + (i + 1 + k) * step for k in range(len(wanted))]
            assert wanted == expected
            assert wanted


@given(
    numbers=st.lists(st.integers(0, 60), max_size=80), reads=st.booleans(), late=st.booleans(),
    pace_s=st.floats(0.0, 2.0),
)  # fmt: skip
@example(numbers=[5, 6, 7, 8, 9, 10, 11, 12, 13, 5, 6, 14, 2, 9, 8], reads=True, late=True, pace_s=0.04)
def test_whatever_is_opened_what_is_wanted_is_bounded(
    numbers: list[int], reads: bool, late: bool, pace_s: float
) -> None:
    model = Model(reads=reads)
    for number in numbers:
        wanted = model.open(number, pace_s=pace_s)
        if late:
            model.player.was_late(len(wanted))
        assert len(wanted) <= FRAMES_MAX
        assert len(model.players.players) <= PLAYERS_MAX
        assert all(other.wanted in (Wanted.NOTHING, Wanted.HEADERS, Wanted.BODIES) for other in model.players.players)


@given(st.integers(2, 40), st.integers(2, 60), st.sampled_from([0.0, 0.002, PACE_S]))
def test_a_player_that_jumps_has_less_fetched_in_vain_than_it_played(played: int, jump: int, fetch_s: float) -> None:
    model = Model()
    model.open(*range(1, played + 1))
    assert model.player.frames_ahead(fetch_s) <= played
    if played >= 32:
        assert model.player.frames_ahead(fetch_s) <= 2 + played // 16
    before = model.player
    model.open(1000 + jump * 50)
    assert before.wanted == Wanted.NOTHING
