"""The process that serves a mount for the tests: a real Filesystem, replica, cache and file:// library.

    python -m tests.vfs.runner MOUNTPOINT LIBRARY_URL STATE_FOLDER [FLAG …]

Flags: ``pyfuse3`` or ``kernel``, ``allow_other``, ``noahead``: nothing is fetched before it is asked for; ``cache=``
the size of the cache in bytes, ``deadline=`` the longest that a read waits, in seconds, ``stall=`` a show whose source
answers nothing, ``latency=`` and ``rate=`` of the source in seconds and bytes a second; ``fuse=``, ``journal=`` and
``cache-lock=`` the descriptors of a predecessor that was killed at ``died=``, in monotonic ns. With $NOTIFY_SOCKET and
$FDSTORE its own are kept for a successor.

Reads one JSON command a line from stdin and answers with one JSON line each; end of input ends it. It polls no log:
a publish is shown when the test says ``advance``.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import trio
from prometheus_client import CollectorRegistry

from cache.limits import FolderLimits, Limits
from cache.owner import Owner
from cache.sources.central import CentralSource
from cache.sources.protocol import ObjectRef, Source, SourceStatus
from cache.store import CacheStore
from daemon.systemd import Notify
from manifest.errors import DamfsError
from manifest.library import Library
from manifest.names import Revision
from manifest.replica import Replica
from vfs.ahead import AheadLimits
from vfs.binding import Binding, choose, serve
from vfs.filesystem import Filesystem
from vfs.handles import FileHandle
from vfs.inodes import Slots
from vfs.invalidation import Notice
from vfs.kernel import handover, passthrough, wire
from vfs.kernel.binding import KernelBinding
from vfs.kernel.dispatch import Dispatcher
from vfs.metrics import Metrics
from vfs.mountpoint import MountOptions
from vfs.pyfuse3_binding import Pyfuse3Binding

READ_DEADLINE_S = 3.0
CACHE_BYTES = 2**30
CACHE_LOCK = "cache-lock"


class Loader:
    """A ShowLoader over a folder of replicas, which somebody else writes."""

    def __init__(self, folder: Path, slots: Slots) -> None:
        self.folder = folder
        self.slots = slots
        self.filesystem: Filesystem | None = None
        self._loading = trio.Lock()

    async def load(self, show: str) -> bool:
        path = self.folder / f"{show}.db"
        if not path.exists():
            return False
        assert self.filesystem is not None
        async with self._loading:
            if self.filesystem.views.get(show) is None:
                self.slots.assign([show])
                reader, planner = Replica.open_reader(path), Replica.open_reader(path)
                await self.filesystem.attach(show, reader, reader.head, planner=planner)
        return True

    async def reach(self, show: str, revision: Revision, timeout_s: float) -> None:
        assert self.filesystem is not None
        view = self.filesystem.views.get(show)
        assert view is not None
        with trio.move_on_after(timeout_s):
            while view.head < revision:
                await self.filesystem.advance(show, view.reader.head)
                await trio.sleep(0.02)

    def known_shows(self) -> list[str]:
        shows = sorted(path.stem for path in self.folder.glob("*.db"))
        self.slots.assign(shows)
        return shows


class Gated:
    """A Source that answers nothing of the shows whose gate is closed, not even behind its deadline.

    It lies behind a line of so much latency (seconds) and bandwidth (bytes a second; 0: without end). ``asked`` are the
    digests that it was asked for, in order.
    """

    def __init__(self, source: Source, gates: dict[str, trio.Event], latency_s: float = 0.0, rate: float = 0.0) -> None:
        self.name = source.name
        self.gates = gates
        self.asked: list[str] = []
        self._source = source
        self._latency_s, self._rate = latency_s, rate
        self._line_free_at = 0.0

    async def fetch(self, ref: ObjectRef, deadline: float) -> memoryview | bytes:
        self.asked.append(ref.digest.hex())
        while ref.tenant in self.gates:
            await self.gates[ref.tenant].wait()
        first_byte_at = trio.current_time() + self._latency_s
        data = await self._source.fetch(ref, deadline)
        if self._rate:
            self._line_free_at = max(self._line_free_at, first_byte_at) + len(data) / self._rate
        await trio.sleep_until(max(self._line_free_at, first_byte_at) if self._latency_s or self._rate else 0.0)
        return data

    def status(self) -> SourceStatus:
        return self._source.status()


def rss_bytes() -> int:
    """The resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


