"""The binding that speaks /dev/fuse itself (the ``Binding`` protocol): one mount, made here or taken over.

State: the device, the journal, the process that writes notices, and the dispatcher, for the life of ``run``.
Rules: needs Linux 6.9 and CAP_SYS_ADMIN. It opens nothing inside the mount. ``run`` leaves the mount behind only after
``release``, for a successor.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

import trio

from manifest.errors import ConfigurationError, DamfsError
from manifest.names import Revision
from vfs import mountpoint as mountpoints
from vfs.filesystem import Filesystem
from vfs.invalidation import Notice
from vfs.kernel import handover, wire
from vfs.kernel.device import Device
from vfs.kernel.dispatch import Dispatcher
from vfs.kernel.handover import Handed, Keeper
from vfs.kernel.journal import Facts, Journal, Open
from vfs.kernel.notices import NoticeWriter
from vfs.limits import Connection, raise_limits
from vfs.mountpoint import MountOptions

log = logging.getLogger(__name__)

INIT_TIMEOUT_S: Final = 10.0
MAX_BACKGROUND: Final = 65535
"""The most that INIT can say. Who waits is decided user by user (turns.py), and not by who came first to the kernel."""
WRITERS_MAX: Final = 3
_GONE: Final = {errno.ENOTCONN, errno.ENODEV, errno.EBADF, errno.ECONNABORTED}


class KernelBinding:
    """See the module. ``handed``: take this mount over instead of making one; ``library_id`` must be the same."""

    name = "kernel"

    def __init__(
        self,
        mountpoint: Path,
        options: MountOptions,
        library_id: str,
        *,
        keeper: Keeper | None = None,
        handed: Handed | None = None,
    ) -> None:
        self.mountpoint = mountpoint
        self.limits: Mapping[str, int | str] = {}
        self._options = options
        self._library_id = library_id
        self._keeper = keeper if keeper is not None and keeper.supervised else None
        self._handed = handed
        self._threads = trio.CapacityLimiter(2)
        self.released = False
        self._given_up = False
        self._closing = False
        self._broken: str | None = None
        self._scope = trio.CancelScope()
        self._token: trio.lowlevel.TrioToken | None = None
        self._device_fd = -1
        self._answering = False
        self._dispatcher: Dispatcher | None = None
        self._connection: Connection | None = None
        self._journal: Journal | None = None
        self._writer: NoticeWriter | None = None
        self._opened: list[Open] = []

    def way_of(self, ino: int) -> Literal["kernel", "daemon"] | None:
        """See ``Binding.way_of``."""
        return None if self._dispatcher is None else self._dispatcher.passthrough.way_of(ino)

    async def run(
        self, filesystem: Filesystem, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """See ``Binding.run``."""
        make = self._take_over if self._handed else self._mount
        device, journal, facts = await trio.to_thread.run_sync(make, limiter=self._threads)
        self._connection = await trio.to_thread.run_sync(Connection, self.mountpoint, limiter=self._threads)
        self._journal = journal
        self._device_fd = device.fd
        self._token = trio.lowlevel.current_trio_token()
        try:
            self._writer = await trio.to_thread.run_sync(NoticeWriter, device.fd, limiter=self._threads)
            filesystem.told_before.update({slot: Revision(told) for slot, told in journal.told_of().items()})
            dispatcher = self._dispatcher = Dispatcher(
                filesystem, device, journal, may_lend=bool(facts.flags & wire.PASSTHROUGH)
            )
            dispatcher.adopt(self._opened)
            async with trio.open_nursery() as nursery:
                self._scope = nursery.cancel_scope
                nursery.start_soon(self._serve, dispatcher, nursery.cancel_scope)
                if self._handed:
                    self._begin_again(device, journal, nursery)
                limits = await trio.to_thread.run_sync(
                    raise_limits, self.mountpoint, MAX_BACKGROUND, limiter=self._threads
                )
                self.limits = {**limits, "passthrough": int(dispatcher.may_lend)}
                self._answering = True
                task_status.started()
            if self._broken is not None:
                raise RuntimeError(self._broken)  # a mount that is told of no change is worse than a hand-over
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._close, device)
                if self._dispatcher is not None:
                    self._dispatcher.close()

    async def _serve(self, dispatcher: Dispatcher, until: trio.CancelScope) -> None:
        await dispatcher.run()
        self._given_up = not self.released  # somebody unmounted: nothing is left to be taken over
        until.cancel()

    def _begin_again(self, device: Device, journal: Journal, nursery: trio.Nursery) -> None:
        assert self._handed is not None
        assert self._dispatcher is not None
        if not device.resend():
            log.warning("this kernel cannot send requests again: what the predecessor left unanswered stays so")
        pause_ns = time.monotonic_ns() - self._handed.died_ns if self._handed.died_ns else 0
        journal.handed_over(pause_ns)
        log.info("took %s over: %d open files, nobody answered for %.3f s", self.mountpoint, len(self._opened),
                 pause_ns / 1e9)  # fmt: skip
        nursery.start_soon(self._dispatcher.hold_adopted)

    async def unmount(self, *, lazy: bool) -> None:
        """See ``Binding.unmount``."""
        await trio.to_thread.run_sync(
            mountpoints.unmount, self.mountpoint, lazy, abandon_on_cancel=True, limiter=self._threads
        )

    def give_up(self) -> None:
        """See ``Binding.give_up``."""
        self._given_up = True

    async def release(self) -> None:
        """See ``Binding.release``."""
        if self._keeper is None:
            raise ConfigurationError("nobody keeps the mount for a successor: it was not started under a supervisor")
        self.released = True
        if self._dispatcher is not None:
            self._dispatcher.stop()

    def notify(self, notices: Sequence[Notice]) -> list[tuple[Notice, int]]:
        """See ``Binding.notify``."""
        messages = [wire.inval_inode(ino) if name is None else wire.inval_entry(ino, name) for ino, name in notices]
        results = self._write(messages)
        for number in results:
            if number in _GONE:
                raise OSError(number, os.strerror(number))
        return [
            (notice, number) for notice, number in zip(notices, results, strict=True) if number not in (0, errno.ENOENT)
        ]

    def on_told(self, slot: int, revision: Revision) -> None:
        """See ``Binding.on_told``: into the journal."""
        assert self._journal is not None
        self._journal.told(slot, revision)

    @property
    def handover(self) -> dict[str, int | float] | None:
        """How often the mount has changed hands and how long that took, in seconds; None: it cannot."""
        if self._journal is None or self._keeper is None:
            return None
        times, last_ns, longest_ns = self._journal.handovers
        return {"count": times, "last_pause_s": last_ns / 1e9, "longest_pause_s": longest_ns / 1e9}

    # -- inside, in threads

    def _write(self, messages: Sequence[bytes]) -> list[int]:
        """Have notices written; by a new process when the old one was killed, for not one may be lost."""
        for _ in range(WRITERS_MAX):
            assert self._writer is not None
            try:
                return self._writer.write(messages)
            except ConnectionAbortedError:
                if self._closing:
                    raise
                log.error("the process that writes notices to the kernel is gone: it is started again")
                self._writer.close()
                self._writer = NoticeWriter(self._device_fd)
        self._broken = "the process that writes notices to the kernel does not stay"
        assert self._token is not None
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._scope.cancel)
        raise ConnectionAbortedError(self._broken)

    def _take_over(self) -> tuple[Device, Journal, Facts]:
        assert self._handed is not None
        handover.check(self._handed, self.mountpoint, self._library_id)
        journal, facts, self._opened = Journal.adopt(self._handed.journal)
        device = Device(self._handed.device)
        handover.reclaim(device, journal, self._opened)
        return device, journal, facts

    def _mount(self) -> tuple[Device, Journal, Facts]:
        why_not = mountpoints.why_not(allow_other=self._options.allow_other)
        if why_not:
            raise ConfigurationError(f"cannot mount on {self.mountpoint}: {why_not}")
        device = Device.open()
        journal = None
        try:
            device.mount(self.mountpoint, allow_other=self._options.allow_other)
            try:
                minor, flags = _initialise(device, self.mountpoint)
                facts = Facts(str(self.mountpoint), self._library_id, minor, flags, MAX_BACKGROUND)
                journal = Journal.create(facts)
                if self._keeper is not None:
                    handover.keep(self._keeper, device.fd, journal.fd)
            except BaseException:
                with suppress(DamfsError):
                    mountpoints.unmount(self.mountpoint, lazy=True)
                raise
        except BaseException:
            device.close()
            if journal is not None:
                journal.close()
            raise
        return device, journal, facts

    def _close(self, device: Device) -> None:
        """Unmount, unless a successor is to have it: lazily, and what is open is cut off with the connection.

        A successor has it after ``release``, and when this daemon ends by a fault of its own after it has answered.
        """
        self._closing = True
        if not self.released and (self._given_up or self._keeper is None or not self._answering):
            self._take_away()
            if self._keeper is not None:
                try:
                    handover.let_go(self._keeper)
                except DamfsError as error:
                    log.warning("%s", error)
        device.close()
        if self._connection is not None:
            self._connection.close()
        if self._writer is not None:
            self._writer.close()

    def _take_away(self) -> None:
        """End the connection and unmount; what was mounted there since this mount was detached is left alone."""
        if self._connection is None:
            return
        is_ours = self._connection.is_at(self.mountpoint)
        self._connection.abort()
        if is_ours:
            try:
                mountpoints.unmount(self.mountpoint, lazy=True)
            except DamfsError as error:
                log.warning("%s", error)


def _initialise(device: Device, mountpoint: Path) -> tuple[int, int]:
    """Answer INIT, the first request; the protocol's minor number and the flags in force. Blocking."""
    poller = select.poll()
    poller.register(device.fd, select.POLLIN)
    if not poller.poll(INIT_TIMEOUT_S * 1000):
        raise ConfigurationError(f"the kernel did not begin to talk about {mountpoint}")
    request = os.read(device.fd, wire.REQUEST_BYTES_MAX)
    _, opcode, unique, *_ = wire.IN_HEADER.unpack_from(request)
    if opcode != wire.INIT:
        raise ConfigurationError(f"the kernel began with request {opcode}, not with INIT")
    major, minor, read_ahead, low, high, *_ = wire.INIT_IN.unpack_from(request, wire.HEADER_BYTES)
    offered = low | high << 32
    if (major, minor) < (wire.MAJOR, wire.MINOR_MIN) or wire.REQUIRED & ~offered:
        device.write(wire.error(unique, errno.EPROTO))
        raise ConfigurationError(
            f"the kernel speaks FUSE {major}.{minor} without passthrough or hand-over: Linux 6.9 is needed, or "
            "--binding pyfuse3"
        )
    minor = min(minor, wire.MINOR)
    flags = wire.WANTED & offered
    body = wire.INIT_OUT.pack(
        wire.MAJOR, minor, read_ahead, flags & 0xFFFFFFFF, MAX_BACKGROUND, MAX_BACKGROUND * 3 // 4,
        wire.MAX_WRITE_BYTES, 1, wire.MAX_PAGES_COUNT, 0, flags >> 32, wire.MAX_STACK_DEPTH, 0, *(0,) * 11,
    )  # fmt: skip
    device.write(wire.reply(unique, body))
    return minor, flags
