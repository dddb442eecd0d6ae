"""The minimal FUSE loop that look-ups are compared with: it is a file system, and it goes away."""

from __future__ import annotations

import errno
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.bench.c_programs import Programs, why_not
from tests.harness import mounted_below

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COUNT = 5000
missing = why_not()
pytestmark = pytest.mark.skipif(missing is not None, reason=missing or "")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    return Programs.build(tmp_path_factory.mktemp("programs"))


@pytest.fixture
def tree(programs: Programs, tmp_path: Path) -> Iterator[Path]:
    with programs.mounted(tmp_path / "loop", COUNT) as loop:
        yield loop.path
    assert mounted_below(tmp_path) == []


def test_the_loop_has_as_many_files_as_it_was_told(tree: Path) -> None:
    assert sorted(os.listdir(tree)) == [f"plate.{number:06d}.exr" for number in range(COUNT)]
    sizes = {entry.name: entry.stat().st_size for entry in os.scandir(tree)}
    assert all((tree / name).stat().st_size == size for name, size in sizes.items())
    for name in (f"plate.{COUNT:06d}.exr", "plate.1.png", "else"):
        with pytest.raises(FileNotFoundError):
            (tree / name).stat()


def test_nothing_can_be_written_to_the_loop(tree: Path) -> None:
    with pytest.raises(OSError) as caught:
        (tree / "new").touch()
    assert caught.value.errno == errno.EROFS


def test_a_scan_sees_every_name_and_complains_of_another_number(programs: Programs, tree: Path) -> None:
    for how in ("stat", "list"):
        assert programs.scan(how, tree, COUNT) > 0
        with pytest.raises(subprocess.CalledProcessError):
            programs.scan(how, tree, COUNT + 1)


def test_the_loop_is_gone_after_a_measurement_that_failed(programs: Programs, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), programs.mounted(tmp_path / "loop", 1):
        raise ZeroDivisionError
    assert mounted_below(tmp_path) == []
    assert os.listdir(tmp_path / "loop") == []
