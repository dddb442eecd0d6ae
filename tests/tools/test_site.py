"""``damfs site``: what setup writes and refuses, and what check finds out of real site caches, good and bad ones."""

from __future__ import annotations

import re
import socket
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cache.sources.site import SiteCache
from manifest.errors import UsageError
from manifest.identity import write_identity
from manifest.library import Library
from tests import stores
from tests.certificates import Authority
from tests.harness import Studio, studio
from tests.manifest.logs import Scribe
from tests.nginx import Nginx, nginx
from tests.tools.test_library import error_of
from tools.site_check import checks
from tools.site_setup import CONFIGURATION, UNIT, Site, render

if TYPE_CHECKING:
    from collections.abc import Iterator

LOCAL = ("--allow", "127.0.0.1")


@pytest.fixture(scope="module")
def published(s3_server: stores.Server, tmp_path_factory: pytest.TempPathFactory) -> Library:
    """A library on S3 with a show and a revision."""
    library = Library.open(f"s3://{s3_server.new_bucket()}/dam", endpoint=s3_server.endpoint)
    write_identity(library)
    Scribe(library, tmp_path_factory.mktemp("scribe")).publish("a")
    return library


@pytest.fixture(scope="module")
def running(published: Library, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    with nginx(tmp_path_factory.mktemp("site"), published) as made:
        yield made


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def user(tmp_path: Path, published: Library) -> Iterator[Studio]:
    """Somebody who uses that library by the command."""
    environment = {**stores.ENVIRONMENT, "AWS_ENDPOINT_URL_S3": str(published.endpoint)}
    with studio(tmp_path / "studio", published.url, **environment) as made:
        yield made


def verdicts(library: Library, url: str, **options: Any) -> dict[str, tuple[bool | None, str]]:
    """What each check found."""
    found = checks(SiteCache(library, url, connect_timeout_s=10, **options), library)
    return {finding.check: (finding.ok, finding.message) for finding in found}


def failures(found: dict[str, tuple[bool | None, str]]) -> list[str]:
    return [name for name, (ok, _) in found.items() if ok is False]


# -- setup


def test_setup_writes_a_configuration_that_nginx_takes_and_says_what_comes_next(user: Studio) -> None:
    folder = user.folder / "site"
    words = ("site", "setup", folder, *LOCAL, "--size", "2TB", "--listen", "127.0.0.1:8480", "--listen", "[::1]:8480",
             "--user", "root")  # fmt: skip
    said = user.run(*words)
    assert f"nginx -t -c {folder}/nginx.conf" in said
    assert 'url = "http://<this machine>:8480"' in said
    done = subprocess.run(
        ["/usr/sbin/nginx", "-t", "-q", "-e", folder / "error.log", "-c", folder / CONFIGURATION],
        capture_output=True, check=False, timeout=30, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = (folder / CONFIGURATION).read_text()
    assert not re.search(r"@[A-Z_]+@", text + (folder / UNIT).read_text())
    assert "max_size=2000000000000" in text
    assert "allow 127.0.0.1/32;" in text
    assert "deny all;" in text
    assert f"nginx -c {folder}/nginx.conf" in (folder / UNIT).read_text()
    command = ["systemd-analyze", "verify", str(folder / UNIT)]
    verified = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (verified.returncode, verified.stderr) == (0, "")
    assert "give --replace" in error_of(user, *words, code=5)
    told = user.json(*words, "--replace")
    assert told["files"] == [str(folder / CONFIGURATION), str(folder / UNIT)]


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        ({"allow": ()}, "who may ask?"),
        ({"allow": ("10.0.0.1/8",)}, "has host bits set"),
        ({"allow": ("everybody",)}, "does not appear to be"),
        ({"client_ca": Path("/etc/hostname")}, "need --tls-cert"),
        ({"size": "much"}, "is no size"),
        ({"listen": ("8480",)}, "is no address"),
        ({"listen": ("0.0.0.0:80;",)}, "is no address"),
        ({"store": "store:9000"}, "is no store"),
        ({"store": "http://store:9000/dam"}, "is no store"),
        ({"user": "a b"}, "is no user's name"),
        ({"cache": Path("/srv/a;b")}, "cannot stand in nginx's configuration"),
        ({"folder": Path("/srv/$a")}, "cannot stand in nginx's configuration"),
        ({"folder": Path("/" + "x" * 100)}, "too long a path"),
    ],
)
def test_setup_refuses_what_would_not_do(chosen: dict[str, Any], reason: str, published: Library) -> None:
    good = Site(Path("/srv/site"), Path("/srv/cache"), ("0.0.0.0:8480",), "1GB", ("10.0.0.0/8",))
    assert render(good, published)
    with pytest.raises(UsageError, match=re.escape(reason)):
        render(replace(good, **chosen), published)


def test_a_library_in_a_folder_gets_no_site_cache(user: Studio) -> None:
    folder = ("--library", f"file://{user.folder}/library")
    assert "s3://" in error_of(user, "site", "setup", user.folder / "site", *LOCAL, *folder, code=2)
    assert not (user.folder / "site").exists()


