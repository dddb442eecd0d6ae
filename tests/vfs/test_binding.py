"""The mount as the machine sees it: its type and options, its limits, who may look in, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest

from manifest.errors import ConfigurationError
from tests.vfs.mounted import REPOSITORY, Mounted, is_mounted, mount_line, mounted
from vfs import mountpoint
from vfs.binding import choose, kernel_why_not
from vfs.mountpoint import MountOptions
from vfs.pyfuse3_binding import Pyfuse3Binding

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def wait_until_unmounted(path: Path) -> None:
    deadline = time.monotonic() + 10
    while is_mounted(path):
        assert time.monotonic() < deadline, f"{path} is still mounted"
        time.sleep(0.02)


def as_nobody(*command: str | Path) -> subprocess.CompletedProcess[str]:
    prefix = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--"]
    return subprocess.run([*prefix, *command], capture_output=True, text=True, check=False, timeout=10)


def test_the_mount_is_read_only_and_called_damfs(mount: Mounted) -> None:
    line = mount_line(mount.path).split(" ")
    kind, source = line[line.index("-") + 1 :][:2]
    assert (kind, source) == ("fuse.damfs", "damfs")
    assert {"ro", "nosuid", "nodev"} <= set(line[5].split(","))
    assert "default_permissions" in line[-1].split(",")


@as_root
def test_root_raises_the_limits_of_the_kernel(mount: Mounted, binding: str) -> None:
    limits = mount.command(do="stats")["limits"]
    background = {"pyfuse3": 256, "kernel": 65535}[binding]
    assert (limits["max_background"], limits["congestion_threshold"]) == (background, background * 3 // 4)
    assert limits["read_ahead_kib"] == 256
    assert binding == "kernel" or limits["max_tasks"] == 4096
    assert "not_raised" not in limits


@as_root
def test_others_may_not_look_in_unless_they_are_allowed(public: Path, binding: str) -> None:
    with mounted(public, flags=[binding]) as mount:
        mount.publish({"a": b"1"})
        assert as_nobody("ls", public).stdout.split() == ["library", "mnt", "runner.log", "state"]
        assert "Permission denied" in as_nobody("ls", mount.path / "apollo").stderr


@as_root
def test_allow_other_lets_others_in_as_far_as_the_modes_go(public: Path, binding: str) -> None:
    with mounted(public, flags=[binding, "allow_other"]) as mount:
        publisher = mount.show()
        secret = publisher.post_of(b"secret", mode=0o600)
        mount.publish({"open": b"everybody", "closed": secret})
        assert as_nobody("cat", mount.path / "apollo/open").stdout == "everybody"
        assert "Permission denied" in as_nobody("cat", mount.path / "apollo/closed").stderr


def test_what_is_in_use_is_unmounted_only_lazily(mount: Mounted) -> None:
    mount.publish({"a": b"12345"})
    with (mount.path / "apollo/a").open("rb", buffering=0) as file:
        assert mount.command(do="unmount") == {"error": "Busy"}
        assert (mount.path / "apollo/a").read_bytes() == b"12345"
        assert mount.command(do="unmount", lazy=True) == {}
        assert not is_mounted(mount.path)
        assert file.read() == b"12345"
    assert mount.stop() == 0


def test_unmounting_ends_the_serving(mount: Mounted) -> None:
    mount.publish({"a": b"1"})
    assert (mount.path / "apollo/a").read_bytes() == b"1"
    assert mount.command(do="unmount") == {}
    wait_until_unmounted(mount.path)
    assert mount.stop() == 0


def test_an_end_without_unmount_unmounts(mount: Mounted) -> None:
    mount.publish({"a": b"1"})
    file = os.open(mount.path / "apollo/a", os.O_RDONLY)
    try:
        assert mount.stop() == 0
        assert not is_mounted(mount.path)
    finally:
        with suppress(OSError):  # the other end is gone
            os.close(file)
    assert list(mount.path.iterdir()) == []


def test_a_later_mount_gives_the_same_inodes(mount: Mounted) -> None:
    mount.publish({"a": b"1"}, show="zulu")
    mount.publish({"b/c": b"1"}, show="apollo")
    names = ["zulu", "zulu/a", "apollo", "apollo/b", "apollo/b/c", "apollo@1/b"]
    before = [(mount.path / name).stat().st_ino for name in names]
    assert mount.stop() == 0
    mount.start()
    assert [(mount.path / name).stat().st_ino for name in reversed(names)] == before[::-1]


def test_a_mountpoint_that_is_not_there_is_an_error_with_its_name(tmp_path: Path, binding: str) -> None:
    state = tmp_path / "state"
    state.mkdir()
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "tests.vfs.runner",
        tmp_path / "missing",
        tmp_path.as_uri(),
        state,
        binding,
    ]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=30, stdin=subprocess.DEVNULL
    )
    assert done.returncode != 0
    assert f"ConfigurationError: cannot mount on {tmp_path}/missing" in done.stderr


def test_an_unknown_binding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="expected auto, kernel or pyfuse3"):
        choose("fusepy", tmp_path, MountOptions(), "0" * 32)


def test_the_choice_says_why(tmp_path: Path) -> None:
    chosen, reason = choose("auto", tmp_path, MountOptions(), "0" * 32)
    why_not = kernel_why_not()
    assert chosen.name == ("kernel" if why_not is None else "pyfuse3")
    assert (why_not or "the fastest one") in reason
    assert choose("pyfuse3", tmp_path, MountOptions(), "0" * 32)[1] == "asked for"


UNPRIVILEGED = """
set -eu
mknod "$1/fuse" c 10 229 && chmod 666 "$1/fuse" && mount --bind "$1/fuse" /dev/fuse
exec setpriv --reuid={nobody} --regid={nobody} --clear-groups -- "$2" -m tests.vfs.unprivileged "$1"
"""


@as_root
def test_a_user_without_rights_mounts_through_fusermount3(public: Path) -> None:
    """In a mount namespace of its own, with a /dev/fuse that everybody may open, as it is on a workstation."""
    folder = public / "theirs"
    folder.mkdir()
    probe = folder / "probe"
    made = subprocess.run(["mknod", probe, "c", "1", "3"], check=False, capture_output=True)
    if made.returncode != 0:
        pytest.skip("no device nodes can be made here")
    try:
        probe.open("rb").close()
    except PermissionError:
        pytest.skip("device nodes do not work on the file system of the temporary files")
    os.chown(folder, NOBODY, NOBODY)
    as_nobody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--"]
    if subprocess.run([*as_nobody, "test", "-x", sys.executable, "-a", "-r", __file__], check=False).returncode != 0:
        pytest.skip("this Python, or this checkout, lies where nobody else may go")
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", UNPRIVILEGED.format(nobody=NOBODY), "sh"]
    done = subprocess.run(
        [*command, folder, sys.executable], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=50
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mounted, read, and unmounted as 65534" in done.stdout


def refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, uid: int, capabilities: int = 0) -> str:
    """What a mount that libfuse refuses ends with."""

    def refuse(*_: object) -> None:
        raise RuntimeError("fuse_session_mount failed")

    monkeypatch.setattr("pyfuse3.init", refuse)
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setattr(mountpoint, "effective_capabilities", lambda: capabilities)
    with pytest.raises(ConfigurationError, match=f"cannot mount on {tmp_path}: ") as caught:
        Pyfuse3Binding(tmp_path, MountOptions(allow_other=True))._mount(cast("Any", None))
    return str(caught.value)


def test_a_machine_without_the_device_is_told_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mountpoint, "FUSE_DEVICE", tmp_path / "fuse")
    message = refusal(tmp_path, monkeypatch, uid=0)
    assert f"{tmp_path}/fuse is missing" in message
    assert "modprobe fuse" in message


def test_a_device_that_cannot_be_opened_is_named_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fuse").mkdir()
    monkeypatch.setattr(mountpoint, "FUSE_DEVICE", tmp_path / "fuse")
    assert "/fuse cannot be opened by uid 0 (Is a directory): chmod" in refusal(tmp_path, monkeypatch, uid=0)


@pytest.mark.parametrize(
    ("uid", "capabilities", "path", "word"),
    [
        (0, 0, "/usr/bin", "CAP_SYS_ADMIN"),
        (0, 1 << 21, "/usr/bin", "fuse_session_mount failed"),
        (NOBODY, 0, "", "install the package fuse3"),
        (NOBODY, 0, None, "user_allow_other in /etc/fuse.conf"),
    ],
)
def test_what_else_is_missing_for_a_mount_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uid: int, capabilities: int, path: str | None, word: str
) -> None:
    (tmp_path / "fuse").touch()
    (tmp_path / "fusermount3").touch(mode=0o755)
    monkeypatch.setattr(mountpoint, "FUSE_DEVICE", tmp_path / "fuse")
    monkeypatch.setenv("PATH", str(tmp_path) if path is None else path)
    assert word in refusal(tmp_path, monkeypatch, uid=uid, capabilities=capabilities)


@as_root
@pytest.mark.alone
@pytest.mark.parametrize("place", ["elsewhere", "the same place"])
def test_a_daemon_that_ends_late_leaves_a_newer_mount_alone(tmp_path: Path, binding: str, place: str) -> None:
    """A device number is given anew as soon as its mount is gone: the newer mount has that of the older."""
    newer = Mounted(tmp_path / "newer", flags=[binding])
    with mounted(tmp_path / "older", flags=[binding]) as older:
        if place == "the same place":
            newer.path = older.path
        device = mount_line(older.path).split(" ")[2]
        os.kill(older.pid, signal.SIGSTOP)
        try:
            mountpoint.unmount(older.path, lazy=False)
            for _ in range(5):
                newer.start()
                if mount_line(newer.path).split(" ")[2] == device:
                    break
                assert newer.stop() == 0
            else:
                pytest.skip("other mounts have come in between")
            newer.publish({"a": b"1"})
            os.kill(older.pid, signal.SIGCONT)
            assert older.stop() == 0
            assert is_mounted(newer.path)
            assert (newer.path / "apollo/a").read_bytes() == b"1"
        finally:
            with suppress(ProcessLookupError):
                os.kill(older.pid, signal.SIGCONT)
            newer.close()
