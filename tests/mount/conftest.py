"""Fixtures of the tests on real mounts: a studio on each kind of store, and each way to speak to the kernel.

The modules in ``OVER_BOTH`` are about what a mount does, and run over both bindings; the others run over the one
that ``damfs mount`` chooses. A studio on S3 is mounted with the kernel binding alone: what a store is, no binding sees.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from manifest.library import Library
from tests import media
from tests.harness import Studio, studio, wait_until
from vfs.binding import kernel_why_not

if TYPE_CHECKING:
    from collections.abc import Iterator

KEYS = {"AWS_ACCESS_KEY_ID": "studio", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
BINDINGS = ["kernel", "pyfuse3"]
OVER_BOTH = {
    "test_damaged_store", "test_main_job", "test_model", "test_programs", "test_semantics", "test_storm", "test_trace",
    "test_users",
}  # fmt: skip


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Which tests run how often: see the module."""
    names = metafunc.fixturenames
    over_both = metafunc.module.__name__.rpartition(".")[2] in OVER_BOTH and "binding" in names
    if "store" in names:
        cases = [("file", "kernel"), ("s3", "kernel"), ("file", "pyfuse3")] if over_both else [("file", ""), ("s3", "")]
        metafunc.parametrize(
            ("store", "binding"), cases, ids=["-".join(filter(None, case)) for case in cases],
            indirect=["binding"], scope="module")  # fmt: skip
    elif over_both:
        metafunc.parametrize("binding", BINDINGS, indirect=True, scope="module")


@pytest.fixture(scope="module")
def binding(request: pytest.FixtureRequest) -> str:
    """The binding that studios mount with; empty: the one that ``damfs mount`` chooses."""
    name: str = getattr(request, "param", "")
    if name == "kernel" and (why_not := kernel_why_not()):
        pytest.skip(f"no kernel binding: {why_not}")
    return name


def mounting_with(binding: str) -> dict[str, str]:
    """The environment in which ``damfs mount`` takes this binding."""
    return {"DAMFS_MOUNT__BINDING": binding} if binding else {}


@pytest.fixture
def user(request: pytest.FixtureRequest, store: str, binding: str) -> Studio:
    """A studio with an empty library that has the show ``apollo``, on a folder and on an S3 server (``store``)."""
    made: Studio = request.getfixturevalue("artist" if store == "file" else "s3_user")
    return made


@pytest.fixture
def artist(binding: str, tmp_path: Path) -> Iterator[Studio]:
    """A studio on a folder, for what has nothing to do with the kind of store."""
    with studio(tmp_path / "studio", **mounting_with(binding)) as made:
        made.run("init", made.url, "--show", "apollo")
        yield made


@pytest.fixture
def s3_user(binding: str, s3_endpoint: str, tmp_path: Path) -> Iterator[Studio]:
    """A studio on an S3 server."""
    endpoint, bucket = s3_endpoint, f"studio-{uuid.uuid4().hex[:12]}"
    environment = {"AWS_ENDPOINT_URL_S3": endpoint, **KEYS, **mounting_with(binding)}
    with studio(tmp_path / "studio", f"s3://{bucket}/dam", **environment) as made:
        make_bucket(endpoint, bucket)
        made.run("init", made.url, "--show", "apollo")
        yield made


def make_bucket(endpoint: str, bucket: str) -> None:
    """A bucket on the test's own S3 server."""
    import boto3

    client = boto3.client("s3", endpoint_url=endpoint, aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
                          aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"], region_name="us-east-1")  # fmt: skip
    client.create_bucket(Bucket=bucket)
    client.close()


def library_of(user: Studio, monkeypatch: pytest.MonkeyPatch) -> Library:
    """The studio's library, to look at its objects and to damage them; its daemons may log that they met damage."""
    user.expected.append("cannot be read: ")
    for name, value in user.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return Library.open(user.url)


@pytest.fixture(scope="session")
def plates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with v001 and v002 of a small plate, renders, a movie and a script."""
    folder = tmp_path_factory.mktemp("media")
    media.make_version_1(folder, media.SMALL)
    media.make_version_2(folder, media.SMALL)
    return folder


def write_tree(folder: Path, files: dict[str, bytes]) -> Path:
    """Files with these contents below ``folder``. Returns the folder."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def random_bytes(size_bytes: int, seed: int = 0) -> bytes:
    """The same unpredictable bytes for the same arguments."""
    import random

    return random.Random(f"{size_bytes} {seed}").randbytes(size_bytes)


def evict(user: Studio, place: str) -> None:
    """Let go of all that is cached there: what was just brought is in use for a moment."""

    def nothing_is_cached() -> bool:
        user.complete("cache", "evict", place)
        return not any(entry["cached_bytes"] for entry in user.json("cache", "ls", place)["entries"])

    wait_until(nothing_is_cached, f"{place} to be evicted", 30)


def read_error(path: Path) -> int:
    """The errno that reading the whole file ends with, or 0."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            while os.read(descriptor, 1 << 20):
                pass
        finally:
            os.close(descriptor)
    except OSError as error:
        return error.errno or -1
    return 0
