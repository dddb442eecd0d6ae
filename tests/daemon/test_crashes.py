"""When a supervisor gives up, on a clock of its own."""

from __future__ import annotations

import random

import pytest

from daemon.crashes import CRASHES_MAX, Crashes


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def lives(crashes: Crashes, clock: Clock, started_s: float, served_s: float | None) -> None:
    """One daemon: it needs so long to be ready, serves so long (None: is never ready), and ends."""
    clock.now += started_s
    if served_s is not None:
        crashes.ready()
        clock.now += served_s
    crashes.ended()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def crashes(clock: Clock) -> Crashes:
    return Crashes(clock=clock)


def test_a_daemon_that_is_never_ready_again_is_tried_five_times(crashes: Crashes, clock: Clock) -> None:
    lives(crashes, clock, 1, 3600)
    for _ in range(CRASHES_MAX - 1):
        lives(crashes, clock, 0.1, None)
        assert not crashes.hopeless()
    lives(crashes, clock, 0.1, None)
    assert crashes.hopeless() == "the last 5 daemons served it for 0.0 s of 0.5 s"


def test_a_daemon_that_ends_as_soon_as_it_is_ready_is_tried_five_times(crashes: Crashes, clock: Clock) -> None:
    lives(crashes, clock, 1, 3600)
    for count in range(CRASHES_MAX):
        assert not crashes.hopeless(), count
        lives(crashes, clock, 0.1, 0.01)
    assert crashes.hopeless()


def test_daemons_that_end_in_the_moment_in_which_they_were_to_start_are_given_up(crashes: Crashes) -> None:
    for _ in range(CRASHES_MAX):
        crashes.ready()
        crashes.ended()
    assert crashes.hopeless()


@pytest.mark.parametrize("seed", range(20))
def test_kills_at_random_moments_go_on_for_ever(seed: int) -> None:
    dice = random.Random(seed)
    clock = Clock()
    crashes = Crashes(clock=clock)
    for _ in range(500):
        started_s = dice.uniform(0.05, 0.15)
        after_s = dice.uniform(0.1, 2.0)
        lives(crashes, clock, min(started_s, after_s), None if after_s <= started_s else after_s - started_s)
        assert not crashes.hopeless()


def test_one_that_is_slow_to_start_and_serves_for_a_while_goes_on(crashes: Crashes, clock: Clock) -> None:
    for _ in range(100):
        lives(crashes, clock, 3, 1.1)
        assert not crashes.hopeless()


def test_only_what_was_never_ready_is_followed_by_a_pause(crashes: Crashes, clock: Clock) -> None:
    pauses = []
    lives(crashes, clock, 1, 0.01)
    for _ in range(6):
        pauses.append(crashes.pause_s)
        lives(crashes, clock, 0.1, None)
    assert pauses == [0, 0, 0.2, 0.5, 4, 4]
    lives(crashes, clock, 0.1, 0.01)
    assert crashes.pause_s == 0


def test_how_many_are_looked_at_can_be_chosen(clock: Clock) -> None:
    crashes = Crashes(2, clock)
    lives(crashes, clock, 0.1, None)
    assert not crashes.hopeless()
    lives(crashes, clock, 0.1, None)
    assert crashes.hopeless()
