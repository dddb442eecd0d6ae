"""Which files are frames of one sequence: the grammar of names, and the key of a sequence.

State: none. A frame is a file whose name ends in a number before its extension, as the field writes it:
``plate.1001.exr``, ``plate_1001.exr``, ``plate1001.exr``, ``sim.0001.bgeo.sc``; UDIM tiles are the same to it. A number
behind a ``v`` is a version, and no frame: ``comp_v012.nk``. The grammar is fileseq's for names on disk
(``fileseq.constants.DISK_PATTERN``; a test compares them). It is written anew because theirs takes time without end for
some names, and names are what publishers choose.

A sequence is the names of one folder that differ in that number alone. A gap is no end: what is used together counts.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from blake3 import blake3

KEY_BYTES = 8
_FRAME = re.compile(r"(-?[0-9]+)?((?:\.(?>\w*[a-zA-Z]\w?))*(?:\.[^.]+)?)\Z")
_VERSION = re.compile(r"(?:\A|[^A-Za-z])[vV]\Z")


class Frame(NamedTuple):
    """A name as a frame of a sequence: what stands before the number, the number, and the extension."""

    prefix: str
    number: int
    suffix: str


def parse(name: str) -> Frame | None:
    """The parts of a file's name; None when it is no frame."""
    found = _FRAME.search(name)
    assert found is not None, "it matches nothing at the end"
    if found[1] is None or _VERSION.search(name, 0, found.start()):
        return None
    return Frame(name[: found.start()], int(found[1]), found[2])


def key(folder: int, name: str) -> int:
    """The key of the sequence that a name in a folder (its stable id) belongs to, a signed 64-bit number; 0: none."""
    frame = parse(name)
    return 0 if frame is None else key_of(folder, frame)


def key_of(folder: int, frame: Frame) -> int:
    """The key of the sequence of a frame in a folder."""
    text = f"{folder}/{frame.prefix}\0{frame.suffix}".encode()
    return int.from_bytes(blake3(text).digest(KEY_BYTES), "little", signed=True)
