"""What bash offers behind the tab key: asked as bash asks, and in a bash at a terminal."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.harness import DAMFS
from tests.tools.content import publish

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness import Studio

ASK = """
eval "$(_DAMFS_COMPLETE=source_bash damfs)"
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_damfs_completion damfs
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def plate(user: Studio) -> Studio:
    publish(user, {"plate/v001/a.exr": b"x", "plate/v002/a.exr": b"y", "plate/two words/b": b"z", "pl\nate": b"n"})
    publish(user, {"scripts/only/deep.nk": b"1"})
    user.run("ls", "apollo")
    programs = user.folder / "bin"
    programs.mkdir()
    (programs / "damfs").write_text(f'#!/bin/sh\nexec {" ".join(DAMFS)} "$@"\n')
    (programs / "damfs").chmod(0o755)
    user.environment["PATH"] = f"{programs}:{os.environ['PATH']}"
    return user


def offered(user: Studio, *words: str) -> list[str]:
    """What the completion of these words, as bash cuts them, replaces the last one with."""
    done = subprocess.run(
        ["bash", "--norc", "-c", ASK, "bash", *words],
        env=user.env(), cwd=user.folder, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("words", "replies"),
    [
        (["pub"], ["publish"]),
        (["ls", "ap"], ["apollo", "apollo:"]),
        (["ls", "apollo", ":"], ["plate/", "scripts/"]),
        (["ls", "apollo", ":", "p"], ["plate/", "plate/two\\ words/", "plate/v001/", "plate/v002/"]),
        (["ls", "apollo", "@", "1", ":", "plate/v"], ["plate/v001/", "plate/v002/"]),
        (["ls", "apollo", ":", "plate/v002/"], ["plate/v002/a.exr"]),
        (["ls", "apollo", ":", "plate/two\\ w"], ["plate/two\\ words/", "plate/two\\ words/b"]),
        (["ls", "apollo", ":", "scr"], ["scripts/", "scripts/only/"]),
        (["ls", "apollo", ":", "nosuch"], [""]),
        (["ls", "'apollo:plate/v"], ["apollo:plate/v001/", "apollo:plate/v002/"]),
        (["publish", "somewhere", "ap"], ["apollo", "apollo:"]),
        (["publish", "somewhere", "apollo", ":", "plate/v"], ["plate/v001/", "plate/v002/"]),
        (["publish", "lib"], [""]),
        (["--library", "file", ":", "///nowhere", "ls", "ap"], [""]),
        (["ls", "./"], [""]),
    ],
    ids=lambda words: " ".join(words),
)
def test_bash_is_offered_what_stands_behind_its_last_cut(plate: Studio, words: list[str], replies: list[str]) -> None:
    assert offered(plate, "damfs", *words) == replies


def test_a_name_is_offered_however_many_come_before_it(user: Studio) -> None:
    publish(user, {f"f{number:04}": b"" for number in range(1200)})
    user.run("ls", "apollo")
    words = "damfs\nls\napollo\n:\nf1199"
    environment = {**user.env(), "COMP_WORDS": words, "COMP_CWORD": "4", "_DAMFS_COMPLETE": "complete_bash"}
    done = subprocess.run(DAMFS, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "f1199\n"


def test_completion_asks_no_library_that_does_not_answer(plate: Studio) -> None:
    shutil.rmtree(plate.folder / "library")
    assert offered(plate, "damfs", "ls", "apollo", ":", "scr") == ["scripts/", "scripts/only/"]
    plate.environment |= {
        "DAMFS_LIBRARY": "s3://bucket/dam", "AWS_ENDPOINT_URL_S3": "http://192.0.2.1:9",
        "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
    }  # fmt: skip
    started = time.monotonic()
    assert offered(plate, "damfs", "ls", "apollo", ":", "scr") == [""]
    assert time.monotonic() - started < 10, "two starts of the command, and no time-out of a connection"


@pytest.fixture
def terminal(plate: Studio) -> Iterator[int]:
    """An interactive bash with the completion set up, at the other end of a terminal."""
    ours, theirs = pty.openpty()
    environment = {**plate.env(), "PS1": "ready> ", "TERM": "dumb", "INPUTRC": "/dev/null"}
    with subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-i"],
        stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=plate.folder, start_new_session=True,
    ) as shell:  # fmt: skip
        os.close(theirs)
        try:
            read_until(ours, "ready> ")
            os.write(ours, b'eval "$(_DAMFS_COMPLETE=source_bash damfs)"; echo set"" up\n')
            read_until(ours, "set up")
            yield ours
        finally:
            shell.kill()
            os.close(ours)


def read_until(descriptor: int, wanted: str, timeout_s: float = 30.0) -> str:
    deadline = time.monotonic() + timeout_s
    said = ""
    while wanted not in said:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"waited {timeout_s} s for {wanted!r}: {said!r}"
        said += os.read(descriptor, 65536).decode()
    return said


def test_a_tab_completes_an_address_at_a_terminal(terminal: int) -> None:
    os.write(terminal, b"damfs ls apo\t:scr\tonly/\t")
    read_until(terminal, "only/deep.nk ")
    os.write(terminal, b"\n")
    assert "deep.nk" in read_until(terminal, "ready> ")


def test_the_script_for_bash_is_sound(plate: Studio) -> None:
    script = subprocess.run(
        DAMFS, env={**plate.env(), "_DAMFS_COMPLETE": "source_bash"}, capture_output=True, timeout=60, check=True
    ).stdout
    subprocess.run(["bash", "-n"], input=script, check=True, timeout=20)
    assert sys.executable.encode() not in script
