"""Recordings: what a program and its children read through the mount, for ``damfs trace``.

State: the recordings under way, in memory. One ends with who asked for it.

Rules:
- A recording is of the descendants of the process that asked for it, which the kernel names (SO_PEERCRED): nobody can
  watch others. That process takes in orphans of its descendants (PR_SET_CHILD_SUBREAPER), so that they stay such.
- Who opens a file is looked up in /proc, in ``stat`` alone: to read it takes no lock that a process could hold which
  waits for this mount.
- What a recording may hold is limited; beyond that ranges become coarser, and further files are left out.
- A hand-over ends all recordings: the successor knows nothing of them, and says so.
"""

from __future__ import annotations

import itertools
import logging
import os
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from daemon import recorded
from daemon.recorded import FILES_MAX, TracedFile
from daemon.wants import RANGES_MAX
from manifest.digest import Digest
from manifest.errors import Busy, DamfsError, NotFound, UsageError
from vfs.recording import Budget, Touched

if TYPE_CHECKING:
    from collections.abc import Sequence

    from manifest.replica import Row
    from vfs.views import ShowView

log = logging.getLogger(__name__)

RECORDINGS_MAX: Final = 8
DEPTH_MAX: Final = 128
KNOWN_S: Final = 1.0
"""So long it is remembered whose descendant a thread is."""
KNOWN_MAX: Final = 4096


@dataclass(slots=True)
class _Recording:
    """``pid``: whose descendants; ``scope``: the task that waits for its end."""

    id: int
    pid: int
    files: dict[tuple[str, int], tuple[Touched, TracedFile]] = field(default_factory=dict)
    budget: Budget = field(default_factory=lambda: Budget(RANGES_MAX))
    cut: bool = False
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class Recordings:
    """See the module. Implements ``vfs.recording.Recorder``; belongs to the event loop."""

    def __init__(self) -> None:
        self._under_way: dict[int, _Recording] = {}
        self._numbers = itertools.count(1)
        self._known: dict[int, tuple[float, Sequence[_Recording]]] = {}
        self._limiter = trio.CapacityLimiter(1)
        self._nursery: trio.Nursery

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See that recordings end, until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    def start(self, pid: int) -> int:
        """Record what the descendants of a process read from now on. Raises Busy, and UsageError for no process."""
        if len(self._under_way) >= RECORDINGS_MAX:
            raise Busy(f"{RECORDINGS_MAX} recordings are under way, which is the most")
        try:
            descriptor = os.pidfd_open(pid)
        except (OSError, ValueError):
            raise UsageError(
                "the process that asks is not in the daemon's sight: it runs in another container"
            ) from None
        recording = _Recording(next(self._numbers), pid)
        self._under_way[recording.id] = recording
        self._known.clear()
        self._nursery.start_soon(self._until_it_ends, recording, descriptor)
        return recording.id

    async def stop(self, number: int, pid: int) -> bytes:
        """End a recording of the process that asked for it: the trace. Raises NotFound."""
        recording = self._under_way.get(number)
        if recording is None or recording.pid != pid:
            raise NotFound(
                f"recording {number} is not under way: the daemon was replaced meanwhile (damfs status says when); "
                "trace again"
            )
        self._end(recording)
        files = [
            file._replace(ranges=tuple(zip(touched.starts, touched.stops, strict=True)))
            for touched, file in recording.files.values()
            if touched.starts
        ]
        encode = partial(recorded.encode, files, cut=recording.cut)
        return await trio.to_thread.run_sync(encode, limiter=self._limiter)

    def opened(self, pid: int, view: ShowView, row: Row) -> Touched | None:
        """See ``Recorder``. Of two recordings that both want it, the older one, with all that is under way, has it."""
        if not self._under_way:
            return None
        found = self._recordings_of(pid)
        if not found or row.size == 0 or row.content is None:
            return None
        recording, key = found[0], (view.show, row.id)
        known = recording.files.get(key)
        if known is not None:
            return known[0]
        if len(recording.files) >= FILES_MAX:
            recording.cut = True
            return None
        try:
            path = view.reader.path_of(row, row.since)
        except DamfsError as error:
            log.warning("a file is left out of recording %d: %s", recording.id, error)
            return None
        touched = Touched(row.size, recording.budget)
        file = TracedFile(view.show, row.since, path, Digest(row.content), row.size, ())
        recording.files[key] = touched, file
        return touched

    async def _until_it_ends(self, recording: _Recording, descriptor: int) -> None:
        try:
            with recording.scope:
                await trio.lowlevel.wait_readable(descriptor)
                log.warning("recording %d ends: the process %d is gone", recording.id, recording.pid)
                self._end(recording)
        finally:
            os.close(descriptor)

    def _end(self, recording: _Recording) -> None:
        self._under_way.pop(recording.id, None)
        self._known.clear()
        recording.scope.cancel()

    def _recordings_of(self, thread: int) -> Sequence[_Recording]:
        now = trio.current_time()
        known = self._known.get(thread)
        if known is not None and known[0] > now:
            return known[1]
        if len(self._known) >= KNOWN_MAX:
            self._known.clear()
        above = set(_ancestors(thread))
        found = [recording for recording in self._under_way.values() if recording.pid in above]
        self._known[thread] = now + KNOWN_S, found
        return found


def _ancestors(thread: int) -> list[int]:
    """The processes that a thread's process descends from, the nearest first."""
    found: list[int] = []
    process = thread
    while process > 1 and len(found) < DEPTH_MAX:
        try:
            descriptor = os.open(f"/proc/{process}/stat", os.O_RDONLY | os.O_CLOEXEC)
            try:
                stat = os.read(descriptor, 4096)
            finally:
                os.close(descriptor)
            process = int(stat.rpartition(b")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            break
        found.append(process)
    return found
