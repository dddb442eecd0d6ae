"""What is printed: for people, for scripts, and while one waits."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from tools.output import Progress, counted, human_bytes, human_duration, iso_time, plural, printable

if TYPE_CHECKING:
    from collections.abc import Iterator

WAITING = """
import time
from tools.output import Output
with Output({options}).progress("exporting", total=100, unit="{unit}") as progress:
    for _ in range(2):
        progress.advance(10)
        time.sleep(1.1)
    progress.advance(80)
"""


def said_on_a_terminal(code: str) -> str:
    """What a program writes to a terminal that is its stdout and stderr."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL
    ) as process:
        os.close(theirs)
        said = b"".join(_pieces(ours))
        assert process.wait(30) == 0
    os.close(ours)
    return said.decode()


def _pieces(descriptor: int) -> Iterator[bytes]:
    while True:
        try:
            piece = os.read(descriptor, 65536)
        except OSError:  # EIO: the other end of a terminal is closed
            return
        if not piece:
            return
        yield piece


@pytest.mark.parametrize(("unit", "rate"), [("bytes", "bytes/s"), ("files", "files/s")])
def test_progress_shows_rate_and_time_left_after_a_second(unit: str, rate: str) -> None:
    said = said_on_a_terminal(WAITING.format(options="", unit=unit))
    assert "exporting" in said
    assert rate in said
    assert "ETA" in said


@pytest.mark.parametrize("options", ["json_wanted=True", "quiet=True"])
def test_progress_is_silent_for_scripts(options: str) -> None:
    assert said_on_a_terminal(WAITING.format(options=options, unit="bytes")) == ""


def test_progress_is_silent_in_a_pipe() -> None:
    command = [sys.executable, "-c", WAITING.format(options="", unit="bytes")]
    done = subprocess.run(command, capture_output=True, timeout=30, check=True)
    assert done.stdout + done.stderr == b""


def test_progress_under_a_second_is_silent() -> None:
    text = io.StringIO()
    with Progress(Console(file=text, force_terminal=True), "quick", 3, "files") as progress:
        progress.advance(3)
    assert text.getvalue() == ""


def test_control_characters_are_escaped() -> None:
    assert printable("a\x1b[31m\nb\udc80ü") == "a\\x1b[31m\\nb\\udc80ü"


def test_sizes_and_durations_are_readable() -> None:
    assert [human_bytes(size) for size in (0, 1023, 1024, 5 * 2**30, 2**60)] == [
        "0 B", "1023 B", "1.0 KiB", "5.0 GiB", "1024.0 PiB"
    ]  # fmt: skip
    assert [human_duration(seconds) for seconds in (0.25, 90, 7200, 200000)] == ["0.2 s", "2 min", "2.0 h", "2.3 d"]


def test_times_have_nine_digits_and_none_where_no_calendar_reaches() -> None:
    assert iso_time(1_700_000_000_000_000_001) == "2023-11-14T22:13:20.000000001Z"
    assert iso_time(2**63 - 1) == "2262-04-11T23:47:16.854775807Z"
    assert iso_time(10**30) is None


def test_what_is_counted_has_its_plural() -> None:
    assert counted(("file", 1), ("link", 0), ("folder", 1234)) == "1 file, 1,234 folders"
    assert counted(("file", 0)) == "nothing"
    assert [plural(count, "fetch") for count in (0, 1, 2)] == ["0 fetches", "1 fetch", "2 fetches"]
    assert plural(2, "miss") == "2 misses"
