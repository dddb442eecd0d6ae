"""What a chart is drawn on: an SVG, or a PNG by zlib alone. Both know lines and short texts, in pixels from top left.

State: each has its picture so far. A PNG's letters are those of FONT: capitals, three pixels by five, doubled.
"""

from __future__ import annotations

import struct
import zlib
from typing import Literal, Protocol
from xml.sax.saxutils import escape

Colour = Literal["black", "grey", "blue", "red", "green"]
Anchor = Literal["start", "middle", "end"]

RGB: dict[Colour, tuple[int, int, int]] = {
    "black": (32, 32, 32),
    "grey": (200, 200, 200),
    "blue": (31, 96, 180),
    "red": (190, 50, 40),
    "green": (30, 130, 60),
}
TEXT_PX = 12
DASH_PX = 6
FONT = {
    "0": "75557", "1": "26227", "2": "71747", "3": "71317", "4": "55711", "5": "74717", "6": "74757", "7": "71122",
    "8": "75757", "9": "75717", "%": "51245", ".": "00002", ",": "00024", ":": "02020", "-": "00700", " ": "00000",
    "A": "25755", "B": "65656", "C": "34443", "D": "65556", "E": "74647", "F": "74644", "G": "34553", "H": "55755",
    "I": "72227", "J": "11152", "K": "55655", "L": "44447", "M": "57755", "N": "65555", "O": "25552", "P": "65644",
    "Q": "25563", "R": "65655", "S": "34216", "T": "72222", "U": "55557", "V": "55552", "W": "55775", "X": "55255",
    "Y": "55222", "Z": "71247",
}  # fmt: skip
"""Five rows for each, a row an octal digit: 4 is its left pixel, 1 its right one."""
_PIXEL = 2


class Canvas(Protocol):
    """See the module."""

    def line(self, start: tuple[float, float], end: tuple[float, float], colour: Colour, *, dashed: bool) -> None:
        """A line of two pixels, one when it is grey."""

    def text(self, at: tuple[float, float], text: str, colour: Colour, anchor: Anchor) -> None:
        """A text whose middle is as high as ``at``, beginning, centred or ending there."""

    def data(self) -> bytes:
        """The file."""


class SvgCanvas:
    """A drawing in a file of text."""

    def __init__(self, width: int, height: int) -> None:
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif">',
            f'<rect width="{width}" height="{height}" fill="white"/>',
        ]

    def line(self, start: tuple[float, float], end: tuple[float, float], colour: Colour, *, dashed: bool) -> None:
        (x1, y1), (x2, y2) = start, end
        dash = f' stroke-dasharray="{DASH_PX}"' if dashed else ""
        self._parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{_css(colour)}" '
            f'stroke-width="{1 if colour == "grey" else 2}"{dash}/>'
        )

    def text(self, at: tuple[float, float], text: str, colour: Colour, anchor: Anchor) -> None:
        self._parts.append(
            f'<text x="{at[0]:.1f}" y="{at[1] + TEXT_PX / 3:.1f}" fill="{_css(colour)}" font-size="{TEXT_PX}" '
            f'text-anchor="{anchor}">{escape(text)}</text>'
        )

    def data(self) -> bytes:
        return "\n".join([*self._parts, "</svg>", ""]).encode()


class PngCanvas:
    """A picture of one byte a pixel, with a palette."""

    def __init__(self, width: int, height: int) -> None:
        self._width = width
        self._rows = [bytearray(width) for _ in range(height)]

    def line(self, start: tuple[float, float], end: tuple[float, float], colour: Colour, *, dashed: bool) -> None:
        steps = int(max(abs(end[0] - start[0]), abs(end[1] - start[1]))) or 1
        for i in range(steps + 1):
            if dashed and i // DASH_PX % 2:
                continue
            x, y = (round(a + (b - a) * i / steps) for a, b in zip(start, end, strict=True))
            self._dot(x, y, 1 if colour == "grey" else 2, colour)

    def text(self, at: tuple[float, float], text: str, colour: Colour, anchor: Anchor) -> None:
        step = 4 * _PIXEL
        left = round(at[0]) - {"start": 0, "middle": len(text) * step // 2, "end": len(text) * step}[anchor]
        top = round(at[1]) - 5 * _PIXEL // 2
        for number, letter in enumerate(text.upper()):
            for row, bits in enumerate(FONT.get(letter, FONT["-"])):
                for column in range(3):
                    if int(bits) & 4 >> column:
                        self._dot(left + number * step + column * _PIXEL, top + row * _PIXEL, _PIXEL, colour)

    def data(self) -> bytes:
        palette = bytes((255, 255, 255)) + b"".join(bytes(rgb) for rgb in RGB.values())
        header = struct.pack(">IIBBBBB", self._width, len(self._rows), 8, 3, 0, 0, 0)
        pixels = zlib.compress(b"".join(b"\0" + row for row in self._rows), 9)
        chunks = ((b"IHDR", header), (b"PLTE", palette), (b"IDAT", pixels), (b"IEND", b""))
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )

    def _dot(self, x: int, y: int, size: int, colour: Colour) -> None:
        number = 1 + list(RGB).index(colour)
        for row in self._rows[max(y, 0) : y + size]:
            for column in range(max(x, 0), min(x + size, self._width)):
                row[column] = number


def _css(colour: Colour) -> str:
    return "#" + bytes(RGB[colour]).hex()
