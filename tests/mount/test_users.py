"""Who may read what, and that nobody can write: other users of the machine on a mount with allow_other, and root.

The kernel checks the published modes, whatever is cached and whoever has a file open; no call reaches the cache.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import mmap
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from manifest.digest import Digest
from tests.harness import Mount, Studio, studio, wait_until
from tests.mount import attempts, visitor
from tests.mount.conftest import mounting_with, random_bytes, write_tree

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")

OWNER, GROUP, STRANGER, MEMBER = 4001, 4002, 4003, 4004
"""Everything in the mount belongs to OWNER and GROUP; MEMBER is in that group, STRANGER is not."""
TIMEOUT_S = 20
FILES = {
    "secret.exr": 0o600, "secret-cold.exr": 0o600, "secret.nk": 0o600, "shared.exr": 0o640, "public.exr": 0o644,
    "nobody.exr": 0o000, "render.sh": 0o755, "private/inside.exr": 0o644, "department/inside.exr": 0o644,
}  # fmt: skip
CONTENTS = {
    name: random_bytes(400 if name.endswith((".nk", ".sh")) else 2_000_000, number) for number, name in enumerate(FILES)
}


class Shown(NamedTuple):
    """A mount with allow_other in a folder that everybody may enter."""

    user: Studio
    mount: Mount
    live: Path


class Refused(Exception):
    """What a user asked for was an error; the argument is its name."""


class User:
    """A process with another user's rights."""

    def __init__(self, uid: int, gid: int, groups: tuple[int, ...] = ()) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, visitor.__file__, str(uid), str(gid), ",".join(map(str, groups)),
                 str(theirs.fileno())], pass_fds=[theirs.fileno()], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                text=True, cwd="/")  # fmt: skip
        assert self.ask("whoami") == [uid, gid, *groups]

    def ask(self, *request: object) -> Any:
        """Have it do something; what came of it. Raises Refused."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([str(word) if isinstance(word, Path) else word for word in request]) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if "error" in answer:
            raise Refused(answer["error"])
        return answer["value"]

    def error(self, *request: object) -> str | None:
        """The error that a request is refused with; None: it is not."""
        try:
            self.ask(*request)
        except Refused as refused:
            return str(refused)
        return None

    def give(self, descriptor: int) -> int:
        """Hand it a descriptor; the number that it has there."""
        socket.send_fds(self._socket, [b"."], [descriptor])
        number: int = self.ask("receive")
        return number

    def read(self, path: Path) -> str:
        """The digest of a file, both by reading and by mapping it."""
        descriptor = self.ask("open", path)
        found: str = self.ask("digest", descriptor)
        assert self.ask("mapped_digest", descriptor) == found
        self.ask("close", descriptor)
        return found

    def end(self) -> None:
        self._socket.close()
        self.process.communicate(timeout=TIMEOUT_S)


@contextmanager
def somebody(uid: int, gid: int, *groups: int) -> Iterator[User]:
    user = User(uid, gid, groups)
    try:
        yield user
    finally:
        user.end()


@pytest.fixture
def stranger() -> Iterator[User]:
    with somebody(STRANGER, STRANGER) as user:
        yield user


@pytest.fixture
def owner() -> Iterator[User]:
    with somebody(OWNER, OWNER) as user:
        yield user


@pytest.fixture(scope="module")
def shown(binding: str) -> Iterator[Shown]:
    folder = Path(tempfile.mkdtemp(prefix="damfs-users-"))
    folder.chmod(0o755)
    try:
        with studio(folder / "studio", **mounting_with(binding)) as user:
            user.run("init", user.url, "--show", "apollo")
            source = write_tree(folder / "source", CONTENTS)
            for name, mode in FILES.items():
                (source / name).chmod(mode)
            (source / "private").chmod(0o700)
            (source / "department").chmod(0o750)
            user.run("publish", source, "apollo:v001")
            mount = user.mount("-o", f"allow_other,uid={OWNER},gid={GROUP}")
            live = mount.path / "apollo/v001"
            for name in FILES:
                if "cold" not in name:
                    read_whole(live / name)
            yield Shown(user, mount, live)
    finally:
        shutil.rmtree(folder)


def read_whole(path: Path) -> None:
    path.read_bytes()
    wait_until(lambda: os.getxattr(path, "user.damfs.cached") == b"100", f"{path} to be cached")


def digest(name: str) -> str:
    return hashlib.blake2b(CONTENTS[name]).hexdigest()


# Reading


def test_the_modes_say_who_may_read(shown: Shown, owner: User, stranger: User) -> None:
    with somebody(MEMBER, MEMBER, GROUP) as member:
        readers = {
            "secret.exr": [owner], "secret-cold.exr": [owner], "secret.nk": [owner], "shared.exr": [owner, member],
            "public.exr": [owner, member, stranger], "nobody.exr": [], "render.sh": [owner, member, stranger],
            "private/inside.exr": [owner], "department/inside.exr": [owner, member],
        }  # fmt: skip
        assert readers.keys() == FILES.keys()
        for name, allowed in readers.items():
            for user in (stranger, member, owner, stranger):  # before and after it was read by those who may
                if user in allowed:
                    assert user.read(shown.live / name) == digest(name), name
                else:
                    assert user.error("open", shown.live / name) == "EACCES", name
        for user, letters in ((owner, "rx"), (member, "rx"), (stranger, "")):
            assert user.ask("access", shown.live / "department") == letters
        assert member.ask("list", shown.live / "department") == ["inside.exr"]
        assert member.error("list", shown.live / "private") == "EACCES"
    assert (shown.live / "nobody.exr").read_bytes() == CONTENTS["nobody.exr"]  # root may


def test_access_tells_the_same(shown: Shown, owner: User, stranger: User) -> None:
    expected = {"secret.exr": ("r", ""), "public.exr": ("r", "r"), "render.sh": ("rx", "rx"), "nobody.exr": ("", ""),
                "private": ("rx", ""), "private/inside.exr": ("r", "")}  # fmt: skip
    for name, letters in expected.items():
        assert (owner.ask("access", shown.live / name), stranger.ask("access", shown.live / name)) == letters, name


def test_a_folder_without_rights_hides_what_is_in_it(shown: Shown, stranger: User) -> None:
    private = shown.live / "private"
    assert stranger.ask("stat", private) == 0o40700
    for request in (("list", private), ("stat", private / "inside.exr"), ("stat", private / "none"),
                    ("getxattr", private / "inside.exr", "user.damfs.digest")):  # fmt: skip
        assert stranger.error(*request) == "EACCES"


def test_attributes_that_tell_of_bytes_need_the_right_to_read(shown: Shown, owner: User, stranger: User) -> None:
    path = shown.live / "secret.exr"
    assert owner.ask("getxattr", path, "user.damfs.digest") == str(Digest.of(CONTENTS["secret.exr"]))
    assert stranger.error("getxattr", path, "user.damfs.digest") == "EACCES"
    assert stranger.ask("stat", path) == 0o100600


def test_a_file_that_others_have_open_and_mapped_is_no_way_in(shown: Shown, owner: User, stranger: User) -> None:
    path = shown.live / "secret.exr"
    opened = owner.ask("open", path)
    assert owner.ask("digest", opened) == digest("secret.exr")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
        assert hashlib.blake2b(view).hexdigest() == digest("secret.exr")
        assert stranger.error("open", path) == "EACCES"
        for pid in (owner.process.pid, os.getpid()):
            assert stranger.error("open", f"/proc/{pid}/fd/{opened}") == "EACCES"
            assert stranger.error("maps_of", pid) in ("EACCES", "EPERM")
            assert stranger.error("memory_of", pid, 0x10000) == "EPERM"
        assert stranger.error("open", f"/proc/{os.getpid()}/fd/{file.fileno()}") == "EACCES"
        assert stranger.error("open", f"/proc/{shown.mount.pid}/fd/0") == "EACCES"
        # A handle without the right to read, and one that somebody gave away:
        assert stranger.error("reopen", stranger.ask("open", path, os.O_PATH)) == "EACCES"
        given = stranger.give(file.fileno())
        assert stranger.ask("digest", given) == digest("secret.exr")
        assert stranger.ask("mapped_digest", given) == digest("secret.exr")
        assert stranger.error("reopen", given) == "EACCES"
        assert stranger.error("write", given) == "EBADF"
    owner.ask("close", opened)
    assert stranger.error("open", path) == "EACCES"


def test_the_cache_is_closed_to_everybody(shown: Shown, owner: User, stranger: User) -> None:
    cache = shown.user.folder / "cache/damfs"
    assert cache.stat().st_mode & 0o777 == 0o700
    one = next(path for path in (cache / "objects").rglob("*") if path.is_file())
    for user in (owner, stranger):
        for request in (("list", cache), ("stat", one), ("open", one)):
            assert user.error(*request) == "EACCES"


def test_unmodified_programs_of_others_are_refused_as_elsewhere(shown: Shown) -> None:
    as_stranger = ["setpriv", f"--reuid={STRANGER}", f"--regid={STRANGER}", "--clear-groups", "env", "LC_ALL=C"]

    def said(*command: str | Path) -> str:
        done = subprocess.run([*as_stranger, *command], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        return done.stdout + done.stderr

    assert "Permission denied" in said("cat", shown.live / "secret.exr")
    assert "Permission denied" in said("ls", shown.live / "private")
    assert "Permission denied" in said("cp", shown.live / "secret.nk", "/dev/null")
    listed = said("ls", "-la", shown.live)
    assert "denied" not in listed
    assert "?" not in listed
    assert said("find", shown.live, "-readable", "-name", "*.exr").count("/public.exr") == 1


@pytest.fixture
def closed(binding: str) -> Iterator[Mount]:
    """A mount without allow_other."""
    folder = Path(tempfile.mkdtemp(prefix="damfs-users-"))
    folder.chmod(0o755)
    try:
        with studio(folder / "studio", **mounting_with(binding)) as user:
            user.run("init", user.url, "--show", "apollo")
            write_tree(folder, {"public.nk": b"public"})
            user.run("publish", folder / "public.nk", "apollo:v001")
            yield user.mount()
    finally:
        shutil.rmtree(folder)


def test_without_allow_other_nobody_else_sees_anything(closed: Mount, stranger: User) -> None:
    path = closed.path / "apollo/v001/public.nk"
    assert path.read_bytes() == b"public"
    for request in (("list", closed.path), ("stat", closed.path), ("stat", path), ("open", path),
                    ("open", path, os.O_PATH), ("statvfs", closed.path / "apollo"),
                    ("getxattr", path, "user.damfs.digest")):  # fmt: skip
        assert stranger.error(*request) == "EACCES", request
    folder = os.open(closed.path / "apollo", os.O_RDONLY | os.O_DIRECTORY)
    try:
        given = stranger.give(folder)
    finally:
        os.close(folder)
    for name, path in (("list", Path()), ("stat", Path("v001")), ("open", Path("v001/public.nk"))):
        assert stranger.error(name, f"/proc/self/fd/{given}" / path) == "EACCES"


# Writing

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT = 1, 2, 4, 32
REFUSALS = {"EROFS", "EBADF", "EINVAL", "EACCES", "EXDEV", "ENOTTY", "ENOTSUP", "EPERM", "EIO"}
_LIBC = ctypes.CDLL(None, use_errno=True)


def objects(user: Studio) -> dict[str, Digest]:
    """What lies in the cache."""
    folder = user.folder / "cache/damfs/objects"
    return {str(path.relative_to(folder)): Digest.of_file(path) for path in folder.rglob("*") if path.is_file()}


def options_of(path: Path) -> tuple[str, str]:
    """(of the mount, of its file system): whether they may be written to."""
    line = next(line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {path} " in line)
    return line.split()[5].split(",")[0], line.split()[-1].split(",")[0]


@contextmanager
def remounted_for_writing(path: Path) -> Iterator[None]:
    def remount(flags: int) -> None:
        attempts.checked(_LIBC.mount(None, os.fsencode(path), None, ctypes.c_ulong(MS_REMOUNT | flags), None))

    remount(MS_NOSUID | MS_NODEV)
    try:
        assert options_of(path) == ("rw", "rw")
        yield
    finally:
        remount(MS_NOSUID | MS_NODEV | MS_RDONLY)


@pytest.fixture
def written(shown: Shown) -> Iterator[Path]:
    """The names that somebody tries to write to; afterwards the cache has exactly what it had."""
    names = [name for name in FILES if "private" not in name]
    for name in names:
        read_whole(shown.live / name)
    before = objects(shown.user)
    published = {Digest.of(CONTENTS[name]) for name in names if len(CONTENTS[name]) > 1000}
    assert published <= set(before.values())
    yield shown.live
    assert objects(shown.user) == before
    for name in names:
        assert (shown.live / name).read_bytes() == CONTENTS[name]
    assert sorted(os.listdir(shown.live)) == sorted({name.partition("/")[0] for name in FILES})


@pytest.mark.parametrize("remounted", [False, True], ids=["ro", "remounted-rw"])
def test_no_call_of_root_writes(shown: Shown, written: Path, tmp_path: Path, *, remounted: bool) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(CONTENTS["public.exr"])
    with outside.open("rb") as source:
        for name in ("public.exr", "render.sh", "secret.exr"):
            path = written / name
            with path.open("rb") as held:
                if remounted:
                    with remounted_for_writing(shown.mount.path):
                        every = [
                            *attempts.refusals(attempts.in_ways_to_open(path)),
                            *attempts.refusals(attempts.by_name(path, outside)),
                            *attempts.refusals(attempts.through_a_descriptor(held.fileno(), source.fileno())),
                        ]
                        with path.open("rb") as opened_now:
                            every += attempts.refusals(
                                attempts.through_a_descriptor(opened_now.fileno(), source.fileno())
                            )
                else:
                    assert set(attempts.refusals(attempts.in_ways_to_open(path))) == {"EROFS"}
                    assert set(attempts.refusals(attempts.by_name(path, outside))) <= {"EROFS", "EXDEV"}
                    every = attempts.refusals(attempts.through_a_descriptor(held.fileno(), source.fileno()))
                assert set(every) <= REFUSALS
                assert held.read() == CONTENTS[name]


def test_chattr_and_lsattr_leave_open_files_readable(written: Path) -> None:
    """The kernel opens the file by itself for them."""
    with (written / "public.exr").open("rb") as held:
        assert held.read(100) == CONTENTS["public.exr"][:100]
        for command, path in ("lsattr", "public.exr"), ("chattr +i", "public.exr"), ("lsattr -d", "."):
            done = subprocess.run(
                [*command.split(), written / path], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
            )
            assert done.returncode != 0
            assert (written / "public.exr").read_bytes() == CONTENTS["public.exr"]
        held.seek(0)
        assert held.read() == CONTENTS["public.exr"]


@contextmanager
def loop_device(path: Path) -> Iterator[str]:
    """A loop device on a file, asked for to be written to."""
    done = subprocess.run(["losetup", "--find", "--show", path], capture_output=True, text=True, timeout=TIMEOUT_S,
                          check=False)  # fmt: skip
    if done.returncode:
        pytest.skip(f"no loop devices here: {done.stderr.strip()}")
    device = done.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True, timeout=TIMEOUT_S)


@pytest.mark.parametrize("remounted", [False, True], ids=["ro", "remounted-rw"])
def test_a_loop_device_on_a_file_reads_and_does_not_write(shown: Shown, written: Path, *, remounted: bool) -> None:
    data = CONTENTS["public.exr"]
    sectors = len(data) // 512 * 512

    def attempt() -> None:
        with loop_device(written / "public.exr") as device:
            subprocess.run(["blockdev", "--setrw", device], check=False, timeout=TIMEOUT_S, capture_output=True)
            with open(device, "rb") as file:
                assert file.read() == data[:sectors]
            done = subprocess.run(["dd", "if=/dev/zero", f"of={device}", "bs=4096", "count=4", "conv=notrunc,fsync"],
                                  capture_output=True, text=True, timeout=TIMEOUT_S, check=False)  # fmt: skip
            assert done.returncode != 0

    if remounted:
        with remounted_for_writing(shown.mount.path):
            attempt()
    else:
        attempt()
