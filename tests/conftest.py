"""Fixtures for everybody: libraries on a real folder and on a real S3 server."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from manifest.identity import write_identity
from manifest.library import Library
from tests import stores

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


for _number, _usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:  # begun in the background: what we start would not hear Ctrl-C
        signal.signal(_number, _usual)


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """A drill takes as long as it takes."""
    if os.environ.get("DRILL"):
        for item in items:
            item.add_marker(pytest.mark.timeout(0), append=False)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """`make test` runs in two parts: that one of them has nothing to do is no failure."""
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and session.config.option.markexpr:
        session.exitstatus = pytest.ExitCode.OK


@pytest.fixture(scope="session", autouse=True)
def _aws_environment() -> Iterator[None]:
    """The credentials of the test servers, and nothing of whoever runs the tests; programs inherit it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in stores.FOREIGN:
            patch.delenv(name, raising=False)
        for name in os.environ:
            if name.lower() in ("http_proxy", "all_proxy"):
                patch.delenv(name)
        for name, value in stores.ENVIRONMENT.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def s3_server() -> Iterator[stores.Server]:
    """One moto server for all tests of the session; make buckets of your own in it."""
    with stores.moto_server() as server:
        yield server


@pytest.fixture(scope="session")
def s3_endpoint(s3_server: stores.Server) -> str:
    """The URL of the session's moto server."""
    return s3_server.endpoint


@pytest.fixture
def file_library(tmp_path: Path) -> Library:
    """A new library in a folder, without shows (it has its ``damfs.json``: no second ``create_library``)."""
    folder = tmp_path / "library"
    folder.mkdir()
    return _begun(Library.open(folder.as_uri()))


@pytest.fixture
def s3_library(s3_server: stores.Server) -> Library:
    """A new library below a prefix in a fresh bucket, without shows."""
    return _begun(Library.open(f"s3://{s3_server.new_bucket()}/dam", endpoint=s3_server.endpoint))


@pytest.fixture(params=["file", "s3"])
def library(request: pytest.FixtureRequest) -> Library:
    """``file_library`` and ``s3_library`` in turn."""
    made: Library = request.getfixturevalue(f"{request.param}_library")
    return made


@pytest.fixture(params=["file", "s3"])
def new_place(request: pytest.FixtureRequest, tmp_path: Path) -> Library:
    """Where a library can be made, and none is: a folder that does not exist, an empty bucket."""
    if request.param == "file":
        return Library.open((tmp_path / "new" / "library").as_uri())
    server: stores.Server = request.getfixturevalue("s3_server")
    return Library.open(f"s3://{server.new_bucket()}/dam", endpoint=server.endpoint)


def _begun(library: Library) -> Library:
    write_identity(library)
    return library
