"""init, show and key."""

from __future__ import annotations

import json
import shutil
import stat
import time
from typing import TYPE_CHECKING

import pytest

from manifest.trust import PinnedKeys
from tests import stores
from tests.harness import Studio, studio

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def error_of(user: Studio, *arguments: str | Path, code: int) -> str:
    """What the command says on stderr: one or two lines, no traceback."""
    done = user.complete(*arguments)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line]
    assert 1 <= len(lines) <= 2, done.stderr
    assert lines[0].startswith("damfs: ")
    return done.stderr


def test_init_prints_the_trust_file_alone_on_stdout(newcomer: Studio) -> None:
    printed = newcomer.run("init", newcomer.url)
    trust = PinnedKeys.from_bytes(printed.encode())
    assert newcomer.json("key", "show")["keyid"] in trust.keyids


def test_init_makes_a_key_that_only_its_owner_can_read(newcomer: Studio) -> None:
    newcomer.run("init", newcomer.url)
    key = newcomer.folder / "config/damfs/key.pem"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_init_uses_the_key_that_is_there(newcomer: Studio) -> None:
    newcomer.run("key", "new")
    keyid = newcomer.json("key", "show")["keyid"]
    made = newcomer.json("init", newcomer.url)
    assert made["keyid"] == keyid
    assert made["key_made"] is False


def test_init_tells_scripts_what_it_made(newcomer: Studio) -> None:
    made = newcomer.json("init", newcomer.url, "--show", "apollo", "--show", "zephyr")
    assert made.keys() == {
        "library", "id", "shows", "keyid", "key_path", "key_made", "trust_path", "trust"
    }  # fmt: skip
    assert made["shows"] == ["apollo", "zephyr"]
    assert json.loads(made["trust"])["library"] == made["id"]


def test_init_overwrites_no_trust_file_and_then_makes_nothing(newcomer: Studio) -> None:
    trust = newcomer.folder / "trust.json"
    printed = newcomer.run("init", newcomer.folder / "first", "--trust", trust)
    assert trust.read_text() == printed
    assert str(trust) in error_of(newcomer, "init", newcomer.url, "--trust", trust, code=5)
    assert trust.read_text() == printed
    assert not (newcomer.folder / "library").exists()


def test_init_leaves_no_temporary_file(newcomer: Studio) -> None:
    made = newcomer.json("init", newcomer.url)
    assert [str(path) for path in (newcomer.folder / "config/damfs/trust").iterdir()] == [made["trust_path"]]


def test_a_library_that_cannot_be_remembered_is_used_all_the_same(user: Studio) -> None:
    shutil.rmtree(user.folder / "cache")
    (user.folder / "cache").write_text("no folder")
    assert user.run("show", "ls") == "apollo\n"


def test_init_takes_the_path_of_a_folder(newcomer: Studio) -> None:
    folder = newcomer.folder / "a folder"
    assert newcomer.json("init", folder)["library"] == folder.as_uri()
    assert newcomer.json("show", "ls", "--library", str(folder))["shows"] == []


def test_the_next_command_needs_no_trust_option(anybody: Studio) -> None:
    assert anybody.run("ls", "apollo") == ""


def test_init_of_a_library_that_is_there_is_a_conflict(user: Studio) -> None:
    assert "already" in error_of(user, "init", user.url, code=5)


def test_init_with_a_show_of_a_library_that_is_there_names_show_add(user: Studio) -> None:
    assert "damfs show add zephyr" in error_of(user, "init", user.url, "--show", "zephyr", code=5)


def test_init_refuses_a_folder_that_holds_other_things(newcomer: Studio) -> None:
    folder = newcomer.folder / "library"
    (folder / "thesis").mkdir(parents=True)
    (folder / ".hidden").write_text("x")
    message = error_of(newcomer, "init", newcomer.url, code=5)
    assert "not empty: it holds '.hidden', 'thesis'" in message
    assert sorted(path.name for path in folder.iterdir()) == [".hidden", "thesis"]


def test_init_refuses_what_looks_like_a_library_without_its_identity(user: Studio) -> None:
    (user.folder / "library/damfs.json").unlink()
    assert "restore it from a copy" in error_of(user, "init", user.url, code=5)


