"""``damfs publish``, ``tag`` and ``rm`` as processes: what they print, how they exit, and being killed with -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from manifest.digest import Digest
from tests.harness import COMMAND_TIMEOUT_S

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness import Studio

DRIVER = """
import os, signal, sys, time
from manifest.library import Library
from manifest.log import Log
puts_file, die_at_put, die_after_create = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "create"
real_put, real_create = Library.put, Log.create

def put(self, key, data, **more):
    descriptor = os.open(puts_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    if os.fstat(descriptor).st_size // 80 >= die_at_put:
        os.kill(os.getpid(), signal.SIGKILL)
    os.write(descriptor, f"{key[-78:]:<79}\\n".encode())
    os.close(descriptor)
    time.sleep(0.01)
    return real_put(self, key, data, **more)

def create(self, *arguments, **more):
    real_create(self, *arguments, **more)
    if die_after_create:
        os.kill(os.getpid(), signal.SIGKILL)

Library.put, Log.create = put, create
sys.argv[1:4] = []
from tools.main import main
main()
"""
"""The real command, which kills itself with -9 at the n-th object that it puts, or right after the log entry.

A put takes 10 ms, as on a network: what was put long before the end is in the journal.
"""


def drive(
    user: Studio, puts: Path, die_at_put: int, *arguments: str | Path, create: bool = False
) -> subprocess.CompletedProcess[str]:
    options = [str(puts), str(die_at_put), "create" if create else "-"]
    return subprocess.run(
        [sys.executable, "-c", DRIVER, *options, *map(str, arguments)],
        env=user.env(),
        cwd=user.folder,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )


def journals(user: Studio) -> list[Path]:
    return list((user.folder / "state").rglob("*.journal"))


def publish_id(user: Studio) -> str:
    (journal,) = journals(user)
    value: dict[str, Any] = json.loads(journal.read_text().splitlines()[0])
    return str(value["publish_id"])


def frames(folder: Path, count: int, size_bytes: int = 50_000) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"plate.{1001 + number}.dpx").write_bytes(os.urandom(size_bytes))
    return folder


def digests(source: Path) -> dict[str, str]:
    return {path.name: str(Digest.of(path.read_bytes())) for path in source.iterdir()}


def published(user: Studio) -> dict[str, str]:
    entries = user.json("ls", "apollo:plate/v001")["entries"]
    return {entry["name"]: entry["digest"] for entry in entries}


@pytest.mark.timeout(180)
def test_a_publish_killed_while_uploading_goes_on_where_it_was(anybody: Studio, tmp_path: Path) -> None:
    source = frames(tmp_path / "plate", 40)
    puts = tmp_path / "puts"
    for die_at in (10, 25):
        killed = drive(anybody, puts, die_at, "publish", source, "apollo:plate/v001")
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    kept = publish_id(anybody)
    done = drive(anybody, puts, 10**9, "publish", source, "apollo:plate/v001", "--json")
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert (outcome["revision"], outcome["published"], outcome["resumed"]) == (1, True, True)
    # What was not read again was in the journal; what was on its way when the process died is put at most once more.
    assert outcome["uploaded_chunks"] + outcome["reused_chunks"] < 40
    put = puts.read_text().split()
    assert len(set(put)) == 41
    assert len(put) <= 41 + 2 * 16
    assert not journals(anybody)
    (entry,) = anybody.json("log", "apollo")["revisions"]
    assert entry["publish_id"] == kept
    assert published(anybody) == digests(source)


def test_a_publish_killed_right_after_its_entry_is_found_to_be_published(user: Studio, tmp_path: Path) -> None:
    source = frames(tmp_path / "plate", 3)
    killed = drive(user, tmp_path / "puts", 10**9, "publish", source, "apollo:plate/v001", create=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert journals(user)
    again = user.run("publish", source, "apollo:plate/v001")
    assert "published already: revision 1 has it" in again
    assert not journals(user)
    assert user.run("log", "apollo").count("\n") == 1


def test_sources_that_changed_since_a_kill_are_read_again(user: Studio, tmp_path: Path) -> None:
    source = frames(tmp_path / "plate", 20)
    assert drive(user, tmp_path / "puts", 10, "publish", source, "apollo:plate/v001").returncode == -signal.SIGKILL
    for path in source.iterdir():
        path.write_bytes(path.read_bytes()[::-1])
    user.run("publish", source, "apollo:plate/v001")
    assert published(user) == digests(source)


def test_a_damaged_journal_is_said_and_the_publish_goes_on(user: Studio, tmp_path: Path) -> None:
    source = frames(tmp_path / "plate", 20)
    assert drive(user, tmp_path / "puts", 10, "publish", source, "apollo:plate/v001").returncode == -signal.SIGKILL
    (journal,) = journals(user)
    journal.write_bytes(b"\xff\xfe" + journal.read_bytes()[::-1])
    done = user.complete("publish", source, "apollo:plate/v001")
    assert done.returncode == 0
    assert "was set aside as" in done.stderr
    assert "revision 1" in done.stdout


@pytest.mark.timeout(180)
def test_eight_publishers_at_once_some_killed_are_in_the_log_exactly_once(user: Studio, tmp_path: Path) -> None:
    running = []
    for number in range(8):
        source = frames(tmp_path / f"plate{number}", 4, 1000)
        driver = [
            sys.executable,
            "-c",
            DRIVER,
            str(tmp_path / f"puts{number}"),
            "2" if number % 4 == 3 else "999999",
            "-",
        ]
        command = ["publish", str(source), f"apollo:plate{number}/v001", "--tag", "latest", "--json"]
        running.append(
            subprocess.Popen(
                [*driver, *command],
                env=user.env(),
                cwd=user.folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    revisions = []
    for number, process in enumerate(running):
        out, error = process.communicate(timeout=120)
        if number % 4 == 3:
            assert process.returncode == -signal.SIGKILL
        else:
            assert process.returncode == 0, error
            revisions.append(json.loads(out)["revision"])
    assert sorted(revisions) == list(range(1, 7))
    for number in (3, 7):
        outcome = user.json("publish", tmp_path / f"plate{number}", f"apollo:plate{number}/v001", "--tag", "latest")
        revisions.append(outcome["revision"])
    assert sorted(revisions) == list(range(1, 9))
    assert user.run("ls", "-r", "apollo").count(".dpx") == 8 * 4


def test_people_are_told_what_happened_and_scripts_get_json(anybody: Studio, tmp_path: Path) -> None:
    source = frames(tmp_path / "plate", 2)
    assert "would publish 3 changes to apollo:" in anybody.run(
        "publish", source, "apollo:plate/v001", "--tag", "latest", "--dry-run"
    )
    said = anybody.run("publish", source, "apollo:plate/v001", "--tag", "latest", "-m", "as scanned")
    assert "published apollo:plate/v001: revision 1" in said
    assert "2 files" in said
    said = anybody.run("publish", source, "apollo:plate/v001", "--tag", "latest")
    assert said == "apollo:plate/v001 is published already: revision 1 has it\n"
    second = anybody.json("publish", source, "apollo:plate/v002/")
    assert (second["revision"], second["uploaded_bytes"], second["reused_bytes"]) == (2, 0, 100_000)
    assert anybody.run("tag", "apollo:plate", "latest", "v002") == "apollo:plate/latest → v002: revision 3\n"
    moved = anybody.json("tag", "apollo:plate", "latest", "v002")
    assert (moved["revision"], moved["published"]) == (3, False)
    removed = anybody.complete("rm", "apollo:plate/v002")
    assert removed.stdout == "removed apollo:plate/v002, 2 files, 1 folder (97.7 KiB): revision 4\n"
    assert "apollo:plate/latest leads to what is gone" in removed.stderr
    assert anybody.json("rm", "apollo:plate", "--dry-run")["files"] == 2


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["publish", "nosuch", "apollo:v001"], 4, "nosuch"),
        (["publish", "plate", "apollo@1:v001"], 2, "is the past"),
        (["publish", "plate", "gemini:v001"], 4, "no show gemini"),
        (["publish", "plate", "apollo:a/../b"], 2, "not allowed"),
        (["publish", "plate", "apollo:scripts", "--tag", "latest"], 2, "leads to a version"),
        (["publish", "plate", "plate/plate.1001.dpx", "apollo:v001"], 2, "both are to become v001/plate.1001.dpx"),
        (["publish", "pipe", "apollo:v001"], 2, "pipe is a named pipe"),
        (["tag", "apollo:plate", "latest", "v009"], 4, "no version plate/v009"),
        (["rm", "apollo:nosuch"], 4, "no nosuch"),
        (["rm", "apollo"], 2, "whole show"),
        (["publish", "plate", "apollo:v001", "--key", "nosuch.pem"], 3, "nosuch.pem"),
    ],
)
def test_what_cannot_be_is_said_in_a_line_or_two_with_the_documented_status(
    user: Studio, arguments: list[str], code: int, said: str
) -> None:
    frames(user.folder / "plate", 1)
    os.mkfifo(user.folder / "pipe")
    done = user.complete(*arguments)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") <= 2
    assert "Traceback" not in done.stderr
    assert user.run("log", "apollo") == ""