class Runner:
    """What the test may have the process do."""

    def __init__(self, filesystem: Filesystem, binding: Binding, source: Gated, cache: CacheStore) -> None:
        self.filesystem = filesystem
        self.binding = binding
        self.source = source
        self.cache = cache
        self._may_notify = threading.Event()
        self._may_notify.set()
        self._notify = binding.notify
        binding.notify = self._notify_once_it_may  # type: ignore[method-assign]

    def _notify_once_it_may(self, notices: Sequence[Notice]) -> list[tuple[Notice, int]]:
        self._may_notify.wait()
        return self._notify(notices)

    def _hold(self) -> Callable[[], None]:
        """Let no notice get on; returns what lets it."""
        if isinstance(self.binding, Pyfuse3Binding):
            self.binding._session.acquire()
            return self.binding._session.release
        assert isinstance(self.binding, KernelBinding)
        assert self.binding._writer is not None
        writer = os.pidfd_open(self.binding._writer.pid)
        signal.pidfd_send_signal(writer, signal.SIGSTOP)

        def let_go() -> None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(writer, signal.SIGCONT)
            os.close(writer)

        return let_go

    def _dispatcher(self) -> Dispatcher:
        assert isinstance(self.binding, KernelBinding)
        assert self.binding._dispatcher is not None
        return self.binding._dispatcher

    def _die_behind(self, point: str) -> None:
        """Have this process killed as soon as such a call has returned."""
        dispatcher = self._dispatcher()
        owner, name = {
            "lent": (dispatcher.passthrough, "_lend"),
            "opened": (dispatcher._journal, "opened"),
            "replied": (dispatcher, "_reply_open"),
            "released": (dispatcher._journal, "released"),
            "taken back": (dispatcher.passthrough, "_take_back"),
            "told": (dispatcher._journal, "told"),
        }[point]
        call = getattr(owner, name)

        def last(*args: Any, **more: Any) -> None:
            call(*args, **more)
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(owner, name, last)

    def _of_kernel(self) -> dict[str, Any]:
        """What the kernel binding alone knows."""
        assert isinstance(self.binding, KernelBinding)
        dispatcher, writer = self._dispatcher(), self.binding._writer
        assert writer is not None
        return {
            "lent": dispatcher.passthrough.lent,
            "inodes": len(dispatcher.passthrough._inodes),
            "handles": len(dispatcher._files),
            "ways": dict(WAYS),
            "running": dispatcher.turns.running + dispatcher.local_turns.running,
            "queued": dispatcher.turns.queued + dispatcher.local_turns.queued,
            "waiting": len(dispatcher._waiters._known),
            "notices_pid": writer.pid,
            "handover": self.binding.handover,
        }

    async def obey(self, command: dict[str, Any]) -> dict[str, Any]:
        what, show = command["do"], command.get("show", "")
        if what == "advance":
            view = self.filesystem.views.get(show)
            if view is None:
                return {"head": 0, "notices": 0}
            notices = await self.filesystem.advance(show, view.reader.head)
            assert self.filesystem.notifier is not None
            if command.get("settle", True):
                await self.filesystem.notifier.settle(20)
            return {"head": view.head, "notices": notices}
        if what == "stats":
            return {"rss": rss_bytes(), "handles": len(self.filesystem.handles), "limits": dict(self.binding.limits)}
        if what == "kernel":
            return self._of_kernel()
        if what == "cached":
            return {"objects": self.cache.stats().objects, "used_bytes": self.cache.stats().used_bytes}
        if what == "asked":
            return {"digests": self.source.asked, **asdict(self.filesystem.ahead.now())}
        if what == "stall":  # the source of a show
            self.source.gates[show] = trio.Event()
            return {}
        if what == "go on":
            self.source.gates.pop(show).set()
            return {}
        if what == "die":
            self._die_behind(command["point"])
            return {}
        if what == "hold opens":  # of files that were not opened yet
            self.filesystem.reads.open_now = never  # type: ignore[method-assign]
            self.filesystem.reads.open = wait_for_ever  # type: ignore[method-assign]
            return {}
        if what == "hold look-ups":
            self._dispatcher()._handlers[wire.LOOKUP] = lambda *_: None
            return {}
        if what == "unmount":
            try:
                await self.binding.unmount(lazy=command.get("lazy", False))
            except DamfsError as error:
                return {"error": type(error).__name__}
            return {}
        if what == "release":
            await self.binding.release()
            return {}
        if what == "hold":  # as a notice does that waits in the kernel for so long
            threading.Timer(command["seconds"], self._hold()).start()
            return {}
        if what == "hold notices":  # before the binding has them
            self._may_notify.clear()
            return {}
        if what == "let notices go":
            self._may_notify.set()
            return {}
        raise ValueError(what)


