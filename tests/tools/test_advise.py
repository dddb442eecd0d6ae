"""``damfs cache advise``: on a real mount, and what it draws."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from cache.advise import Point
from tests.harness import studio, wait_until
from tests.tools.content import noise, publish
from tests.tools.test_library import error_of
from tools.canvas import FONT
from tools.curve import COLUMNS, HEIGHT, ROWS, WIDTH, Curve, as_png, as_svg, as_text

if TYPE_CHECKING:
    from pathlib import Path

FILES = {f"plate/v001/a.{n}.exr": noise(70_000, n) for n in range(60)}
CURVE = Curve(
    [Point(2**30 << i, 1 - 0.8 / (1 + i)) for i in range(8)], Point(3 * 2**30, 0.5), 0.4, Point(50 * 2**30, 0.85)
)


def test_the_advice_of_a_mount_that_was_worked_with(tmp_path: Path) -> None:
    with studio(tmp_path / "studio") as user:
        user.run("init", user.url, "--show", "apollo")
        publish(user, FILES)
        mount = user.mount("--cache-size", "50MB")
        assert "expected 100 at least" in error_of(user, "cache", "advise", code=4)
        for _ in range(3):
            for path, data in FILES.items():
                assert (mount.path / "apollo" / path).read_bytes() == data
            wait_until(lambda: mount.status()["cache"]["objects"] == len(FILES), "everything to be cached")
        svg, png = user.folder / "a.svg", user.folder / "a.png"
        found = user.json("cache", "advise", "--hit-rate", "99%", "--svg", svg, "--png", png)
        assert found["policy"] == "sequences"
        assert found["size_bytes"] == 50_000_000
        assert 4_200_000 <= found["opened_bytes"] <= 4_300_000
        assert found["references"] >= 180
        assert found["goal"]["hit_rate"] == 0.99
        rates = [point["hit_rate"] for point in found["points"]]
        assert rates[0] < 0.5 < rates[-1]
        assert 0.5 < found["measured"] <= 1
        assert ET.fromstring(svg.read_bytes()).tag.endswith("svg")
        assert png.read_bytes().startswith(b"\x89PNG")
        said = user.run("cache", "advise", "--hit-rate", "0.6")
        assert "0.6 needs " in said
        assert "today 47.7 MiB (│)" in said
        assert "no hit rate" in error_of(user, "cache", "advise", "--hit-rate", "lots", code=2)
        assert "cannot be written" in error_of(user, "cache", "advise", "--svg", tmp_path / "no" / "a.svg", code=2)


def test_the_curve_as_text_has_a_point_in_every_column_and_marks_today() -> None:
    lines = list(as_text(CURVE))
    rows = [line[7:].ljust(COLUMNS) for line in lines[: ROWS + 1]]
    assert [line[:4] for line in lines[: ROWS + 1]] == [f"{n:4}" for n in range(100, -1, -10)]
    assert all(sum(row[column] == "•" for row in rows) == 1 for column in range(COLUMNS))
    assert all(row[round(CURVE.part(3 * 2**30) * (COLUMNS - 1))] in "│•" for row in rows)
    assert all(row[round(CURVE.part(50 * 2**30) * (COLUMNS - 1))] in "┊•" for row in rows)
    assert "1024.0 MiB" in lines[-1]
    assert "128.0 GiB" in lines[-1]


def test_the_svg_says_what_is_in_the_curve() -> None:
    root = ET.fromstring(as_svg(CURVE))
    texts = [element.text for element in root if element.tag.endswith("text")]
    assert {"today 3.0 GiB", "measured 40%", "85%: 50.0 GiB", "100%"} <= set(texts)


def test_the_png_is_one() -> None:
    data = as_png(CURVE)
    kinds, at = {}, 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", data, at + 8 + length) == (zlib.crc32(kind + body),)
        kinds[kind] = body
        at += 12 + length
    assert list(kinds) == [b"IHDR", b"PLTE", b"IDAT", b"IEND"]
    assert struct.unpack_from(">II", kinds[b"IHDR"]) == (WIDTH, HEIGHT)
    pixels = zlib.decompress(kinds[b"IDAT"])
    assert len(pixels) == HEIGHT * (WIDTH + 1)
    assert max(pixels) < len(kinds[b"PLTE"]) / 3


def test_the_font_has_every_letter_that_a_curve_needs() -> None:
    root = ET.fromstring(as_svg(CURVE))
    needed = {letter for element in root if element.tag.endswith("text") for letter in (element.text or "").upper()}
    assert needed <= FONT.keys()
    assert all(len(rows) == 5 and set(rows) <= set("01234567") for rows in FONT.values())
