"""The others: s3fs and ``rclone mount --vfs-cache-mode full`` on a bucket, with caches on the same disk."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.site import Site
from tests.harness import detach, mounted_below, wait_until
from tests.stores import rclone_program

PROGRAMS = ("s3fs", "fusermount3")
START_S = 30.0
END_S = 20.0


@contextmanager
def s3fs(at: Site, work: Path) -> Iterator[Path]:
    """The bucket behind nginx, mounted by s3fs."""
    cache = work / "s3fs-cache"
    cache.mkdir()
    options = (f"url={at.nginx}", "use_path_request_style", "public_bucket=1", "ro", f"use_cache={cache}",
               f"logfile={work / 's3fs.log'}")  # fmt: skip
    command = ["s3fs", at.bucket, str(work / "s3fs"), "-f"]
    for option in options:
        command += ["-o", option]
    with _mounted(work / "s3fs", command) as mounted:
        yield mounted


@contextmanager
def rclone(at: Site, work: Path) -> Iterator[Path]:
    """The bucket behind nginx, mounted by rclone."""
    command = [rclone_program(), "mount", "--config", "", "--vfs-cache-mode", "full", "--read-only", "--cache-dir",
               str(work / "rclone-cache"), "--s3-provider", "Other", "--s3-endpoint", at.nginx, f":s3:{at.bucket}",
               str(work / "rclone")]  # fmt: skip
    with _mounted(work / "rclone", command) as mounted:
        yield mounted


@contextmanager
def _mounted(path: Path, command: list[str]) -> Iterator[Path]:
    path.mkdir()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: path in mounted_below(path.parent), f"{command[0]} to mount", START_S)
            yield path
        finally:
            subprocess.run(["fusermount3", "-u", path], check=False, capture_output=True, timeout=END_S)
            detach(path)
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
