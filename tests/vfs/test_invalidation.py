"""After a publish the mount shows it, whatever the kernel had cached; what is open keeps what it was opened on."""

from __future__ import annotations

import errno
import os
import random
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness import drilled
from tests.vfs.mounted import Mounted, is_mounted
from tests.vfs.publisher import Change, Folder, Link

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can bind mounts")


def exists(path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_changed_file_is_seen_and_the_open_one_keeps_its_bytes(mount: Mounted) -> None:
    mount.publish({"d/a": b"old" * 50_000})
    path = mount.path / "apollo/d/a"
    with path.open("rb", buffering=0) as file:
        assert file.read(3) == b"old"
        before = path.stat()
        mount.publish({"d/a": b"new" * 60_000})
        assert path.read_bytes() == b"new" * 60_000
        assert path.stat().st_ino != before.st_ino
        assert os.fstat(file.fileno()).st_ino == before.st_ino
        assert os.fstat(file.fileno()).st_size == 150_000
        assert b"old" + file.read() == b"old" * 50_000


def test_a_name_that_was_missed_is_found_once_it_is_there(mount: Mounted) -> None:
    mount.publish({"d/a": b"1"})
    missed = [mount.path / "apollo" / name for name in ("d/new", "new", "d/sub", "link")]
    for _ in range(2):
        assert not any(map(exists, missed))
    mount.publish({"d/new": b"2", "new": b"3", "d/sub/deep/x": b"4", "link": Link("d")})
    assert all(map(exists, missed))
    assert (mount.path / "apollo/d/sub/deep/x").read_bytes() == b"4"


def test_a_removed_name_is_gone(mount: Mounted) -> None:
    mount.publish({"d/a": b"1", "d/b": b"2", "sub/deep/x": b"3", "link": Link("d")})
    root = mount.path / "apollo"
    assert [len(names(root / "d")), exists(root / "sub/deep/x"), exists(root / "link")] == [2, True, True]
    mount.publish({"d/a": None, "sub/deep/x": None, "sub/deep": None, "sub": None, "link": None})
    assert names(root) == ["d"]
    assert names(root / "d") == ["b"]
    assert not any(exists(root / name) for name in ("d/a", "sub", "sub/deep", "sub/deep/x", "link"))


def test_a_process_inside_a_removed_folder_sees_that_it_is_gone(mount: Mounted) -> None:
    mount.publish({"sub/deep/x": b"3", "y": b"1"})
    folder = os.open(mount.path / "apollo/sub/deep", os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert os.stat("x", dir_fd=folder).st_size == 1
        mount.publish({"sub/deep/x": None, "sub/deep": None, "sub": None})
        with pytest.raises(FileNotFoundError):
            os.stat("x", dir_fd=folder)
        with pytest.raises(OSError, match=r".") as caught:
            os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=folder)
        assert caught.value.errno in (errno.ENOENT, errno.ESTALE)
    finally:
        os.close(folder)


def test_a_folder_that_was_removed_and_made_again_is_another_one(mount: Mounted) -> None:
    mount.publish({"sub/x": b"1"})
    path = mount.path / "apollo/sub"
    before = path.stat().st_ino
    mount.show().publish({"sub/x": None, "sub": None})
    mount.publish({"sub/y": b"2"})
    assert path.stat().st_ino != before
    assert names(path) == ["y"]
    assert not exists(path / "x")


def test_a_file_may_become_a_folder_over_several_revisions(mount: Mounted) -> None:
    mount.publish({"a": b"1", "b/x": b"2"})
    root = mount.path / "apollo"
    assert (root / "a").is_file()
    assert (root / "b/x").is_file()
    mount.show().publish({"a": None, "b/x": None, "b": None})
    mount.publish({"a/x": b"3", "b": b"4"})
    assert (root / "a/x").read_bytes() == b"3"
    assert (root / "b").read_bytes() == b"4"


def test_a_tag_moves(mount: Mounted) -> None:
    mount.publish({"plate/v001/a": b"one", "plate/latest": Link("v001")})
    path = mount.path / "apollo/plate"
    assert (path / "latest/a").read_bytes() == b"one"
    mount.publish({"plate/v002/a": b"two", "plate/latest": Link("v002")})
    assert os.readlink(path / "latest") == "v002"
    assert (path / "latest/a").read_bytes() == b"two"


@pytest.mark.drill
def test_who_sees_the_moved_tag_sees_what_it_points_to(mount: Mounted) -> None:
    """The links are turned last: a reader in a loop never follows one to a version that is not there."""
    mount.publish({"v000/a": b"0", "latest": Link("v000")})
    script = """
import os, sys
while True:
    target = os.readlink(sys.argv[1] + "/latest")
    with open(f"{sys.argv[1]}/{target}/a") as file:
        assert file.read() == target[1:].lstrip("0") or target == "v000", target
    try: os.stat(f"{sys.argv[1]}/v{int(target[1:]) + 1:03d}")
    except FileNotFoundError: pass
"""
    reader = subprocess.Popen([sys.executable, "-c", script, mount.path / "apollo"], stderr=subprocess.PIPE)
    try:
        for n in range(1, drilled(40, 500)):
            mount.publish({f"v{n:03d}/a": str(n).encode(), "latest": Link(f"v{n:03d}")})
        assert reader.poll() is None, reader.communicate()[1].decode()
    finally:
        reader.kill()
        reader.communicate()


def test_the_mode_and_the_time_of_a_folder_change(mount: Mounted) -> None:
    mount.publish({"d": Folder(0o755), "d/e/x": b"1"})
    root = mount.path / "apollo"
    before = [(root / name).stat() for name in ("", "d", "d/e")]
    mount.publish({"d": Folder(0o700)})
    assert stat.S_IMODE((root / "d").stat().st_mode) == 0o700
    assert (root / "d").stat().st_ino == before[1].st_ino
    mount.publish({"d/e/x": b"2"})
    after = [(root / name).stat() for name in ("", "d", "d/e")]
    assert after[2].st_mtime_ns > before[2].st_mtime_ns


@needs_root
def test_what_is_mounted_on_a_folder_stays_while_the_folder_does(mount: Mounted, tmp_path: Path) -> None:
    mount.publish({"d": Folder(0o755), "d/work/x": b"1", "d/work": Folder(0o755)})
    other = tmp_path / "other"
    other.mkdir()
    (other / "marker").touch()
    work = mount.path / "apollo/d/work"
    subprocess.run(["mount", "--bind", other, work], check=True, timeout=10)
    try:
        assert names(work) == ["marker"]
        mount.publish({"d": Folder(0o711), "d/work": Folder(0o750), "d/work/x": b"2", "d/y": b"3"})
        mount.publish({"d/work/z": b"4", "d/y": None})
        assert names(work) == ["marker"]
        assert stat.S_IMODE((mount.path / "apollo/d").stat().st_mode) == 0o711
    finally:
        subprocess.run(["umount", "-l", work], check=True, timeout=10)
    assert names(work) == ["x", "z"]
    assert stat.S_IMODE(work.stat().st_mode) == 0o750
    assert (work / "x").read_bytes() == b"2"


def test_a_publish_within_a_listing_plants_no_stale_name(mount: Mounted) -> None:
    count = 3000
    old, new = mount.show().post_of(b"old"), mount.show().post_of(b"newer")
    path = mount.path / "apollo/big"
    mount.publish({f"big/n{n:05d}": old for n in range(count)})
    with os.scandir(path) as listing:
        seen = [next(listing).name for _ in range(10)]
        mount.publish({f"big/n{n:05d}": None if n % 7 == 0 else new for n in range(count)} | {"big/zz": b"added"})
        seen += [entry.name for entry in listing]
    assert seen == [f"n{n:05d}" for n in range(count)], "a listing shows the revision that it began with"
    for n in range(count):
        name = path / f"n{n:05d}"
        assert not exists(name) if n % 7 == 0 else name.stat().st_size == 5, n
    assert len(names(path)) == count - len(range(0, count, 7)) + 1


@pytest.mark.alone
def test_a_thousand_changed_files_are_seen_within_two_seconds(mount: Mounted) -> None:
    publisher = mount.show()
    old, new = publisher.post_of(b"old"), publisher.post_of(b"newer")
    files = [f"seq/sh{n % 10:03d}/f{n:04d}" for n in range(1000)]
    mount.publish(dict.fromkeys(files, old))
    paths = [mount.path / "apollo" / name for name in files]
    assert {path.stat().st_size for path in paths} == {3}
    publisher.publish(dict.fromkeys(files, new))
    started = time.monotonic()
    answer = mount.advance()
    assert {path.stat().st_size for path in paths} == {5}
    assert time.monotonic() - started < 2
    assert 1000 <= answer["notices"] <= 1050


def test_a_new_folder_of_a_thousand_files_costs_a_few_notices(mount: Mounted) -> None:
    mount.publish({"a": b"1"})
    post = mount.show().post_of(b"x")
    mount.show().publish({f"new/d{n % 10}/f{n}": post for n in range(1000)})
    assert mount.advance()["notices"] <= 4


STORM = """
import os, sys, random
root, seed = sys.argv[1], int(sys.argv[2])
chance = random.Random(seed)
while True:
    folder = f"{root}/d{chance.randrange(4)}"
    try:
        os.stat(folder)
        listed = os.listdir(folder)
        for name in [f"n{n:02d}" for n in range(40)]:
            try: os.stat(f"{folder}/{name}")
            except FileNotFoundError: pass
        with os.scandir(folder) as entries:
            for entry in entries:
                try: entry.stat()
                except FileNotFoundError: pass
        with open(f"{folder}/{chance.choice(listed)}", "rb") as file:
            file.read()
    except (FileNotFoundError, IndexError):
        pass
"""


@contextmanager
def storm(root: Path, count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that look up, list and read below ``root`` as fast as they can."""
    processes = [
        subprocess.Popen([sys.executable, "-c", STORM, root, str(n)], stderr=subprocess.PIPE) for n in range(count)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.alone
def test_no_stale_name_survives_fifty_publishes_under_a_storm_of_readers(mount: Mounted) -> None:
    chance = random.Random(7)
    posts = [mount.show().post_of(b"x" * size) for size in range(1, 60)]
    files: dict[str, int] = {f"d{n % 4}/n{n:02d}": 1 for n in range(40)}
    mount.publish(dict.fromkeys(files, posts[0]))
    root = mount.path / "apollo"
    with storm(root, 3) as readers:
        for turn in range(2, 52):
            changes: dict[str, Change] = {}
            for name in chance.sample([f"d{d}/n{n:02d}" for d in range(4) for n in range(40)], 12):
                if name in files and chance.random() < 0.3 and sum(f[:2] == name[:2] for f in files) > 1:
                    changes[name] = None
                    del files[name]
                else:
                    changes[name] = posts[turn]
                    files[name] = turn + 1
            mount.publish(changes)
            for folder in range(4):
                expected = {name[3:]: size for name, size in files.items() if name.startswith(f"d{folder}/")}
                for name in (f"n{n:02d}" for n in range(40)):
                    path = root / f"d{folder}" / name
                    assert exists(path) == (name in expected), f"{path} in turn {turn}"
                    if name in expected:
                        assert path.stat().st_size == expected[name], f"{path} in turn {turn}"
                assert names(root / f"d{folder}") == sorted(expected)
                touched = max(
                    (info for name, info in ((n, s) for n, s in changes.items()) if name.startswith(f"d{folder}/")),
                    default="untouched",
                    key=bool,
                )
                if touched != "untouched":
                    seen = (root / f"d{folder}").stat().st_mtime_ns
                    assert seen == (mount.path / f"apollo@{turn}" / f"d{folder}").stat().st_mtime_ns, turn
        assert [reader.poll() for reader in readers] == [None] * 3


def test_the_mount_ends_well_while_a_notice_waits_for_longer_than_anybody_would(mount: Mounted) -> None:
    """The connection is aborted then, and libfuse does not unmount what was aborted."""
    mount.publish({"a": b"1"})
    mount.command(do="hold", seconds=3)
    mount.publish({"a": b"2"}, settle=False)
    assert mount.stop() == 0
    assert not is_mounted(mount.path)


@pytest.mark.alone
def test_the_mount_ends_well_while_notices_are_written_under_a_storm(mount: Mounted) -> None:
    old, new = mount.show().post_of(b"old"), mount.show().post_of(b"newer")
    files = [f"d{n % 4}/n{n:04d}" for n in range(4000)]
    mount.publish(dict.fromkeys(files, old))
    with storm(mount.path / "apollo", 2):
        for folder in range(4):
            assert len(names(mount.path / f"apollo/d{folder}")) == 1000
        mount.publish(dict.fromkeys(files, new), settle=False)
        assert mount.stop() == 0
    assert not is_mounted(mount.path)
