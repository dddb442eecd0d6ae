"""Prefetch: jobs that bring into the cache what somebody will read soon, and are through once it is here.

State: the jobs (on disk: daemon/job_list.py), and how far each has come.

Rules:
- A job wants what there is when it is made: its shows are as of their revisions then, also after a restart. Another one
  that wants the same, while it is under way, is that one; one that has ended begins anew.
- All jobs under way want at most ``share`` of the cache together. So what they bring finds room among what was read
  once, and neither pins nor what is in use goes for it (docs/decisions/0037).
- RUNNING_MAX work at a time, the others wait in the order they came, at most JOBS_MAX in all. What could not be had is
  tried again, until nothing has come for GIVE_UP_S; while the mount is switched offline a job just waits.
- Of those that ended the last ENDED_MAX are remembered, for KEPT_S.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import trio

from daemon import job_list
from daemon.bringing import Bringer, Progress
from daemon.job_list import JobRecord
from manifest.errors import Busy, ConfigurationError, DamfsError, NotFound, Offline, Unavailable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cache.store import CacheStore
    from daemon.bringing import Round
    from daemon.places import Places
    from daemon.wants import Want

log = logging.getLogger(__name__)

JOBS_MAX = 64
RUNNING_MAX = 2
ENDED_MAX = 64
KEPT_S = 7 * 86_400
LOOK_S = 0.5
RETRY_S, RETRY_S_MAX = 5.0, 60.0
GIVE_UP_S = 3600.0
AGAIN_MAX = 2
"""What was brought and is gone again is brought so many times more; then the cache has no room for it."""


@dataclass(slots=True)
class _Job:
    """A job and its task. ``state``: queued, counting, downloading, waiting (to try again), or how it ended."""

    record: JobRecord
    progress: Progress = field(default_factory=Progress)
    state: str = "queued"
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)
    is_counted: bool = False
    begun: float | None = None
    before_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """What people and scripts are told."""
        record, progress = self.record, self.progress
        rate = self._rate()
        left = max(0, progress.bytes - progress.cached_bytes)
        return {
            "id": record.id, "name": record.name, "state": self.state, "made_ns": record.made_ns,
            "ended_ns": record.ended_ns, "files": progress.files, "bytes": progress.bytes,
            "cached_bytes": progress.cached_bytes, "brought_bytes": progress.brought_bytes,
            "missing": progress.missing.count, "missing_examples": progress.missing.examples,
            "rate_bytes_s": rate, "eta_s": round(left / rate, 1) if rate else None,
            "error": record.error, "kind": record.kind,
        }  # fmt: skip

    def _rate(self) -> int | None:
        """Bytes a second since this daemon began with it; None while nothing is under way."""
        if self.state != "downloading" or self.begun is None:
            return None
        seconds = trio.current_time() - self.begun
        return int((self.progress.brought_bytes - self.before_bytes) / seconds) if seconds > 0 else None


class Prefetch:
    """See the module's rules. Belongs to the event loop."""

    def __init__(self, folder: Path, cache: CacheStore, places: Places, share: float) -> None:
        """``folder`` is where the jobs are kept."""
        self.brought_bytes = 0
        self._folder = folder
        self._cache = cache
        self._share = share
        self._bringer = Bringer(cache, places, self._on_brought)
        self._jobs: dict[int, _Job] = {}
        self._next_id = 1
        self._hurried = trio.Event()
        self._changing = trio.Lock()
        self._limiter = trio.CapacityLimiter(1)
        self._turns = trio.CapacityLimiter(RUNNING_MAX)
        self._nursery: trio.Nursery

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Go on with the jobs that have not ended, and with those that come, until cancelled."""
        for record in await trio.to_thread.run_sync(job_list.load, self._folder):
            job = self._jobs[record.id] = _Job(record, state=record.state)
            job.progress.files, job.progress.bytes = record.files, record.bytes
            job.progress.brought_bytes, job.progress.missing.count = record.brought_bytes, record.missing
            if record.state == "complete":
                job.progress.cached_bytes = record.bytes
            self._next_id = max(self._next_id, record.id + 1)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for job in list(self._jobs.values()):
                if not job.record.has_ended:
                    nursery.start_soon(self._work, job)
            task_status.started()
            await trio.sleep_forever()

    @property
    def limit_bytes(self) -> int:
        """What all jobs under way may want together."""
        return int(self._cache.stats().size_bytes * self._share)

    def hurry(self) -> None:
        """What could not be had is tried again now: something has changed."""
        self._hurried.set()
        self._hurried = trio.Event()

    def all(self) -> list[dict[str, Any]]:
        """All jobs, the oldest first."""
        return [job.to_json() for _, job in sorted(self._jobs.items())]

    def get(self, number: int) -> dict[str, Any]:
        """One job. Raises NotFound."""
        return self._job(number).to_json()

    def states(self) -> dict[str, int]:
        """How many jobs are in which state."""
        found = dict.fromkeys(("queued", "counting", "downloading", "waiting", *job_list.ENDED), 0)
        for job in self._jobs.values():
            found[job.state] += 1
        return found

    async def measure(self, wants: Sequence[Want]) -> dict[str, Any]:
        """How large a job would be; ``why_not``: why it would be refused, or None.

        Raises NotFound when nothing of it is there, UsageError, Unavailable.
        """
        progress = await self._count(await self._bringer.resolve(wants))
        return {
            "files": progress.files, "bytes": progress.bytes, "cached_bytes": progress.cached_bytes,
            "missing": progress.missing.count, "missing_examples": progress.missing.examples,
            "why_not": self._why_not(progress, None),
        }  # fmt: skip

    async def add(self, wants: Sequence[Want], name: str) -> dict[str, Any]:
        """Make a job of it, or find the one that there is.

        Raises NotFound when nothing of it is there, UsageError, Unavailable, Busy for one job too many, and
        ConfigurationError when it is too large. Cancellation leaves no job, or the whole one.
        """
        resolved = await self._bringer.resolve(wants)
        what = await trio.to_thread.run_sync(job_list.what, resolved)
        known = self._same(what)
        if known is not None and not known.record.has_ended:
            return known.to_json()
        progress = await self._count(resolved)
        async with self._changing:
            known = self._same(what)
            if known is not None and not known.record.has_ended:
                return known.to_json()
            why_not = self._why_not(progress, known)
            if why_not is not None:
                raise ConfigurationError(why_not)
            if self._under_way() >= JOBS_MAX:
                raise Busy(f"there are {JOBS_MAX} jobs, which is the most: wait for some, or cancel them")
            number = self._next_id if known is None else known.record.id
            record = JobRecord(number, what, name, time.time_ns(), resolved, files=progress.files, bytes=progress.bytes)
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(job_list.save, self._folder, record, limiter=self._limiter)
                job = self._jobs[number] = _Job(record, progress, is_counted=True)
                self._next_id = max(self._next_id, number + 1)
                self._nursery.start_soon(self._work, job)
            await self._forget_old()
            return job.to_json()

    async def cancel(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """End jobs; what they have brought stays. One that has ended is left as it is. Raises NotFound."""
        chosen = [self._job(number) for number in dict.fromkeys(numbers)]
        for job in chosen:
            if not job.record.has_ended:
                job.scope.cancel()
                await job.ended.wait()
                if not job.record.has_ended:
                    await self._end(job, "cancelled")
        return [job.to_json() for job in chosen]

    # -- one job

    async def _work(self, job: _Job) -> None:
        try:
            with job.scope:
                async with self._turns:
                    await self._until_it_ends(job)
        finally:
            job.ended.set()

    async def _until_it_ends(self, job: _Job) -> None:
        pause_s, came, again, begun_bytes = RETRY_S, trio.current_time(), 0, job.progress.brought_bytes
        while True:
            before_bytes = job.progress.brought_bytes
            try:
                done = await self._attempt(job)
                error = done.first
            except (DamfsError, sqlite3.Error, OSError) as caught:
                done, error = None, caught
            except Exception as caught:  # a job is no reason to end the mount
                log.exception("job %d (%s) met a bug, and is tried again", job.record.id, job.record.name)
                done, error = None, Unavailable(f"a bug of damfs: {caught!r}; the log has the traceback")
            if done is not None and error is None:
                if not done.incomplete:
                    await self._end(job, "complete")
                    return
                again += 1  # look whether the cache has kept it
                if again > AGAIN_MAX:
                    await self._end(job, "failed", Unavailable(
                        "the cache did not keep what was brought: others fill it, or its disk fails"
                    ))  # fmt: skip
                    return
                await trio.sleep(LOOK_S)
                continue
            assert error is not None
            if job.progress.brought_bytes > before_bytes or isinstance(error, Offline):  # somebody wishes it so
                pause_s, came = RETRY_S, trio.current_time()
            is_in_vain = job.progress.brought_bytes - begun_bytes > AGAIN_MAX * job.progress.bytes
            if is_in_vain or trio.current_time() - came >= GIVE_UP_S:
                await self._end(job, "failed", error)
                return
            self._say(job, error, 0 if done is None else done.faults - 1)
            job.state = "waiting"
            hurried = self._hurried
            with trio.move_on_after(pause_s):
                await hurried.wait()
            pause_s = min(2 * pause_s, RETRY_S_MAX)

    async def _attempt(self, job: _Job) -> Round:
        """Count what is wanted, if that is not known, and bring what is missing."""
        if not job.is_counted:
            job.state = "counting"
            await self._bringer.count(job.record.wants, job.progress)
        job.is_counted = False
        job.state, job.begun, job.before_bytes = "downloading", trio.current_time(), job.progress.brought_bytes
        return await self._bringer.bring(job.record.wants, job.progress)

    def _say(self, job: _Job, error: Exception, more: int) -> None:
        text = f"{error} (and {more} more)" if more > 0 else str(error)
        if job.record.error != text and not isinstance(error, Offline):
            log.warning("job %d (%s) is not through, and is tried again: %s", job.record.id, job.record.name, text)
        job.record.error, job.record.kind = text, _kind(error)

    async def _end(self, job: _Job, state: str, error: Exception | None = None) -> None:
        """Write down how a job has ended; one that cannot be written begins again after a restart."""
        progress = job.progress
        record = replace(
            job.record, state=state, ended_ns=time.time_ns(), wants=[], files=progress.files, bytes=progress.bytes,
            brought_bytes=progress.brought_bytes, missing=progress.missing.count,
            error=None if error is None else str(error), kind=None if error is None else _kind(error),
        )  # fmt: skip
        log.info("job %d (%s): %s, %d bytes brought", record.id, record.name, state, record.brought_bytes)
        with trio.CancelScope(shield=True):
            try:
                await trio.to_thread.run_sync(job_list.save, self._folder, record, limiter=self._limiter)
            except ConfigurationError as problem:
                log.warning("%s", problem)
        job.record, job.state = record, state

    # -- all jobs

    def _on_brought(self, count: int) -> None:
        self.brought_bytes += count

    async def _count(self, resolved: Sequence[Want]) -> Progress:
        progress = Progress()
        await self._bringer.count(resolved, progress)
        if not progress.files and progress.missing.count:
            raise NotFound("; ".join(progress.missing.examples[:3]))
        return progress

    def _why_not(self, progress: Progress, known: _Job | None) -> str | None:
        others = sum(job.record.bytes for job in self._jobs.values() if job is not known and not job.record.has_ended)
        if others + progress.bytes <= self.limit_bytes:
            return None
        beside = f", {others:,} of them of other jobs" if others else ""
        return (
            f"the jobs under way would want {others + progress.bytes:,} bytes{beside}, and may want "
            f"{self.limit_bytes:,}, {self._share * 100:g} % of the cache: name less, enlarge the cache, or raise "
            "cache.prefetch_share; damfs pin keeps what is to stay"
        )

    def _under_way(self) -> int:
        return sum(not job.record.has_ended for job in self._jobs.values())

    def _same(self, what: str) -> _Job | None:
        return next((job for job in self._jobs.values() if job.record.what == what), None)

    def _job(self, number: int) -> _Job:
        job = self._jobs.get(number)
        if job is None:
            raise NotFound(f"no job has the number {number}: damfs prefetch --jobs lists them")
        return job

    async def _forget_old(self) -> None:
        ended = sorted((job.record.ended_ns or 0, number) for number, job in self._jobs.items() if job.record.has_ended)
        oldest_ns = time.time_ns() - int(KEPT_S * 1e9)
        surplus = len(ended) - ENDED_MAX
        for i, (ended_ns, number) in enumerate(ended):
            if i < surplus or ended_ns < oldest_ns:
                del self._jobs[number]
                await trio.to_thread.run_sync(job_list.forget, self._folder, number, limiter=self._limiter)


def _kind(error: Exception) -> str:
    """The class of manifest/errors.py that an error is."""
    return type(error).__name__ if isinstance(error, DamfsError) else Unavailable.__name__
