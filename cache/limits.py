"""What the cache may hold: its size, what stays free of its disk, its water marks, and the part of each show.

State: ``<cache>/limits.json`` (0600, written durably): what was set while mounted. It wins over the configuration, name
by name, until it is unset. Shows are limited there alone. A file that cannot be understood is as good as none, and said
so: the configuration then counts.

Rules: whoever makes ``Limits`` has them checked; a value that contradicts another one is never in force.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from cache import durable
from manifest.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)

VALUE_NAMES = ("size_bytes", "free_reserve", "free_inodes", "high_water", "low_water")
Values = Mapping[str, "int | float | Reserve"]
"""Some of Limits' fields, by name; not ``shows``."""

FILE = "limits.json"
FORMAT = 1
FILE_BYTES_MAX = 4 * 1024 * 1024
SHOWS_MAX = 4096
HIGH_WATER = 0.95
LOW_WATER = 0.90
SIZE_BYTES_MIN = 1024 * 1024
"""A chunk of a large file, with room to spare for its neighbours' names and recipes."""


class Priority(IntEnum):
    """Which shows are evicted first: the lower ones."""

    LOW = 0
    NORMAL = 1
    HIGH = 2


@dataclass(frozen=True, slots=True)
class Reserve:
    """What stays free of all bytes or inodes: so many, or such a part (0 … 1); the lesser where both are set."""

    count: int | None = None
    part: float | None = None

    def __bool__(self) -> bool:
        """Whether anything is reserved at all."""
        return bool(self.count or self.part)

    def of(self, total: int) -> int:
        """How many of ``total`` stay free."""
        amounts = [] if self.count is None else [self.count]
        if self.part is not None:
            amounts.append(math.ceil(total * self.part))
        return min(amounts, default=0)

    def to_json(self) -> dict[str, int | float]:
        """What is set of it."""
        both = {"count": self.count, "part": self.part}
        return {name: value for name, value in both.items() if value is not None}


@dataclass(frozen=True, slots=True)
class ShowLimits:
    """What one show may take. ``quota_bytes`` None: as much as there is."""

    quota_bytes: int | None = None
    priority: Priority = Priority.NORMAL

    def to_json(self) -> dict[str, int | str | None]:
        return {"quota_bytes": self.quota_bytes, "priority": self.priority.name.lower()}


NO_LIMITS = ShowLimits()


@dataclass(frozen=True, slots=True)
class Limits:
    """What one cache folder may hold. Raises ConfigurationError for what contradicts itself.

    Eviction begins above ``high_water`` and ends at ``low_water``, parts of what may be held. ``free_reserve`` is of
    the bytes of its file system, ``free_inodes`` of the inodes.
    """

    size_bytes: int
    free_reserve: Reserve = Reserve()
    free_inodes: Reserve = Reserve()
    high_water: float = HIGH_WATER
    low_water: float = LOW_WATER
    shows: Mapping[str, ShowLimits] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.low_water < self.high_water <= 1:
            raise ConfigurationError(
                f"expected 0 < low_water < high_water ≤ 1, got low_water={self.low_water:g} and "
                f"high_water={self.high_water:g}: set both, as in high_water=0.95 low_water=0.9"
            )

    def show(self, tenant: str) -> ShowLimits:
        """What a show may take."""
        return self.shows.get(tenant, NO_LIMITS)

    def to_json(self) -> dict[str, Any]:
        """The values, without those of shows."""
        values = {name: getattr(self, name) for name in VALUE_NAMES}
        return {name: value.to_json() if isinstance(value, Reserve) else value for name, value in values.items()}

    def for_part(self, part: float) -> Self:
        """The same for a folder that has this part of all room: the quotas are divided as the contents are."""
        shows = {
            tenant: show if show.quota_bytes is None else replace(show, quota_bytes=int(show.quota_bytes * part))
            for tenant, show in self.shows.items()
        }
        return replace(self, shows=shows)


class FolderLimits(NamedTuple):
    """A folder of the cache, and the limits that are configured for it."""

    folder: Path
    limits: Limits


