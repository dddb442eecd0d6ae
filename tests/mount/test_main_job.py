"""Publish, mount, open in an unmodified program, and get exactly what was published."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from manifest.digest import Digest
from tests import media
from tests.harness import Studio, wait_until
from tests.mount.conftest import random_bytes, write_tree

PLATE = "seq010/sh020/plate"


def publish_plates(user: Studio, plates: Path) -> None:
    for version in ("v001", "v002"):
        user.run("publish", plates / version, f"apollo:{PLATE}/{version}", "--tag", "latest", "-m", version)


def files_below(folder: Path) -> dict[str, Digest]:
    return {str(path.relative_to(folder)): Digest.of_file(path) for path in folder.rglob("*") if path.is_file()}


def test_every_file_reads_as_it_was_published_cold_and_warm(user: Studio, plates: Path) -> None:
    publish_plates(user, plates)
    root = user.mount().path / "apollo" / PLATE
    for version in ("v001", "v002"):
        expected = files_below(plates / version)
        assert files_below(root / version) == expected
        assert files_below(root / version) == expected
    assert os.readlink(root / "latest") == "v002"
    assert files_below(root / "latest") == files_below(plates / "v002")


def test_ffmpeg_decodes_the_plate_and_the_movie_to_the_same_frames(artist: Studio, plates: Path) -> None:
    publish_plates(artist, plates)
    root = artist.mount().path / "apollo" / PLATE / "v002"
    for name, start in (("dpx/sh020_plate.%04d.dpx", 1001), ("exr/sh020_beauty.%04d.exr", 1001)):
        checksums = media.frame_checksums(root / name, start=start)
        assert len(checksums) > 1
        assert checksums == media.frame_checksums(plates / "v002" / name, start=start)
    movie = media.frame_checksums(root / "sh020_plate.mov")
    assert len(movie) == media.SMALL.movie_frames
    assert movie == media.frame_checksums(plates / "v002/sh020_plate.mov")
    probe = subprocess.run(
        ["ffprobe", "-v", "error", "-show_entries", "stream=codec_name,nb_frames", "-of", "csv=p=0",
         root / "sh020_plate.mov"], capture_output=True, text=True, timeout=30, check=True)  # fmt: skip
    assert probe.stdout.strip() == f"prores,{media.SMALL.movie_frames}"


def test_the_digest_attribute_is_what_b3sum_prints(artist: Studio, plates: Path) -> None:
    publish_plates(artist, plates)
    path = artist.mount().path / "apollo" / PLATE / "v001/sh020_plate.mov"
    printed = str(Digest.of_file(plates / "v001/sh020_plate.mov"))
    if shutil.which("b3sum"):
        done = subprocess.run(["b3sum", "--no-names", path], capture_output=True, text=True, timeout=30, check=True)
        assert f"b3:{done.stdout.strip()}" == printed
    assert os.getxattr(path, "user.damfs.digest").decode() == printed


def test_the_attributes_tell_who_published_what_and_how_much_is_cached(artist: Studio, plates: Path) -> None:
    publish_plates(artist, plates)
    path = artist.mount().path / "apollo" / PLATE / "v002/sh020_plate.mov"
    names = set(os.listxattr(path))
    assert names == {f"user.damfs.{name}" for name in ("digest", "revision", "publisher", "published", "cached")}
    assert os.getxattr(path, "user.damfs.revision") == b"2"
    assert os.getxattr(path, "user.damfs.publisher")
    assert os.getxattr(path, "user.damfs.published").startswith(b"20")
    assert os.getxattr(path, "user.damfs.cached") == b"0"
    path.read_bytes()
    wait_until(lambda: os.getxattr(path, "user.damfs.cached") == b"100", "the file to be written into the cache")


def test_modes_times_links_and_sizes_are_kept(artist: Studio, tmp_path: Path) -> None:
    source = write_tree(tmp_path / "source", {"render.sh": b"#!/bin/sh\n", "a/plate.exr": random_bytes(100_000)})
    (source / "render.sh").chmod(0o755)
    os.utime(source / "a/plate.exr", ns=(1, 1_700_000_000_123_456_789))
    (source / "current.exr").symlink_to("a/plate.exr")
    artist.run("publish", source, "apollo:seq/v001")
    root = artist.mount().path / "apollo/seq/v001"
    script = (root / "render.sh").stat()
    assert stat.S_IMODE(script.st_mode) == 0o755
    assert (script.st_uid, script.st_gid) == (os.getuid(), os.getgid())
    plate = (root / "a/plate.exr").stat()
    assert (plate.st_mtime_ns, plate.st_size, plate.st_nlink) == (1_700_000_000_123_456_789, 100_000, 1)
    assert os.readlink(root / "current.exr") == "a/plate.exr"
    assert (root / "current.exr").read_bytes() == random_bytes(100_000)
    folder = root.stat()
    assert stat.S_ISDIR(folder.st_mode)
    assert folder.st_nlink == 1
    assert abs(folder.st_mtime - time.time()) < 300


def test_df_is_sensible_and_the_type_is_damfs(artist: Studio, tmp_path: Path) -> None:
    source = write_tree(tmp_path / "source", {"plate.exr": random_bytes(5_000_000)})
    artist.run("publish", source, "apollo:v001")
    mount = artist.mount()
    numbers = os.statvfs(mount.path)
    assert numbers.f_blocks * numbers.f_frsize >= 5_000_000
    assert numbers.f_bavail <= numbers.f_blocks
    assert numbers.f_namemax == 255
    shown = subprocess.run(["findmnt", "-n", "-o", "FSTYPE", mount.path], capture_output=True, text=True, timeout=10,
                           check=True)  # fmt: skip
    assert shown.stdout.strip() == "fuse.damfs"


def test_a_pinned_view_never_changes(user: Studio, tmp_path: Path) -> None:
    write_tree(tmp_path / "source", {"comp.nk": b"one"})
    user.run("publish", tmp_path / "source/comp.nk", "apollo:scripts")
    mount = user.mount()
    assert (mount.path / "apollo@1/scripts/comp.nk").read_bytes() == b"one"
    write_tree(tmp_path / "source", {"comp.nk": b"two!", "more.nk": b"more"})
    user.run("publish", tmp_path / "source/comp.nk", tmp_path / "source/more.nk", "apollo:scripts")
    user.run("sync", "apollo", "--at-least", "2")
    assert (mount.path / "apollo/scripts/comp.nk").read_bytes() == b"two!"
    assert (mount.path / "apollo@1/scripts/comp.nk").read_bytes() == b"one"
    assert os.listdir(mount.path / "apollo@1/scripts") == ["comp.nk"]
    assert os.listdir(mount.path) == ["apollo"]
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 60))
    assert os.readlink(mount.path / f"apollo@{now}") == "apollo@2"
    with pytest.raises(FileNotFoundError):
        (mount.path / "apollo@99").stat()


def test_a_view_above_the_head_is_there_once_it_was_published(artist: Studio, tmp_path: Path) -> None:
    write_tree(tmp_path / "source", {"a": b"1"})
    artist.run("publish", tmp_path / "source", "apollo:v001")
    mount = artist.mount()
    with pytest.raises(FileNotFoundError):
        (mount.path / "apollo@2").stat()
    artist.run("publish", tmp_path / "source", "apollo:v002")
    assert (mount.path / "apollo@2/v002/a").read_bytes() == b"1"


@pytest.mark.alone
def test_a_publish_of_1000_files_is_seen_within_two_seconds(user: Studio, tmp_path: Path) -> None:
    mount = user.mount()
    assert os.listdir(mount.path / "apollo") == []
    source = write_tree(tmp_path / "source", {f"tex.{n}.txt": b"%d" % n for n in range(1000)})
    user.run("publish", source, "apollo:tex/v001")
    started = time.monotonic()
    wait_until(lambda: (mount.path / "apollo/tex/v001/tex.999.txt").exists(), "the publish to be seen", 2.0)
    assert len(os.listdir(mount.path / "apollo/tex/v001")) == 1000
    assert time.monotonic() - started < 2.0


def test_an_open_file_keeps_its_bytes_while_its_name_moves_on(artist: Studio, tmp_path: Path) -> None:
    old, new = random_bytes(3_000_000, 1), random_bytes(3_000_000, 2)
    write_tree(tmp_path, {"comp.nk": old})
    artist.run("publish", tmp_path / "comp.nk", "apollo:scripts")
    mount = artist.mount()
    path = mount.path / "apollo/scripts/comp.nk"
    with path.open("rb") as held:
        assert held.read(10) == old[:10]
        write_tree(tmp_path, {"comp.nk": new})
        artist.run("publish", tmp_path / "comp.nk", "apollo:scripts")
        artist.run("sync", "apollo", "--at-least", "2")
        assert path.read_bytes() == new
        held.seek(0)
        assert held.read() == old
        assert os.fstat(held.fileno()).st_size == len(old)


def test_a_removed_path_is_gone_and_stays_in_the_older_view(artist: Studio, tmp_path: Path) -> None:
    source = write_tree(tmp_path / "source", {"a/one": b"1", "a/two": b"2"})
    artist.run("publish", source, "apollo:shot/v001")
    mount = artist.mount()
    assert (mount.path / "apollo/shot/v001/a/one").read_bytes() == b"1"
    artist.run("rm", "apollo:shot/v001")
    artist.run("sync", "apollo", "--at-least", "2")
    assert os.listdir(mount.path / "apollo/shot") == []
    assert not (mount.path / "apollo/shot/v001/a/one").exists()
    assert (mount.path / "apollo@1/shot/v001/a/one").read_bytes() == b"1"


def test_the_mount_refuses_every_write(artist: Studio, tmp_path: Path) -> None:
    write_tree(tmp_path, {"file": b"bytes"})
    artist.run("publish", tmp_path / "file", "apollo:v001")
    root = artist.mount().path / "apollo/v001"
    attempts: list[Callable[[], object]] = [
        lambda: (root / "file").write_bytes(b"x"),
        lambda: (root / "new").write_bytes(b"x"),
        lambda: (root / "file").unlink(),
        lambda: (root / "file").rename(root / "other"),
        lambda: (root / "folder").mkdir(),
        lambda: (root / "link").symlink_to("file"),
        lambda: (root / "file").chmod(0o600),
        lambda: os.truncate(root / "file", 0),
        lambda: os.setxattr(root / "file", "user.x", b"x"),
    ]
    for attempt in attempts:
        with pytest.raises(OSError, match="Read-only file system"):
            attempt()
    assert (root / "file").read_bytes() == b"bytes"


def test_mapped_and_random_reads_are_right(artist: Studio, tmp_path: Path) -> None:
    import mmap
    import random

    data = random_bytes(20_000_000)
    write_tree(tmp_path, {"cache.vdb": data, "movie.mov": data})
    artist.run("publish", tmp_path / "cache.vdb", tmp_path / "movie.mov", "apollo:v001")
    root = artist.mount().path / "apollo/v001"
    choices = random.Random(7)
    for name in ("cache.vdb", "movie.mov"):
        with (root / name).open("rb") as file:
            for _ in range(200):
                offset, size = choices.randrange(len(data)), choices.randrange(1, 300_000)
                assert os.pread(file.fileno(), size, offset) == data[offset : offset + size]
            assert os.pread(file.fileno(), 10, len(data)) == b""
        with (root / name).open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
            assert view[:] == data


def test_a_mount_can_be_ended_and_made_again_and_keeps_its_cache(artist: Studio, tmp_path: Path) -> None:
    write_tree(tmp_path, {"plate.exr": random_bytes(3_000_000)})
    artist.run("publish", tmp_path / "plate.exr", "apollo:v001")
    mount = artist.mount()
    (mount.path / "apollo/v001/plate.exr").read_bytes()
    artist.unmount(mount)
    assert os.listdir(mount.path) == []
    mount = artist.mount()
    path = mount.path / "apollo/v001/plate.exr"
    assert os.getxattr(path, "user.damfs.cached") == b"100"
    assert path.read_bytes() == random_bytes(3_000_000)
    assert mount.status()["cache"]["misses"] == 0
