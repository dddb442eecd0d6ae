"""What will be read next is fetched before it is asked for: what is seen goes in here, and what follows is begun.

    opens ──► players (playback) ──► frames (frames)   ┐
    reads ──► streams (readahead, formats)             ┴─► the cache, with the priority READ_AHEAD

State: the sequences that were opened lately (TRACKS_MAX), each with its players; what was seen and not yet looked at.
``run`` owns the tasks; before and behind it nothing is fetched ahead.

Rules:
- Nothing here is in the way of an answer: opens are looked at behind their replies, and cost a few look-ups by name.
  Reads of files that are wholly here do not come here at all.
- A sequence is what ``manifest.sequences`` says, as for eviction. Names of the next frames are written as this one's;
  up to GAP_MAX in a row may be missing.
- Files that are read at random are let alone: by their name, or since they were published in small chunks.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from cache.queue import Priority
from manifest import sequences
from manifest.replica import Kind
from vfs import formats
from vfs.frames import Footage, Frame, Frames
from vfs.metrics import AheadStats
from vfs.playback import Player, Players, Wanted
from vfs.readahead import FileAhead

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cache.handle import CachedObject
    from cache.store import CacheStore
    from manifest.replica import Row
    from vfs.handles import FileHandle
    from vfs.views import ShowView

MIB: Final = 1024 * 1024
QUEUED_MAX: Final = 8
"""When so many fetches ahead wait for their turn the windows of streams are halved."""
TRACKS_MAX: Final = 256
EVENTS_MAX: Final = 1024
HOLD_S: Final = 3.0
"""What was fetched for a player who has stopped is held so much longer: he may go on."""
SETTLE_S: Final = 0.002
"""What is seen is looked at so much later, with what was seen until then: in a rush of opens each costs less."""
GAP_MAX: Final = 8
HEADERS_AHEAD: Final = 8
PLAYED: Final = 0.9
"""Who reads so much of a frame reads it to its end."""
MARGIN: Final = 1.1


class AheadLimits(NamedTuple):
    """How much may be fetched ahead: bytes for each stream, frames for each player; 0: nothing."""

    window_bytes: int = 64 * MIB
    frames: int = 48


class Track:
    """A sequence that was opened lately."""

    __slots__ = ("footage", "players")

    def __init__(self, frames_max: int) -> None:
        self.players = Players(frames_max)
        self.footage = Footage()


class Ahead:
    """See the module's rules. Belongs to the event loop."""

    def __init__(self, cache: CacheStore, limits: AheadLimits) -> None:
        self.stats = AheadStats()
        self._cache = cache
        self._limits = limits
        self._nursery: trio.Nursery | None = None
        self._seen: deque[tuple[FileHandle | FileAhead, sequences.Frame, float]] = deque(maxlen=EVENTS_MAX)
        self._wake = trio.Event()
        self._tracks: OrderedDict[tuple[str, int], Track] = OrderedDict()
        self._frames = Frames(cache, self.stats)

    # What the file system calls.

    def opened(self, handle: FileHandle) -> None:
        """A file was opened; if it is a frame it is looked at a moment later."""
        if self._nursery is not None and self._limits.frames:
            self._note(handle)

    def of(self, handle: FileHandle, cached: CachedObject) -> FileAhead | None:
        """What is to be told of the reads of a handle whose object was opened; None: nothing, it is wholly here."""
        if cached.is_here or self._nursery is None or self._limits == (0, 0):
            return None
        return FileAhead(self, handle.view, handle.row, cached)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Fetch ahead until cancelled; then nothing is held any more."""
        try:
            async with trio.open_nursery() as self._nursery:
                self._frames.nursery = self._nursery
                task_status.started()
                while True:
                    with trio.move_on_at(min(map(_due_s, self._frames.players), default=math.inf)):
                        await self._wake.wait()
                        await trio.sleep(SETTLE_S)
                    self._wake = trio.Event()
                    while self._seen:
                        self._look(*self._seen.popleft())
                    self._expire()
        finally:
            self._nursery = self._frames.nursery = None
            self._seen.clear()
            for player in self._frames.players:
                self._frames.give_up(player)

    def now(self) -> AheadStats:
        """The counters, and what is held at present. Also for other threads."""
        players, frames, held_bytes = self._frames.held
        return replace(self.stats, players=players, held_frames=frames, held_bytes=held_bytes)

    # What an open file calls: readahead.Starter.

    @property
    def window_max(self) -> int:
        """See ``Starter``."""
        return 0 if self._nursery is None else self._limits.window_bytes

    @property
    def is_pressed(self) -> bool:
        """See ``Starter``."""
        return self._cache.queued(Priority.READ_AHEAD) >= QUEUED_MAX

    def is_fetching(self, show: str, row: Row) -> bool:
        """See ``Starter``."""
        return self._frames.is_fetching(show, row)

    def start(self, bring: Callable[[], Awaitable[None]]) -> None:
        """See ``Starter``."""
        assert self._nursery is not None
        self._nursery.start_soon(bring)

    def note_reads(self, file: FileAhead) -> None:
        """See ``Starter``."""
        if self._nursery is not None and self._limits.frames:
            self._note(file)

    # What is seen.

    def _note(self, what: FileHandle | FileAhead) -> None:
        frame = sequences.parse(what.row.name)
        if frame is not None:
            self._seen.append((what, frame, trio.current_time()))
            self._wake.set()

    def _look(self, what: FileHandle | FileAhead, frame: sequences.Frame, now_s: float) -> None:
        row = what.row
        if not row.size or formats.habit(row.name).is_random:
            return
        key = what.view.show, sequences.key_of(row.parent, frame)
        if isinstance(what, FileAhead):
            if (track := self._tracks.get(key)) and (player := track.players.of(frame.number)):
                self._look_at_reads(track, player, frame, what)
            return
        track = self._track(key)
        player, left = track.players.opened(frame.number, now_s)
        for other in left:
            self._frames.give_up(other)
        if not player.bodies and player.is_paced:
            player.found(here=self._frames.is_here(what.view.show, row))
        planned = self._frames.plan(player).get(frame.number)
        if planned is not None and not planned.opened:
            planned.opened = True
            if planned.done:
                player.was_on_time()
            elif player.wanted == Wanted.BODIES:
                player.was_late(len(self._frames.plan(player)))
        self._follow(track, player, frame, what.view, row)

    def _look_at_reads(self, track: Track, player: Player, frame: sequences.Frame, file: FileAhead) -> None:
        """More than a frame's header is read; or a frame was closed that was not all here when it was opened."""
        if not file.closed:
            player.read_body()
            if player.wanted == Wanted.BODIES and not track.footage.is_random:
                stop = self._wanted_bytes(player, file.row)
                self._frames.want_now(player, frame.number, Frame(track.footage, file.view, file.row, stop))
        elif file.has_body:
            player.read_to(file.part)
            return
        elif file.was_glanced_at:
            player.looked()
        self._follow(track, player, frame, file.view, file.row)

    def _track(self, key: tuple[str, int]) -> Track:
        track = self._tracks.get(key)
        if track is None:
            track = self._tracks[key] = Track(self._limits.frames)
            if len(self._tracks) > TRACKS_MAX:
                _, oldest = self._tracks.popitem(last=False)
                for player in oldest.players.players:
                    self._frames.give_up(player)
        else:
            self._tracks.move_to_end(key)
        return track

    def _expire(self) -> None:
        """Who has stopped is followed no more; who does not go on after a while has nothing held for him either."""
        now_s = trio.current_time()
        for player in self._frames.players:
            if _due_s(player) > now_s:
                continue
            if player.stopped:
                self._frames.give_up(player)
            else:
                player.hold_on()
                self._frames.rest(player)

    # What follows.

    def _follow(self, track: Track, player: Player, frame: sequences.Frame, view: ShowView, row: Row) -> None:
        wanted = player.wanted
        if track.footage.is_random:
            self._frames.give_up(player)
            return
        if wanted == Wanted.NOTHING:
            self._frames.rest(player)
            return
        bodies = wanted == Wanted.BODIES
        count = player.frames_ahead(track.footage.fetch_s) if bodies else HEADERS_AHEAD
        coming = self._coming(player, frame, view, row, count)
        frames = {}
        for number, one in coming.items():
            if bodies or one.size > formats.HEADER_FILE_BYTES_MIN:
                stop = self._wanted_bytes(player, one) if bodies else formats.HEADER_BYTES
                frames[number] = Frame(track.footage, view, one, stop)
        self._frames.want(player, frames)

    def _coming(self, player: Player, frame: sequences.Frame, view: ShowView, row: Row, count: int) -> dict[int, Row]:
        """The next frames of a player, at most so many, as of the revision that the present one is seen at."""
        width = len(row.name) - len(frame.prefix) - len(frame.suffix)
        revision = view.head if row.until is None else row.until - 1
        planned = self._frames.plan(player)
        found: dict[int, Row] = {}
        last, missing = player.front, 0
        for number in player.following():
            if len(found) >= count or number in found or number == player.front:
                break
            before = planned.get(number)
            name = f"{frame.prefix}{number:0{width}d}{frame.suffix}"
            one = view.reader.lookup(row.parent, name, revision) if before is None else before.row
            if one is not None and one.kind == Kind.FILE and one.size:
                found[number] = one
                last, missing = number, 0
            elif (missing := missing + 1) > GAP_MAX:
                player.ends_at(last)
                break
        return found

    def _wanted_bytes(self, player: Player, row: Row) -> int:
        """How much of a frame is wanted of whom who has read so far into others."""
        part = player.extent
        return row.size if not 0 < part < PLAYED else min(row.size, int(row.size * part * MARGIN) + 1)


def _due_s(player: Player) -> float:
    """When something is to be done about a player who opens nothing."""
    return player.stops_s + HOLD_S * player.stopped