def check_size(size_bytes: int, disk_bytes: int, folder: Path) -> None:
    """Refuse a size that no cache can work with. Raises ConfigurationError."""
    if size_bytes < SIZE_BYTES_MIN:
        raise ConfigurationError(
            f"a cache of {size_bytes:,} bytes in {folder} holds nothing: expected at least {SIZE_BYTES_MIN:,} "
            "(write the unit, as in 200GB)"
        )
    if size_bytes > disk_bytes:
        raise ConfigurationError(
            f"a cache of {size_bytes:,} bytes is larger than the disk of {folder}, which has {disk_bytes:,}: "
            "make it smaller, or use another folder"
        )


@dataclass(frozen=True, slots=True)
class Overrides:
    """What was set while mounted: values by the names of Limits' fields, and the limits of shows."""

    values: Values = field(default_factory=dict)
    shows: Mapping[str, ShowLimits] = field(default_factory=dict)

    def over(self, configured: Limits) -> Limits:
        """The limits in force. Raises ConfigurationError."""
        values: dict[str, Any] = dict(self.values)
        return replace(configured, **values, shows=self.shows)

    def unless_refuted(self, configured: Limits) -> Overrides:
        """These, unless they contradict what is configured now: then the limits of shows alone, and a log line."""
        try:
            self.over(configured)
        except ConfigurationError as error:
            logger.warning("what was set for the cache does not go with its configuration, which counts: %s", error)
            return Overrides({}, self.shows)
        return self

    def merged(self, values: Values, shows: Mapping[str, ShowLimits]) -> Overrides:
        """With these set too; a show without limits is taken out. Raises ConfigurationError for too many shows."""
        limited = {name: show for name, show in {**self.shows, **shows}.items() if show != NO_LIMITS}
        if len(limited) > SHOWS_MAX:
            raise ConfigurationError(f"at most {SHOWS_MAX:,} shows can have limits: unset those of others first")
        return Overrides({**self.values, **values}, limited)

    @classmethod
    def load(cls, folder: Path) -> Overrides:
        """What is set for the cache in ``folder``; nothing, and a log line, where that cannot be read. Blocking."""
        path = folder / FILE
        try:
            with path.open("rb") as file:
                return _decode(file.read(FILE_BYTES_MAX))
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            logger.warning(
                "what was set for the cache in %s cannot be read (%s: %s): the configuration counts; set it again with "
                "damfs cache set, or remove the file", path, type(error).__name__, error,
            )  # fmt: skip
            return cls()

    def save(self, folder: Path) -> None:
        """Keep it for the next mounts. Blocking. Raises OSError."""
        values = {name: v.to_json() if isinstance(v, Reserve) else v for name, v in self.values.items()}
        shows = {name: show.to_json() for name, show in self.shows.items()}
        document = {"format": FORMAT, "values": values, "shows": shows}
        durable.write(folder / FILE, json.dumps(document, indent=1).encode(), mode=0o600)


_RESERVES = ("free_reserve", "free_inodes")
_NUMBERS = {"size_bytes": int, "high_water": float, "low_water": float}


def _decode(data: bytes) -> Overrides:
    """What ``save`` wrote.

    Raises ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError for anything else.
    """
    document = json.loads(data)
    if document["format"] != FORMAT:
        raise ValueError(f"its format is {document['format']}, expected {FORMAT}")
    values: dict[str, int | float | Reserve] = {}
    for name, value in document["values"].items():
        if name in _RESERVES:
            reserve = values[name] = Reserve(**{key: _NUMBERS_OF_RESERVE[key](value[key]) for key in value})
            _require(name, reserve.count or 0, 0, _BYTES_MAX)
            _require(name, reserve.part or 0, 0, 1)
        else:
            values[name] = _NUMBERS[name](value)
    _require("size_bytes", int(document["values"].get("size_bytes", _BYTES_MAX)), SIZE_BYTES_MIN, _BYTES_MAX)
    shows = {
        str(name): ShowLimits(
            None if show["quota_bytes"] is None else int(show["quota_bytes"]), Priority[show["priority"].upper()]
        )
        for name, show in document["shows"].items()
    }
    for name, show in shows.items():
        _require(name, show.quota_bytes or 0, 0, _BYTES_MAX)
    return Overrides(values, shows)


def _require(name: str, value: float, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ValueError(f"{name} is {value}, expected {least} to {most}")


_BYTES_MAX = 2**63 - 1
_NUMBERS_OF_RESERVE = {"count": int, "part": float}
