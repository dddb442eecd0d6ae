"""What the commands print: tables and notes for people, JSON for scripts, progress for the patient.

State: the JSON document of this run, as far as it was written. Results go to stdout, everything else (notes, warnings,
errors, progress) to stderr. Rules: with ``--json`` stdout holds exactly one JSON document, also when the command fails:
it then has the key ``error``. Sizes are in bytes; a moment is an ISO 8601 text in UTC under ``time`` and a number of
nanoseconds since the epoch under ``time_ns``. A progress bar appears after one second and only when both stdout and
stderr are terminals, never with ``--json`` or ``-q``. Text that comes from a library is never read as markup; what is
printed is one line for each argument, and control characters in it, newlines too, are shown escaped.
Rich is loaded when there is something to draw with it: it takes longer than most commands have to do.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
import threading
import time
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType

    from rich.console import Console
    from rich.progress import Progress as Bar

    from tools.failure import Failure

PROGRESS_DELAY_S = 1.0


class Output:
    """Where a command prints to, and how talkative it is. Thread-safe for ``note`` and ``warn``."""

    def __init__(self, *, json_wanted: bool = False, quiet: bool = False, verbose: int = 0) -> None:
        self.json = json_wanted
        self.quiet = quiet
        self.verbose = verbose
        self._document: dict[str, Any] = {}
        self._stream_is_open = False
        self._ended = False

    @cached_property
    def stderr(self) -> Console:
        """Where notes, warnings, errors and progress go."""
        from rich.console import Console  # noqa: PLC0415 - see the module's text

        return Console(stderr=True, highlight=False, soft_wrap=True)

    # ------------------------------------------------------------------ stdout: results

    def result(self, value: Mapping[str, Any]) -> None:
        """What the JSON document holds, which ``end`` prints; call it when ``json`` is set."""
        self._document |= value

    def result_stream(self, head: Mapping[str, Any], key: str, items: Iterable[Mapping[str, Any]]) -> None:
        """Print one JSON document: ``head`` and, under ``key``, a list that is written as it is produced."""
        opening = _json(head)
        write_stdout(opening[:-1] + (", " if head else "") + _json(key) + ": [")
        self._stream_is_open = True
        separator = "\n  "
        for item in items:
            write_stdout(separator + _json(item))
            separator = ",\n  "

    def end(self, failure: Failure | None = None) -> None:
        """The command is through: complete the JSON document. The first call counts."""
        if not self.json or self._ended:
            return
        self._ended = True
        error = {"error": failure.to_json()} if failure else {}
        if self._stream_is_open:
            write_stdout("\n]" + (f", {_json(error)[1:]}" if error else "}") + "\n")
        elif self._document or error:
            write_stdout(_json(self._document | error, indent=2) + "\n")

    def say(self, *lines: str) -> None:
        """Print lines of the result for people; nothing with ``--json`` or ``-q``."""
        if not (self.json or self.quiet):
            write_stdout(_printable(lines) + "\n")

    def line(self, *lines: str) -> None:
        """Print lines of the result that ``-q`` does not silence, since they are what was asked for."""
        if not self.json:
            write_stdout(_printable(lines) + "\n")

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[int] = ()) -> None:
        """Print rows: a Rich table on a terminal, tab-separated lines (no heading) into a pipe.

        ``right`` are the numbers of the columns that are set flush right.
        """
        if not sys.stdout.isatty():
            for row in rows:
                write_stdout("\t".join(printable(cell) for cell in row) + "\n")
            return
        from rich.console import Console  # noqa: PLC0415 - see the module's text
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        table = Table(box=None, pad_edge=False, header_style="bold")
        for number, column in enumerate(columns):
            table.add_column(column, justify="right" if number in right else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        Console(highlight=False).print(table)

    # ------------------------------------------------------------------ stderr: everything else

    def note(self, *lines: str) -> None:
        """Say something worth knowing on stderr; silenced by ``-q``."""
        if not self.quiet:
            self._tell(_printable(lines), "dim")

    def detail(self, *lines: str) -> None:
        """Say something on stderr that only ``-v`` asks for."""
        if self.verbose:
            self._tell(_printable(lines), "dim")

    def warn(self, *lines: str) -> None:
        """Say on stderr that something is wrong though the command goes on."""
        self._tell(f"damfs: {_printable(lines)}", "yellow")

    def error(self, *lines: str) -> None:
        """Say on stderr why the command ends."""
        self._tell(f"damfs: {_printable(lines)}", "red")

    def _tell(self, text: str, style: str) -> None:
        from rich.text import Text  # noqa: PLC0415 - see the module's text

        self.stderr.print(Text(text, style=style))

    def progress(self, what: str, *, total: int | None = None, unit: str = "bytes") -> Progress:
        """A context manager that shows progress; ``unit`` is "bytes" or the plural of what is counted."""
        wanted = not (self.json or self.quiet) and sys.stdout.isatty() and sys.stderr.isatty()
        return Progress(self.stderr if wanted else None, what, total, unit)


class Progress:
    """One progress bar. ``advance``, ``grow`` and ``describe`` may be called from any thread.

    It stays invisible for the first second, and for good when its console is None.
    """

    def __init__(self, console: Console | None, what: str, total: int | None, unit: str) -> None:
        self.done = 0
        self.total = total
        self._console = console
        self._what = what
        self._unit = unit
        self._started = time.monotonic()
        self._bar: Bar | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            if self._bar is not None:
                self._bar.stop()
            self._console = None

    def advance(self, count: int = 1) -> None:
        """``count`` more bytes or things are done."""
        with self._lock:
            self.done += count
            self._show()

    def grow(self, count: int) -> None:
        """``count`` more bytes or things are to be done."""
        with self._lock:
            self.total = (self.total or 0) + count
            self._show()

    def describe(self, what: str) -> None:
        """Change what stands before the bar."""
        with self._lock:
            self._what = what
            self._show()

    def _show(self) -> None:
        if self._console is None:
            return
        if self._bar is None:
            if time.monotonic() - self._started < PROGRESS_DELAY_S:
                return
            from tools.bar import make_bar  # noqa: PLC0415 - see the module's text

            self._bar = make_bar(self._console, self._unit)
            self._bar.add_task(printable(self._what), total=self.total, completed=0)
            self._bar.start()
        task = self._bar.task_ids[0]
        self._bar.update(task, completed=self.done, total=self.total, description=printable(self._what))


def write_stdout(text: str) -> None:
    """Write to stdout as UTF-8; a lone surrogate (a local name that is not UTF-8) is escaped, never an error."""
    sys.stdout.write(text.encode(errors="backslashreplace").decode())


def drop_stdout() -> None:
    """Let whatever is still to be written to stdout vanish."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def printable(text: str) -> str:
    r"""``text`` with its control characters as ``\x1b``, so that no name can drive a terminal."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode() for char in text
    )


def _printable(lines: Iterable[str]) -> str:
    return "\n".join(map(printable, lines))


def _json(value: object, *, indent: int | None = None) -> str:
    """JSON with letters of all scripts as they are and what could drive a terminal escaped."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in text)


