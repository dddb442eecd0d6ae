"""Names of sockets and folders."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from daemon import paths
from manifest.errors import ConfigurationError


@pytest.mark.parametrize(
    "path", ["/mnt/dam", "/", "/mnt/a-b", "/mnt/.hidden", "/.hidden", "/mnt/ü x", "/a//b/", "/mnt/a:b_c.d", "/x\\y"]
)
def test_a_mountpoint_is_escaped_as_systemd_does_it(path: str) -> None:
    told = subprocess.run(["systemd-escape", "--path", path], capture_output=True, text=True, check=True).stdout.strip()
    assert paths.escape(Path(path)) == told


def test_long_mountpoints_have_short_distinct_names() -> None:
    first, second = (paths.socket_stem(Path("/mnt") / ("x" * 300) / name) for name in "ab")
    assert first != second
    assert max(len(first), len(second)) <= paths.NAME_CHARACTERS_MAX


def test_the_run_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert paths.run_folder() == tmp_path / "damfs"


@pytest.mark.skipif(os.geteuid() != 0, reason="about root")
def test_roots_login_session_does_not_hide_its_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/0")
    assert paths.run_folder() == Path("/run/damfs")


def test_a_run_folder_that_others_can_write_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    paths.make_run_folder().chmod(0o777)
    with pytest.raises(ConfigurationError, match="remove it"):
        paths.make_run_folder()


def test_a_link_in_place_of_the_run_folder_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "damfs").symlink_to("elsewhere")
    with pytest.raises(ConfigurationError, match="must be a folder"):
        paths.make_run_folder()
