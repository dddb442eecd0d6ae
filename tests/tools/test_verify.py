"""verify."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from manifest.recipe import INLINE_CHUNKS_MAX
from tests.tools.content import CHUNK_BYTES, chunk_file, noise, publish
from tests.tools.test_export import damage
from tests.tools.test_library import error_of

if TYPE_CHECKING:
    from tests.harness import Studio

LARGE = noise(CHUNK_BYTES * (INLINE_CHUNKS_MAX + 1), 3)


@pytest.fixture
def plate(user: Studio) -> Studio:
    publish(user, {"a.mov": LARGE, "b.txt": b"one", "c.txt": b"one"})
    publish(user, {"a.mov": LARGE[:-1], "b.txt": None})
    return user


def test_a_sound_library_is_all_right(plate: Studio) -> None:
    plate.run("show", "add", "zephyr")
    told = plate.json("verify")
    assert told["ok"] is True
    assert [one["show"] for one in told["shows"]] == ["apollo", "zephyr"]
    assert told["shows"][0].keys() == {"show", "revision", "chunks", "recipes", "bytes", "bad"}


def test_every_distinct_chunk_is_counted_once(plate: Studio) -> None:
    (told,) = plate.json("verify", "apollo@1")["shows"]
    assert told["chunks"] == INLINE_CHUNKS_MAX + 2
    assert told["recipes"] == 1
    assert told["bytes"] == len(LARGE) + 3
    assert told["revision"] == 1


@pytest.mark.parametrize("how", ["flipped", "truncated", "empty", "missing"])
def test_a_bad_chunk_is_reported_with_the_paths_that_use_it(plate: Studio, how: str) -> None:
    damage(plate, how, b"one")
    done = plate.complete("verify", "apollo@1", "--json")
    assert done.returncode == 7
    told = json.loads(done.stdout)
    assert told["ok"] is False
    (bad,) = told["shows"][0]["bad"]
    assert bad["kind"] == "chunk"
    assert bad["paths"] == ["b.txt", "c.txt"]
    assert bad["object"].startswith("shows/apollo/chunks/")
    said = plate.complete("verify", "apollo@1").stderr
    assert "b.txt" in said
    assert "Traceback" not in said


def test_a_bad_chunk_of_a_large_file_is_reported(plate: Studio) -> None:
    damage(plate, "flipped", LARGE[:CHUNK_BYTES])
    done = plate.complete("verify")
    assert done.returncode == 7
    assert "a.mov" in done.stderr


def test_a_missing_recipe_is_reported_with_its_path(plate: Studio) -> None:
    for file in (plate.folder / "library/shows/apollo/recipes").iterdir():
        file.unlink()
    done = plate.complete("verify", "--json")
    assert done.returncode == 7
    (bad,) = json.loads(done.stdout)["shows"][0]["bad"]
    assert (bad["kind"], bad["paths"]) == ("recipe", ["a.mov"])


@pytest.mark.parametrize("how", ["flipped", "truncated", "empty", "other"])
def test_a_damaged_recipe_is_reported_with_its_path(plate: Studio, how: str) -> None:
    for file in (plate.folder / "library/shows/apollo/recipes").iterdir():
        data = file.read_bytes()
        damaged = {"flipped": data[:-1] + bytes([data[-1] ^ 1]), "truncated": data[:-7], "empty": b"", "other": b"[]"}
        file.write_bytes(damaged[how])
    done = plate.complete("verify", "apollo@1", "--json")
    assert done.returncode == 7
    told = json.loads(done.stdout)
    (bad,) = told["shows"][0]["bad"]
    assert (bad["kind"], bad["paths"]) == ("recipe", ["a.mov"])
    assert bad["object"].startswith("shows/apollo/recipes/")
    assert "digest" in bad["problem"]
    assert told["error"]["message"].startswith("1 object missing or wrong: ")


def test_what_an_older_revision_needs_is_not_missed_at_the_head(plate: Studio) -> None:
    chunk_file(plate, "apollo", LARGE[-CHUNK_BYTES:]).unlink()
    assert plate.json("verify", "apollo")["ok"] is True
    assert plate.complete("verify", "apollo@1").returncode == 7


def test_a_part_of_a_show_is_not_verified(plate: Studio) -> None:
    error_of(plate, "verify", "apollo:a.mov", code=2)


def test_a_show_that_is_not_there_is_not_found(plate: Studio) -> None:
    error_of(plate, "verify", "zephyr", code=4)
