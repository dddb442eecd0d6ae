"""The standby: successors that wait with everything imported, so that no interpreter starts in a pause.

A zygote is a daemon process with ``--standby-fd``, which says whether a successor could take over, and then forks one
whenever it is asked to (daemon/zygote.py, daemon/channel.py); the first daemon as well. One waits at a time; the next
one is forked when it has become the daemon and is ready. One that is wanted while it is still on its way is waited
for, a little. A standby that will not do is tried again later: without one a daemon starts from nothing.
"""

from __future__ import annotations

import logging
import os
import signal
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from daemon import channel
from daemon.child import Child
from daemon.processes import parent_of

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from daemon.events import Events
    from daemon.inbox import Message

log = logging.getLogger("supervisor")

FIT_S = 60.0
"""How long a zygote may take until it says whether a successor could take over."""
FORK_S = 10.0
LATE_S = 5.0
"""How long a successor that is on its way is waited for, before one is started from nothing."""
AGAIN_S = 300.0
"""After one that cannot take over."""
SOON_S = 10.0
"""After one that could, and has ended."""


@dataclass(frozen=True, slots=True)
class Hands:
    """What a supervisor does for its standby."""

    spawn: Callable[[int], Child]
    """Start a zygote with this end of a socket."""
    watch: Callable[[Child], None]
    """Notice the end of a process that has a lifeline."""
    leave: Callable[[Child], None]
    """Reap a killed process once it is gone."""
    given: Callable[[], Sequence[tuple[str, int]]]
    """The descriptors that a daemon is to have."""


class Zygote:
    """A process that forks successors, and the one that waits. ``settled``: there is one (""), or there is none."""

    def __init__(self, events: Events, hands: Hands, settled: Callable[[Zygote, str], None]) -> None:
        self.child: Child | None = None
        self.waiting: Child | None = None
        self._events = events
        self._hands = hands
        self._settled = settled
        self.could_take_over = False
        self._control: socket.socket | None = None
        self._its: socket.socket | None = None

    def start(self) -> None:
        """Have one that waits; ``settled`` is called."""
        self._control, theirs = channel.pair()
        with closing(theirs):
            try:
                self.child = self._hands.spawn(theirs.fileno())
            except OSError as error:
                self._fail(f"it cannot be started: {error}")
                return
        self._expect(FIT_S)

    def said(self, message: Message) -> None:
        """X_STANDBY: whether a successor could take over."""
        said = message.fields.get("X_STANDBY")
        if said == "0":
            self._fail(message.fields.get("STATUS", "it gave no reason"))
        elif said == "1" and not self.could_take_over:
            self.could_take_over = True
            self.fork()

    def fork(self) -> None:
        """Have another one that waits, once one can be forked; ``settled`` is called."""
        if not self.could_take_over or self._its is not None or self._control is None or self.child is None:
            return
        self.child.signal(signal.SIGCONT)  # should somebody have stopped it
        self._its, theirs = channel.pair()
        with closing(theirs):
            try:
                channel.say(self._control, "fork", descriptors=[theirs.fileno()])
            except OSError as error:
                self._fail(f"it does not hear: {error}")
                return
        self._events.on_readable(self._its, self._hear)
        self._expect(FORK_S)

    def give(self, died_ns: int, restarts: int) -> Child | None:
        """Make the one that waits the daemon, whose process is the caller's from now on; None when that fails."""
        child, its, self.waiting, self._its = self.waiting, self._its, None, None
        assert child is not None
        assert its is not None
        self._events.ignore(its)
        child.signal(signal.SIGCONT)  # should somebody have stopped it
        given = self._hands.given()
        with closing(its):
            try:
                channel.say(its, "go", died_ns, restarts, *(name for name, _ in given),
                            descriptors=[descriptor for _, descriptor in given])  # fmt: skip
            except OSError as error:
                log.warning("the standby (pid %d) is gone: %s", child.pid, error)
                self._end(child)
                return None
        return child

    def end(self) -> None:
        """Nobody is to wait any more, nor to be forked."""
        self._events.cancel(self._deadline)
        for end in (self._its, self._control):
            self._events.ignore(end)
            if end is not None:
                end.close()
        self._its = self._control = None
        for child in (self.child, self.waiting):
            self._end(child)
        self.child = self.waiting = None

    def ended(self, child: Child) -> None:
        """One of its processes has ended without being asked."""
        child.look()
        self._fail(f"pid {child.pid} has ended ({child.ended_how()})")

    def _hear(self) -> None:
        """The forked process is here; or there will be none."""
        assert self._its is not None
        packet = channel.hear(self._its)
        if self.waiting is not None:
            if packet is not None:
                packet.close()
            self.ended(self.waiting)
            return
        if packet is None:
            self._fail("it forks no successor, see the log")
            return
        child = Child(packet.pid)
        if packet.descriptors:
            child.lifeline = packet.descriptors[0]
        if packet.words != ("here",) or len(packet.descriptors) > 1 or parent_of(packet.pid) != os.getpid():
            packet.close()
            self._fail(f"pid {packet.pid} is no child of the supervisor, or says what it should not")
            return
        self._events.cancel(self._deadline)
        self.waiting = child
        if child.lifeline is not None:
            self._hands.watch(child)
        self._settled(self, "")

    def _fail(self, why: str) -> None:
        self.end()
        self._settled(self, why)

    def _expect(self, limit_s: float) -> None:
        self._events.after(self._deadline, limit_s, lambda: self._fail(f"it was not there within {limit_s:g} s"))

    def _end(self, child: Child | None) -> None:
        if child is not None:
            child.signal(signal.SIGKILL)
            self._hands.leave(child)

    @property
    def _deadline(self) -> str:
        return f"standby {id(self)}"


