"""No name, message or target out of a library drives the terminal of who looks at it."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.harness import DAMFS
from tests.tools.content import chunk_file, publish
from tests.tools.test_output import said_on_a_terminal
from tools.output import Output

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness import Studio

NASTY = "a\n\x1b]0;owned\x07\r\t\x7f\x9b31m\u202e\u2028.exr"
"""A line end, a title, a bell, a return, a tab, DEL, an 8-bit CSI, a right-to-left override, a line separator."""
ESCAPED = r"a\n\x1b]0;owned\x07\r\t\x7f\x9b31m\u202e\u2028.exr"


@pytest.fixture
def nasty(user: Studio) -> Studio:
    publish(
        user,
        {f"plate/v001/{NASTY}": b"nasty", f"plate/{NASTY}": NASTY, "plate/latest": "v001"},
        message="one\ttwo\u202e\nthree",
    )
    return user


def said(user: Studio, *arguments: str | Path) -> str:
    """All that a command prints; whatever it is, only its own line ends and tabs are control characters."""
    done = user.complete(*arguments)
    assert done.stdout.isascii() or "→" in done.stdout
    for line in (done.stdout + done.stderr).split("\n"):
        assert line.replace("\t", "").isprintable(), repr(line)
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("ls", "apollo:plate"),
        ("ls", "-r", "apollo"),
        ("diff", "apollo", "0", "1"),
        ("rm", f"apollo:plate/{NASTY}", "--dry-run"),
        ("rm", f"apollo:plate/{NASTY}"),
        ("ls", f"apollo:nosuch/{NASTY}"),
        ("cat", f"apollo:plate/v001/{NASTY}/below"),
        ("tag", f"apollo:{NASTY}", "latest", "v001"),
        ("export", f"apollo:plate/{NASTY}", "here"),
    ],
    ids=lambda arguments: " ".join(arguments[:2]).replace(NASTY, "NASTY"),
)
def test_a_name_is_printed_escaped(nasty: Studio, arguments: tuple[str, ...]) -> None:
    assert ESCAPED in said(nasty, *arguments)


def test_a_message_is_printed_escaped(nasty: Studio) -> None:
    assert r"one\ttwo\u202e" in said(nasty, "log", "apollo")


def test_what_is_damaged_is_named_escaped(nasty: Studio) -> None:
    chunk_file(nasty, "apollo", b"nasty").unlink()
    assert ESCAPED in said(nasty, "verify", "apollo")
    assert ESCAPED in said(nasty, "export", "apollo:plate/v001", "here")


def test_names_with_control_characters_are_published_and_told_escaped(user: Studio) -> None:
    source = user.folder / "source"
    source.mkdir()
    (source / NASTY).write_bytes(b"1")
    assert f"would publish 1 change to apollo:\n  x/{ESCAPED}" in said(user, "publish", source, "apollo:x", "-n")
    assert f"published apollo:x/{ESCAPED}: revision 1" in said(user, "publish", source, f"apollo:x/{NASTY}")
    (source / NASTY).write_bytes(b"2")
    said(user, "publish", source, f"apollo:x/{NASTY}/v001")
    (source / NASTY).write_bytes(b"3")
    assert ESCAPED in said(user, "publish", source, f"apollo:x/{NASTY}/v001")


def test_json_holds_the_name_itself_and_yet_no_control_character(nasty: Studio) -> None:
    printed = nasty.run("ls", "apollo:plate/v001", "--json")
    assert printed.replace("\n", "").isprintable()
    assert [entry["name"] for entry in json.loads(printed)["entries"]] == [NASTY]


def test_a_name_that_is_no_utf_8_is_json_that_can_be_read() -> None:
    code = (
        "from tools.output import Output\no = Output(json_wanted=True)\no.result({'a': '\\udcff\\x9b\\u00e9'})\no.end()"
    )
    printed = subprocess.run([DAMFS[0], "-c", code], capture_output=True, check=True, timeout=60).stdout.decode()
    assert json.loads(printed) == {"a": "\udcff\x9b\u00e9"}
    assert "\u00e9" in printed


def test_a_table_and_a_note_on_a_terminal_are_escaped() -> None:
    code = (
        "from tools.output import Output\n"
        f"name = {NASTY!r}\n"
        "output = Output(verbose=1)\n"
        "output.table(('name',), [(name,)])\n"
        "output.say(name)\noutput.line(name)\noutput.note(name)\noutput.detail(name)\noutput.warn(name)\n"
        "output.error(name)\n"
    )
    told = said_on_a_terminal(code)
    assert told.count(ESCAPED) == 7
    assert "owned\x07" not in told
    assert "\x9b" not in told


def test_each_argument_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    Output().line("a\nb", "c")
    assert capsys.readouterr().out == "a\\nb\nc\n"
