"""A mount that has a site cache: the real nginx between the daemon and a store."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import pytest

from manifest.library import Library
from tests.counting import counting
from tests.harness import Mount, Studio, studio, wait_until
from tests.mount.conftest import KEYS, make_bucket, random_bytes, write_tree
from tests.nginx import Nginx, nginx
from tests.proxy import Mode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.counting import CountingProxy

DATA = random_bytes(3_000_000)
OTHER = random_bytes(3_000_000, 2)


@pytest.fixture
def direct(s3_endpoint: str) -> Iterator[CountingProxy]:
    """The workstation's own way to the store, which counts."""
    make_bucket(s3_endpoint, bucket := f"studio-{os.urandom(6).hex()}")
    with counting(Library.open(f"s3://{bucket}/dam", endpoint=s3_endpoint)) as made:
        made.bucket = bucket  # type: ignore[attr-defined]
        yield made


@pytest.fixture
def remote(direct: CountingProxy, tmp_path: Path) -> Iterator[Studio]:
    """A studio with a published file."""
    url = f"s3://{direct.bucket}/dam"  # type: ignore[attr-defined]
    with studio(tmp_path / "studio", url, AWS_ENDPOINT_URL_S3=direct.url, **KEYS) as made:
        made.run("init", made.url, "--show", "apollo")
        write_tree(tmp_path / "files", {"a.exr": DATA, "b.exr": OTHER})
        made.run("publish", tmp_path / "files/a.exr", tmp_path / "files/b.exr", "apollo:v001")
        yield made


@pytest.fixture
def site(remote: Studio, s3_endpoint: str, tmp_path: Path) -> Iterator[Nginx]:
    """nginx, whose way to the store is its own."""
    library = Library.open(remote.url, endpoint=remote.environment["AWS_ENDPOINT_URL_S3"])
    with nginx(tmp_path / "site", library, store=s3_endpoint) as made:
        remote.environment["DAMFS_SITE__URL"] = made.url
        yield made


def source(mount: Mount, name: str) -> dict[str, Any]:
    [found] = [source for source in mount.status()["sources"] if source["name"] == name]
    assert isinstance(found, dict)
    return found


def test_a_mount_reads_and_follows_by_way_of_the_site_cache_and_leaves_the_store_alone(
    remote: Studio, site: Nginx, direct: CountingProxy, tmp_path: Path
) -> None:
    mount = remote.mount()
    assert (mount.path / "apollo/v001/a.exr").read_bytes() == DATA
    assert source(mount, "site")["fetched_bytes"] >= len(DATA)
    assert source(mount, "central")["fetches"] == 0
    write_tree(tmp_path / "new", {"c.exr": DATA[:1000]})
    remote.run("publish", tmp_path / "new/c.exr", "apollo:v002")
    wait_until(lambda: (mount.path / "apollo/v002/c.exr").exists(), "the new version", 20)
    assert (mount.path / "apollo/v002/c.exr").read_bytes() == DATA[:1000]
    told = mount.status()["site"]
    assert told["url"] == site.url
    assert told["near_requests"] > told["central_requests"] == told["near_failures"] == 0
    direct.forget()
    time.sleep(6)  # a listing of the shows is among what is asked for in this time
    assert mount.status()["site"]["near_requests"] > told["near_requests"]
    assert not direct.requests


def test_a_mount_goes_on_without_its_site_cache_and_comes_back_to_it(remote: Studio, site: Nginx) -> None:
    mount = remote.mount()
    remote.expected.append("site cache")
    site.process.terminate()
    site.process.wait(20)
    assert (mount.path / "apollo/v001/a.exr").read_bytes() == DATA
    assert source(mount, "central")["fetched_bytes"] >= len(DATA)
    status = mount.status()
    assert not status["offline"]
    assert status["shows"]["apollo"]["revision"] == 1


def test_a_workstation_that_reaches_nothing_but_its_site_cache_is_not_offline(
    remote: Studio, site: Nginx, direct: CountingProxy, s3_endpoint: str, tmp_path: Path
) -> None:
    mount = remote.mount()
    direct.mode = Mode.REFUSE
    assert (mount.path / "apollo/v001/b.exr").read_bytes() == OTHER
    write_tree(tmp_path / "new", {"c.exr": DATA[:1000]})
    remote.environment["AWS_ENDPOINT_URL_S3"] = s3_endpoint  # somebody else, elsewhere
    remote.run("publish", tmp_path / "new/c.exr", "apollo:v002")
    wait_until(lambda: (mount.path / "apollo/v002/c.exr").exists(), "the new version", 20)
    assert not (mount.path / "gemini").exists()  # has the shows listed, by the store first
    time.sleep(2)
    status = mount.status()
    assert not status["offline"], status["offline_reason"]
    assert status["shows"]["apollo"]["revision"] == 2