class Standby:
    """The zygote in use, and during a reload the one that is to be used. ``is_wanted`` False: only for a reload."""

    def __init__(self, events: Events, hands: Hands, *, is_wanted: bool) -> None:
        self._events = events
        self._hands = hands
        self._is_wanted = is_wanted
        self._current: Zygote | None = None
        self._fresh: Zygote | None = None
        self._decided: Callable[[str], None] = _complain
        self._going: Callable[[], None] | None = None

    def begin(self) -> None:
        """Have a successor that waits, if one is wanted: at the start, and whenever the mount is ready."""
        if not self._is_wanted:
            self.end()
        elif self._current is None:
            self._events.cancel("standby")
            self._current = Zygote(self._events, self._hands, self._settled)
            self._current.start()
        else:
            self._current.fork()

    def replace(self, decided: Callable[[str], None]) -> None:
        """Start a fresh zygote. ``decided`` is called with "" when a successor of it waits, else with why none does."""
        self._decided = decided
        self._fresh = Zygote(self._events, self._hands, self._settled)
        self._fresh.start()

    def go(self, died_ns: int, restarts: int, then: Callable[[Child | None], None]) -> None:
        """Make a successor the daemon, and call ``then`` with it, perhaps later; with None when there is none.

        The first daemon is waited for as long as its zygote may take. A reload that is not decided yet is dropped.
        """
        fresh, self._fresh, self._decided = self._fresh, None, _complain
        if self._current is None:
            self._current = fresh
        elif fresh is not None:
            fresh.end()

        def going() -> None:
            self._events.cancel("go")
            self._going = None
            current = self._current
            then(current.give(died_ns, restarts) if current is not None and current.waiting is not None else None)
            if self._is_wanted and self._current is not None:
                self._current.fork()  # the next one: this one may end before it is ready

        if self._current is None or self._current.waiting is not None:
            going()
            return
        self._going = going
        if restarts:
            self._events.after("go", LATE_S, going)
        self._current.fork()

    def said(self, message: Message) -> bool:
        """What one of the zygotes has said; False when it was somebody else."""
        for zygote, child in self._processes():
            if child.pid == message.pid and child is zygote.child:
                zygote.said(message)
                return True
        return False

    def ended(self, child: Child) -> None:
        """A process that may be one of these has ended."""
        for zygote, one in self._processes():
            if one is child:
                zygote.ended(child)

    def reap(self) -> None:
        """Look whether any of these has ended."""
        for _, child in self._processes():
            if child.reap():
                self.ended(child)

    def end(self) -> None:
        """There is no standby, and none is to come."""
        self._events.cancel("standby")
        zygotes, self._current, self._fresh = (self._current, self._fresh), None, None
        self._decided = _complain
        for zygote in zygotes:
            if zygote is not None:
                zygote.end()
        if self._going is not None:
            self._going()

    def pids(self) -> set[int]:
        """Of all of these."""
        return {child.pid for _, child in self._processes()}

    def _settled(self, zygote: Zygote, why_not: str) -> None:
        if zygote is self._fresh:
            self._fresh = None
            if not why_not:
                if self._current is not None:
                    self._current.end()
                self._current = zygote
            decided, self._decided = self._decided, _complain
            decided(why_not)
        elif zygote is self._current:
            if why_not:
                self._current = None
                if self._is_wanted:
                    self._events.after("standby", SOON_S if zygote.could_take_over else AGAIN_S, self.begin)
                _complain(why_not)
            if self._going is not None:
                self._going()

    def _processes(self) -> list[tuple[Zygote, Child]]:
        zygotes = [zygote for zygote in (self._current, self._fresh) if zygote is not None]
        return [(one, child) for one in zygotes for child in (one.child, one.waiting) if child is not None]


def _complain(why: str) -> None:
    if why:
        log.warning("no standby waits, so a crash would be noticed for longer: %s", why)
