"""The real nginx as a site cache, configured by damfs, as a process of its own on a free loopback port."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tests.harness import wait_until
from tools.site_setup import CONFIGURATION, Site, render

if TYPE_CHECKING:
    from collections.abc import Iterator

    from manifest.library import Library

START_S = 30.0
ATTEMPTS = 5
LOCALLY = ("127.0.0.1/32",)


@dataclass(frozen=True)
class Nginx:
    """A running site cache; ``folder`` holds its configuration, ``cache`` what it keeps."""

    url: str
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def kept(self) -> list[Path]:
        """The files in its cache of objects."""
        return [path for path in (self.cache / "objects").rglob("*") if path.is_file()]

    def log(self) -> str:
        return (self.folder / "error.log").read_text()


@contextmanager
def nginx(folder: Path, library: Library, *, store: str | None = None, **chosen: object) -> Iterator[Nginx]:
    """nginx before ``library``; it connects to ``store`` if that is given. ``chosen``: fields of ``Site``."""
    folder.mkdir(parents=True, exist_ok=True)
    site = Site(folder, folder / "cache", (), "1GB", LOCALLY, store, user="root" if os.geteuid() == 0 else None)
    site = replace(site, **chosen)  # type: ignore[arg-type]
    process, port = _start(site, library)
    try:
        scheme = "https" if site.tls_cert else "http"
        yield Nginx(f"{scheme}://127.0.0.1:{port}", folder, process)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _start(site: Site, library: Library) -> tuple[subprocess.Popen[bytes], int]:
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    assert program, "nginx is missing: tests/install-packages"
    for name in ("temp", "cache"):
        (site.folder / name).mkdir(exist_ok=True)
    for _ in range(ATTEMPTS):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = int(free.getsockname()[1])
        files = render(replace(site, listen=(f"127.0.0.1:{port}",)), library)
        (site.folder / CONFIGURATION).write_text(
            files[CONFIGURATION].replace("worker_processes auto", "worker_processes 1")
        )
        log = site.folder / "error.log"
        process = subprocess.Popen(
            [program, "-c", str(site.folder / CONFIGURATION), "-g", "daemon off;", "-e", str(log)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        if _listens(process, port):
            return process, port
        process.kill()
        process.wait()
    raise AssertionError(f"nginx did not start: {log.read_text()}")


def _listens(process: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except OSError:
            time.sleep(0.05)
        else:
            return True
    return False


def wait_for_next_second() -> None:
    """Begin early in a second of the clock, by which nginx counts."""
    wait_until(lambda: time.time() % 1 < 0.3, "a second to begin")
