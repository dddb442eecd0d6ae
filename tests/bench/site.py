"""A studio with a site: its library in an S3 server, nginx as the site's cache before that, a network of a given speed.

What was published to a folder is served by ``rclone serve s3`` without a copy: a bucket and a folder have one layout.
The proxy (tests/proxy) is a process of its own, so that it takes nothing away from who is measured but CPU.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tests import stores
from tests.bench.nginx import cached
from tests.harness import REPOSITORY, Studio, studio

KEYS = {"AWS_ACCESS_KEY_ID": stores.KEY_ID, "AWS_SECRET_ACCESS_KEY": stores.SECRET, "AWS_DEFAULT_REGION": "us-east-1"}


def why_not(*programs: str) -> str | None:
    """Why something cannot be measured here; None: it can."""
    missing = [name for name in ("nginx", *programs) if shutil.which(name) is None]
    return f"{', '.join(missing)} not installed: tests/install-packages bench" if missing else None


@dataclass(frozen=True)
class Site:
    """``store`` and ``nginx`` are URLs of S3 servers with the bucket ``bucket``, which is the folder ``folder``."""

    store: str
    nginx: str
    bucket: str
    folder: Path

    @property
    def url(self) -> str:
        """The library's URL."""
        return f"s3://{self.bucket}"


@contextmanager
def site(user: Studio, work: Path) -> Iterator[Site]:
    """Serve the library of a studio on ``file://``."""
    library = Path(urlsplit(user.url).path)
    with ExitStack() as stack:
        server = stack.enter_context(stores.rclone_server(library.parent, anyone=True))
        nginx = stack.enter_context(cached(work / "nginx", server.endpoint))
        yield Site(server.endpoint, nginx, library.name, library)


@dataclass
class Network:
    """The proxy as a process."""

    url: str
    process: subprocess.Popen[str]

    def counts(self) -> dict[str, dict[str, int]]:
        """What was asked and sent since the last time, by kind of object."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("counts\n")
        self.process.stdin.flush()
        counted: dict[str, dict[str, int]] = json.loads(self.process.stdout.readline())
        return counted


@contextmanager
def network(target: str, *, latency_s: float = 0.0, bytes_per_s: float | None = None) -> Iterator[Network]:
    """A network before ``target`` (a URL): so long until an answer begins, so many bytes a second for all."""
    command = [sys.executable, "-m", "tests.proxy", urlsplit(target).netloc, "--latency-s", str(latency_s)]
    if bytes_per_s is not None:
        command += ["--bytes-per-s", str(bytes_per_s)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        try:
            yield Network(process.stdout.readline().strip(), process)
        finally:
            process.kill()
            process.wait()


@contextmanager
def artist(user: Studio, work: Path, at: Site, endpoint: str, **environment: str) -> Iterator[Studio]:
    """A studio that mounts the library over ``endpoint`` and trusts whom ``user`` does; its cache is empty."""
    trust = next((user.folder / "config").rglob("trust/*.json"))
    settings = {"AWS_ENDPOINT_URL_S3": endpoint, "DAMFS_LIBRARY__TRUST": str(trust), **KEYS, **environment}
    with studio(work, at.url, **settings) as made:
        yield made


def warm(url: str) -> int:
    """Have nginx fetch an object; its length in bytes."""
    total = 0
    with urllib.request.urlopen(url, timeout=120) as answer:
        while data := answer.read(1 << 20):
            total += len(data)
    return total
