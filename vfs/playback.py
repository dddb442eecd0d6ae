"""Which frame of a sequence will be opened next: playing, recognised from opens and from what is read of the frames.

State: ``Player``, one who goes through a sequence: where, in which steps, how fast, what is known to be read of each
frame. ``Players`` are those on one sequence. No I/O and no clock here: times are told, in seconds.

Rules:
- An open is of the player that it goes on with: a step or a few ahead (frames may be dropped), a little behind (readers
  have threads, and open frames twice), or anywhere in what that player went through, which is a loop. Else it is of a
  new player, and the others on the sequence are asked for nothing more until they go on.
- One step to a neighbour is a direction; a larger one must come twice. Steps that fit nothing are scrubbing: nothing is
  said of what comes next until steps agree again.
- Whoever only looks at headers is no player, however regularly it opens frames. What is wanted of the next frames is
  what was seen to be read: their bodies, or their headers. Frames that are wholly here are read past this daemon; they
  say nothing, but for the pace: nobody shows a hundred frames a second.
- How many frames ahead: as many as are played while one is fetched, and one more; a few more with every 16 frames that
  were played on, twice as many whenever one came too late; never more than were played on. So what is fetched in vain
  when a player jumps is a small part of what it has played.
- Who opens nothing for some frames' time has stopped.

Invariant: what is said to come next is at most ``frames_max`` frames, in steps of the player.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from enum import Enum
from itertools import pairwise
from typing import Final

REACH: Final = 6
"""An open so many steps from the last one can be of the same player."""
STEP_MAX: Final = 20
TRAIL: Final = 4
STRAYS_MAX: Final = 2
DROPPED_MAX: Final = 2
"""Who leaves more frames out at a time looks for something."""
PLAYERS_MAX: Final = 4
CUSHION: Final = 16
PACE_S_MIN: Final = 0.01
"""Who opens frames faster than that, and is not seen to read them, looks at something else."""
PACE_S_MAX: Final = 60.0
SILENT_FRAMES: Final = 4
"""So many frames that are here must be opened at a player's pace when nothing is seen of what is read."""
PROBES_MAX: Final = 2
FETCH_S: Final = 0.1
"""What fetching a frame is thought to take before one was fetched."""
STOP_FRAMES: Final = 8
STOP_S_MIN: Final = 0.5
ON_TIME: Final = 24


class Wanted(Enum):
    """What of the next frames is worth fetching."""

    NOTHING = 0
    HEADERS = 1
    BODIES = 2


