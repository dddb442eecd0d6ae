"""What a mount says of names: look-ups, attributes, listings, views, links and extended attributes."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import time
from pathlib import Path

import pytest

from tests.vfs.mounted import Mounted
from tests.vfs.publisher import T0_NS, Folder, Link

PLATE = "seq010/sh020/plate/v001"


def error_of(call: object, *args: object) -> int | None:
    """The errno that a call fails with."""
    try:
        call(*args)  # type: ignore[operator]
    except OSError as error:
        return error.errno
    return None


def tree(folder: Path) -> dict[str, str]:
    """Every name below a folder, and what it is."""
    found = {}
    for parent, folders, files in os.walk(folder):
        for name in folders + files:
            path = Path(parent) / name
            kind = stat.S_IFMT(path.lstat().st_mode)
            found[str(path.relative_to(folder))] = {stat.S_IFDIR: "dir", stat.S_IFREG: "file", stat.S_IFLNK: "link"}[
                kind
            ]
    return found


def test_a_file_has_the_published_size_mode_times_and_owner(mount: Mounted) -> None:
    post = mount.show().post_of(b"x" * 1000, mode=0o640, mtime_ns=1_234_567_890_987_654_321)
    mount.publish({f"{PLATE}/a.exr": post})
    seen = (mount.path / "apollo" / PLATE / "a.exr").stat()
    assert stat.S_ISREG(seen.st_mode)
    assert stat.S_IMODE(seen.st_mode) == 0o640
    assert (seen.st_size, seen.st_blocks, seen.st_nlink) == (1000, 2, 1)
    assert seen.st_mtime_ns == seen.st_ctime_ns == seen.st_atime_ns == 1_234_567_890_987_654_321
    assert (seen.st_uid, seen.st_gid) == (os.getuid(), os.getgid())


def test_a_listing_says_the_same_as_a_look_up(mount: Mounted) -> None:
    publisher = mount.show()
    mount.publish(
        {"d/a": publisher.post_of(b"1", mode=0o600, mtime_ns=5), "d/b": b"22", "d/c": Link("a"), "d/e": Folder(0o711)}
    )
    names = ["a", "b", "c", "e"]
    looked_up = {name: (mount.path / "apollo/d" / name).lstat() for name in names}
    with os.scandir(mount.path / "apollo@1/d") as listing:
        listed = {entry.name: entry.stat(follow_symlinks=False) for entry in listing}
    assert sorted(listed) == names
    for name in names:
        for field in ("st_mode", "st_size", "st_mtime_ns", "st_nlink", "st_blocks"):
            assert getattr(listed[name], field) == getattr(looked_up[name], field), (name, field)


def test_folders_have_one_link_and_the_time_of_the_last_publish_below(mount: Mounted) -> None:
    publisher = mount.show()
    publisher.publish({"a/b/x": b"1"}, time_ns=T0_NS + 10)
    publisher.publish({"a/y": b"2"}, time_ns=T0_NS + 20)
    root = mount.path / "apollo"
    assert (root / "a").stat().st_mtime_ns == T0_NS + 20
    assert (root / "a/b").stat().st_mtime_ns == T0_NS + 10
    assert (mount.path / "apollo@1/a").stat().st_mtime_ns == T0_NS + 10
    assert (root / "a").stat().st_nlink == root.stat().st_nlink == mount.path.stat().st_nlink == 1


def test_the_whole_tree_is_there(mount: Mounted) -> None:
    mount.publish({f"{PLATE}/plate.{n:04d}.exr": b"%d" % n for n in range(1001, 1011)} | {"seq010/tag": Link("sh020")})
    expected = {f"{PLATE}/plate.{n:04d}.exr": "file" for n in range(1001, 1011)}
    expected |= {"seq010": "dir", "seq010/sh020": "dir", "seq010/sh020/plate": "dir", PLATE: "dir"}
    assert tree(mount.path / "apollo") == expected | {"seq010/tag": "link"}


def test_a_folder_of_many_names_is_listed_once_each_and_in_order(mount: Mounted) -> None:
    post = mount.show().post_of(b"x")
    names = [f"plate.{n:06d}.exr" for n in range(3456)]
    mount.publish({f"big/{name}": post for name in names})
    folder = mount.path / "apollo/big"
    assert os.listdir(folder) == names
    done = subprocess.run(["ls", "-la", folder], capture_output=True, text=True, check=True, timeout=30)
    assert len(done.stdout.splitlines()) == 1 + len((".", "..")) + 3456


READDIR = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
class Dirent(ctypes.Structure):
    _fields_ = [("ino", ctypes.c_uint64), ("off", ctypes.c_int64), ("reclen", ctypes.c_ushort),
                ("type", ctypes.c_ubyte), ("name", ctypes.c_char * 256)]
libc.opendir.restype = ctypes.c_void_p
libc.readdir.restype = ctypes.POINTER(Dirent)
libc.telldir.restype = ctypes.c_long
folder = ctypes.c_void_p(libc.opendir(sys.argv[1].encode()))
def following():
    entry = libc.readdir(folder)
    return entry.contents.name.decode() if entry else None
"""
"""Opens the folder that is its argument with readdir(3), which shows what the kernel was answered."""


