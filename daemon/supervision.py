"""What a supervisor does: keeps one mount's daemon alive. daemon/supervisor.py tells the rules, and starts it."""

from __future__ import annotations

import logging
import os
import signal
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from daemon.channel import READY
from daemon.child import Child, start
from daemon.crashes import CRASHES_MAX, Crashes
from daemon.events import Events
from daemon.fdstore import STORED_MAX, Store
from daemon.inbox import Inbox, Message
from daemon.place import Place
from daemon.processes import bury_orphans
from daemon.standby import Hands, Standby

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from daemon.systemd import Notify

log = logging.getLogger("supervisor")

FINAL = frozenset({2, 3, 4, 8})
"""Wrong words, a wrong configuration, no such library, a wrong signature: as in systemd/damfs@.service."""
RELOADED = 75
"""A daemon's exit status after it has given its mount up to a successor."""
START_S = 110.0
"""How long a first daemon may take to be ready. `damfs mount` waits a little longer."""
SUCCESSOR_S = 45.0
"""How long a successor may; meanwhile whoever uses the mount waits."""
STOP_S = 26.0
"""How long it may take to end after a SIGTERM; its own limits are below."""
STOP_EARLY_S = 12.0
"""The same before it was ready."""
LOOK_S = 0.05
"""How long the whole process is waited for when its leader thread does not tell how it ended."""
GONE_S = 5.0
"""How long a killed process is waited for where it has to be gone: before a fresh daemon, and at our end."""
RELEASE_S = 5.0
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is supervised. ``command`` starts a daemon; options of ``daemon/__main__.py`` are appended to it."""

    mountpoint: Path
    command: tuple[str, ...]
    standby: bool = True
    ready_fd: int | None = None
    crashes_max: int = CRASHES_MAX


class Supervisor:
    """One mount's processes: the daemon, its standby, and what is left of killed ones.

    Invariant: at most one process is *the* daemon, and a successor becomes it only when the one before it is gone, or
    is ending and has been sent SIGKILL.
    """

    def __init__(self, plan: Plan, inbox: Inbox, store: Store, upstream: Notify) -> None:
        self._plan = plan
        self._inbox = inbox
        self._store = store
        self._upstream = upstream
        self._ready_fd = plan.ready_fd
        self._events = Events(self._read_messages)
        self._events.on_readable(inbox, lambda: None)
        self._events.on_signals((*PASSED_ON, signal.SIGCHLD), self._signalled)
        self._daemon: Child | None = None
        self._ready = self._was_ready = False
        self._stopping = False
        self._asked_to_end = False
        self._crashes = Crashes(plan.crashes_max)
        self._restarts = 0
        self._died_ns: int | None = None
        hands = Hands(self._spawn_zygote, self._watch, self._leave, self._given)
        self._standby = Standby(self._events, hands, is_wanted=plan.standby)
        self._reload: int | None = None
        self._releasing = False
        self._left: dict[Child, Callable[[], None]] = {}
        self._place = Place(plan.mountpoint, is_ours="fuse" in store)
        self._status: int | None = None

    def run(self) -> int:
        """Supervise until the mount is to end; the exit status."""
        if "fuse" in self._store:
            log.info("going on with a mount at %s that has outlived its supervisor", self._plan.mountpoint)
            self._died_ns = time.monotonic_ns()
            self._restarts = 1
        if self._plan.standby:
            self._standby.begin()
            self._start_successor()
        else:
            self._start_daemon()
        while self._status is None:
            self._events.turn()
        return self._status

    # -- the daemon

    def _start_daemon(self) -> None:
        """For which no standby waits."""
        words = [*self._plan.command, "--supervisor-pid", str(os.getpid())]
        if self._died_ns is not None:
            words += ["--died-ns", str(self._died_ns), "--restarts", str(self._restarts)]

        def command(number: int) -> Sequence[str]:
            return [*words, "--ready-fd", str(number)] if self._ready_fd is not None else words

        try:
            self._daemon = start(command, self._environ(), self._store.items(), self._ready_fd)
        except OSError as error:
            log.error("no daemon can be started: %s", error)
            self._crashes.ended()
            if self._restarts == 0 or self._give_up():
                self._finish(1)
            else:
                self._start_again()
            return
        self._await_ready()

    def _await_ready(self) -> None:
        if self._ready_fd is not None:
            os.close(self._ready_fd)
            self._ready_fd = None
        self._ready = self._stopping = False
        limit_s = SUCCESSOR_S if self._restarts else START_S
        self._events.after("start", limit_s, lambda: self._kill(f"is not ready after {limit_s:g} s"))

    def _daemon_ended(self, *, is_sure: bool = False) -> None:
        """Its lifeline has ended, or all of it."""
        child = self._daemon
        if child is None:
            return
        if child.look() is None and not is_sure:
            self._events.after("look", LOOK_S, lambda: self._daemon_ended(is_sure=True))
            return
        self._daemon = None
        child.signal(signal.SIGKILL)
        for deadline in ("start", "stop", "look", "release"):
            self._events.cancel(deadline)
        self._crashes.ended()
        self._answer_reload("no the daemon has crashed")
        if self._died_ns is None:
            self._died_ns = time.monotonic_ns()
        self._decide(child)

    def _decide(self, child: Child) -> None:
        """What follows from the end of the daemon."""
        status, was_releasing, self._releasing = child.returncode, self._releasing, False
        how = f"the daemon (pid {child.pid}) has ended ({child.ended_how()})"
        if self._stopping or self._asked_to_end:
            log.info("%s", how)
            self._when_gone(child, lambda: self._finish(status))
        elif was_releasing and status == RELOADED:
            self._succeed(child)
        elif self._restarts == 0 and not self._was_ready:
            level = logging.INFO if status is not None and status >= 0 else logging.ERROR  # it has told why itself
            log.log(level, "%s before it was ready", how)
            self._when_gone(child, lambda: self._finish(status))
        elif status == 0 or status in FINAL:
            log.error("%s: it is not started again", how)
            self._when_gone(child, lambda: self._finish(status))
        else:
            self._crashed(child, how)

    def _crashed(self, child: Child, how: str) -> None:
        if self._place.is_gone():
            log.error("%s, and its mount was detached before: nobody is to follow", how)
            self._when_gone(child, lambda: self._finish(child.returncode))
            return
        log.error("%s", how)
        if self._give_up():
            self._when_gone(child, lambda: self._finish(child.returncode))
        else:
            self._succeed(child)

    def _give_up(self) -> bool:
        """Whether there have been crashes enough."""
        why = self._crashes.hopeless()
        if why:
            log.critical("%s: %s is given up; mount it again with `damfs mount`", why, self._plan.mountpoint)
        return bool(why)

    def _succeed(self, child: Child) -> None:
        """Start what follows ``child``; with its mount when it left one."""
        self._restarts += 1
        if "fuse" in self._store:  # a daemon that has unmounted has it forgotten
            self._leave(child)
            self._start_again()
            return
        self._store.close()
        self._place.clear()
        self._when_gone(child, self._start_again)

    def _start_again(self) -> None:
        if self._crashes.pause_s:
            self._events.after("start", self._crashes.pause_s, self._start_successor)
        else:
            self._start_successor()

    def _start_successor(self) -> None:
        if self._asked_to_end:
            self._finish(0)
        else:
            self._standby.go(self._died_ns or 0, self._restarts, self._became)

    def _became(self, child: Child | None) -> None:
        """Go on with a process that has waited; or none has."""
        if child is None:
            if self._asked_to_end:
                self._finish(0 if self._was_ready else -signal.SIGTERM)
            else:
                self._start_daemon()
            return
        self._daemon = child
        self._await_ready()

    def _kill(self, why: str) -> None:
        if self._daemon is not None:
            log.error("the daemon (pid %d) %s: it is killed", self._daemon.pid, why)
            self._daemon.signal(signal.SIGKILL)

    # -- reload

    def _reload_asked(self, message: Message) -> None:
        pipe = message.take()
        if pipe is None:
            return
        os.set_blocking(pipe, False)
        if self._reload is not None or self._releasing or not self._ready:
            _answer(pipe, "no the mount is being taken over already: try again")
            return
        if "fuse" not in self._store:
            _answer(pipe, "no this mount cannot be handed over: unmount it and mount it again")
            return
        log.info("the daemon (pid %d) is to be replaced", message.pid)
        self._reload = pipe
        self._standby.replace(self._release)

    def _release(self, why_not: str) -> None:
        """There is a fresh successor: have the daemon let go; or there is not."""
        if why_not:
            log.error("the daemon is not replaced: %s", why_not)
            self._answer_reload(f"no the new daemon cannot take over: {why_not}")
            return
        self._answer_reload("ok")
        if self._daemon is not None:
            self._releasing = True
            self._died_ns = time.monotonic_ns()
            self._daemon.signal(signal.SIGUSR2)
            self._events.after("release", RELEASE_S, lambda: self._kill(f"has not let go within {RELEASE_S:g} s"))

    def _answer_reload(self, text: str) -> None:
        pipe, self._reload = self._reload, None
        if pipe is not None:
            _answer(pipe, text)

    # -- what is heard

    def _read_messages(self) -> None:
        for message in self._inbox.messages():
            with closing(message):
                if self._daemon is not None and message.pid == self._daemon.pid:
                    self._daemon_said(message)
                elif not self._standby.said(message):
                    log.debug("a message of pid %d, which is no daemon of ours, was dropped", message.pid)

    def _daemon_said(self, message: Message) -> None:
        """BARRIER needs no more than that the message is closed after those before it."""
        fields = message.fields
        name = fields.get("FDNAME", "")
        if fields.get("FDSTORE") == "1" and (descriptor := message.take()) is not None:
            self._store.keep(name, descriptor)
        if fields.get("FDSTOREREMOVE") == "1":
            self._store.forget(name)
        if fields.get("STOPPING") == "1":
            self._stopping = True
            self._answer_reload("no the mount is being unmounted")
            self._standby.end()
            self._upstream.stopping()
        elif fields.get("READY") == "1":
            self._is_ready(fields.get("STATUS", ""))
        elif "STATUS" in fields:
            self._upstream.status(fields["STATUS"])
        if fields.get("RELOADING") == "1":
            self._reload_asked(message)
        if self._daemon is not None:
            self._lifeline(self._daemon, message)

    def _lifeline(self, child: Child, message: Message) -> None:
        if message.fields.get("X_LIFELINE") != "1" or child.lifeline is not None:
            return
        child.lifeline = message.take()
        self._watch(child)

    def _watch(self, child: Child) -> None:
        if child.lifeline is not None:
            self._events.on_readable(child.lifeline, lambda: self._cut(child))

    def _cut(self, child: Child) -> None:
        """The lifeline has ended: the process is dying, or dead."""
        self._events.ignore(child.lifeline)
        child.close()
        if child is self._daemon:
            self._daemon_ended()
        else:
            self._standby.ended(child)

    def _is_ready(self, status: str) -> None:
        self._events.cancel("start")
        self._ready = self._was_ready = True
        self._crashes.ready()
        self._place.ready()
        if self._died_ns is not None:
            pause_ms = (time.monotonic_ns() - self._died_ns) / 1e6
            log.info("pid %d serves the mount, %.0f ms after the end of the daemon before", self._pid, pause_ms)
            self._died_ns = None
        self._upstream.ready(status)
        self._standby.begin()

    def _signalled(self, number: int) -> None:
        if number == signal.SIGCHLD:
            self._reap()
            return
        if number != signal.SIGUSR1:
            self._asked_to_end = True
            self._standby.end()
        if self._daemon is None:
            return  # what waits for the last one to be gone goes on from there
        self._daemon.signal(number)
        if number != signal.SIGUSR1:
            limit_s = STOP_S if self._was_ready else STOP_EARLY_S
            self._events.after("stop", limit_s, lambda: self._kill(f"has not stopped within {limit_s:g} s"))

    def _reap(self) -> None:
        for child in list(self._left):
            if child.reap():
                self._no_more(child)
        self._standby.reap()
        if self._daemon is not None and self._daemon.reap():
            self._daemon_ended()
        bury_orphans({self._pid, *self._standby.pids(), *(child.pid for child in self._left)})

    # -- the end

    def _when_gone(self, child: Child, then: Callable[[], None]) -> None:
        """Go on with ``then`` when the whole process is gone, or does not go."""
        self._left[child] = then
        if child.reap():
            self._no_more(child)
        else:
            self._events.after(f"gone {child.pid}", GONE_S, lambda: self._no_more(child))

    def _no_more(self, child: Child) -> None:
        self._events.cancel(f"gone {child.pid}")
        self._events.ignore(child.lifeline)
        child.close()
        then = self._left.pop(child, _nothing)
        if not child.gone:
            log.error("pid %d was killed %g s ago and is still there: it is left behind", child.pid, GONE_S)
            self._leave(child)
        then()

    def _finish(self, status: int | None) -> None:
        """The end. ``status`` is that of the daemon, negative for a signal, None when it is not known."""
        self._place.clear()
        self._standby.end()
        self._answer_reload("no the mount has ended")
        self._store.close()
        self._status = 128 + signal.SIGKILL if status is None else 128 - status if status < 0 else status

    # -- small parts

    @property
    def _pid(self) -> int:
        return self._daemon.pid if self._daemon is not None else 0

    def _environ(self) -> dict[str, str]:
        return {**os.environ, "NOTIFY_SOCKET": str(self._inbox.path), "FDSTORE": str(STORED_MAX)}

    def _spawn_zygote(self, channel: int) -> Child:
        words = [*self._plan.command, "--supervisor-pid", str(os.getpid())]
        return start(
            lambda number: [*words, "--standby-fd", str(number)], self._environ(), self._store.items(), channel
        )

    def _given(self) -> list[tuple[str, int]]:
        """What a successor, or a first daemon, is to have."""
        pipe = [] if self._ready_fd is None else [(READY, self._ready_fd)]
        return [*self._store.items(), *pipe]

    def _leave(self, child: Child) -> None:
        """Nobody waits for this one to be gone; it is reaped when it is."""
        self._left[child] = _nothing


def _nothing() -> None:
    """What follows the end of a process that nobody waits for."""


def _answer(pipe: int, text: str) -> None:
    with suppress(OSError):
        os.write(pipe, text.encode() + b"\n")
    os.close(pipe)
