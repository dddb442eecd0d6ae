"""cat and export."""

from __future__ import annotations

import os
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest

from manifest.digest import Digest
from manifest.recipe import INLINE_CHUNKS_MAX
from tests.harness import DAMFS
from tests.tools import content
from tests.tools.content import CHUNK_BYTES, MTIME_NS, chunk_file, noise, publish
from tests.tools.test_library import error_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness import Studio

LARGE = noise(CHUNK_BYTES * (INLINE_CHUNKS_MAX + 40) + 17, 7)
"""Its recipe is an object of its own."""


@pytest.fixture
def plate(user: Studio) -> Studio:
    files: dict[str, bytes | str | int | None] = {
        "v001/large.mov": LARGE,
        "v001/empty": b"",
        "v001/sub/small.txt": b"a script\n",
        "v001/sub/link": "small.txt",
        "v001/closed": 0o500,
        "latest": "v001",
    }
    publish(user, files)
    return user


def cat(user: Studio, address: str) -> subprocess.CompletedProcess[bytes]:
    command = [*DAMFS, "cat", address]
    return subprocess.run(command, env=user.env(), cwd=user.folder, capture_output=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("path", "data"), [("v001/large.mov", LARGE), ("v001/empty", b""), ("latest/sub/link", b"a script\n")]
)
def test_cat_writes_the_bytes_that_were_published(plate: Studio, path: str, data: bytes) -> None:
    done = cat(plate, f"apollo:{path}")
    assert done.returncode == 0
    assert done.stdout == data


def test_cat_reads_the_past(plate: Studio) -> None:
    publish(plate, {"latest": None})
    assert cat(plate, "apollo@1:latest/sub/small.txt").stdout == b"a script\n"


def test_cat_of_a_folder_says_what_to_use(plate: Studio) -> None:
    assert "export" in error_of(plate, "cat", "apollo:v001", code=4)


def damage(user: Studio, how: str, data: bytes) -> None:
    file = chunk_file(user, "apollo", data)
    if how == "missing":
        file.unlink()
    else:
        whole = file.read_bytes()
        flipped = bytes([whole[0] ^ 1]) + whole[1:]
        file.write_bytes({"flipped": flipped, "truncated": whole[:-1], "empty": b""}[how])


@pytest.mark.parametrize("how", ["flipped", "truncated", "empty", "missing"])
def test_cat_never_writes_a_wrong_byte(plate: Studio, how: str) -> None:
    at = 10 * CHUNK_BYTES
    damage(plate, how, LARGE[at : at + CHUNK_BYTES])
    done = cat(plate, "apollo:v001/large.mov")
    assert done.returncode == 7
    assert LARGE[:at] == done.stdout
    assert b"chunks/" in done.stderr
    assert b"Traceback" not in done.stderr