def test_init_takes_a_folder_that_holds_nothing_of_anybody(newcomer: Studio) -> None:
    for name in ("lost+found", ".snapshot", "probe"):
        (newcomer.folder / "library" / name).mkdir(parents=True)
    newcomer.run("init", newcomer.url)


def test_init_refuses_a_prefix_of_a_bucket_that_holds_other_things(tmp_path: Path, s3_server: stores.Server) -> None:
    bucket = s3_server.new_bucket()
    environment = {**stores.ENVIRONMENT, "AWS_ENDPOINT_URL_S3": s3_server.endpoint}
    with studio(tmp_path / "s", f"s3://{bucket}/dam", **environment) as user:
        user.run("init", user.url)
        assert "it holds 'dam'" in error_of(user, "init", f"s3://{bucket}", code=5)
        user.run("init", f"s3://{bucket}/da")


def test_init_with_a_bad_show_makes_nothing(newcomer: Studio) -> None:
    error_of(newcomer, "init", newcomer.url, "--show", "Apollo!", code=2)
    assert not (newcomer.folder / "library").exists()


def test_a_store_that_ignores_conditions_is_refused_at_init(tmp_path: Path) -> None:
    (tmp_path / "buckets/dam").mkdir(parents=True)
    with (
        stores.rclone_server(tmp_path / "buckets") as server,
        studio(tmp_path / "s", "s3://dam", **stores.ENVIRONMENT, AWS_ENDPOINT_URL_S3=server.endpoint) as user,
    ):
        done = user.complete("init", user.url)
    assert done.returncode == 3
    assert "condition" in done.stderr


def test_init_on_s3_takes_its_endpoint_as_an_option(tmp_path: Path, s3_server: stores.Server) -> None:
    with studio(tmp_path / "s", f"s3://{s3_server.new_bucket()}", **stores.ENVIRONMENT) as user:
        user.run("init", user.url, "--show", "apollo", "--endpoint", s3_server.endpoint, "--region", "eu-west-1")
        assert user.run("show", "ls", "--endpoint", s3_server.endpoint) == "apollo\n"


def test_shows_are_added_and_listed(anybody: Studio) -> None:
    assert anybody.json("show", "add", "zephyr")["added"] == ["zephyr"]
    assert anybody.json("show", "ls")["shows"] == [{"show": "apollo"}, {"show": "zephyr"}]
    assert anybody.run("show", "ls") == "apollo\nzephyr\n"


def test_a_show_that_is_there_is_not_added_again(anybody: Studio) -> None:
    assert "already" in error_of(anybody, "show", "add", "apollo", code=5)


def test_of_several_shows_all_are_made_or_none(anybody: Studio) -> None:
    assert "damfs show add zephyr" in error_of(anybody, "show", "add", "zephyr", "apollo", code=5)
    assert anybody.run("show", "ls") == "apollo\n"


def test_a_bad_show_name_is_a_usage_error(user: Studio) -> None:
    error_of(user, "show", "add", "No Show", code=2)


def test_an_existing_key_is_never_overwritten(user: Studio) -> None:
    key = user.folder / "config/damfs/key.pem"
    before = key.read_bytes()
    error_of(user, "key", "new", code=5)
    assert key.read_bytes() == before


def test_a_key_is_made_where_the_option_says(newcomer: Studio) -> None:
    path = newcomer.folder / "keys/mine.pem"
    made = newcomer.json("key", "new", "--key", path)
    assert made.keys() == {"path", "keyid", "public"}
    assert newcomer.json("key", "show", "--key", path) == made


def test_a_missing_key_says_how_to_make_one(newcomer: Studio) -> None:
    assert "damfs key new" in error_of(newcomer, "key", "show", code=3)


def test_a_key_that_others_can_read_is_refused(user: Studio) -> None:
    (user.folder / "config/damfs/key.pem").chmod(0o644)
    assert "chmod 600" in error_of(user, "key", "show", code=3)


# ---------------------------------------------------------------------------- what is wrong with a library