def test_a_listing_can_be_continued_from_any_place(mount: Mounted) -> None:
    post = mount.show().post_of(b"x")
    names = [f"n{n:05d}" for n in range(2500)]
    mount.publish({f"big/{name}": post for name in names})
    script = """
places = {}
while True:
    place = libc.telldir(folder)
    name = following()
    if name is None: break
    places[name] = place
assert list(places)[:3] == [".", "..", "n00000"]
for name in ("n02499", "n00000", ".", "n01500", "..", "n00999", "n01000", "n01001"):
    libc.seekdir(folder, ctypes.c_long(places[name]))
    assert following() == name, name
libc.rewinddir(folder)
seen = []
while (name := following()) is not None: seen.append(name)
assert len(seen) == len(set(seen)) == len(places)
"""
    subprocess.run(["python3", "-c", READDIR + script, mount.path / "apollo/big"], check=True, timeout=30)


def listed_inodes(folder: Path) -> dict[str, int]:
    """The names of a listing and the inodes that it says; ``ls -i`` would ask again for them."""
    script = "while entry := libc.readdir(folder): print(entry.contents.ino, entry.contents.name.decode())"
    done = subprocess.run(
        ["python3", "-c", READDIR + script, folder], capture_output=True, text=True, check=True, timeout=10
    )
    return {name: int(ino) for ino, name in (line.split(" ", 1) for line in done.stdout.splitlines())}


def test_a_listing_names_the_folder_itself_and_the_one_above(mount: Mounted) -> None:
    mount.publish({"d/e/x": b"1"})
    root = mount.path
    for folder, above in (("apollo/d/e", "apollo/d"), ("apollo/d", "apollo"), ("apollo", ""), ("", ""),
                          ("apollo@1/d/e", "apollo@1/d"), ("apollo@1", ""), ("apollo@0", "")):  # fmt: skip
        listed = listed_inodes(root / folder)
        assert list(listed)[:2] == [".", ".."]
        assert (listed["."], listed[".."]) == ((root / folder).stat().st_ino, (root / above).stat().st_ino), folder
        assert sorted(listed)[2:] == sorted(os.listdir(root / folder))
    done = subprocess.run(
        ["find", root / "apollo/d", "-printf", "%P %i\n"], capture_output=True, text=True, check=True, timeout=9
    )
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == ["e", "e/x"]


def test_the_way_up_is_that_of_the_path_whatever_was_listed(mount: Mounted) -> None:
    mount.publish({"d/e/x": b"1"})
    for folder in (".", "apollo", "apollo@1", "apollo/d", "apollo@1/d/e"):
        subprocess.run(["ls", "-la", mount.path / folder], capture_output=True, check=True, timeout=10)
        assert (mount.path / folder / "..").stat().st_ino == (mount.path / folder).resolve().parent.stat().st_ino
        assert (mount.path / folder / ".").stat().st_ino == (mount.path / folder).stat().st_ino


def test_the_root_lists_the_shows_and_no_views(mount: Mounted) -> None:
    mount.publish({"a": b"1"})
    mount.publish({"a": b"1"}, show="gemini")
    assert (mount.path / "apollo@1/a").is_file()
    assert sorted(os.listdir(mount.path)) == ["apollo", "gemini"]
    assert (mount.path / "apollo").stat().st_ino != (mount.path / "gemini").stat().st_ino


def test_a_show_that_comes_later_is_found_although_it_was_looked_for(mount: Mounted) -> None:
    for _ in range(2):
        assert error_of(os.stat, mount.path / "apollo") == errno.ENOENT
    mount.show().publish({"a": b"1"})
    assert (mount.path / "apollo/a").read_bytes() == b"1"


@pytest.mark.parametrize("name", ["Apollo", ".hidden", "apollo@", "apollo@x", "apollo@01", "apollo@-1", "apollo@1@1"])
def test_what_is_no_name_of_a_view_is_not_there(mount: Mounted, name: str) -> None:
    mount.publish({"a": b"1"})
    assert error_of(os.stat, mount.path / name) == errno.ENOENT


def test_a_pinned_view_never_changes(mount: Mounted) -> None:
    mount.publish({"a": b"one", "gone/x": b"1"})
    mount.publish({"a": b"two", "gone/x": None, "gone": None, "new/y": b"2"})
    assert tree(mount.path / "apollo@1") == {"a": "file", "gone": "dir", "gone/x": "file"}
    assert (mount.path / "apollo@1/a").read_bytes() == b"one"
    assert tree(mount.path / "apollo@2") == tree(mount.path / "apollo") == {"a": "file", "new": "dir", "new/y": "file"}
    assert tree(mount.path / "apollo@0") == {}


