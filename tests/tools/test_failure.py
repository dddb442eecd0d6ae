"""What scripts are told when a command fails: with --json stdout holds one document with the key ``error``, always."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from manifest.errors import Conflict, DigestMismatch
from tests.tools.content import chunk_file, noise, publish
from tools.failure import Failure

if TYPE_CHECKING:
    from tests.harness import Studio


def error_told(user: Studio, *arguments: str, code: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a command with --json that ends with ``code`` prints, and its ``error``."""
    done = user.complete(*arguments, "--json")
    assert done.returncode == code, done.stderr
    document = json.loads(done.stdout)
    assert document["error"]["exit_code"] == code
    assert document["error"]["message"] in done.stderr
    return document, document["error"]


@pytest.mark.parametrize(
    ("arguments", "code", "kind"),
    [
        (["init", "{url}"], 5, "Conflict"),
        (["show", "add", "apollo"], 5, "Conflict"),
        (["show", "ls", "--library", "file:///nowhere"], 6, "Unavailable"),
        (["key", "new"], 5, "Conflict"),
        (["key", "show", "--key", "nosuch.pem"], 3, "ConfigurationError"),
        (["config", "show", "--config", "nosuch.toml"], 3, "ConfigurationError"),
        (["config", "check", "--config", "nosuch.toml"], 3, "ConfigurationError"),
        (["publish", "nosuch", "apollo:x"], 4, "NotFound"),
        (["tag", "apollo:x", "latest", "v001"], 4, "NotFound"),
        (["rm", "apollo:nosuch"], 4, "NotFound"),
        (["mount", "nosuch"], 3, "ConfigurationError"),
        (["umount", "nosuch"], 4, "NotFound"),
        (["status", "nosuch"], 4, "NotFound"),
        (["sync", "apollo"], 4, "NotFound"),
        (["ls", "apollo:nosuch"], 4, "NotFound"),
        (["log", "zephyr"], 4, "NotFound"),
        (["diff", "apollo", "0", "77"], 4, "NotFound"),
        (["export", "apollo:nosuch", "here"], 4, "NotFound"),
        (["verify", "zephyr"], 4, "NotFound"),
        (["ls", "Apollo!"], 2, "UsageError"),
        (["ls"], 2, "UsageError"),
        (["lss"], 2, "UsageError"),
        (["ls", "apollo", "--no-such-option"], 2, "UsageError"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_script_is_told_why_a_command_failed(user: Studio, arguments: list[str], code: int, kind: str) -> None:
    words = [user.url if word == "{url}" else word for word in arguments]
    document, error = error_told(user, *words, code=code)
    assert document == {"error": error}
    assert error["kind"] == kind


def test_a_command_that_found_something_out_before_it_failed_tells_both(user: Studio) -> None:
    data = noise(9000)
    publish(user, {"plate/v001/a.exr": data, "plate/v001/b.exr": b"good"})
    chunk_file(user, "apollo", data[:4096]).unlink()
    verified, error = error_told(user, "verify", code=7)
    assert verified["ok"] is False
    assert [bad["problem"] for bad in verified["shows"][0]["bad"]] == ["missing in the store"]
    assert error["kind"] == "IntegrityError"
    exported, error = error_told(user, "export", "apollo:plate/v001", "here", code=7)
    assert exported["failed"] == ["a.exr"]
    assert exported["files"] == 1
    for file in (user.folder / "config/damfs/trust").iterdir():
        file.unlink()
    checked, error = error_told(user, "config", "check", code=3)
    assert checked["ok"] is False


def test_options_before_the_command_ask_for_json_too(user: Studio) -> None:
    assert json.loads(user.run("--json", "show", "ls"))["shows"] == [{"show": "apollo"}]
    assert user.run("--json", "publish", "--help").startswith("Usage: damfs publish")


FAILING = """
from tools.failure import Failure
from tools.output import Output
output = Output(json_wanted=True)
def items():
    yield {"name": "a"}
    raise ValueError("it broke")
try:
    output.result_stream({"show": "apollo"}, "entries", items())
except ValueError as error:
    output.end(Failure.of(error))
output.end()
"""


def test_a_list_that_breaks_off_is_a_whole_document_that_says_so() -> None:
    done = subprocess.run([sys.executable, "-c", FAILING], capture_output=True, text=True, check=True, timeout=60)
    told = json.loads(done.stdout)
    assert told["entries"] == [{"name": "a"}]
    assert told["error"]["kind"] == "Bug"
    assert "it broke" in told["error"]["message"]


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (Conflict("no", "a/b"), "Conflict", 5),
        (DigestMismatch("no"), "DigestMismatch", 7),
        (KeyboardInterrupt(), "Interrupted", 130),
        (PermissionError(13, "Permission denied", "/x"), "ConfigurationError", 3),
        (ZeroDivisionError("no"), "Bug", 1),
    ],
)
def test_every_end_has_a_kind_and_a_status(error: BaseException, kind: str, code: int) -> None:
    failure = Failure.of(error)
    assert (failure.kind, failure.exit_code) == (kind, code)
    assert all(failure.lines)