def test_a_folder_without_a_library_is_not_found(newcomer: Studio) -> None:
    (newcomer.folder / "library").mkdir()
    assert "damfs init" in error_of(newcomer, "show", "ls", code=4)


def test_a_missing_folder_is_unreachable(newcomer: Studio) -> None:
    error_of(newcomer, "show", "ls", code=6)


def test_no_library_at_all_says_how_to_name_one(newcomer: Studio) -> None:
    newcomer.environment["DAMFS_LIBRARY"] = ""
    assert "--library" in error_of(newcomer, "show", "ls", code=3)


@pytest.mark.parametrize("url", ["ftp://somewhere/else", "s3:/bucket", "s3://", "file://relative"])
def test_a_bad_url_is_a_configuration_error(newcomer: Studio, url: str) -> None:
    assert "damfs: " in error_of(newcomer, "show", "ls", "--library", url, code=3)


def test_missing_credentials_say_what_to_set(newcomer: Studio) -> None:
    newcomer.environment |= {"AWS_CONFIG_FILE": "/nonexistent", "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent"}
    message = error_of(newcomer, "show", "ls", "--library", "s3://bucket", "--endpoint", "http://127.0.0.1:9", code=3)
    assert "AWS_ACCESS_KEY_ID" in message


def test_an_unreachable_endpoint_ends_soon(newcomer: Studio) -> None:
    newcomer.environment |= stores.ENVIRONMENT
    started = time.monotonic()
    error_of(newcomer, "show", "ls", "--library", "s3://bucket", "--endpoint", "http://127.0.0.1:9", code=6)
    assert time.monotonic() - started < 20


@pytest.fixture(scope="module")
def locked_server() -> Iterator[stores.Server]:
    """A server that checks credentials, and knows none but those of its first requests."""
    with stores.moto_server({"INITIAL_NO_AUTH_ACTION_COUNT": "1"}) as server:
        yield server


def test_wrong_credentials_are_told_apart_from_a_missing_library(tmp_path: Path, locked_server: stores.Server) -> None:
    bucket = locked_server.new_bucket()
    with studio(tmp_path, f"s3://{bucket}", **stores.ENVIRONMENT, AWS_ENDPOINT_URL_S3=locked_server.endpoint) as user:
        assert "credentials" in error_of(user, "show", "ls", code=6)


def test_a_newer_library_says_to_upgrade(user: Studio) -> None:
    identity = user.folder / "library/damfs.json"
    identity.write_bytes(identity.read_bytes().replace(b"damfs.library/1", b"damfs.library/2"))
    assert "upgrade" in error_of(user, "ls", "apollo", code=7)


def test_a_library_without_a_trust_file_says_where_it_belongs(user: Studio) -> None:
    for file in (user.folder / "config/damfs/trust").iterdir():
        file.unlink()
    assert "--trust" in error_of(user, "ls", "apollo", code=3)


def test_the_trust_file_of_another_library_is_refused(user: Studio) -> None:
    other = user.json("init", user.folder / "other", "--library", "file:///nowhere")
    error_of(user, "ls", "apollo", "--trust", other["trust_path"], code=3)


def test_a_trust_file_with_a_lying_key_id_is_a_matter_of_trust(user: Studio) -> None:
    path = next((user.folder / "config/damfs/trust").iterdir())
    keyid = user.json("key", "show")["keyid"]
    path.write_text(path.read_text().replace(keyid, keyid[::-1]))
    error_of(user, "ls", "apollo", code=8)


def test_something_else_than_a_trust_file_is_a_configuration_error(user: Studio) -> None:
    path = user.folder / "nonsense.json"
    path.write_text("{}\n")
    error_of(user, "ls", "apollo", "--trust", path, code=3)


def test_a_setting_that_nobody_knows_is_refused(user: Studio) -> None:
    user.environment["DAMFS_COLOUR"] = "blue"
    assert "DAMFS_COLOUR" in error_of(user, "show", "ls", code=3)


def test_a_missing_configuration_file_is_refused(user: Studio) -> None:
    error_of(user, "show", "ls", "--config", "/nonexistent/config.toml", code=3)
