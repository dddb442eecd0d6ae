"""Ending: unmount first, then let what is open end, then force it. Nobody is left with a dead mountpoint.

Signals: the first SIGTERM, SIGINT or SIGHUP begins an orderly stop, a second one forces it; SIGUSR1 dumps tasks and
threads; SIGUSR2, the supervisor's, leaves the mount to a successor. An orderly stop is forced after DRAIN_S; should
even that hang, a thread ends the process LAST_S later.

A lazy unmount that somebody asked for (``damfs umount --lazy``, or umount -l, of which nothing is heard here) is no
stop: the name is free, and the mount is served like any other until the last thing in it is closed. The kernel tells
that by ending the connection. A signal stops it in order, as ever.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import TYPE_CHECKING

import trio

from daemon import dump
from manifest.errors import Busy, DamfsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vfs.binding import Binding

log = logging.getLogger(__name__)

UNMOUNT_S = 5.0
DRAIN_S = 10.0
LAST_S = 8.0
HAND_OVER_S = 1.0
"""How long a daemon that answers nothing any more may take to close what it has open, while readers wait."""
RELEASED = 75
"""The exit status of a daemon that left its mount to a successor (EX_TEMPFAIL); daemon/supervision.py waits for it."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Stopper:
    """Ends one mount. ``mount_scope`` is around the binding; cancelling it is the force.

    Invariants: once ``stopping`` is set the mountpoint is free, or about to be detached. While only ``detached`` is set
    it is free, and the daemon goes on.
    """

    def __init__(self, binding: Binding, on_stopping: Callable[[], None]) -> None:
        self.mount_scope = trio.CancelScope()
        self.unmounted = trio.Event()
        self.mounted = False
        self.stopping = False
        self.detached = False
        self._binding = binding
        self._on_stopping = on_stopping

    async def stop(self, *, lazy: bool) -> None:
        """Unmount, and end when nothing is open any more; returns when the mountpoint is free.

        Raises Busy, and changes nothing, when something is open and ``lazy`` is False.
        """
        if self.unmounted.is_set() or self.detached:
            return
        if not self.mounted:
            self._cancel()
            return
        await self._unmount(lazy=lazy)
        if lazy:
            self.detached = True
            log.info("unmounted lazily: what is open is served until it is closed")
        else:
            self._begin()

    async def _unmount(self, *, lazy: bool) -> None:
        with trio.move_on_after(UNMOUNT_S) as scope:
            await self._binding.unmount(lazy=lazy)
        if scope.cancelled_caught:
            log.error("unmounting takes more than %g s: the mount is given up", UNMOUNT_S)
            self._cancel()

    def force(self, why: str) -> None:
        """Cut off whatever still uses the mount."""
        log.warning("%s: what is still open in the mount is cut off", why)
        self._begin()
        self._cancel()

    def ended(self) -> None:
        """The binding has returned: by us, or by somebody's umount."""
        self._begin()

    async def handle_signals(self) -> None:
        """Receive signals for ever. Cancellation restores the old handlers."""
        with trio.open_signal_receiver(*SIGNALS) as signals:
            dump.register_threads()
            async with trio.open_nursery() as nursery:
                async for number in signals:
                    name = signal.Signals(number).name
                    if number == signal.SIGUSR1:
                        dump.log_tasks()
                    elif number == signal.SIGUSR2:
                        await self._release()
                    elif self.stopping:
                        self.force(f"a second signal ({name})")
                    else:
                        log.info("%s: stopping", name)
                        self.stopping = True
                        nursery.start_soon(self._stop_at_any_price)

    async def _release(self) -> None:
        """Serve no more, and leave the mount. The supervisor is about to start the successor."""
        if self.stopping or not self.mounted:
            return
        log.info("SIGUSR2: a successor takes over")
        try:
            await self._binding.release()
        except DamfsError as error:
            log.error("%s", error)
            return
        limit = threading.Timer(HAND_OVER_S, _leave)
        limit.daemon = True
        limit.start()

    async def watch(self) -> None:
        """Once it is to end, and the mountpoint is free: give what is open DRAIN_S, then force it."""
        await self.unmounted.wait()
        await trio.sleep(DRAIN_S)
        self.force(f"{DRAIN_S:g} s have passed")

    async def _stop_at_any_price(self) -> None:
        if not self.mounted:
            self._cancel()
            return
        try:
            if not self.detached:
                await self._unmount_or_detach()
        except DamfsError as error:
            self.force(str(error))
        else:
            self._begin()

    async def _unmount_or_detach(self) -> None:
        try:
            await self._unmount(lazy=False)
        except Busy as error:
            log.info("%s; it is detached", error)
            await self._unmount(lazy=True)

    def _cancel(self) -> None:
        """End the mount, which no successor is to have."""
        self._binding.give_up()
        self.mount_scope.cancel()

    def _begin(self) -> None:
        if not self.unmounted.is_set():
            self.stopping = True
            self.unmounted.set()
            self._on_stopping()
            last = threading.Timer(DRAIN_S + LAST_S, _end)
            last.daemon = True
            last.start()


def _leave() -> None:
    log.warning("the successor waits: what is not closed yet is left as it is")
    logging.shutdown()
    os._exit(RELEASED)


def _end() -> None:
    log.critical("the stop hangs: ending the process")
    os._exit(1)
