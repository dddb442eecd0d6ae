"""Which files are cut how: real images made by OpenImageIO, garbage, and cuts that do not depend on the windows."""

from __future__ import annotations

import os
import random
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyfastcdc import FastCDC

from manifest.identity import RULES
from tools.publish.chunk import HEADER_BYTES, MIB, RANDOM, STREAM, Cutter, Profile, choose

if TYPE_CHECKING:
    from pathlib import Path

PATTERN = "fill:topleft=.1,.2,.3:topright=1,0,0:bottomleft=0,1,0:bottomright=0,0,1"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One picture as plain, tiled, and tiled and mip-mapped EXR and TIFF."""
    folder = tmp_path_factory.mktemp("images")

    def run(*command: str) -> None:
        subprocess.run(command, cwd=folder, check=True, timeout=60, capture_output=True)

    run("oiiotool", "--pattern", PATTERN, "256x200", "3", "-d", "half", "-o", "plain.exr")
    run("oiiotool", "plain.exr", "--tile", "64", "64", "-o", "tiled.exr")
    run("maketx", "plain.exr", "-o", "texture.exr")
    run("oiiotool", "plain.exr", "-d", "uint8", "-o", "plain.tif")
    run("oiiotool", "plain.exr", "-d", "uint8", "--tile", "64", "64", "-o", "tiled.tif")
    run("maketx", "plain.exr", "-d", "uint8", "-o", "texture.tif")
    run("maketx", "plain.exr", "-d", "uint8", "-o", "texture.tx")
    run("oiiotool", "tiled.exr", "plain.exr", "--siappend", "-o", "parts.exr")
    return folder


def chosen(path: Path) -> Profile:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return choose(path.name, descriptor)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("name", ["texture.exr", "texture.tif", "texture.tx"])
def test_a_tiled_and_mip_mapped_image_is_cut_small(images: Path, name: str) -> None:
    assert chosen(images / name) == RANDOM


@pytest.mark.parametrize("name", ["plain.exr", "tiled.exr", "parts.exr", "plain.tif", "tiled.tif"])
def test_an_image_that_is_not_both_is_cut_large(images: Path, name: str) -> None:
    assert chosen(images / name) == STREAM


def test_a_texture_in_a_later_part_of_an_exr_counts(images: Path) -> None:
    plain, texture = (images / "plain.exr").read_bytes(), (images / "texture.exr").read_bytes()
    end = plain.index(b"screenWindowWidth\0float\0\x04\0\0\0") + len(b"screenWindowWidth\0float\0\x04\0\0\0") + 4
    (images / "two.exr").write_bytes(plain[:end].rstrip(b"") + b"\0" + texture[8:])
    assert chosen(images / "two.exr") == RANDOM


def test_a_big_tiff_and_one_of_the_other_byte_order_are_read_too(tmp_path: Path) -> None:
    for name, data in (("big.tif", tiff("<", big=True)), ("motorola.tiff", tiff(">", big=False))):
        (tmp_path / name).write_bytes(data)
        assert chosen(tmp_path / name) == RANDOM


def tiff(order: str, *, big: bool) -> bytes:
    """The directories of a tiled 64 by 32 image and of its half."""
    count, entry, offset = ("Q", "HHQQ", "Q") if big else ("H", "HHII", "I")
    head = (b"II" if order == "<" else b"MM") + struct.pack(
        order + ("HHHQ" if big else "HI"), *((43, 8, 0, 16) if big else (42, 16))
    )
    data = head.ljust(16, b"\0")
    for width, height, last in ((64, 32, False), (32, 16, True)):
        tags = [(256, 4, 1, width), (257, 4, 1, height), (322, 4, 1, 16), (323, 4, 1, 16)]
        body = struct.pack(order + count, len(tags)) + b"".join(struct.pack(order + entry, *tag) for tag in tags)
        following = 0 if last else len(data) + len(body) + struct.calcsize(order + offset)
        data += body + struct.pack(order + offset, following)
    return data


@given(
    magic=st.sampled_from(
        [b"", b"\x76\x2f\x31\x01\x02\x02\0\0", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"II+\0\x08\0\0\0"]
    ),
    rest=st.binary(max_size=400),
    name=st.sampled_from(["a.exr", "a.tif"]),
)
def test_garbage_is_no_texture_and_no_error(
    tmp_path_factory: pytest.TempPathFactory, magic: bytes, rest: bytes, name: str
) -> None:
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(magic + rest)
    assert chosen(path) in (STREAM, RANDOM)


def test_a_cut_short_image_is_no_error(images: Path, tmp_path: Path) -> None:
    for name in ("texture.exr", "texture.tif"):
        data = (images / name).read_bytes()
        for length in range(0, 2000, 7):
            (tmp_path / name).write_bytes(data[:length])
            chosen(tmp_path / name)


def test_a_directory_that_leads_to_itself_comes_to_an_end(tmp_path: Path) -> None:
    data = bytearray(tiff("<", big=False))
    data[16 + 2 + 4 * 12 : 16 + 2 + 4 * 12 + 4] = struct.pack("<I", 16)
    (tmp_path / "loop.tif").write_bytes(data)
    assert chosen(tmp_path / "loop.tif") == STREAM


def test_the_kinds_that_are_read_at_random_are_known_by_their_extensions(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    for name in ("a.tx", "b.VDB", "c.abc", "d.usdc", "e.ptx"):
        assert choose(name, descriptor) == RANDOM
    for name in ("a.mov", "b.dpx", "c", "d.usda"):
        assert choose(name, descriptor) == STREAM
    os.close(descriptor)


def test_the_profiles_are_the_rules_of_a_new_library() -> None:
    def numbers(profile: Profile) -> dict[str, int]:
        return {"min_bytes": profile.min_bytes, "avg_bytes": profile.average_bytes, "max_bytes": profile.max_bytes}

    assert RULES["chunks"] == {"head_bytes": HEADER_BYTES, "stream": numbers(STREAM), "random": numbers(RANDOM)}


def cut_in_windows(data: bytes, profile: Profile, window_bytes: int) -> list[int]:
    """The lengths of the chunks when the file is handed over in windows of this size."""
    cutter = Cutter(profile, len(data))
    lengths: list[int] = []
    start, left = 0, 0
    while start < len(data):
        window = memoryview(data)[start - left : start - left + window_bytes]
        last = start - left + len(window) == len(data)
        found = list(cutter.cut(window, last=last))
        lengths += [length for _, length in found]
        cut = sum(length for _, length in found)
        start += len(window) - left
        left = len(window) - cut
    assert left == 0
    return lengths


@pytest.mark.parametrize("profile", [STREAM, RANDOM])
@pytest.mark.parametrize("kind", ["random", "zeros", "runs"])
def test_the_cuts_are_the_same_whatever_the_windows(profile: Profile, kind: str) -> None:
    size = 4 * profile.max_bytes + 12345
    noise = random.Random(1).randbytes(size)
    data = {"random": noise, "zeros": bytes(size), "runs": noise[: size // 3] + bytes(size - size // 3)}[kind]
    fastcdc = FastCDC(profile.average_bytes, min_size=profile.min_bytes, max_size=profile.max_bytes)
    whole = [HEADER_BYTES, *(chunk.length for chunk in fastcdc.cut_buf(data[HEADER_BYTES:]))]
    for window in (profile.max_bytes + HEADER_BYTES + 1, 2 * profile.max_bytes, size):
        assert cut_in_windows(data, profile, window) == whole
    assert all(length <= profile.max_bytes for length in whole)


def test_a_header_is_a_chunk_of_its_own_above_one_mebibyte_only() -> None:
    assert cut_in_windows(bytes(MIB), STREAM, 32 * MIB) == [MIB]
    assert cut_in_windows(bytes(MIB + 1), STREAM, 32 * MIB) == [HEADER_BYTES, MIB + 1 - HEADER_BYTES]
