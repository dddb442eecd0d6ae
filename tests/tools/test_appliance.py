"""An S3-compatible appliance as the site tier: written through by publishes, read before the central store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from cache.sources.central import CentralSource
from daemon.config import SiteSettings
from daemon.site import as_source, as_way, open_appliance
from manifest.errors import ConfigurationError
from manifest.library import Library
from manifest.way import CENTRAL
from tests import stores
from tests.cache.contents import FaultySource, open_sample, opened, put, read_all, sample
from tests.harness import Studio, studio
from tests.tools.content import noise

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def near_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stores.Server]:
    """The appliance: another kind of store than the central one."""
    with stores.rclone_server(tmp_path_factory.mktemp("near")) as server:
        yield server


@pytest.fixture
def artist(tmp_path: Path, s3_server: stores.Server, near_server: stores.Server) -> Iterator[Studio]:
    """Who publishes to a central store and, written through, to an appliance."""
    near = f"s3://{stores.private_bucket(near_server)}/copy"
    environment = {
        **stores.ENVIRONMENT,
        "AWS_ENDPOINT_URL_S3": s3_server.endpoint,
        "DAMFS_SITE__KIND": "s3",
        "DAMFS_SITE__URL": near,
        "DAMFS_SITE__ENDPOINT": near_server.endpoint,
        "DAMFS_SITE__WRITE_THROUGH": "true",
    }
    with studio(tmp_path / "studio", f"s3://{s3_server.new_bucket()}/dam", **environment) as made:
        made.run("init", made.url, "--show", "apollo")
        yield made


def libraries(user: Studio) -> tuple[Library, Library]:
    """The central store and the appliance."""
    environment = user.environment
    return (
        Library.open(user.url, endpoint=environment["AWS_ENDPOINT_URL_S3"]),
        Library.open(environment["DAMFS_SITE__URL"], endpoint=environment["DAMFS_SITE__ENDPOINT"]),
    )


def chunks(library: Library) -> dict[str, int]:
    return dict(library.list("shows/apollo/chunks/"))


def test_what_is_published_lies_in_the_appliance_as_well(artist: Studio) -> None:
    source = artist.folder / "frames"
    source.mkdir()
    for number in range(3):
        (source / f"a.{number}.exr").write_bytes(noise(200_000, number))
    artist.run("publish", source, "apollo:plate/v001")
    central, near = libraries(artist)
    assert chunks(near) == chunks(central)
    assert len(chunks(near)) >= 3
    assert not list(near.list("shows/apollo/log/"))


def test_an_appliance_that_is_down_is_a_warning_and_no_error_of_the_publish(artist: Studio) -> None:
    artist.environment["DAMFS_SITE__ENDPOINT"] = "http://127.0.0.1:9"
    source = artist.folder / "many"
    source.mkdir()
    for number in range(5):
        (source / f"{number}.bin").write_bytes(noise(70_000, number))
    done = artist.complete("publish", source, "apollo:many")
    assert done.returncode == 0
    assert done.stderr.count("the site's appliance is not written any more") == 1
    assert artist.json("ls", "apollo:many")["entries"]


async def test_what_the_appliance_has_is_read_from_it_and_the_rest_from_the_store(
    near_server: stores.Server, s3_library: Library, tmp_path: Path, expects_log: pytest.LogCaptureFixture
) -> None:
    url = f"s3://{stores.private_bucket(near_server)}/copy"
    site = SiteSettings(kind="s3", url=url, endpoint=near_server.endpoint)
    near = await trio.to_thread.run_sync(open_appliance, site, s3_library)
    here, elsewhere = sample(1, 600_000), sample(2, 600_000)
    for library, made in ((near, here), (s3_library, here), (s3_library, elsewhere)):
        put(library, made)
    first, last = as_source(near), FaultySource(CentralSource(s3_library))
    async with opened(tmp_path / "cache", [first, last]) as cache:
        for made in (here, elsewhere):
            handle = await open_sample(cache, made)
            assert await read_all(handle) == made.data
            handle.release()
    assert first.name == "site"
    assert first.status().fetched_bytes == here.size
    assert last.answered == len(elsewhere.recipe)
    assert as_way(near) is CENTRAL


def test_the_library_itself_is_no_appliance(s3_library: Library) -> None:
    site = SiteSettings(kind="s3", url=s3_library.url, endpoint=s3_library.endpoint)
    with pytest.raises(ConfigurationError, match="is the library itself"):
        open_appliance(site, s3_library)


@pytest.fixture
def expects_log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What is missing in the appliance is told in the log."""
    return caplog