def test_a_file_has_one_inode_in_all_views_and_a_new_version_another(mount: Mounted) -> None:
    mount.publish({"a": b"one", "same": b"s"})
    before = (mount.path / "apollo/a").stat().st_ino
    mount.publish({"a": b"two"})
    assert (mount.path / "apollo/a").stat().st_ino != before
    assert (mount.path / "apollo@1/a").stat().st_ino == before
    assert (mount.path / "apollo/same").stat().st_ino == (mount.path / "apollo@1/same").stat().st_ino
    assert (mount.path / "apollo").stat().st_ino != (mount.path / "apollo@2").stat().st_ino


def test_a_revision_above_the_head_is_synced_for(mount: Mounted) -> None:
    mount.publish({"a": b"one"})
    mount.show().publish({"a": b"two"})  # the mount is not told
    assert (mount.path / "apollo@2/a").read_bytes() == b"two"


def test_a_revision_that_does_not_come_is_not_waited_for_beyond_two_seconds(mount: Mounted) -> None:
    mount.publish({"a": b"one"})
    done = subprocess.run(["stat", mount.path / "apollo@9"], capture_output=True, text=True, check=False, timeout=5)
    assert "No such file" in done.stderr


def test_a_time_is_a_link_to_the_last_revision_by_then(mount: Mounted) -> None:
    day = 86_400_000_000_000
    publisher = mount.show()
    publisher.publish({"a": b"one"}, time_ns=20_000 * day + 1)
    publisher.publish({"a": b"two"}, time_ns=20_001 * day + 1)
    mount.advance()
    links = {name: os.readlink(mount.path / f"apollo@{name}") for name in ("2024-10-04", "2024-10-05", "2024-10-06")}
    assert links == {"2024-10-04": "apollo@0", "2024-10-05": "apollo@1", "2024-10-06": "apollo@2"}
    assert (mount.path / "apollo@2024-10-04T12:00:00Z/a").read_bytes() == b"one"
    assert stat.S_ISLNK((mount.path / "apollo@2024-10-05").lstat().st_mode)


def test_a_time_to_come_follows_the_head(mount: Mounted) -> None:
    mount.publish({"a": b"one"})
    assert (mount.path / "apollo@2199-01-01/a").read_bytes() == b"one"
    mount.publish({"a": b"two"})
    assert (mount.path / "apollo@2199-01-01/a").read_bytes() == b"two"


def test_links_are_links_with_their_targets_as_published(mount: Mounted) -> None:
    mount.publish({"v001/a": b"1", "latest": Link("v001"), "dangling": Link("nowhere/é"), "out": Link("/etc")})
    root = mount.path / "apollo"
    assert os.readlink(root / "dangling") == "nowhere/é"
    assert os.readlink(root / "out") == "/etc"
    assert (root / "latest/a").read_bytes() == b"1"
    assert (root / "dangling").lstat().st_size == len("nowhere/é".encode())
    assert stat.S_IMODE((root / "latest").lstat().st_mode) == 0o777
    assert (root / "latest").lstat().st_mtime_ns == T0_NS + 1_000_000_000


def test_names_are_bytes_and_odd_ones_do_no_harm(mount: Mounted) -> None:
    odd = ["ünïcode", "blank here", "new\nline", "-rf", "a" * 255, "#%02d@", "👻"]
    mount.publish({f"odd/{name}": name.encode() for name in odd})
    folder = mount.path / "apollo/odd"
    assert sorted(os.listdir(folder)) == sorted(odd)
    for name in odd:
        assert (folder / name).read_bytes() == name.encode()
    assert error_of(os.stat, os.fsencode(folder) + b"/\xff\xfe") == errno.ENOENT
    assert error_of(os.stat, folder / ("a" * 256)) == errno.ENAMETOOLONG
    assert error_of(os.stat, mount.path / ("a" * 256)) == errno.ENAMETOOLONG


def test_two_shows_with_the_same_row_numbers_never_mix(mount: Mounted) -> None:
    shows = ["apollo", "gemini", "mercury"]
    for show in shows:
        mount.publish({f"d/{n}": f"{show} {n}".encode() for n in range(20)}, show=show)
    inos = set()
    for n in range(20):
        for show in shows:
            path = mount.path / show / "d" / str(n)
            assert path.read_bytes() == f"{show} {n}".encode()
            inos.add(path.stat().st_ino)
    assert len(inos) == 60
    mount.publish({"d/3": b"changed"}, show="gemini")
    assert [(mount.path / show / "d/3").read_bytes() for show in shows] == [b"apollo 3", b"changed", b"mercury 3"]