def never(handle: FileHandle) -> bool:
    return False


async def wait_for_ever(handle: FileHandle) -> None:
    await trio.sleep_forever()


WAYS = {"passthrough": 0, "cached": 0}
"""How often a file was opened for the kernel to read, and to be read through us."""


def count_ways() -> None:
    choose_way = passthrough.Passthrough.choose

    def counted(self: passthrough.Passthrough, *args: Any) -> int:
        backing_id = choose_way(self, *args)
        WAYS["cached" if backing_id == passthrough.NONE else "passthrough"] += 1
        return backing_id

    passthrough.Passthrough.choose = counted  # type: ignore[method-assign,assignment]


async def main(mountpoint: str, url: str, state: str, *flags: str) -> None:
    said = dict(flag.split("=", 1) for flag in flags if "=" in flag)
    kept = {name: int(said[name]) for name in (handover.DEVICE, handover.JOURNAL, CACHE_LOCK) if name in said}
    handed = handover.from_descriptors(kept, int(said.get("died", 0)))
    keeper = Notify()
    stalled = {said["stall"]: trio.Event()} if "stall" in said else {}
    count_ways()
    folder = Path(state)
    slots = Slots(folder / "slots.json")
    loader = Loader(folder, slots)
    source = Gated(CentralSource(Library.open(url)), stalled, float(said.get("latency", 0)), float(said.get("rate", 0)))
    async with trio.open_nursery() as nursery:
        cache = await CacheStore.open(
            [FolderLimits(folder / "cache", Limits(int(said.get("cache", CACHE_BYTES))))],
            sources=[source],
            nursery=nursery,
            holder=mountpoint,
            owner=Owner("0" * 32, url),
            locks=[kept[CACHE_LOCK]] if CACHE_LOCK in kept else [],
        )
        keeper.store(CACHE_LOCK, cache.shelves[0].lock.fd)
        filesystem = Filesystem(
            cache,
            loader,
            slots,
            owner=(os.getuid(), os.getgid()),
            read_deadline_s=float(said.get("deadline", READ_DEADLINE_S)),
            metrics=Metrics(CollectorRegistry()),
            ahead=AheadLimits(0, 0) if "noahead" in flags else AheadLimits(),
        )
        loader.filesystem = filesystem
        wanted = "kernel" if "kernel" in flags else "pyfuse3"
        options = MountOptions(allow_other="allow_other" in flags)
        binding, _ = choose(wanted, Path(mountpoint), options, "0" * 32, keeper=keeper, handed=handed)
        try:
            async with trio.open_nursery() as mount:
                await mount.start(partial(serve, filesystem, binding))
                for show in loader.known_shows() if handed else ():
                    await loader.load(show)
                await _control(Runner(filesystem, binding, source, cache))
                if not binding.released:
                    binding.give_up()
                mount.cancel_scope.cancel()
        finally:
            await cache.close()


async def _control(runner: Runner) -> None:
    print(json.dumps({"ready": os.getpid()}), flush=True)
    stream = trio.lowlevel.FdStream(os.dup(0))
    pending = b""
    async for data in stream:
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            print(json.dumps(await runner.obey(json.loads(line))), flush=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    mountpoint, url, state, *flags = sys.argv[1:]
    trio.run(partial(main, mountpoint, url, state, *flags))
