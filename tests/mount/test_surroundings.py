"""What lies around a command must not change what it does: the folder, the umask, closed outputs, full disks."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from manifest.errors import StoreFull
from manifest.library import Library
from tests.harness import DAMFS, Studio
from tests.mount.conftest import write_tree


def in_folder(user: Studio, folder: Path, line: str) -> subprocess.CompletedProcess[str]:
    """Run a shell line in a folder, with ``damfs`` standing for the command."""
    command = line.replace("damfs", " ".join([*DAMFS[:1], "-P", *DAMFS[1:]]))
    return subprocess.run(["sh", "-c", command], cwd=folder, env=user.env(), capture_output=True, text=True, timeout=60,
                          check=False)  # fmt: skip


def test_nothing_in_the_current_folder_is_taken_for_the_daemon(artist: Studio) -> None:
    trap = write_tree(artist.folder / "trap", {"daemon/__init__.py": b"", "daemon/__main__.py": b"raise SystemExit(5)",
                                               "queue.py": b"raise SystemExit(6)"})  # fmt: skip
    mountpoint = artist.folder / "mnt"
    mountpoint.mkdir()
    done = in_folder(artist, trap, f"damfs mount {mountpoint}")
    try:
        assert (done.returncode, done.stderr) == (0, "")
        assert os.listdir(mountpoint) == ["apollo"]
    finally:
        artist.run("umount", mountpoint)


def test_what_is_published_can_be_read_by_whoever_may_read_the_library(artist: Studio) -> None:
    write_tree(artist.folder, {"plate.exr": b"bytes"})
    library = Path(artist.url.removeprefix("file://"))
    library.chmod(0o755)
    done = in_folder(artist, artist.folder, "umask 077; damfs publish plate.exr apollo:v001")
    assert done.returncode == 0, done.stderr
    modes = {path.stat().st_mode & 0o777 for path in (library / "shows/apollo/log").iterdir()}
    modes |= {path.stat().st_mode & 0o777 for path in (library / "shows/apollo/chunks").rglob("*") if path.is_file()}
    assert modes == {0o644}


def test_a_sync_behind_a_dead_daemon_is_unreachable_and_not_unmounted(artist: Studio) -> None:
    artist.mount().kill()
    done = artist.complete("sync", "apollo", "--timeout", "2")
    assert done.returncode == 6
    assert "does not answer" in done.stderr


def test_a_path_of_hundreds_of_folders_is_published(artist: Studio) -> None:
    write_tree(artist.folder, {"plate.exr": b"bytes"})
    deep = "a/" * 900
    artist.run("publish", artist.folder / "plate.exr", f"apollo:{deep}v001")
    assert artist.run("cat", f"apollo:{deep}v001/plate.exr") == "bytes"


@pytest.mark.parametrize(
    ("line", "code"), [("damfs ls apollo >/dev/full", 3), ("damfs show ls >&-", 0), ("damfs ls apollo >&-", 0)]
)
def test_an_output_that_takes_nothing_is_no_bug(artist: Studio, line: str, code: int) -> None:
    write_tree(artist.folder, {"plate.exr": b"bytes"})
    artist.run("publish", artist.folder / "plate.exr", "apollo:v001")
    done = in_folder(artist, artist.folder, line)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "bug" not in done.stderr


def test_a_library_cannot_be_a_file(artist: Studio) -> None:
    write_tree(artist.folder, {"file": b""})
    done = artist.complete("init", artist.folder / "file")
    assert done.returncode == 3
    assert "no folder" in done.stderr


def test_a_full_store_is_told_at_once(tmp_path: Path) -> None:
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], check=False, timeout=10,
                          capture_output=True, text=True)  # fmt: skip
    if done.returncode:
        pytest.skip(f"no tmpfs here: {done.stderr.strip()}")
    try:
        write_tree(tmp_path, {"damfs.json": b"{}"})
        with pytest.raises(StoreFull, match="No space left"):
            Library.open(f"file://{tmp_path}").put("shows/apollo/chunks/aa/x", os.urandom(3_000_000))
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=False, timeout=10)
