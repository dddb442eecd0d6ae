"""A user with a library, on a folder and on S3."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests import stores
from tests.harness import Studio, studio

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def user(tmp_path: Path) -> Iterator[Studio]:
    """Somebody with a library in a folder, the show apollo in it, and a key."""
    with studio(tmp_path / "studio") as made:
        made.run("init", made.url, "--show", "apollo")
        yield made


@pytest.fixture
def s3_user(tmp_path: Path, s3_server: stores.Server) -> Iterator[Studio]:
    """As ``user``, with a library on S3."""
    url = f"s3://{s3_server.new_bucket()}/dam"
    environment = {**stores.ENVIRONMENT, "AWS_ENDPOINT_URL_S3": s3_server.endpoint}
    with studio(tmp_path / "studio", url, **environment) as made:
        made.run("init", made.url, "--show", "apollo")
        yield made


@pytest.fixture
def newcomer(tmp_path: Path) -> Iterator[Studio]:
    """Somebody on a machine where damfs was never used."""
    with studio(tmp_path / "studio") as made:
        yield made


@pytest.fixture(params=["user", "s3_user"])
def anybody(request: pytest.FixtureRequest) -> Studio:
    """``user`` and ``s3_user`` in turn."""
    made: Studio = request.getfixturevalue(request.param)
    return made