@pytest.mark.parametrize("view", ["apollo", "apollo@1"])
def test_nothing_can_be_written(mount: Mounted, view: str) -> None:
    mount.publish({"d/a": b"1"})
    folder = mount.path / view / "d"
    writes: list[tuple[object, ...]] = [
        (os.open, folder / "a", os.O_WRONLY),
        (os.open, folder / "a", os.O_RDWR),
        (os.open, folder / "a", os.O_RDONLY | os.O_TRUNC),
        (os.open, folder / "new", os.O_CREAT | os.O_WRONLY),
        (os.mkdir, folder / "new"),
        (os.unlink, folder / "a"),
        (os.rmdir, folder),
        (os.rename, folder / "a", folder / "b"),
        (os.symlink, "a", folder / "l"),
        (os.link, folder / "a", folder / "l"),
        (os.chmod, folder / "a", 0o600),
        (os.utime, folder / "a", (1, 1)),
        (os.truncate, folder / "a", 0),
        (os.setxattr, folder / "a", "user.x", b"1"),
    ]
    for call, *args in writes:
        assert error_of(call, *args) == errno.EROFS, (call, args)


def test_files_and_folders_say_who_published_them_and_when(mount: Mounted) -> None:
    publisher = mount.show()
    publisher.publish({"v001/a": b"one"}, author="Ada Lovelace <ada@studio>", time_ns=1_700_000_000_000_000_001)
    publisher.publish({"v002/b": b"two"}, author="Grace", time_ns=1_700_000_001_000_000_000)
    mount.advance()
    root = mount.path / "apollo"
    seen = {name: os.getxattr(root / "v001/a", name).decode() for name in os.listxattr(root / "v001/a")}
    assert seen.pop("user.damfs.digest").startswith("b3:")
    assert seen == {
        "user.damfs.revision": "1",
        "user.damfs.publisher": "Ada Lovelace <ada@studio>",
        "user.damfs.published": "2023-11-14T22:13:20.000000001Z",
        "user.damfs.cached": "0",
    }
    (root / "v001/a").read_bytes()
    deadline = time.monotonic() + 10  # it is kept behind the answer
    while os.getxattr(root / "v001/a", "user.damfs.cached") != b"100":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert os.getxattr(root / "v002", "user.damfs.publisher") == b"Grace"
    assert os.getxattr(root / "v001", "user.damfs.revision") == b"1"
    assert sorted(os.listxattr(root)) == ["user.damfs.published", "user.damfs.publisher", "user.damfs.revision"]
    assert os.getxattr(root, "user.damfs.revision") == b"2"
    assert os.getxattr(mount.path / "apollo@1", "user.damfs.revision") == b"1"
    assert os.listxattr(mount.path) == []


def test_attributes_that_are_not_ours_are_not_there(mount: Mounted) -> None:
    mount.publish({"a": b"1"})
    for path in (mount.path / "apollo/a", mount.path / "apollo", mount.path):
        for name in ("user.other", "user.damfs.nothing"):
            assert error_of(os.getxattr, path, name) == errno.ENODATA, (path, name)
        for name in ("security.capability", "security.selinux", "trusted.other", "system.posix_acl_access"):
            assert error_of(os.getxattr, path, name) == errno.EOPNOTSUPP, (path, name)


def test_df_says_how_much_is_published(mount: Mounted) -> None:
    mount.publish({"a": b"x" * 10_000_000, "b": b"y" * 5})
    mount.publish({"c": b"z" * 1_000_000}, show="gemini")
    (mount.path / "apollo").stat()
    (mount.path / "gemini").stat()
    seen = os.statvfs(mount.path)
    assert 0 <= seen.f_blocks * seen.f_frsize - 11_000_005 < 4096
    assert (seen.f_bfree, seen.f_bavail, seen.f_files, seen.f_ffree, seen.f_namemax) == (0, 0, 3, 0, 255)
    done = subprocess.run(["df", "--output=pcent", mount.path], capture_output=True, text=True, check=True, timeout=10)
    assert "100%" in done.stdout


def test_the_modes_of_folders_and_files_are_kept_by_the_kernel(mount: Mounted) -> None:
    publisher = mount.show()
    mount.publish({"closed": Folder(0o700), "closed/a": publisher.post_of(b"1", mode=0o400)})
    assert stat.S_IMODE((mount.path / "apollo/closed").stat().st_mode) == 0o700
    assert stat.S_IMODE((mount.path / "apollo/closed/a").stat().st_mode) == 0o400


def test_handles_are_given_back(mount: Mounted) -> None:
    mount.publish({f"d/{n}": b"x" for n in range(50)})
    for _ in range(3):
        for path in (mount.path / "apollo/d").iterdir():
            path.read_bytes()
    assert mount.command(do="stats")["handles"] <= 1  # RELEASE is answered behind close(2)
