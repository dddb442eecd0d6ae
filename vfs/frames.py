"""Frames that are fetched for players before they open them, and held until they were played.

State: for each player that is followed its plan: the frames that it will open next, as far as they were asked for.
``cached`` of each holds it open in the cache, so that it is not evicted before it was played
(docs/decisions/0027).

Rules:
- Frames are fetched in the order in which they were asked for, at most FLYING_BYTES and FLYING_MAX at a time: whoever
  jumps leaves little behind. What has not begun is withdrawn when it is not wanted any more.
- All that is held is at most HELD_SHARE of the cache.
- What cannot be fetched is nobody's error here: whoever reads it is told. After one nothing is asked for during
  PAUSE_S.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from typing import TYPE_CHECKING, Final

import trio

from cache.queue import Priority
from manifest import sequences
from manifest.digest import Digest
from manifest.errors import DamfsError
from vfs.playback import FETCH_S, REACH
from vfs.readahead import FETCH_S_MAX, is_cut_for_random

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cache.handle import CachedObject
    from cache.store import CacheStore
    from manifest.replica import Row
    from vfs.metrics import AheadStats
    from vfs.playback import Player
    from vfs.views import ShowView

log = logging.getLogger(__name__)

FLYING_BYTES: Final = 32 * 1024 * 1024
FLYING_MAX: Final = 8
HELD_SHARE: Final = 0.125
PAUSE_S: Final = 2.0
SPARE: Final = 4
"""So many more than are wanted now are kept when they were asked for before."""


class Footage:
    """What is known of a sequence from fetching it: how long a frame takes, and whether it is read at random."""

    __slots__ = ("_times_s", "is_random")

    def __init__(self) -> None:
        self.is_random = False
        self._times_s: deque[float] = deque(maxlen=8)

    @property
    def fetch_s(self) -> float:
        """What a frame takes when nothing else is fetched: the best that was seen lately."""
        return min(self._times_s, default=FETCH_S)

    def took(self, seconds: float) -> None:
        """A whole frame was fetched."""
        self._times_s.append(seconds)


class Frame:
    """One frame: its bytes before ``stop`` are wanted, of which ``missing`` were not here when its fetch began.

    ``cached`` holds it open from then on. ``opened``: by the player. One that was wholly here already is not
    ``held``.
    """

    __slots__ = ("began", "cached", "done", "dropped", "footage", "held", "missing", "opened", "row", "scope",
                 "stop", "view")  # fmt: skip

    def __init__(self, footage: Footage, view: ShowView, row: Row, stop: int) -> None:
        self.footage = footage
        self.view = view
        self.row = row
        self.stop = stop
        self.scope = trio.CancelScope()
        self.cached: CachedObject | None = None
        self.missing = 0
        self.held = self.began = self.done = self.opened = self.dropped = False

    @property
    def key(self) -> tuple[str, bytes | None]:
        """What names its content in the cache."""
        return self.view.show, self.row.content


class Frames:
    """See the module's rules. ``nursery`` None: nothing is fetched. Belongs to the event loop."""

    def __init__(self, cache: CacheStore, stats: AheadStats) -> None:
        self.nursery: trio.Nursery | None = None
        self._cache = cache
        self._stats = stats
        self._plans: dict[Player, dict[int, Frame]] = {}
        self._waiting: deque[Frame] = deque()
        self._flying: set[Frame] = set()
        self._held = self._held_bytes = 0
        self._paused_until = -math.inf

    @property
    def players(self) -> list[Player]:
        """Who is followed."""
        return list(self._plans)

    @property
    def held(self) -> tuple[int, int, int]:
        """For how many players how many frames are held or asked for, and their bytes. Also for other threads."""
        followed = sum(not player.stopped for player in list(self._plans))
        return followed, self._held, self._held_bytes

    def plan(self, player: Player) -> Mapping[int, Frame]:
        """What was asked for, for a player, by number."""
        return self._plans.get(player, {})

    def is_fetching(self, show: str, row: Row) -> bool:
        """Whether a file is being fetched."""
        return any(frame.key == (show, row.content) for frame in self._flying)

    def is_here(self, show: str, row: Row) -> bool:
        """Whether all of a file is in the cache. One look-up in the index."""
        assert row.content is not None
        return self._cache.percent(show, Digest(row.content)) == 100

    def want(self, player: Player, frames: Mapping[int, Frame]) -> None:
        """These come next, the first one first; others that were asked for are let go of when they are behind."""
        if trio.current_time() < self._paused_until:
            return
        plan = self._plans.setdefault(player, {})
        for number in [number for number in plan if number not in frames]:
            if not self._stays(plan[number], number, player, len(frames)):
                self._drop(plan.pop(number))
        for number, frame in frames.items():
            before = plan.get(number)
            if before is not None and (before.stop >= frame.stop or before.opened):
                continue
            if self._held_bytes + frame.stop > self._limit_bytes:
                break
            if before is not None:
                self._drop(before)
            plan[number] = frame
            if self.is_here(frame.view.show, frame.row):
                frame.done = True
            else:
                self._hold(frame)
                self._waiting.append(frame)
        if not plan:
            del self._plans[player]
        self._pump()

    def _stays(self, frame: Frame, number: int, player: Player, wanted: int) -> bool:
        """Whether a frame that is not among those that come next goes on being fetched, or held."""
        steps = (number - player.front) / player.step if player.step else math.inf
        if frame.opened:  # whoever reads it holds it; it may be late, or the next reads have yet to come
            return steps == 0 or (not frame.done and -REACH < steps < 0)
        return 0 < steps <= wanted + SPARE

    def want_now(self, player: Player, number: int, frame: Frame) -> None:
        """A frame is being read, and will be to its end."""
        if number in self.plan(player) or trio.current_time() < self._paused_until:
            return
        if self._held_bytes + frame.stop > self._limit_bytes:
            return
        frame.opened = True
        self._plans.setdefault(player, {})[number] = frame
        self._hold(frame)
        self._waiting.appendleft(frame)
        self._pump()

    def rest(self, player: Player) -> None:
        """Nothing more is to be fetched for a player for now; what was stays held."""
        plan = self._plans.get(player, {})
        for number in [number for number, frame in plan.items() if not frame.done]:
            self._drop(plan.pop(number))
        if not plan:
            self._plans.pop(player, None)
        self._pump()

    def give_up(self, player: Player) -> None:
        """Nothing is wanted for a player any more."""
        for frame in self._plans.pop(player, {}).values():
            self._drop(frame)
        self._pump()

    @property
    def _limit_bytes(self) -> float:
        return self._cache.bound_bytes * HELD_SHARE

    def _hold(self, frame: Frame) -> None:
        frame.held = True
        self._held += 1
        self._held_bytes += frame.stop

    def _drop(self, frame: Frame) -> None:
        if not frame.held:
            return
        frame.scope.cancel()
        frame.dropped = True
        self._held -= 1
        self._held_bytes -= frame.stop
        if frame.began:
            if frame not in self._flying:
                self._settle(frame)
        else:
            self._waiting.remove(frame)

    def _settle(self, frame: Frame) -> None:
        """A frame is let go of: account for it, and have it evicted as others are."""
        cached, frame.cached = frame.cached, None
        if cached is None:
            return
        missing = cached.missing_bytes(0, frame.stop) if frame.missing else 0
        brought = frame.missing - (frame.missing if missing is None else min(missing, frame.missing))
        self._stats.frame_bytes += brought
        if frame.opened:
            self._stats.used_bytes += brought
        else:
            self._stats.wasted_bytes += brought
        cached.release()

    def _pump(self) -> None:
        """Begin what may begin."""
        while self._waiting and self.nursery is not None:
            frame = self._waiting[0]
            flying_bytes = sum(one.stop for one in self._flying)
            if self._flying and (len(self._flying) >= FLYING_MAX or flying_bytes + frame.stop > FLYING_BYTES):
                return
            self._waiting.popleft()
            frame.began = True
            self._flying.add(frame)
            self.nursery.start_soon(self._bring, frame)

    async def _bring(self, frame: Frame) -> None:
        try:
            with frame.scope:
                frame.cached = await self._open(frame)
                if is_cut_for_random(frame.cached):
                    frame.footage.is_random = True
                else:
                    await self._fill(frame, frame.cached)
        except DamfsError as error:
            self._fail(frame, str(error))
        finally:
            self._flying.discard(frame)
            if frame.dropped:
                self._settle(frame)
            self._pump()

    async def _open(self, frame: Frame) -> CachedObject:
        row, view = frame.row, frame.view
        assert row.content is not None
        assert row.digest is not None
        content = Digest(row.content)
        return await self._cache.open_object(
            view.show, content, row.size, Digest(row.digest), view.reader.recipe(content),
            path_hint=view.reader.path_of(row, row.since), group=sequences.key(row.parent, row.name), is_read=False,
        )  # fmt: skip

    async def _fill(self, frame: Frame, cached: CachedObject) -> None:
        missing = cached.missing_bytes(0, frame.stop)
        frame.missing = frame.stop if missing is None else missing
        began_s = trio.current_time()
        if frame.missing and not await cached.fill(FETCH_S_MAX, (0, frame.stop), Priority.READ_AHEAD):
            self._fail(frame, "the cache has no room for it")
            return
        frame.done = True
        if frame.missing == frame.row.size:
            frame.footage.took(trio.current_time() - began_s)

    def _fail(self, frame: Frame, why: str) -> None:
        self._paused_until = trio.current_time() + PAUSE_S
        log.debug("%s was not fetched ahead: %s", frame.row.name, why)
