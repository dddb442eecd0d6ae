"""What a type of file is read first: the table, and what the first bytes of real movies say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import media
from vfs import formats

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def movies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("movies")
    source = ["-f", "lavfi", "-i", "testsrc2=size=320x180:rate=24", "-frames:v", "6"]
    media.ffmpeg(*source, "-c:v", "rawvideo", "-pix_fmt", "rgb24", str(folder / "end.mov"))
    media.ffmpeg("-i", str(folder / "end.mov"), "-c", "copy", "-movflags", "+faststart", str(folder / "front.mov"))
    media.ffmpeg(*source, "-c:v", "mpeg4", str(folder / "end.mp4"))
    media.ffmpeg(*source, "-c:v", "mpeg2video", str(folder / "clip.mxf"))
    return folder


def seek(path: Path) -> tuple[int, int] | None:
    said = formats.habit(path.name).seek
    assert said is not None
    data = path.read_bytes()
    return said(data[: 64 * 1024], len(data))


@pytest.mark.parametrize("name", ["end.mov", "end.mp4"])
def test_an_index_behind_the_media_is_found(movies: Path, name: str) -> None:
    found = seek(movies / name)
    data = (movies / name).read_bytes()
    assert found is not None
    assert data[found[0] + 4 : found[0] + 8] == b"moov"
    assert found[1] == len(data)


def test_an_index_in_front_is_read_anyway(movies: Path) -> None:
    assert seek(movies / "front.mov") is None


def test_the_footer_of_an_mxf_is_found(movies: Path) -> None:
    found = seek(movies / "clip.mxf")
    data = (movies / "clip.mxf").read_bytes()
    assert found is not None
    assert data[found[0] :].startswith(bytes.fromhex("060e2b34"))
    assert found[1] == len(data)


@pytest.mark.parametrize(
    "head",
    [
        b"", b"\0", bytes(64), b"\xff" * 64, b"\0\0\0\x08mdat", b"\0\0\0\1mdat" + bytes(8),
        b"\0\0\0\1mdat" + b"\xff" * 8, b"\0\0\0\x08free" * 100,
        bytes.fromhex("060e2b34020501010d01020101") + b"\xff" * 60,
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [1, 100, 500 * MIB])
@pytest.mark.parametrize("name", ["a.mov", "a.mxf"])
def test_what_is_said_of_strange_bytes_lies_in_the_file(head: bytes, size: int, name: str) -> None:
    said = formats.habit(name).seek
    assert said is not None
    found = said(head, size)
    assert found is None or (0 <= found[0] < found[1] <= size and found[1] - found[0] <= formats.INDEX_BYTES_MAX)


def test_the_table_goes_by_the_extension() -> None:
    assert formats.habit("wood.TX").is_random
    assert formats.habit("sim.0001.vdb").is_random
    assert formats.habit("A.MOV").seek is not None
    for name in ("plate.1001.exr", "README", "x."):
        assert formats.habit(name) == formats.Habit()
