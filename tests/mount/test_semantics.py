"""docs/SEMANTICS.md, sentence by sentence, on one mount of each binding."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest

from manifest.digest import Digest
from tests.harness import REPOSITORY, Mount, Studio, studio, wait_until
from tests.mount.conftest import mounting_with, random_bytes, write_tree

Test = TypeVar("Test", bound=Callable[..., object])
DATA = random_bytes(2_500_000)
SENTENCES = [
    " ".join(found.split())
    for found in re.findall(r"^- (.+(?:\n  .+)*)", (REPOSITORY / "docs/SEMANTICS.md").read_text(), re.MULTILINE)
]
QUOTED: set[str] = set()
TESTED_ELSEWHERE = {
    "A read of bytes that are not cached, while nothing can fetch them, is EIO at the deadline at the latest.":
        "test_outages.py: test_cached_files_read_on_and_uncached_ones_fail_by_their_deadline",
    "With the profile `farm` such a read is EIO at the deadline and not before.":
        "test_known_down.py: test_a_farm_waits_until_its_deadline_however_long_the_outage_has_lasted",
    "With the profile `artist` such a read is EIO at once, when no source has answered for the time of an outage.":
        "test_known_down.py: test_once_an_outage_is_known_uncached_reads_fail_at_once_until_the_store_is_back",
    "After `damfs offline on` nothing is asked of the network: cached files, names and attributes are read as ever.":
        "test_offline.py: test_what_is_cached_is_read_and_the_rest_fails_at_once_and_nothing_is_asked",
    "After `damfs offline on` a read of bytes that are not cached is EIO at once, whatever the deadline of reads is, "
    "and so is one that waits already.":
        "test_offline.py: test_who_waits_for_a_silent_store_is_answered_when_it_is_switched_on",
    "After `damfs offline off` such a read succeeds again within seconds, without a new mount, if a source answers.":
        "test_offline.py: test_what_is_cached_is_read_and_the_rest_fails_at_once_and_nothing_is_asked",
    "A publish of up to 1,000 files is visible within 2 seconds, and at once after "
    "`damfs sync SHOW --at-least REVISION`.":
        "test_main_job.py: test_a_publish_of_1000_files_is_seen_within_two_seconds",
}  # fmt: skip


def quotes(sentence: str) -> Callable[[Test], Test]:
    """Mark the test that shows a sentence of docs/SEMANTICS.md. Raises when the document does not say it."""
    assert sentence in SENTENCES, f"docs/SEMANTICS.md does not say: {sentence}"
    QUOTED.add(sentence)
    return lambda test: test


class Shown(NamedTuple):
    """The mount that all sentences are shown on: revision 1 is v001, revision 2 replaced a script."""

    user: Studio
    mount: Mount
    live: Path
    plate: Path


@pytest.fixture(scope="module")
def shown(binding: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    folder = tmp_path_factory.mktemp("semantics")
    with studio(folder / "studio", **mounting_with(binding)) as user:
        user.run("init", user.url, "--show", "apollo", "--show", "gemini")
        source = write_tree(
            folder / "source", {"plate.exr": DATA, "Plate.EXR": b"another", "sub/x": b"x", "secret": b"s"}
        )
        (source / "plate.exr").chmod(0o640)
        (source / "secret").chmod(0o600)
        (source / "sub/x").chmod(0o4755)
        os.utime(source / "secret", ns=(0, -1_000_000_000))
        os.utime(source / "plate.exr", ns=(5, 1_600_000_000_000_000_007))
        user.run("publish", source, "apollo:plate/v001", "--tag", "latest", "-m", "first")
        write_tree(folder, {"comp.nk": b"one"})
        user.run("publish", folder / "comp.nk", "apollo:scripts")
        mount = user.mount()
        live = mount.path / "apollo"
        yield Shown(user, mount, live, live / "plate/v001/plate.exr")


def publish_script(shown: Shown, data: bytes) -> int:
    """Replace the script; returns the revision once it is served."""
    write_tree(shown.user.folder, {"comp.nk": data})
    return publish(shown, shown.user.folder / "comp.nk", "apollo:scripts")


def publish(shown: Shown, *arguments: str | Path) -> int:
    """Publish; returns the revision once it is served."""
    revision = int(shown.user.json("publish", *arguments)["revision"])
    shown.user.run("sync", "apollo", "--at-least", str(revision))
    return revision


def test_every_sentence_is_shown() -> None:
    assert len(SENTENCES) > 30
    assert set(SENTENCES) - QUOTED - set(TESTED_ELSEWHERE) == set()
    assert set(TESTED_ELSEWHERE) <= set(SENTENCES)
    for place in TESTED_ELSEWHERE.values():
        module, _, name = place.partition(": ")
        assert f"def {name}(" in (REPOSITORY / "tests/mount" / module).read_text()


@quotes("The root lists the shows of the library.")
def test_root(shown: Shown) -> None:
    assert sorted(os.listdir(shown.mount.path)) == ["apollo", "gemini"]


@quotes("`/<show>` is the live view: it follows the head of the show.")
def test_live(shown: Shown) -> None:
    publish_script(shown, b"live")
    assert (shown.live / "scripts/comp.nk").read_bytes() == b"live"


@quotes("`/<show>@<revision>` is the show as of that revision, for ever; it is reached by name and not listed.")
def test_pinned(shown: Shown) -> None:
    publish_script(shown, b"later")
    assert (shown.mount.path / "apollo@2/scripts/comp.nk").read_bytes() == b"one"
    assert not (shown.mount.path / "apollo@1/scripts").exists()
    assert os.listdir(shown.mount.path / "apollo@0") == []
    assert "apollo@2" not in os.listdir(shown.mount.path)


@quotes("`/<show>@<time>` is a symbolic link to the last revision published by that time.")
def test_time(shown: Shown) -> None:
    assert os.readlink(shown.mount.path / "apollo@2001-01-01") == "apollo@0"
    revision = publish_script(shown, b"timed")
    assert os.readlink(shown.mount.path / "apollo@2100-01-01T00:00:00Z") == f"apollo@{revision}"


@pytest.mark.alone
@quotes("`/<show>@<revision>` above the head is waited for at most 2 seconds and is ENOENT after that.")
def test_future(shown: Shown) -> None:
    started = time.monotonic()
    with pytest.raises(FileNotFoundError):
        os.stat(shown.mount.path / "apollo@99999")
    assert time.monotonic() - started < 3


@quotes("A name that is not there is ENOENT.")
def test_missing(shown: Shown) -> None:
    for name in ("apollo/none", "none", "apollo/none/none", "apollo@x", "apollo@-1", "none@1", "@1"):
        with pytest.raises(FileNotFoundError):
            os.stat(shown.mount.path / name)


@quotes("A path through a file is ENOTDIR.")
def test_through_a_file(shown: Shown) -> None:
    with pytest.raises(NotADirectoryError):
        os.stat(shown.plate / "below")


@quotes("A name of more than 255 bytes is ENAMETOOLONG.")
def test_long_name(shown: Shown) -> None:
    with pytest.raises(OSError) as caught:
        os.stat(shown.live / ("x" * 256))
    assert caught.value.errno == errno.ENAMETOOLONG


@quotes("Names are bytes of UTF-8 and are compared byte by byte: `A` and `a` are two names.")
def test_case(shown: Shown) -> None:
    assert (shown.plate.parent / "Plate.EXR").read_bytes() == b"another"
    assert not (shown.plate.parent / "PLATE.exr").exists()
    with pytest.raises(FileNotFoundError):
        os.stat(os.fsencode(shown.live) + b"/\xff\xfe")


@quotes("A listing has `.` and `..`, then the names in the order of their bytes.")
def test_order(shown: Shown) -> None:
    said = subprocess.run(["ls", "-f", shown.plate.parent], capture_output=True, text=True, timeout=10, check=True)
    assert said.stdout.split() == [".", "..", "Plate.EXR", "plate.exr", "secret", "sub"]


@quotes("A listing that began before a publish shows one revision from its beginning to its end.")
def test_listing(shown: Shown) -> None:
    many = write_tree(shown.user.folder / "many", {f"old.{n:05d}": b"" for n in range(3000)})
    publish(shown, many, "apollo:many")
    write_tree(many, {f"new.{n:05d}": b"" for n in range(50)} | {f"zzz.{n:05d}": b"" for n in range(50)})
    with os.scandir(shown.live / "many") as listing:
        seen = [next(listing).name]
        publish(shown, many, "apollo:many")
        seen += [entry.name for entry in listing]
    assert sorted(seen) == [f"old.{n:05d}" for n in range(3000)]
    assert len(os.listdir(shown.live / "many")) == 3100
    assert (shown.live / "many/new.00001").exists()


@quotes("The permission bits, the size and the modification time in ns are those of the published file.")
def test_attributes(shown: Shown) -> None:
    found = os.stat(shown.plate)
    assert (found.st_mode, found.st_size, found.st_mtime_ns) == (0o100640, len(DATA), 1_600_000_000_000_000_007)


@quotes("The set-user-id, set-group-id and sticky bits are not published; a time before 1970 is published as 1970.")
def test_attributes_that_are_not_published(shown: Shown) -> None:
    assert os.stat(shown.plate.parent / "sub/x").st_mode == 0o100755
    assert os.stat(shown.plate.parent / "secret").st_mtime_ns == 0


@quotes("The owner and group of everything are those of the configuration, by default of who mounts.")
def test_owner(shown: Shown) -> None:
    for path in (shown.mount.path, shown.live, shown.plate, shown.live / "plate/latest"):
        found = os.lstat(path)
        assert (found.st_uid, found.st_gid) == (os.getuid(), os.getgid())


@quotes("The link count is 1 for files and for folders.")
def test_links(shown: Shown) -> None:
    assert [os.stat(path).st_nlink for path in (shown.plate, shown.live, shown.plate.parent)] == [1, 1, 1]


@quotes("A folder's modification time is the time of the last publish that touched its names.")
def test_folder_time(shown: Shown) -> None:
    before = os.stat(shown.live / "scripts").st_mtime_ns
    untouched = os.stat(shown.plate.parent).st_mtime_ns
    publish_script(shown, os.urandom(8))
    assert os.stat(shown.live / "scripts").st_mtime_ns > before
    assert os.stat(shown.plate.parent).st_mtime_ns == untouched


@quotes("Access and change times are the modification time.")
def test_times(shown: Shown) -> None:
    found = os.stat(shown.plate)
    assert found.st_atime_ns == found.st_ctime_ns == found.st_mtime_ns


@quotes("A file has the same inode number in every view; a new version of a file is a new inode.")
def test_inodes(shown: Shown) -> None:
    pinned = shown.mount.path / "apollo@2"
    assert os.stat(shown.plate).st_ino == os.stat(pinned / "plate/v001/plate.exr").st_ino
    publish_script(shown, os.urandom(8))
    assert os.stat(shown.live / "scripts/comp.nk").st_ino != os.stat(pinned / "scripts/comp.nk").st_ino


@quotes("A folder has the same inode number as long as it exists.")
def test_folder_inode(shown: Shown) -> None:
    before = os.stat(shown.live / "scripts").st_ino
    publish_script(shown, os.urandom(8))
    assert os.stat(shown.live / "scripts").st_ino == before


@quotes(
    "`df` shows the size and the number of the files in the live views of the loaded shows, and as on any read-only "
    "medium nothing free: 100 % are used."
)
def test_df(shown: Shown) -> None:
    files = [path for path in shown.live.rglob("*") if path.is_file() and not path.is_symlink()]
    found = os.statvfs(shown.mount.path)
    assert found.f_blocks == -(-sum(path.stat().st_size for path in files) // found.f_frsize)
    assert found.f_files == len(files)
    assert found.f_bavail == found.f_bfree == found.f_ffree == found.f_favail == 0
    said = subprocess.run(["df", shown.plate], capture_output=True, text=True, timeout=10, check=True).stdout
    assert said.splitlines()[1].split()[3:] == ["0", "100%", str(shown.mount.path)]


@quotes("`user.damfs.digest` is the BLAKE3 digest of a file, as `b3sum` prints it, behind `b3:`.")
def test_digest(shown: Shown) -> None:
    assert os.getxattr(shown.plate, "user.damfs.digest").decode() == str(Digest.of(DATA))


@quotes("`user.damfs.revision`, `.publisher` and `.published` tell the revision that published a name, who, and when.")
def test_origin(shown: Shown) -> None:
    assert os.getxattr(shown.plate, "user.damfs.revision") == b"1"
    assert os.getxattr(shown.plate, "user.damfs.publisher")
    assert re.fullmatch(rb"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d.*", os.getxattr(shown.plate, "user.damfs.published"))
    assert os.getxattr(shown.live / "scripts", "user.damfs.revision") == b"2"


@quotes("`user.damfs.cached` is the part of a file that lies in this workstation's cache, in percent.")
def test_cached(shown: Shown) -> None:
    shown.plate.read_bytes()
    wait_until(lambda: os.getxattr(shown.plate, "user.damfs.cached") == b"100", "the file to be written into the cache")


@quotes("A `user.` attribute that is not there is ENODATA; other kinds, which `ls -l` asks for, are EOPNOTSUPP.")
def test_no_attribute(shown: Shown) -> None:
    for name in ("user.none", "security.selinux", "system.posix_acl_access", "user.damfs.none"):
        with pytest.raises(OSError) as caught:
            os.getxattr(shown.plate, name)
        assert caught.value.errno == (errno.ENODATA if name.startswith("user.") else errno.EOPNOTSUPP)
    assert "plate.exr" in subprocess.run(["ls", "-l", shown.plate.parent], capture_output=True, text=True, timeout=20,
                                         check=True).stdout  # fmt: skip


@quotes("A read returns exactly the bytes that were published, or EIO; it is short only at the end of the file.")
def test_reads(shown: Shown) -> None:
    descriptor = os.open(shown.plate, os.O_RDONLY)
    try:
        for offset, size in ((0, 1), (65_535, 2), (len(DATA) - 5, 100), (len(DATA), 1), (len(DATA) + 9, 5), (1, 2**21)):
            assert os.pread(descriptor, size, offset) == DATA[offset : offset + size]
    finally:
        os.close(descriptor)


@quotes("An open file keeps its bytes when its name moves on to a new version or is removed.")
def test_open_file(shown: Shown) -> None:
    publish_script(shown, b"held")
    with (shown.live / "scripts/comp.nk").open("rb") as held:
        publish_script(shown, b"moved on, and longer")
        assert held.read() == b"held"


@quotes("A file can be mapped; `mmap` shows the same bytes as `read`.")
def test_mmap(shown: Shown) -> None:
    with shown.plate.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
        assert view[:] == DATA


@quotes("`lseek` with SEEK_HOLE and SEEK_DATA sees a file without holes.")
def test_holes(shown: Shown) -> None:
    descriptor = os.open(shown.plate, os.O_RDONLY)
    try:
        assert os.lseek(descriptor, 0, os.SEEK_DATA) == 0
        assert os.lseek(descriptor, 0, os.SEEK_HOLE) == len(DATA)
    finally:
        os.close(descriptor)


@quotes("A folder cannot be read as a file: EISDIR.")
def test_folder_as_file(shown: Shown) -> None:
    descriptor = os.open(shown.live, os.O_RDONLY)
    try:
        with pytest.raises(IsADirectoryError):
            os.read(descriptor, 1)
    finally:
        os.close(descriptor)


@quotes("Reading a folder does not need the network.")
def test_folder_without_network(shown: Shown) -> None:
    library = Path(shown.user.url.removeprefix("file://"))
    hidden = library.rename(library.with_name("hidden"))
    try:
        assert "plate" in os.listdir(shown.live)
        assert os.stat(shown.plate).st_size == len(DATA)
        assert os.listdir(shown.mount.path / "apollo@1") == ["plate"]
    finally:
        hidden.rename(library)


@quotes("Every call that would change something is EROFS: the mount is read-only.")
def test_read_only(shown: Shown) -> None:
    for attempt in (
        lambda: shown.plate.write_bytes(b""),
        lambda: (shown.live / "new").mkdir(),
        lambda: shown.plate.unlink(),
        lambda: os.utime(shown.plate),
        lambda: os.link(shown.plate, shown.live / "link"),
    ):
        with pytest.raises(OSError) as caught:
            attempt()
        assert caught.value.errno == errno.EROFS


@quotes("Permissions are checked by the kernel against the published mode, the owner and the group.")
def test_permissions(shown: Shown) -> None:
    options = subprocess.run(["findmnt", "-n", "-o", "OPTIONS", shown.mount.path], capture_output=True, text=True,
                             timeout=10, check=True).stdout.strip().split(",")  # fmt: skip
    assert "default_permissions" in options
    assert not os.access(shown.plate, os.X_OK)


@quotes("A program on the mount does not get set-user-id rights, and device files do not exist.")
def test_nosuid(shown: Shown) -> None:
    options = subprocess.run(["findmnt", "-n", "-o", "VFS-OPTIONS", shown.mount.path], capture_output=True, text=True,
                             timeout=10, check=True).stdout.strip().split(",")  # fmt: skip
    assert {"ro", "nosuid", "nodev"} <= set(options)
    assert os.stat(shown.plate.parent / "sub/x").st_mode == 0o100755


@quotes("`flock` and `fcntl` locks are local to the machine.")
def test_locks(shown: Shown) -> None:
    with shown.plate.open("rb") as one, shown.plate.open("rb") as two:
        fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(BlockingIOError):
            fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(one, fcntl.LOCK_SH | fcntl.LOCK_NB)


@quotes(
    "Within one publish, symbolic links (tags) turn last: who sees a tag moved finds what it points to, even where "
    "that was looked up in vain a moment before."
)
def test_tags_turn_last(shown: Shown) -> None:
    """Whoever sees the new tag finds the whole version behind it, however often it is moved."""
    import threading

    stop = threading.Event()
    wrong: list[str] = []

    def watch() -> None:
        while not stop.is_set():
            target = os.readlink(shown.live / "plate/latest")
            if not (shown.live / "plate" / target).is_dir():
                wrong.append(target)
            os.path.lexists(shown.live / f"plate/v{int(target[1:]) + 1:03d}")

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for number in (2, 3, 4):
            source = write_tree(shown.user.folder / "next", {f"f{n}": b"%d" % number for n in range(50)})
            publish(shown, source, f"apollo:plate/v{number:03d}", "--tag", "latest")
    finally:
        stop.set()
        watcher.join(20)
    assert wrong == []
    assert os.readlink(shown.live / "plate/latest") == "v004"


@quotes("A working directory and a mount below a folder survive a publish into that folder.")
def test_bind_mount(shown: Shown, tmp_path: Path) -> None:
    scripts = os.open(shown.live / "scripts", os.O_RDONLY | os.O_DIRECTORY)
    done = subprocess.run(["mount", "--bind", shown.live / "scripts", tmp_path], check=False, timeout=10,
                          capture_output=True, text=True)  # fmt: skip
    if done.returncode:
        os.close(scripts)
        pytest.skip(f"no bind mounts here: {done.stderr.strip()}")
    try:
        publish_script(shown, b"below")
        assert (tmp_path / "comp.nk").read_bytes() == b"below"
        assert os.path.ismount(tmp_path)
        assert os.listdir(scripts) == ["comp.nk"]
    finally:
        os.close(scripts)
        subprocess.run(["umount", "-l", tmp_path], check=False, timeout=10)
