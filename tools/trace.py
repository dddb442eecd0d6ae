"""``damfs trace``: run a program, and write down what it read through a mount.

Rules: the program gets this terminal, its exit status becomes ours. It and what it starts are recorded by the daemon
(daemon/recording.py), as descendants of this process, to which orphans come back.
"""

import ctypes
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from cache import durable
from daemon import recorded
from manifest.errors import ConfigurationError, FormatError, NotFound, UsageError
from tools.cache import Mount, mount_of
from tools.context import Context
from tools.options import command
from tools.output import human_bytes, plural

_PR_SET_CHILD_SUBREAPER = 36
_SIGNALLED = 128


@command(library=False, json=False)
def trace(
    context: Context,
    program: Annotated[list[str], typer.Argument(metavar="-- CMD [ARG]…", help="The program, with its arguments.")],
    file: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where the trace goes; else CMD.damfs-trace, here."),
    ] = None,
    mount: Mount = None,
) -> None:
    """Run a program, and write which bytes of which files it read through a mount, in the order of first touch.

    ``damfs prefetch --trace FILE`` brings just these, on this machine or another; ``damfs publish --with-trace FILE``
    publishes it with a version. Exits with the status of the program. Recorded is what the program and its children
    open while it runs; such files are read through damfs, not by the kernel itself, which is slower. Of one that
    another program has open already all bytes count.
    """
    file = file or Path(f"{Path(program[0]).name}.damfs-trace")
    if not file.parent.is_dir():
        raise UsageError(f"{file} cannot be written: there is no folder {file.parent}")
    client = mount_of(mount)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    number = client.start_recording()
    try:
        status = _run(program)
    finally:
        data = client.stop_recording(number)
    found = recorded.parse(data)
    try:
        durable.write(file, data)
    except OSError as error:
        raise ConfigurationError(f"the trace cannot be written to {file}: {error.strerror}") from error
    size_bytes = sum(stop - start for one in found.files for start, stop in one.ranges)
    context.output.note(f"{file}: {plural(len(found.files), 'file')}, {human_bytes(size_bytes)} were read")
    if found.cut:
        context.output.warn(f"{file} is cut: a trace has room for {recorded.FILES_MAX:,} files")
    if status:
        raise typer.Exit(status)


def _run(program: list[str]) -> int:
    """Run a program to its end: its exit status, 128 and the signal's number for one that a signal ended.

    What a terminal sends to both, the program alone decides about. Raises NotFound.
    """
    with _deaf_to(signal.SIGINT, signal.SIGQUIT):
        try:
            process = subprocess.Popen(program, preexec_fn=_hear)  # noqa: PLW1509 - no other thread runs here
        except OSError as error:
            raise NotFound(f"{program[0]} cannot be run: {error.strerror}") from error
        status = process.wait()
    return _SIGNALLED - status if status < 0 else status


def _hear() -> None:
    """In the child: signals do what they do."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)


@contextmanager
def _deaf_to(*numbers: signal.Signals) -> Iterator[None]:
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def read_trace(file: Path) -> recorded.TraceFile:
    """Read a trace, or say what is wrong with it. Raises UsageError, FormatError."""
    try:
        with file.open("rb") as opened:
            data = opened.read(recorded.TRACE_BYTES_MAX + 1)
    except OSError as error:
        raise UsageError(f"the trace {file} cannot be read: {error.strerror}") from error
    try:
        return recorded.parse(data)
    except FormatError as error:
        raise FormatError(f"{os.fspath(file)} is no trace that can be used: {error}") from error
