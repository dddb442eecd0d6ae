"""The zygote: a daemon process with everything imported, which never becomes the daemon, but forks those that do.

So the first daemon and all of its successors are forked by one process, and the next one is there at once, however
quickly one crash follows the other. Each waits until it is to be the daemon; what it is to take over it is given then.
It is a child of the supervisor, like a daemon that was started: the process that forked it ends at once, and the
supervisor adopts it (PR_SET_CHILD_SUBREAPER).

Invariant: a zygote has one thread, no event loop, and no descriptor but its standard ones and its socket: what is
forked has nothing of anybody else's, and no lock that nobody will release. The random numbers of ``random`` begin anew
in a forked process by themselves.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path

from daemon import channel, lifeline
from daemon.processes import set_name
from manifest.errors import ConfigurationError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Start:
    """What a daemon is told: when the one before it ended, on the monotonic clock (0: unknown), how many there were,
    what they left, by name, and the pipe to tell that it is ready.
    """

    died_ns: int = 0
    restarts: int = 0
    descriptors: dict[str, int] = field(default_factory=dict)
    ready_fd: int | None = None


def has_one_thread() -> bool:
    """Whether this process may be forked."""
    return len(list(Path("/proc/self/task").iterdir())) == 1


def serve(control: socket.socket) -> Start | None:
    """Fork successors as the supervisor asks for them. Returns in one that is to be the daemon. Blocking.

    None: nobody needs this process any more, be it the zygote or a successor.
    """
    set_name("damfs-zygote")
    assert has_one_thread()
    gc.collect()
    gc.freeze()  # else the collector of each child writes to, and thereby copies, what they could share
    with control:
        while (said := channel.hear(control)) is not None:
            if said.words != ("fork",) or len(said.descriptors) != 1:
                raise _misunderstood(said, "fork")
            with socket.socket(fileno=said.descriptors[0]) as its:
                try:
                    is_successor = _fork()
                except OSError as error:
                    log.warning("no successor can be forked: %s", error)
                    continue
                if is_successor:
                    control.close()
                    return _wait(its)
    return None


def _fork() -> bool:
    """Whether this is the new process, which is then a child of the supervisor. Raises OSError."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", buffering=0) as word, os.fdopen(writing, "wb", buffering=0) as adopted:
        between = os.fork()
        if between == 0:
            _fork_and_end()
            adopted.close()
            if not word.read(1):  # the zygote has ended
                os._exit(0)
            os.setsid()
            set_name("damfs-standby")
            return True
        _, status = os.waitpid(between, 0)
        if status != 0:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        adopted.write(b".")
    return False


def _fork_and_end() -> None:
    """Returns in a child of this process, which itself ends."""
    status = 1
    try:
        if os.fork() == 0:
            status = -1
            return
        status = 0
    finally:
        if status >= 0:
            os._exit(status)


def _wait(its: socket.socket) -> Start | None:
    """Say that this process is here, and wait until it is to be the daemon."""
    held = lifeline.make()
    try:
        channel.say(its, "here", descriptors=[] if held is None else [held])
    except BrokenPipeError:
        return None
    finally:
        if held is not None:
            os.close(held)
    said = channel.hear(its)
    if said is None:
        return None
    word, *rest = said.words or ("",)
    if word != "go" or len(rest) < 2 or not (rest[0] + rest[1]).isdecimal() or len(rest) != 2 + len(said.descriptors):
        raise _misunderstood(said, "go DIED_NS RESTARTS NAME…")
    set_name("damfs-daemon")
    named = dict(zip(rest[2:], said.descriptors, strict=True))
    return Start(int(rest[0]), int(rest[1]), ready_fd=named.pop(channel.READY, None), descriptors=named)


def _misunderstood(said: channel.Packet, expected: str) -> ConfigurationError:
    said.close()
    return ConfigurationError(
        f"the supervisor said {' '.join(said.words)[:100]!r} with {len(said.descriptors)} descriptors, expected "
        f"{expected}: mount anew, so that both are of one version"
    )