def counted(*counts: tuple[str, int]) -> str:
    """``3 files, 1 link``; kinds of which there are none are left out."""
    return ", ".join(plural(count, what) for what, count in counts if count) or "nothing"


def plural(count: int, what: str) -> str:
    """``1 fetch``, ``3 fetches``, ``0 hits``."""
    return f"{count:,} {what}{'' if count == 1 else 'es' if what.endswith(('s', 'ch')) else 's'}"


def human_bytes(size_bytes: int) -> str:
    """A size for people, in powers of 1,024: ``4.2 GiB``."""
    if size_bytes < 1024:
        return f"{size_bytes} B"
    value = float(size_bytes)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        if value < 1024:
            return f"{value:.1f} {unit}"
    return f"{value / 1024:.1f} PiB"


def human_duration(seconds: float) -> str:
    """A duration for people: ``0.3 s``, ``4 min``, ``2.5 h``, ``3.1 d``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} d"


def human_time(time_ns: int) -> str:
    """A moment for people, in the zone of this machine: ``2026-11-20 10:15``."""
    try:
        moment = datetime.datetime.fromtimestamp(time_ns // 1_000_000_000, datetime.UTC).astimezone()
    except (ValueError, OverflowError, OSError):
        return f"{time_ns} ns"
    return moment.strftime("%Y-%m-%d %H:%M")


def iso_time(time_ns: int) -> str | None:
    """A moment as ISO 8601 in UTC with nine digits of a second; None when a calendar has no room for it."""
    seconds, rest = divmod(time_ns, 1_000_000_000)
    try:
        moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return moment.strftime("%Y-%m-%dT%H:%M:%S") + f".{rest:09d}Z"
