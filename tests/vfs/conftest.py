"""Fixtures of the file system's tests: a real mount, which is always taken down."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vfs.mounted import Mounted, mounted
from vfs.binding import kernel_why_not


@pytest.fixture(params=["pyfuse3", "kernel"])
def binding(request: pytest.FixtureRequest) -> str:
    """Each way to speak to the kernel: what is true of a mount is true of all of them."""
    name: str = request.param
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("no access to /dev/fuse")
    if name == "kernel" and (why_not := kernel_why_not()):
        pytest.skip(f"no kernel binding: {why_not}")
    return name


@pytest.fixture
def mount(tmp_path: Path, binding: str) -> Iterator[Mounted]:
    """A mount of a library without shows yet."""
    with mounted(tmp_path, flags=[binding]) as made:
        yield made


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everybody may enter, as pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="damfs-test-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def by_kernel() -> str:
    """The flag of the kernel binding, for what only that one does."""
    if why_not := kernel_why_not():
        pytest.skip(f"no kernel binding: {why_not}")
    return "kernel"
