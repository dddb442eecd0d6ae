"""Inode numbers: arithmetic, no table. Also the show slots, the one part of them that must be remembered.

    nodeid = show slot (12 bits) | view (22 bits) | id (29 bits)

    kind      view                          id
    file      0                             the row's id: a new version is a new inode, in all views the same
    link      0                             the row's id
    folder    all ones: live, else N        the folder's node; 0 is the root folder of the show
    ``@time`` the revision that it names    all ones

The number 1 is the root of the mount (slots begin with 1, so that nothing else is below 2^51). Row ids begin with
1, so (view 0, id 0) is the root folder of the empty revision 0.

State: ``Slots`` keeps ``<state>/slots.json``: {"_type":"damfs.slots/1","slots":{show: slot}}.
Invariant: a slot, once given, belongs to its show for ever; a number that would not fit is refused, never wrapped.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple, NewType

from cache import durable
from manifest import canonical, names
from manifest.errors import ConfigurationError, FormatError
from manifest.names import Revision

Ino = NewType("Ino", int)
"""What the kernel calls a nodeid, and applications st_ino."""

SLOT_BITS = 12
VIEW_BITS = 22
ID_BITS = 29
SLOT_MAX: Final[int] = 2**SLOT_BITS - 1
LIVE: Final[int] = 2**VIEW_BITS - 1
"""The view number of the live view."""
ID_MAX: Final[int] = 2**ID_BITS - 2
"""The largest row id or node that has an inode number."""

ROOT_INO = Ino(1)
_TIME_LINK: Final[int] = ID_MAX + 1
_SLOT_SHIFT = VIEW_BITS + ID_BITS
_FILE_BYTES_MAX = 1024 * 1024


class Where(NamedTuple):
    """What an inode number says. ``view`` is LIVE, or a revision; for files and links it is 0."""

    slot: int
    view: int
    id: int


def base(slot: int, view: int = 0) -> int:
    """The number to which a row id or a node is added: view 0 for files and links. Raises FormatError."""
    if not 0 < slot <= SLOT_MAX or not 0 <= view <= LIVE:
        raise FormatError(f"no inode numbers for slot {slot}, view {view}: at most {SLOT_MAX} and {LIVE}")
    return slot << _SLOT_SHIFT | view << ID_BITS


def row_ino(slot: int, row_id: int) -> Ino:
    """The inode of a file or link by the id of its row. Raises FormatError when the show has outgrown it."""
    return Ino(base(slot) | _checked(row_id, 1))


def folder_ino(slot: int, view: int, node: int) -> Ino:
    """The inode of a folder in a view (LIVE or a revision). Raises FormatError when the show has outgrown it."""
    return Ino(base(slot, view) | _checked(node, 0))


def time_link_ino(slot: int, revision: Revision) -> Ino:
    """The inode of ``<show>@<time>``: all times that mean the same revision share it."""
    return Ino(base(slot, revision) | _TIME_LINK)


def decode(ino: int) -> Where:
    """Take an inode number apart; it is not the mount's root."""
    return Where(ino >> _SLOT_SHIFT, ino >> ID_BITS & LIVE, ino & (2**ID_BITS - 1))


def is_time_link(where: Where) -> bool:
    """Whether this is the inode of a ``<show>@<time>``."""
    return where.id == _TIME_LINK


def is_folder(where: Where) -> bool:
    """Whether this is the inode of a folder."""
    return where.id == 0 or (where.view != 0 and where.id != _TIME_LINK)


def _checked(number: int, least: int) -> int:
    if not least <= number <= ID_MAX:
        raise FormatError(f"row {number} has no inode number: a show has room for {ID_MAX} rows")
    return number


class Slots:
    """Which show has which slot. Thread-safe; ``assign`` writes to the disk, the rest does not."""

    def __init__(self, path: Path) -> None:
        """Read the file, which need not exist yet. Raises ConfigurationError when it is not what we wrote."""
        self._path = path
        self._lock = threading.Lock()
        self._slots = _read(path)

    def get(self, show: str) -> int | None:
        """The show's slot, if it was given one."""
        return self._slots.get(show)

    def show(self, slot: int) -> str | None:
        """The show with this slot, if one has it."""
        return next((show for show, known in self._slots.items() if known == slot), None)

    def assign(self, shows: Iterable[str]) -> None:
        """Give each of these shows its slot, durably; nothing is written when all have one and the file is there.

        Raises ConfigurationError when the slots run out or the file cannot be written.
        """
        with self._lock:
            missing = [names.check_show(show) for show in shows if show not in self._slots]
            if not missing and self._path.exists():
                return
            slots = dict(self._slots)
            for show in missing:
                slots.setdefault(show, max(slots.values(), default=0) + 1)
            if max(slots.values(), default=0) > SLOT_MAX:
                raise ConfigurationError(
                    f"{self._path}: all {SLOT_MAX} inode slots are used up, so {missing[-1]} cannot be mounted; with "
                    "nothing mounted, delete the file: the shows are numbered anew"
                )
            try:
                durable.write(self._path, canonical.encode({"_type": "damfs.slots/1", "slots": slots}) + b"\n")
            except OSError as error:
                raise ConfigurationError(f"cannot write {self._path}: {error.strerror}") from error
            self._slots = slots


def _read(path: Path) -> dict[str, int]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
    try:
        return _parse(canonical.decode(data.removesuffix(b"\n"), bytes_max=_FILE_BYTES_MAX))
    except FormatError as error:
        raise ConfigurationError(f"{path} is damaged ({error}): with nothing mounted, delete it") from error


def _parse(value: Any) -> dict[str, int]:
    if not isinstance(value, dict) or set(value) != {"_type", "slots"} or value["_type"] != "damfs.slots/1":
        raise FormatError("not damfs.slots/1")
    if not isinstance(value["slots"], dict):
        raise FormatError("its slots are no object")
    slots: dict[str, int] = {names.check_show(show): slot for show, slot in value["slots"].items()}
    if not all(type(slot) is int and 0 < slot <= SLOT_MAX for slot in slots.values()):
        raise FormatError(f"a slot that is not in 1 … {SLOT_MAX}")
    if len(set(slots.values())) != len(slots):
        raise FormatError("two shows with one slot")
    return slots
