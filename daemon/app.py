"""The one process behind a mountpoint: what is opened in which order, and how it ends.

Start: check the mountpoint → open the library and learn which one it is (daemon/opening.py) → open the cache (its
lock) → know the shows → mount → see from another process that the mount answers → open the control sockets → say that
it is ready → follow the logs. A successor takes the mount over instead, and sees whether it answers at the end.

End: the mountpoint is freed first (daemon/stop.py), open files are drained, then sync and control end, then the cache
is closed. The nurseries are nested in that order, so that an error anywhere ends in the same way.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import trio
from prometheus_client import CollectorRegistry

from cache.owner import Owner
from cache.sources.central import CentralSource
from cache.store import CacheStore
from daemon import (
    cache_locks,
    cache_routes,
    control,
    explain_routes,
    job_list,
    metrics,
    mounts,
    offline_routes,
    opening,
    paths,
    pin_routes,
    prefetch_routes,
    recording_routes,
    scrub_routes,
    trace_routes,
)
from daemon.explain import Explain, as_reading
from daemon.limits import configured, parse_window, scrub_pace
from daemon.offline import OFFLINE_FILE, OfflineSwitch
from daemon.pin_list import PINS_FILE
from daemon.pins import Pins
from daemon.places import Places
from daemon.prefetch import Prefetch
from daemon.recording import Recordings
from daemon.serve import OwnedSocket, Server, listen_tcp, listen_unix
from daemon.site import as_source, as_way, open_site
from daemon.status import ShowStatus, Status
from daemon.stop import Stopper
from daemon.sync import Sync
from daemon.warming import Warming
from manifest.errors import Busy, ConfigurationError, Unavailable
from vfs import binding as bindings
from vfs.ahead import AheadLimits
from vfs.filesystem import Filesystem
from vfs.kernel.handover import Handed, from_descriptors
from vfs.metrics import Metrics
from vfs.mountpoint import MountOptions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from cache.sources.protocol import Source
    from daemon.config import Settings
    from daemon.ready import Ready
    from daemon.systemd import Notify
    from manifest.identity import Identity
    from manifest.library import Library
    from vfs.binding import Binding
    from vfs.inodes import Slots

log = logging.getLogger(__name__)

PROBE_S = 10.0
RELOAD_S = 90.0
"""How long a successor may take to be imported; the supervisor gives up earlier."""
GOODBYE_S = 1.0
CACHE_CLOSE_S = 5.0


@dataclass(frozen=True, slots=True)
class Predecessor:
    """What an earlier daemon of this mountpoint left: its mount, and its locks on cache folders as far as kept."""

    mount: Handed
    cache_locks: Sequence[int]

    @classmethod
    def of(cls, descriptors: Mapping[str, int], died_ns: int) -> Predecessor | None:
        """Out of the descriptors that were kept. Raises ConfigurationError when they are not enough."""
        mount = from_descriptors(descriptors, died_ns)
        return None if mount is None else cls(mount, cache_locks.of(descriptors))


@dataclass(frozen=True, slots=True)
class Supervision:
    """Who starts a successor, and how many daemons were there before this one."""

    pid: int | None = None
    restarts: int = 0


UNSUPERVISED = Supervision()


async def run(
    settings: Settings,
    mountpoint: Path,
    ready: Ready,
    notify: Notify,
    predecessor: Predecessor | None = None,
    supervision: Supervision = UNSUPERVISED,
) -> bool:
    """Mount, serve until unmounted, clean up. True: the mount was left to a successor.

    ``predecessor``: take its mount over instead. Raises DamfsError (perhaps inside an ExceptionGroup) when it cannot;
    the supervisor, which knows whether another one is to try it, then detaches the mount.
    """
    if predecessor is None:
        await trio.to_thread.run_sync(opening.check_mountpoint, mountpoint)
    opened = await trio.to_thread.run_sync(
        partial(opening.open_library, settings, in_haste=predecessor is not None), abandon_on_cancel=True
    )
    settings, library, identity = opened.settings, opened.library, opened.identity
    registry = CollectorRegistry()
    async with trio.open_nursery() as cache_nursery:
        central = CentralSource(library)
        sources: list[Source] = [central]
        site = await trio.to_thread.run_sync(open_site, settings, library)
        if site is not None:
            sources.insert(0, as_source(site))
        folders = await trio.to_thread.run_sync(configured, settings)
        try:
            cache = await CacheStore.open(
                folders,
                policy=settings.cache.policy,
                scrub=scrub_pace(settings),
                sources=sources,
                asking=settings.asking,
                nursery=cache_nursery,
                holder=str(mountpoint),
                owner=Owner(identity.id, library.url),
                locks=predecessor.cache_locks if predecessor else (),
                registry=registry,
            )
        except Busy as error:
            raise await trio.to_thread.run_sync(opening.explain, error, [one.folder for one in folders]) from error
        try:
            async with trio.open_nursery() as nursery:
                slots = await trio.to_thread.run_sync(opened.slots)
                sync = Sync(
                    library,
                    identity,
                    opened.verifier,
                    opened.remembered,
                    slots,
                    interval_s=settings.sync.interval_s,
                    nursery=nursery,
                    on_return=cache.sources.hurry,
                    on_silence=cache.sources.silent,
                    way=as_way(site),
                )
                central.on_answer = sync.contact.answered
                await sync.begin(opened.shows, offline_because=opened.offline_because)
                if opened.offline_because is not None:
                    cache.sources.silent(opened.offline_because, known_before=True)
                switch = OfflineSwitch(sync.folder / OFFLINE_FILE, opened.wish, library, cache.forbid, sync)
                binding, reason = _choose(settings, mountpoint, identity, notify, predecessor)
                daemon = Daemon(
                    settings, mountpoint, library, identity, cache, sync, switch, slots, registry, binding, reason,
                    notify, supervision,
                )  # fmt: skip
                if notify.supervised and binding.name == "kernel":  # no other mount can be taken over
                    await cache_locks.keep(cache, notify)
                    nursery.start_soon(cache_locks.follow, cache, notify, name="cache locks")
                try:
                    await daemon.serve(ready, nursery, is_successor=predecessor is not None)
                finally:
                    nursery.cancel_scope.cancel()
            await sync.close()
        finally:
            with trio.move_on_after(CACHE_CLOSE_S, shield=True):
                await cache.close()
            cache_nursery.cancel_scope.cancel()
    if not binding.released and notify.supervised:
        await trio.to_thread.run_sync(cache_locks.forget, notify, GOODBYE_S)
    return binding.released


class Daemon:
    """The mounted library and what is asked of it from outside (``control.Controlled``, ``metrics.Followed``)."""

    def __init__(
        self,
        settings: Settings,
        mountpoint: Path,
        library: Library,
        identity: Identity,
        cache: CacheStore,
        sync: Sync,
        switch: OfflineSwitch,
        slots: Slots,
        registry: CollectorRegistry,
        binding: Binding,
        binding_reason: str,
        notify: Notify,
        supervision: Supervision,
    ) -> None:
        self._settings = settings
        self._mountpoint = mountpoint
        self._library = library
        self._identity = identity
        self._cache = cache
        self._sync = sync
        self._switch = switch
        self._registry = registry
        self._started = time.monotonic()
        self._metrics_url: str | None = None
        self._filesystem = Filesystem(
            cache,
            sync,
            slots,
            owner=(settings.mount.uid, settings.mount.gid),
            read_deadline_s=settings.read_deadline_s,
            metrics=Metrics(registry),
            ahead=_ahead_limits(settings),
        )
        sync.serve_through(self._filesystem)
        self._binding, self._binding_reason = binding, binding_reason
        self._notify, self._supervision = notify, supervision
        self._stopper: Stopper | None = None
        places = Places(sync)
        self._pins = Pins(sync.folder / PINS_FILE, cache, places, sync.served, settings.cache.pin_share)
        switch.resumed.append(self._pins.hurry)
        explain = Explain(cache, Places(sync, loads=False), sync, slots, lambda: as_reading(binding))
        owner = (settings.mount.uid, settings.mount.gid)
        self._prefetch = Prefetch(sync.folder / job_list.FOLDER, cache, places, settings.cache.prefetch_share)
        switch.resumed.append(self._prefetch.hurry)
        metrics.PrefetchMetrics(self._prefetch, registry)
        self._warming: Warming | None = None
        if settings.cache.prefetch_traces:
            self._warming = Warming(self._prefetch, places)
            self._filesystem.on_open = self._warming.opened
        self._recordings = self._filesystem.recorder = Recordings()
        routes = [
            *offline_routes.routes(switch),
            *explain_routes.routes(explain, mountpoint, owner=owner, allow_other=settings.mount.allow_other),
            *cache_routes.routes(cache.admin, places),
            *scrub_routes.routes(cache.verifier, places),
            *trace_routes.routes(cache, settings.cache.policy),
            *pin_routes.routes(self._pins),
            *prefetch_routes.routes(self._prefetch),
            *recording_routes.routes(self._recordings),
        ]
        self._control = Server(control.make_app(self, routes))

    async def serve(self, ready: Ready, nursery: trio.Nursery, *, is_successor: bool) -> None:
        """Mount, and return when the mount is gone, or left to a successor.

        Tasks that may outlive the drain run in ``nursery``.
        """
        sockets: list[OwnedSocket] = []
        is_failing = False

        def stopping() -> None:
            if not self._binding.released and not is_failing:  # else a successor is wanted
                self._notify.stopping()
            for owned in sockets:
                owned.remove()

        stopper = self._stopper = Stopper(self._binding, stopping)
        nursery.start_soon(stopper.handle_signals, name="signals")
        is_up = False
        try:
            async with trio.open_nursery() as mount_nursery:
                stopper.mount_scope = mount_nursery.cancel_scope
                await mount_nursery.start(self._run_binding, stopper, name="mount")
                stopper.mounted = True
                if is_successor:  # whoever uses the mount goes on now: looking whether it answers can wait
                    mount_nursery.start_soon(self._see_it_answer, name="probe")
                else:
                    await self._see_it_answer()
                sockets.extend(self._open_sockets(nursery))
                self._start_metrics(nursery)
                self._sync.start()
                await nursery.start(self._pins.run, name="pins")
                await nursery.start(self._prefetch.run, name="prefetch")
                await nursery.start(self._recordings.run, name="recordings")
                if self._warming is not None:
                    nursery.start_soon(self._warming.run, name="warming")
                nursery.start_soon(stopper.watch, name="stop")
                self._say_ready(ready)
                is_up = True
        except BaseException:
            is_failing = True
            raise
        finally:
            stopper.ended()
        if not is_up:
            raise Unavailable(f"stopped before the mount at {self._mountpoint} was up")
        if self._binding.released:
            log.info("left %s to a successor", self._mountpoint)
            return
        log.info("unmounted from %s", self._mountpoint)
        await self._control.drain(GOODBYE_S)

    # -- control.Controlled

    def status(self) -> Status:
        """See docs/STATUS.md. From memory; somebody who asks while it is offline has it tried again."""
        if self.offline:
            self._sync.contact.glance()
        return Status(
            pid=os.getpid(),
            version=version(),
            mountpoint=str(self._mountpoint),
            binding=self._binding.name,
            binding_reason=self._binding_reason,
            library=self._library.url,
            library_id=self._identity.id,
            endpoint=self._settings.library.endpoint,
            region=self._settings.library.region,
            trust=str(self._settings.library.trust),
            offline=self.offline,
            offline_reason=self._sync.contact.reason,
            offline_switch=self._switch.told(),
            uptime_s=round(time.monotonic() - self._started, 3),
            shows=self.shows(),
            cache=self._cache.stats(),
            ahead=self._filesystem.ahead.now(),
            sources=self._cache.sources.status(),
            site=self._sync.way.status(),
            limits=dict(self._binding.limits),
            handover=self._binding.handover,
            supervisor_pid=self._supervision.pid if self._supervision.pid == os.getppid() else None,
            restarts=self._supervision.restarts,
            metrics=self._metrics_url,
        )

    async def sync(self, show: str, at_least: int | None, timeout_s: float) -> int:
        """POST /v1/sync."""
        return await self._sync.sync(show, at_least, timeout_s)

    async def stop(self, *, lazy: bool) -> None:
        """POST /v1/stop: returns when the mountpoint is free. Raises Busy when it is in use and not ``lazy``."""
        assert self._stopper is not None
        await self._stopper.stop(lazy=lazy)
        if self._stopper.detached:
            self._notify.stopping()  # should it crash, nobody is to mount it again

    async def reload(self) -> None:
        """POST /v1/reload: returns when a successor is about to take over. Raises ConfigurationError when none will."""
        if self._binding.handover is None:
            raise ConfigurationError(
                f"the mount at {self._mountpoint} cannot be handed over: that needs the kernel binding (this one is "
                f"{self._binding.name}) and a supervisor; unmount it and mount it again"
            )
        why_not: str = await trio.to_thread.run_sync(self._notify.reload, RELOAD_S, abandon_on_cancel=True)
        if why_not:
            raise ConfigurationError(f"the daemon of {self._mountpoint} goes on as it is: {why_not}")

    # -- metrics.Followed

    @property
    def offline(self) -> bool:
        return self._sync.contact.offline

    @property
    def is_switched_offline(self) -> bool:
        return self._switch.wish is not None

    def shows(self) -> dict[str, ShowStatus]:
        return self._sync.status()

    # -- inside

    async def _run_binding(
        self, stopper: Stopper, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        await bindings.serve(self._filesystem, self._binding, task_status=task_status)
        stopper.ended()
        stopper.mount_scope.cancel()

    async def _see_it_answer(self) -> None:
        """Ask for the mountpoint's attributes as any program would; never from this process."""
        answers: bool = await trio.to_thread.run_sync(mounts.answers, self._mountpoint, PROBE_S, abandon_on_cancel=True)
        if not answers:
            raise Unavailable(f"the mount at {self._mountpoint} does not answer within {PROBE_S:g} s")

    def _open_sockets(self, nursery: trio.Nursery) -> Iterator[OwnedSocket]:
        paths.make_run_folder()
        for surface, mode, group in (("view", 0o666, None), ("admin", 0o660, self._settings.control.group)):
            path = paths.socket_path(self._mountpoint, surface)  # type: ignore[arg-type]  # both are surfaces
            listener = listen_unix(path, mode=mode, group=group)
            nursery.start_soon(self._control.serve, listener, surface, name=f"control {surface}")
            yield OwnedSocket(path)

    def _start_metrics(self, nursery: trio.Nursery) -> None:
        numbers = metrics.DaemonMetrics(self, self._registry)
        nursery.start_soon(numbers.watch_loop, name="loop latency")
        if self._settings.metrics.listen == "off":
            return
        listener, address = listen_tcp(self._settings.metrics.listen)
        self._metrics_url = f"http://{address}/metrics"
        nursery.start_soon(Server(metrics.make_app(self._registry)).serve, listener, "metrics", name="metrics")

    def _say_ready(self, ready: Ready) -> None:
        state = f"offline: {self._sync.contact.reason}" if self.offline else "online"
        log.info("mounted %s at %s with %s (%s), %s", self._library.url, self._mountpoint, self._binding.name,
                 self._binding_reason, state)  # fmt: skip
        self._notify.ready(f"{self._library.url} at {self._mountpoint}, {state}")
        ready.up(
            pid=os.getpid(),
            mountpoint=str(self._mountpoint),
            binding=self._binding.name,
            binding_reason=self._binding_reason,
            offline=self.offline,
            metrics=self._metrics_url,
        )


def version() -> str:
    """The installed version of damfs."""
    try:
        return importlib.metadata.version("damfs")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _choose(
    settings: Settings, mountpoint: Path, identity: Identity, notify: Notify, predecessor: Predecessor | None
) -> tuple[Binding, str]:
    return bindings.choose(
        settings.mount.binding,
        mountpoint,
        MountOptions(allow_other=settings.mount.allow_other),
        identity.id,
        keeper=notify,
        handed=predecessor.mount if predecessor else None,
    )


def _ahead_limits(settings: Settings) -> AheadLimits:
    wanted = settings.readahead
    return AheadLimits(parse_window(wanted.window), wanted.frames) if wanted.enabled else AheadLimits(0, 0)
