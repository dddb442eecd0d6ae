"""Which pins there are: ``pins.json``, beside the replicas, so that they outlive a cache that had to be dropped.

State: none; the file is read once, and written as a whole at each change (docs/FORMAT.md).
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from cache import durable
from manifest import canonical
from manifest.errors import ConfigurationError, FormatError, UserError
from manifest.names import check_path, check_show, parse_at

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

log = logging.getLogger(__name__)

PINS_FILE = "pins.json"
FILE_BYTES_MAX = 16 * 1024 * 1024
_TYPE = "damfs.pins/1"


@dataclass(frozen=True, slots=True)
class Pin:
    """What somebody wants to stay. ``at`` None: what the show has now, whatever that will be."""

    id: int
    show: str
    at: str | None
    path: str
    recursive: bool
    made_ns: int

    @property
    def what(self) -> tuple[str, str | None, str, bool]:
        """Two pins of the same are one."""
        return self.show, self.at, self.path, self.recursive

    def __str__(self) -> str:
        at = "" if self.at is None else f"@{self.at}"
        return f"{self.show}{at}" + (f":{self.path}" if self.path else "")


def check(pin: Pin) -> Pin:
    """A pin whose names can be looked up. Raises FormatError, UsageError."""
    check_show(pin.show)
    if pin.path:
        check_path(pin.path)
    if pin.at is not None:
        parse_at(pin.at)
    return pin


def load(file: Path) -> list[Pin]:
    """The pins; none when there is no file. One that is damaged is put aside: pins are wishes, the mount is more.

    Blocking. Raises nothing.
    """
    try:
        found = canonical.decode(file.read_bytes().removesuffix(b"\n"), bytes_max=FILE_BYTES_MAX)
        return _read(found)
    except FileNotFoundError:
        return []
    except (OSError, FormatError, UserError, TypeError, KeyError) as error:
        aside = file.with_suffix(".damaged")
        log.error("the pins in %s cannot be read (%s): they are put aside as %s; pin anew", file, error, aside)
        with suppress(OSError):
            file.replace(aside)
        return []


def save(file: Path, pins: Iterable[Pin]) -> None:
    """Write all pins. Blocking. Raises ConfigurationError."""
    value = {"_type": _TYPE, "pins": [asdict(pin) for pin in pins]}
    try:
        durable.write(file, canonical.encode(value) + b"\n")
    except OSError as error:
        raise ConfigurationError(f"the pins cannot be written to {file}: {error.strerror}") from error


def _read(found: Any) -> list[Pin]:
    if not isinstance(found, dict) or found.get("_type") != _TYPE:
        raise FormatError(f"it is no {_TYPE}")
    pins = [Pin(**values) for values in found["pins"]]
    for pin in pins:
        kinds = (pin.id, int), (pin.show, str), (pin.path, str), (pin.recursive, bool), (pin.made_ns, int)
        if not all(isinstance(value, kind) for value, kind in kinds) or not isinstance(pin.at, str | None):
            raise FormatError(f"a pin has a value of another kind: {pin}")
        check(pin)
    if len({pin.id for pin in pins}) != len(pins):
        raise FormatError("two pins have one number")
    return pins
