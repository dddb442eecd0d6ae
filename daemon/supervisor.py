"""``python -m daemon.supervisor``: keeps a mount alive when its daemon is not. ``damfs mount`` starts it.

It starts the daemon, keeps what the daemon stores (/dev/fuse, the journal, the cache's lock), and starts a successor
with the same descriptors when the daemon crashes, or is replaced on request (``damfs reload``). A daemon that stored no
``fuse`` cannot be succeeded: its dead mount is detached, and a fresh daemon mounts again. Beside a daemon that is ready
a *standby* waits: a successor with everything imported, so that no interpreter starts in the pause, and a process that
forks the next one (daemon/standby.py).

| what happens | what is done |
|---|---|
| the daemon says STOPPING, and ends | the end, with its status |
| it ends by itself with a status of FINAL | the end: it has unmounted, and another start would not mend it |
| it ends in any other way once it was ready | a crash: a successor; the end when it is of no use (daemon/crashes.py) |
| it ends in any way on a first start | the end: whoever mounts is told |
| SIGTERM, SIGINT, SIGHUP, SIGUSR1 | passed on; after the first three no successor is started |

Rules: standard library and light modules of ours only, one thread, nothing open inside the mount. Every wait has a
deadline. A successor is started without waiting for a killed daemon to be gone: a thread of it may be stuck in the
kernel, and it cannot reply any more. Messages count only from the process that they are about.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from contextlib import closing
from pathlib import Path

from daemon import handed, journal
from daemon.crashes import CRASHES_MAX
from daemon.fdstore import Store
from daemon.inbox import Inbox
from daemon.processes import adopt_orphans
from daemon.supervision import Plan, Supervisor
from daemon.systemd import Notify


def main(arguments: list[str] | None = None) -> int:
    """Supervise one mount; the exit status."""
    options = _parser().parse_args(arguments)
    _open_standard()
    left = handed.take()
    journal.set_up(options.verbose - options.quiet)
    upstream = Notify()
    plan = Plan(
        options.mountpoint,
        tuple(options.command),
        options.standby,
        options.ready_fd,
        options.crashes_max,
    )
    _prepare_process(plan)
    with closing(Inbox(options.notify_folder)) as inbox:
        return Supervisor(plan, inbox, Store(upstream, left), upstream).run()


def _open_standard() -> None:
    """No descriptor of ours may pass for a standard one that whoever started us has closed."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free: this one


def _prepare_process(plan: Plan) -> None:
    """Nothing of the starter's surroundings is kept, and what daemons find by a relative path they still find.

    What a zygote has forked is a child of this process.
    """
    adopt_orphans()
    if plan.ready_fd is not None:
        os.set_inheritable(plan.ready_fd, False)
    if "PYTHONPATH" in os.environ:
        folders = os.environ["PYTHONPATH"].split(os.pathsep)
        os.environ["PYTHONPATH"] = os.pathsep.join(str(Path(folder).absolute()) for folder in folders)
    os.chdir("/")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m daemon.supervisor", description="Keeps one mount's daemon alive.")
    parser.add_argument("--mountpoint", type=Path, required=True)
    parser.add_argument("--notify-folder", type=Path, required=True, help="where its socket lies: writable to us alone")
    parser.add_argument("--ready-fd", type=int, help="the pipe that the first daemon tells when the mount answers")
    parser.add_argument("--standby", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--crashes-max", type=int, default=CRASHES_MAX, help="so many daemons are looked at after a crash"
    )
    parser.add_argument("-v", "--verbose", action="count", default=0)
    parser.add_argument("-q", "--quiet", action="count", default=0)
    parser.add_argument("command", nargs="+", help="after --: the daemon's program and its options")
    return parser


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    sys.stdout.flush()
    sys.exit(status)