class Player:
    """See the module. ``front``: the frame that is furthest on; ``step`` 0: it is not known where it goes."""

    __slots__ = (
        "_boost", "_frames_max", "_on_time", "_seen", "_strays", "_trail", "_unseen", "bodies", "extent", "first",
        "front", "interval_s", "last_s", "loop", "probes", "run", "step", "stopped",
    )  # fmt: skip

    def __init__(self, number: int, now_s: float, frames_max: int) -> None:
        self.front = self.first = number
        self.step = 0
        self.run = 1
        self.interval_s = 0.0
        self.last_s = now_s
        self.bodies = self.probes = 0
        self.extent = 0.0
        """The part of a frame, from its beginning, that is read; 0: that is not known."""
        self.loop: tuple[int, int] | None = None
        """From the second one the player went back to the first."""
        self.stopped = False
        self._frames_max = frames_max
        self._trail: deque[int] = deque([number], TRAIL)
        self._seen: deque[int] = deque([number], 4 * REACH)
        self._strays = 0
        self._boost = self._on_time = self._unseen = 0

    # -- what is seen

    def distance(self, number: int) -> float | None:
        """How far an open is from what is expected of this player, in steps; None: it is not of this one."""
        off = number - self.front
        if not self.step:
            return abs(off) if abs(off) <= STEP_MAX else None
        steps = off / self.step
        if abs(steps) <= REACH:
            return abs(steps - 1)
        return REACH + 1 if self._is_loop(number) else None

    def opened(self, number: int, now_s: float) -> None:
        """A frame was opened that is of this player (``distance``)."""
        if self.stopped:
            self.stopped = False
            self.bodies = 0  # it may look for something else now
        if number == self._trail[-1]:
            return
        steps = (number - self.front) / self.step if self.step else 0.0
        is_known = number in self._seen
        self._trail.append(number)
        self._seen.append(number)
        agreed = self._agreed()
        if agreed not in (0, self.step) and (not self.step or is_known or self._is_steady()):
            self._turn(number, agreed, now_s)
        elif self.step and steps in range(1, REACH + 1):
            self._advance(number, int(steps), now_s)
        elif self.step and self._is_loop(number):
            self.loop = min(number, self.front), max(number, self.front)
            self.front = number
            self._note(now_s, 1)
        elif self.step and steps in range(-REACH, 1) and (is_known or (number - self.first) * self.step > 0):
            self.run += not is_known  # a thread that was slower than another; or once more the same frame
            self.last_s = now_s
        else:
            self._stray(number, now_s)

    def read_body(self) -> None:
        """More of a frame than its header is read."""
        if self.probes > PROBES_MAX:
            self.bodies = 0
        self.bodies += 1
        self.probes = 0

    def looked(self) -> None:
        """A frame was closed that was not here, and of which only the header was read."""
        self.probes += 1

    def found(self, *, here: bool) -> None:
        """The frame that was opened just now is wholly here, so that nobody sees it read; or it is not."""
        self._unseen = self._unseen + 1 if here else 0

    def read_to(self, part: float) -> None:
        """A frame was closed that was read up to this part of it."""
        self.extent = max(part, self.extent + (part - self.extent) / 4)

    def was_late(self, now_ahead: int) -> None:
        """A frame was opened that was being fetched still."""
        self._on_time = 0
        self._boost = min(self._frames_max, 2 * max(now_ahead, self._boost, 1))

    def was_on_time(self) -> None:
        """A frame was opened that had been fetched ahead."""
        self._on_time += 1
        if self._on_time % ON_TIME == 0:
            self._boost -= self._boost // 8 or self._boost

    def hold_on(self) -> None:
        """Somebody began elsewhere in the sequence: perhaps this one has jumped there."""
        self.stopped = True

    # -- what follows

    @property
    def is_paced(self) -> bool:
        """Whether it opens frames at a pace at which they can be shown."""
        return PACE_S_MIN <= self.interval_s <= PACE_S_MAX

    @property
    def wanted(self) -> Wanted:
        """What of the next frames is worth fetching now."""
        if not self.step or self.stopped or self._strays:
            return Wanted.NOTHING
        if self.probes > PROBES_MAX:
            return Wanted.HEADERS
        if self.bodies:
            return Wanted.BODIES
        is_playing = self._unseen >= SILENT_FRAMES and self.is_paced and not self.probes
        return Wanted.BODIES if is_playing else Wanted.NOTHING

    def frames_ahead(self, fetch_s: float) -> int:
        """How many of the next frames are wanted; ``fetch_s``: so long takes one."""
        needed = 1 + math.ceil(min(fetch_s / max(self.interval_s, 0.001), self._frames_max))
        return max(1, min(max(needed + self.run // CUSHION, self._boost), self.run, self._frames_max))

    def following(self) -> Iterator[int]:
        """The next frames, without end; who asks knows which of them there are, and says so (``ends_at``)."""
        number = self.front
        while self.step:
            number = self.next_of(number)
            yield number

    def next_of(self, number: int) -> int:
        """The frame behind one that is, or is said to be, opened."""
        if self.loop is not None:
            begin, end = self.loop if self.step > 0 else self.loop[::-1]
            if 0 <= (end - number) * (1 if self.step > 0 else -1) < abs(self.step):
                return begin
        return number + self.step

    def ends_at(self, number: int) -> None:
        """There is no frame behind this one: whoever has played for a while begins again where he began."""
        if abs(number - self.first) > REACH * abs(self.step):
            self.loop = min(number, self.first), max(number, self.first)

    @property
    def stops_s(self) -> float:
        """When it counts as stopped, unless it opens something before."""
        return self.last_s + max(STOP_S_MIN, STOP_FRAMES * min(self.interval_s, PACE_S_MAX))

    # -- inside

    def _is_loop(self, number: int) -> bool:
        """Whether it lies in what was played on, further back than threads explain."""
        begin, end = sorted((self.first, self.front))
        back = (self.front - number) / self.step
        return begin <= number <= end and back > REACH

    def _agreed(self) -> int:
        """The step that the last opens agree in; 0: they do not."""
        last = list(self._trail)[-3:]
        if len(last) == 3:
            moves = {b - a for a, b in pairwise(last)}
            if len(moves) == 1 and abs(step := moves.pop()) <= STEP_MAX:
                return step
        if self.step:
            return 0
        in_order = sorted({*last})
        gaps = {b - a for a, b in pairwise(in_order)}
        if len(in_order) == 3 and len(gaps) == 1 and last[1] != in_order[1] and (gap := gaps.pop()) <= STEP_MAX:
            return gap if last[0] == in_order[0] else -gap  # threads
        *before, number = self._trail
        return next((number - other for other in reversed(before) if abs(number - other) == 1), 0)

    def _is_steady(self) -> bool:
        """Whether all that is remembered lies in one line."""
        return len(self._trail) == TRAIL and len({b - a for a, b in pairwise(self._trail)}) == 1

    def _advance(self, number: int, steps: int, now_s: float) -> None:
        self.front = number
        if steps == 1:
            self.run += 1
            self._strays = 0
        else:
            self.run = max(2, self.run // 2)
            self._strays += steps > DROPPED_MAX
        if self.loop is not None and not self.loop[0] <= number <= self.loop[1]:
            self.loop = None  # it plays on
        self._note(now_s, steps)

    def _turn(self, number: int, step: int, now_s: float) -> None:
        """It goes another way from here."""
        line = [other for other in self._trail if (number - other) % step == 0 and abs(number - other) <= 2 * abs(step)]
        self.front, self.first = (max(line), min(line)) if step > 0 else (min(line), max(line))
        self.step = step
        self.run = len(set(line))
        self.loop = None
        self._strays = self._boost = 0
        self._note(now_s, 1)

    def _stray(self, number: int, now_s: float) -> None:
        """It does not go on as it did."""
        self._strays += 1
        self._boost = 0
        if not self.step or self._strays > STRAYS_MAX:
            self.step = self._strays = 0
            self.run = 1
            self.front = self.first = number
            self.loop = None
        self._note(now_s, 1)

    def _note(self, now_s: float, steps: int) -> None:
        """The time between two frames, smoothed; a pause is none."""
        took_s = (now_s - self.last_s) / steps
        if not self.interval_s:
            self.interval_s = took_s
        elif took_s < STOP_FRAMES * self.interval_s + STOP_S_MIN:
            self.interval_s += (took_s - self.interval_s) / 4
        self.last_s = now_s


class Players:
    """Those who go through one sequence, the one that went on last first."""

    __slots__ = ("_frames_max", "players")

    def __init__(self, frames_max: int) -> None:
        self.players: list[Player] = []
        self._frames_max = frames_max

    def opened(self, number: int, now_s: float) -> tuple[Player, list[Player]]:
        """A frame was opened: by whom, and who is to be asked for nothing more, or is forgotten."""
        near = [(away, i) for i, one in enumerate(self.players) if (away := one.distance(number)) is not None]
        if near:
            player = self.players.pop(min(near)[1])
            player.opened(number, now_s)
            self.players.insert(0, player)
            return player, []
        paused = list(self.players)
        for other in paused:
            other.hold_on()
        self.players.insert(0, Player(number, now_s, self._frames_max))
        del self.players[PLAYERS_MAX:]
        return self.players[0], paused

    def of(self, number: int) -> Player | None:
        """Who has opened a frame, as far as is known."""
        return next((one for one in self.players if number in one._seen), None)  # noqa: SLF001 - one module