def test_a_store_on_https_is_verified(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    authorities = tmp_path / "ca.pem"
    authorities.write_text("")
    library = Library.open("s3://studio.assets/dam", region="eu-west-1")
    site = Site(tmp_path, tmp_path / "cache", ("0.0.0.0:8480",), "1GB", ("10.0.0.0/8",), store_ca=authorities)
    text = render(site, library)[CONFIGURATION]
    assert "server s3.eu-west-1.amazonaws.com:443 max_fails=0;" in text
    assert 'proxy_set_header Host "s3.eu-west-1.amazonaws.com";' in text
    assert "proxy_ssl_verify on;" in text
    assert 'proxy_ssl_name "s3.eu-west-1.amazonaws.com";' in text


# -- check


def test_a_good_site_cache_passes_every_check_that_can_be_made(user: Studio, running: Nginx) -> None:
    user.environment["DAMFS_SITE__URL"] = running.url
    told = user.json("site", "check")
    assert (told["url"], told["ok"]) == (running.url, True)
    found = {check["check"]: check for check in told["checks"]}
    assert {name for name, check in found.items() if check["ok"] is None} == {"strangers", "tls"}
    assert "log/00000000000000000001 is what the store has" in found["bytes"]["message"]


def test_nobody_there_is_unreachable(user: Studio) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    done = user.complete("site", "check", f"http://127.0.0.1:{port}")
    assert done.returncode == 6
    assert done.stdout.startswith("reachable\tFAILED\t")
    assert "1 check of http://127.0.0.1" in done.stderr


def test_a_library_without_a_revision_can_be_checked_too(s3_library: Library, tmp_path: Path) -> None:
    with nginx(tmp_path / "site", s3_library) as made:
        found = verdicts(s3_library, made.url)
    assert found["bytes"] == (None, "nothing was published to this library yet")
    assert not failures(found)


def test_tls_and_client_certificates_are_looked_at(published: Library, authority: Authority, tmp_path: Path) -> None:
    server, client = authority.sign("site"), authority.sign("workstation")
    other = Authority(tmp_path / "other", "somebody").sign("stranger")
    with nginx(tmp_path / "site", published, tls_cert=server.cert, tls_key=server.key, client_ca=authority.cert,
               allow=()) as made:  # fmt: skip
        found = verdicts(published, made.url, ca=authority.cert, cert=client.cert, key=client.key)
        assert all(ok for ok, _ in found.values()), found
        assert "without a certificate it answers 400" in found["strangers"][1]
        assert "TLSv1.3" in found["tls"][1]
        for nobody in ({}, {"cert": other.cert, "key": other.key}):
            assert "library" in failures(verdicts(published, made.url, ca=authority.cert, **nobody))
        assert "certificate verify failed" in verdicts(published, made.url)["reachable"][1]


def test_a_certificate_that_ends_soon_is_told(published: Library, authority: Authority, tmp_path: Path) -> None:
    server = authority.sign("expiring", days=3)
    with nginx(tmp_path / "site", published, tls_cert=server.cert, tls_key=server.key) as made:
        found = verdicts(published, made.url, ca=authority.cert)
    assert failures(found) == ["tls"]
    assert "renew it" in found["tls"][1]


def test_a_machine_that_may_not_ask_is_told_so(published: Library, tmp_path: Path) -> None:
    with nginx(tmp_path / "site", published, allow=("192.0.2.0/24",)) as made:
        found = verdicts(published, made.url)
    assert "does not let this machine in" in found["library"][1]


def test_a_site_cache_that_asks_in_another_name_is_found_out(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    with stores.rclone_server(tmp_path / "store") as server:
        url = f"s3://{stores.private_bucket(server)}/dam"
        library = Library.open(url, endpoint=server.endpoint)
        write_identity(library)
        by_another_name = Library.open(url, endpoint=server.endpoint.replace("127.0.0.1", "localhost"))
        with nginx(tmp_path / "site", library) as made:
            assert verdicts(library, made.url)["library"][0] is True
            found = verdicts(by_another_name, made.url)
    assert found["library"][0] is False
    assert "the name that signatures are for, localhost:" in found["library"][1]


BAD = {
    "caches": ("proxy_cache news;", "proxy_cache off;"),
    "key": ("proxy_cache_key $damfs_entry;", "proxy_cache_key $request_uri;"),
    "absence": ('"~^404 " "max-age=1, stale-while-revalidate=1"', '"~^404 " "max-age=100"'),
    "methods": ("$request_method != GET", "$request_method = NONE"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_site_cache_that_is_set_up_badly_is_found_out(
    name: str, published: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests import nginx as module

    before, after = BAD[name]

    def broken(site: Site, library: Library) -> dict[str, str]:
        files = render(site, library)
        assert before in files[CONFIGURATION]
        text = files[CONFIGURATION].replace(before, after)
        return files | {CONFIGURATION: text.replace('"@$damfs_s"', '""') if name == "absence" else text}

    monkeypatch.setattr(module, "render", broken)
    with nginx(tmp_path / "site", published) as made:
        assert name in failures(verdicts(published, made.url))


def test_an_ordinary_web_server_is_no_site_cache(published: Library) -> None:
    def answer(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\nnot found")

    with stores.canned_server(answer) as url:
        assert {"library", "caches"} <= set(failures(verdicts(published, url)))
