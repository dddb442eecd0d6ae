"""What is wrong in the store never reaches a reader, is told by name, and heals without a remount."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from manifest.library import Library
from manifest.recipe import Recipe
from tests.harness import Studio, wait_until
from tests.mount.conftest import library_of, random_bytes, read_error, write_tree

DATA = random_bytes(3_000_000)


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes | None]] = {
    "flipped": flipped,
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda _: b"",
    "longer": lambda data: data + b"x",
    "missing": lambda _: None,
}


def chunks(library: Library) -> list[str]:
    """The keys of all chunks, the largest first."""
    found = [(size, key) for key, size in library.list("shows/apollo/chunks/", timeout_s=20)]
    assert found
    return [key for _, key in sorted(found, reverse=True)]


def damage(library: Library, key: str, how: str) -> bytes:
    """Damage one object; returns what it was."""
    whole = library.get(key, timeout_s=20)
    damaged = DAMAGE[how](whole)
    if damaged is None:
        library.delete(key, timeout_s=20)
    else:
        library.put(key, damaged, timeout_s=20)
    return whole


def test_a_damaged_chunk_is_an_error_is_named_in_the_log_and_heals(
    user: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each way to be damaged hits a file of its own."""
    library = library_of(user, monkeypatch)
    files = {f"{how}.exr": random_bytes(3_000_000, number) for number, how in enumerate(DAMAGE)}
    keys: dict[str, str] = {}
    for name, data in files.items():
        before = set(chunks(library)) if keys else set()
        write_tree(tmp_path, {name: data})
        user.run("publish", tmp_path / name, "apollo:plates")
        keys[name] = next(key for key in chunks(library) if key not in before)
    whole = {name: damage(library, keys[name], name.partition(".")[0]) for name in files}
    folder = user.mount("-v").path / "apollo/plates"
    for name, data in files.items():
        assert read_error(folder / name) == errno.EIO, name
        digest = keys[name].rpartition("/")[2]
        lines = [line for line in user.log().splitlines() if digest in line and f"plates/{name}" in line]
        assert lines, f"no log line names the chunk and the path {name}"
        assert "apollo" in lines[0]
        assert "central" in lines[0]
        library.put(keys[name], whole[name], timeout_s=20)
        wait_until(lambda name=name: read_error(folder / name) == 0, f"the repair of {name} to be seen", 5)  # type: ignore[misc]
        assert (folder / name).read_bytes() == data


def test_a_damaged_small_file_is_an_error_and_heals(
    user: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tree(tmp_path, {"comp.nk": b"a small script\n"})
    user.run("publish", tmp_path / "comp.nk", "apollo:v001")
    library = library_of(user, monkeypatch)
    key = chunks(library)[0]
    whole = damage(library, key, "flipped")
    path = user.mount().path / "apollo/v001/comp.nk"
    assert read_error(path) == errno.EIO
    library.put(key, whole, timeout_s=20)
    wait_until(lambda: read_error(path) == 0, "the repair to be seen", 5)
    assert path.read_bytes() == b"a small script\n"


def test_verify_names_what_is_damaged(user: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tree(tmp_path, {"plate.exr": DATA, "other.exr": random_bytes(100_000, 3)})
    user.run("publish", tmp_path / "plate.exr", tmp_path / "other.exr", "apollo:v001")
    assert user.run("verify")
    library = library_of(user, monkeypatch)
    key = chunks(library)[0]
    damage(library, key, "flipped")
    done = user.complete("verify", "apollo")
    assert done.returncode == 7
    assert "v001/plate.exr" in done.stdout + done.stderr
    assert key.rpartition("/")[2] in done.stdout + done.stderr
    assert "other.exr" not in done.stdout + done.stderr


def test_a_damaged_recipe_is_an_error_and_heals(
    artist: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = random_bytes(30_000_000)
    write_tree(tmp_path, {"cache.vdb": data})
    artist.run("publish", tmp_path / "cache.vdb", "apollo:v001")
    library = library_of(artist, monkeypatch)
    key = next(key for key, _ in library.list("shows/apollo/recipes/", timeout_s=20))
    assert len(Recipe.from_object(library.get(key, timeout_s=20))) > 64
    whole = damage(library, key, "flipped")
    path = artist.mount().path / "apollo/v001/cache.vdb"
    assert path.stat().st_size == len(data)
    assert read_error(path) == errno.EIO
    library.put(key, whole, timeout_s=20)
    wait_until(lambda: read_error(path) == 0, "the repair to be seen", 5)
    assert path.read_bytes() == data


def test_two_shows_with_the_same_row_numbers_never_mix(artist: Studio, tmp_path: Path) -> None:
    artist.run("show", "add", "gemini")
    for show in ("apollo", "gemini"):
        write_tree(tmp_path / show, {f"{n}.txt": f"{show} {n}".encode() * (n * 20_000 + 1) for n in range(4)})
        artist.run("publish", tmp_path / show, f"{show}:v001")
    mount = artist.mount()
    for _ in range(2):
        for n in range(4):
            for show in ("apollo", "gemini"):
                path = mount.path / show / "v001" / f"{n}.txt"
                assert path.read_bytes() == (tmp_path / show / f"{n}.txt").read_bytes()
    inodes = [os.stat(mount.path / show / "v001" / "1.txt").st_ino for show in ("apollo", "gemini")]
    assert inodes[0] != inodes[1]


def test_a_chunk_of_one_show_is_not_read_through_another(
    artist: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artist.run("show", "add", "gemini")
    write_tree(tmp_path, {"plate.exr": DATA})
    artist.run("publish", tmp_path / "plate.exr", "apollo:v001")
    artist.run("publish", tmp_path / "plate.exr", "gemini:v001")
    library = library_of(artist, monkeypatch)
    for key in chunks(library):
        library.delete(key, timeout_s=20)
    mount = artist.mount()
    assert (mount.path / "gemini/v001/plate.exr").read_bytes() == DATA
    assert read_error(mount.path / "apollo/v001/plate.exr") == errno.EIO