def test_cat_tells_when_the_whole_file_is_not_what_was_claimed(user: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    data = noise(3 * CHUNK_BYTES)
    honest = content.put_chunks

    def swapped(*arguments: object) -> object:
        recipe = honest(*arguments)  # type: ignore[arg-type]
        return type(recipe).of(reversed([recipe[at] for at in range(len(recipe))]))

    monkeypatch.setattr(content, "put_chunks", swapped)
    publish(user, {"lie.mov": data})
    assert cat(user, "apollo:lie.mov").returncode == 7
    assert user.complete("export", "apollo:lie.mov", "out").returncode == 7
    assert list((user.folder / "out").iterdir()) == []


def test_cat_is_quiet_when_its_reader_has_enough(plate: Studio) -> None:
    with subprocess.Popen(
        [*DAMFS, "cat", "apollo:v001/large.mov"],
        env=plate.env(), cwd=plate.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        said = process.stderr.read()
        process.wait(30)
    assert said == b""
    assert process.returncode == 0


# ---------------------------------------------------------------------------- export


def test_export_writes_the_tree_with_modes_times_and_links(plate: Studio) -> None:
    out = plate.folder / "out/deeper"
    told = plate.json("export", "apollo:v001", out)
    assert told.keys() == {
        "show", "revision", "path", "folder", "files", "bytes", "skipped", "links", "folders", "failed"
    }  # fmt: skip
    assert (told["files"], told["links"], told["folders"], told["skipped"]) == (3, 1, 2, 0)
    assert (out / "large.mov").read_bytes() == LARGE
    assert (out / "sub/link").readlink().name == "small.txt"
    found = (out / "large.mov").stat()
    assert stat.S_IMODE(found.st_mode) == 0o640
    assert found.st_mtime_ns == MTIME_NS
    assert stat.S_IMODE((out / "closed").stat().st_mode) == 0o500


def test_export_of_a_file_lands_under_its_name(plate: Studio) -> None:
    plate.run("export", "apollo:latest/sub/small.txt", "out")
    assert (plate.folder / "out/small.txt").read_bytes() == b"a script\n"


def test_export_leaves_alone_what_is_right_and_replaces_what_is_not(plate: Studio) -> None:
    plate.run("export", "apollo:v001", "out")
    out = plate.folder / "out"
    kept = (out / "large.mov").stat().st_ino
    (out / "sub/small.txt").write_bytes(b"a scripT\n")
    os.utime(out / "large.mov", ns=(1, 1))
    told = plate.json("export", "apollo:v001", "out")
    assert (told["files"], told["skipped"]) == (1, 2)
    assert (out / "large.mov").stat().st_ino == kept
    assert (out / "large.mov").stat().st_mtime_ns == MTIME_NS
    assert (out / "sub/small.txt").read_bytes() == b"a script\n"


@pytest.mark.parametrize("how", ["flipped", "truncated", "empty"])
def test_export_never_leaves_half_a_file(plate: Studio, how: str) -> None:
    damage(plate, how, LARGE[-17:])
    done = plate.complete("export", "apollo:v001", "out")
    assert done.returncode == 7
    assert "large.mov" in done.stderr
    assert sorted(path.name for path in (plate.folder / "out").rglob("*")) == [
        "closed", "empty", "link", "small.txt", "sub"
    ]  # fmt: skip


def test_export_goes_on_after_the_store_was_repaired(plate: Studio) -> None:
    last = LARGE[-17:]
    damage(plate, "missing", last)
    assert plate.complete("export", "apollo:v001", "out").returncode == 7
    chunk_file(plate, "apollo", last).write_bytes(last)
    told = plate.json("export", "apollo:v001", "out")
    assert (told["files"], told["skipped"]) == (1, 2)


def test_export_does_not_write_through_a_link(plate: Studio, tmp_path: Path) -> None:
    out = plate.folder / "out"
    out.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (out / "sub").symlink_to(tmp_path / "elsewhere")
    error_of(plate, "export", "apollo:v001", "out", code=5)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    (out / "sub").unlink()
    (out / "large.mov").unlink(missing_ok=True)  # what was done before the error is there, as far as it came
    (out / "large.mov").symlink_to(tmp_path / "elsewhere/victim")
    plate.run("export", "apollo:v001", "out")
    assert not (out / "large.mov").is_symlink()
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_export_to_where_nothing_can_be_written_says_so(plate: Studio) -> None:
    (plate.folder / "file").write_text("")
    error_of(plate, "export", "apollo:v001", "file/below", code=3)


@pytest.mark.parametrize("command", [("cat", "apollo:v001/empty"), ("export", "apollo", "out"), ("verify",)])
def test_bytes_of_a_library_that_is_not_reachable_are_told_why(plate: Studio, command: tuple[str, ...]) -> None:
    plate.run("ls", "apollo")
    (plate.folder / "library").rename(plate.folder / "elsewhere")
    message = error_of(plate, *command, code=6)
    assert message.endswith("is its file system mounted?\n")


@pytest.fixture
def small_disk(plate: Studio) -> Iterator[Path]:
    """A file system of 100 KiB at ``disk``, which only root can mount."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts a file system")
    path = plate.folder / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "damfs-test", path], check=True, timeout=20)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True, timeout=20)


def test_export_to_a_read_only_disk_says_what_to_do_in_one_line(plate: Studio, small_disk: Path) -> None:
    (small_disk / "there").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True, timeout=20)
    for folder in ("new", "there", "."):
        message = error_of(plate, "export", "apollo:v001", small_disk / folder, code=3)
        assert "Read-only file system; its file system is read-only: name a folder on another one" in message
        assert len(message.splitlines()) == 1


def test_export_to_a_full_disk_ends_at_once_and_leaves_no_half_file(plate: Studio, small_disk: Path) -> None:
    message = error_of(plate, "export", "apollo:v001", small_disk, code=3)
    assert "No space left on device; make room there" in message
    assert not (small_disk / "large.mov").exists()
    assert list(small_disk.rglob(".damfs-*")) == []


def test_the_same_on_s3(s3_user: Studio) -> None:
    publish(s3_user, {"v001/large.mov": LARGE}, endpoint=s3_user.environment["AWS_ENDPOINT_URL_S3"])
    assert Digest.of(cat(s3_user, "apollo:v001/large.mov").stdout) == Digest.of(LARGE)
    assert s3_user.json("export", "apollo", "out")["bytes"] == len(LARGE)
    assert s3_user.json("verify")["ok"] is True
