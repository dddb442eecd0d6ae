"""Fixtures of the cache's tests."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from tests.cache.contents import FaultySource, central

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from manifest.library import Library


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the cache lies."""
    return tmp_path / "cache"


@pytest.fixture
def source(file_library: Library) -> FaultySource:
    """The library in a folder, as the last source."""
    return central(file_library)


@pytest.fixture(autouse=True)
def _no_unexpected_log(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """An unexpected warning of the cache fails the test; those that expect some are marked by ``logs``."""
    caplog.set_level(logging.DEBUG, "cache")
    yield
    if "expects_log" in request.fixturenames:
        return
    found = [
        r.getMessage()
        for r in caplog.get_records("call")
        if r.levelno >= logging.WARNING and r.name.startswith("cache")
    ]
    assert not found


@pytest.fixture
def expects_log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """For tests in which the cache has to complain."""
    return caplog
