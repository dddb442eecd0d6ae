"""A daemon as its supervisor has it: how it is started with descriptors, and how its end is seen.

It is started by fork and exec: ``$LISTEN_PID`` has to be the child's own pid, and nothing that dislikes a fork
(obstore) is ever loaded into a supervisor. Its descriptors begin at 3, in the order given; it is in a session of its
own, so that a terminal's Ctrl-C reaches it once, through the supervisor.

Its end is told by SIGCHLD and wait(2) when all of it is gone, and at once by its lifeline (daemon/lifeline.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.handed import FIRST

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

CANNOT_EXEC = 127
"""The exit status of a child that could not become the program (as in a shell)."""


@dataclass(slots=True, eq=False)
class Child:
    """One process. ``lifeline`` is the pipe that ends with it, once it has sent one.

    ``returncode`` is negative for a signal, as in subprocess; it may be known (``look``) before the process is
    ``gone``.
    """

    pid: int
    lifeline: int | None = None
    started: float = field(default_factory=time.monotonic)
    returncode: int | None = None
    gone: bool = False

    def reap(self) -> bool:
        """Whether the whole process is gone. Never waits."""
        if not self.gone:
            try:
                found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG)
            except ChildProcessError:  # somebody else has waited for it: it is gone all the same
                self.gone = True
                return True
            if found is not None:
                self.gone = True
                self.returncode = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
        return self.gone

    def look(self) -> int | None:
        """How the process ended, or its leader thread has; None when neither tells."""
        if self.reap() or self.returncode is not None:
            return self.returncode
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
            status = int(fields[-1])  # proc(5): exit_code, in the form of waitpid(2)
            if fields[0] in "ZX" and status != 0:  # 0 is also that of a leader whose process goes on
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def signal(self, number: int) -> None:
        """Send a signal to the process. Its pid cannot be another's before ``reap`` has said that it is gone."""
        if not self.gone:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def close(self) -> None:
        """Close its lifeline; the process itself is not touched. Idempotent."""
        lifeline, self.lifeline = self.lifeline, None
        if lifeline is not None:
            os.close(lifeline)

    def ended_how(self) -> str:
        """In words, for the log."""
        if self.returncode is None:
            return "killed, and not gone yet"
        if self.returncode < 0:
            try:
                name = signal.Signals(-self.returncode).name
            except ValueError:
                name = "an unknown signal"
            return f"killed by {name} (signal {-self.returncode})"
        return f"exit status {self.returncode}"


def start(
    command: Callable[[int], Sequence[str]],
    environ: Mapping[str, str],
    named: Sequence[tuple[str, int]],
    extra: int | None = None,
) -> Child:
    """Start ``command`` with the named descriptors as LISTEN_FDS and one more behind them.

    ``command`` is given the number that ``extra`` will have. Raises OSError when there can be no new process; a program
    that cannot be run ends with CANNOT_EXEC.
    """
    descriptors = [descriptor for _, descriptor in named] + ([] if extra is None else [extra])
    words = list(command(FIRST + len(named)))
    variables = dict(environ)
    if named:
        variables["LISTEN_FDS"] = str(len(named))
        variables["LISTEN_FDNAMES"] = ":".join(name for name, _ in named)
    # No handler of ours may run in the child, nor may a signal's number be written into a descriptor of the daemon's.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _become(words, variables, descriptors)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return Child(pid)


def _become(words: list[str], variables: dict[str, str], descriptors: list[int]) -> None:
    """In the child: never returns."""
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        # First out of the way of the numbers that they are to get, which may be those of other ones among them.
        above = FIRST + len(descriptors)
        moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, above) for descriptor in descriptors]
        for target, descriptor in enumerate(moved, FIRST):
            os.dup2(descriptor, target, inheritable=True)
        if "LISTEN_FDS" in variables:
            variables["LISTEN_PID"] = str(os.getpid())
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execve(words[0], words, variables)  # noqa: S606  a program by its path, no shell
    except BaseException as error:  # noqa: BLE001  the child must not go on as a second supervisor
        with contextlib.suppress(OSError):
            os.write(2, f"cannot run {words[0]}: {error}\n".encode())
    finally:
        os._exit(CANNOT_EXEC)
