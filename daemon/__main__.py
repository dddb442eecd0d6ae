"""``python -m daemon``: the daemon of one mountpoint, in the foreground. ``damfs mount`` starts it.

Exit status: 0 after an orderly or a forced stop, stop.RELEASED when the mount was left to a successor, else the code of
the error (README), which is also written to the ``--ready-fd`` when the mount was not up yet.
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import sys
from functools import partial
from pathlib import Path

import trio

from daemon import handed, journal, lifeline, zygote
from daemon.config import Settings, load
from daemon.processes import set_name
from daemon.ready import Ready, cause_of
from daemon.systemd import Notify
from manifest.errors import DamfsError

log = logging.getLogger("daemon")


def main(arguments: list[str] | None = None) -> int:
    """Run the daemon; returns the exit status."""
    options = _parser().parse_args(arguments)
    journal.set_up(options.verbose - options.quiet)
    ready = Ready(options.ready_fd)
    notify = Notify()
    try:
        descriptors = handed.take()
        if options.standby_fd is None:  # else it must not have a second thread
            lifeline.hand_to(notify)
            set_name("damfs-daemon")
        settings = load(options.config) if options.settings_json is None else Settings.from_json(options.settings_json)
        _prepare_process()
        from daemon import app, mounts, stop, waiting  # noqa: PLC0415  obstore loads here: after the settings are good

        mountpoint = mounts.canonical(options.mountpoint)
        start: zygote.Start | None = zygote.Start(options.died_ns, options.restarts, descriptors)
        if options.standby_fd is not None:
            start = waiting.stand_by(options.standby_fd, notify, mountpoint, descriptors)
        if start is None:
            return 0
        if start.ready_fd is not None:
            ready = Ready(start.ready_fd)
        predecessor = app.Predecessor.of(start.descriptors, start.died_ns)
        supervision = app.Supervision(options.supervisor_pid, start.restarts)
        released = trio.run(
            partial(app.run, settings, mountpoint, ready, notify, predecessor, supervision),
            strict_exception_groups=True,
        )
    except BaseException as raised:  # noqa: BLE001  the end of the process: it is reported, and becomes the status
        return _report(raised, ready)
    return stop.RELEASED if released else 0


def _report(raised: BaseException, ready: Ready) -> int:
    error = cause_of(raised)
    ready.failed(error)
    if isinstance(error, DamfsError):
        log.error("%s", error)
        log.debug("where it came from", exc_info=raised)
        return error.exit_code
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        log.error("interrupted")
        return 1
    log.critical("a bug of damfs", exc_info=raised)
    return 1


def _prepare_process() -> None:
    """Nothing of the starter's surroundings is kept: folder, rights mask; as many files as this process may open."""
    os.chdir("/")
    os.umask(0o022)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m daemon", description="The damfs daemon of one mountpoint.")
    parser.add_argument("--mountpoint", type=Path, required=True)
    parser.add_argument("--settings-json", help="all settings, as damfs mount hands them over; else they are read")
    parser.add_argument("--config", type=Path, help="the configuration file, without --settings-json")
    parser.add_argument("--ready-fd", type=int, help="a pipe that is told when the mount answers, or why it does not")
    parser.add_argument("--supervisor-pid", type=int, help="who starts a successor when this process ends")
    parser.add_argument("--standby-fd", type=int, help="a socket: fork successors as it is told there")
    parser.add_argument("--died-ns", type=int, default=0, help="when the daemon before this one ended (monotonic)")
    parser.add_argument("--restarts", type=int, default=0, help="how many daemons were before this one")
    parser.add_argument("-v", "--verbose", action="count", default=0)
    parser.add_argument("-q", "--quiet", action="count", default=0)
    return parser


def _exit(status: int) -> None:
    """End at once: threads that wait for a dead network are not waited for."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    _exit(main())
