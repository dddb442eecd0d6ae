"""The limits of a cache as people write them, in the configuration and behind ``damfs cache set``.

State: none. ``size`` and ``quota`` are sizes (daemon/sizes.py). A reserve is ``10%``, ``50GB`` or both with a comma
between them, the lesser of which counts; of inodes the number has no unit; ``0`` reserves nothing. A water mark is a
number between 0 and 1.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cache.limits import FolderLimits, Limits, Priority, Reserve, ShowLimits, check_size
from cache.pace import Pace
from cache.space import look
from daemon.sizes import parse_size
from manifest.errors import ConfigurationError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from daemon.config import Settings
    from daemon.sizes import Size

RATE_MIN = 10_000
"""With less than this a second not even a small chunk comes before its deadline."""

NAMES = ("size", "free_reserve", "free_inodes", "high_water", "low_water")
"""What can be set of a cache."""
SHOW_NAMES = ("quota", "priority")
"""What can be set of a show in it."""


def parse_reserve(text: str) -> Reserve:
    """Read a reserve. Raises ConfigurationError."""
    reserve = Reserve()
    for word in "".join(text.split()).split(","):
        if word == "0":
            continue
        size = parse_size(word)
        if (reserve.count if size.percent is None else reserve.part) is not None:
            raise ConfigurationError(f"{text!r} is no reserve: expected one size and one share at most, as in 10%,50GB")
        if size.percent is None:
            reserve = replace(reserve, count=size.bytes)
        else:
            reserve = replace(reserve, part=size.percent / 100)
    return reserve


def parse_inodes(text: str) -> Reserve:
    """Read a reserve of inodes. Raises ConfigurationError."""
    if any(letter.isalpha() for letter in text):
        raise ConfigurationError(f"{text!r} is no number of inodes: write for example 5% or 100000")
    return parse_reserve(text)


def parse_window(text: str) -> int:
    """Read how far to read ahead, in bytes; 0 is nothing. Raises ConfigurationError."""
    size = None if text.strip() == "0" else parse_size(text)
    if size is not None and size.bytes is None:
        raise ConfigurationError(f"{text!r} is no window: write for example 64MiB, or 0")
    return size.bytes if size and size.bytes else 0


def parse_bandwidth(text: str) -> int:
    """Read bytes a second; 0 is none. Raises ConfigurationError."""
    if text.strip() == "0":
        return 0
    size = parse_size(text)
    if size.bytes is None:
        raise ConfigurationError(f"{text!r} is no bandwidth: write for example 20MB, for so much a second, or 0")
    return size.bytes


def parse_rate(text: str) -> int | None:
    """Read what may go over the network in a second, in bytes; None: ``off``, no limit. Raises ConfigurationError."""
    if text.strip() == "off":
        return None
    rate = parse_size(text).bytes
    if rate is None or rate < RATE_MIN:
        raise ConfigurationError(
            f"{text!r} is no bandwidth: write for example 100MB, for so many bytes a second (at least {RATE_MIN:,}), "
            "or off"
        )
    return rate


def scrub_pace(settings: Settings) -> Pace:
    """How quickly the cache is scrubbed by itself."""
    cache = settings.cache
    return Pace(parse_bandwidth(cache.scrub_bandwidth), cache.scrub_interval_days * 86400)


def parse_mark(text: str) -> float:
    """Read a water mark. Raises ConfigurationError."""
    try:
        mark = float(text)
    except ValueError:
        mark = 0.0
    if not 0 < mark <= 1:
        raise ConfigurationError(f"{text!r} is no water mark: expected a part of the size between 0 and 1, as in 0.9")
    return mark


def parse_values(words: Mapping[str, str], folder: Path) -> dict[str, int | float | Reserve]:
    """What was set of the cache in ``folder``, by the names of Limits' fields. Blocking.

    Raises UsageError for a name that is none, ConfigurationError for a value that is none, OSError.
    """
    values: dict[str, int | float | Reserve] = {}
    for name, text in words.items():
        if name == "size":
            values["size_bytes"] = parse_size(text).resolve(folder)
        elif name == "free_reserve":
            values[name] = parse_reserve(text)
        elif name == "free_inodes":
            values[name] = parse_inodes(text)
        elif name in ("high_water", "low_water"):
            values[name] = parse_mark(text)
        else:
            raise UsageError(f"{name} is nothing that can be set of a cache: expected one of {', '.join(NAMES)}")
    return values


def parse_show(words: Mapping[str, str], before: ShowLimits) -> ShowLimits:
    """The limits of a show with these changes; ``quota=none`` takes the quota away.

    Raises UsageError for a name or a priority that is none, ConfigurationError for a size that is none.
    """
    limits = before
    for name, text in words.items():
        if name == "quota":
            limits = replace(limits, quota_bytes=None if text == "none" else _parse_quota(text))
        elif name == "priority" and text.upper() in Priority.__members__:
            limits = replace(limits, priority=Priority[text.upper()])
        elif name == "priority":
            raise UsageError(f"priority={text} is none: expected {', '.join(p.name.lower() for p in Priority)}")
        else:
            raise UsageError(f"{name} is nothing that can be set of a show: expected one of {', '.join(SHOW_NAMES)}")
    return limits


def _parse_quota(text: str) -> int:
    size = parse_size(text)
    if size.bytes is None:
        raise ConfigurationError(f"quota={text}: expected a size or none, as in quota=200GB")
    return size.bytes


def configured(settings: Settings) -> list[FolderLimits]:
    """The folders of the cache and their limits, as configured. Blocking. Raises ConfigurationError."""
    cache = settings.cache
    others = parse_reserve(cache.free_reserve), parse_inodes(cache.free_inodes), cache.high_water, cache.low_water
    return [FolderLimits(folder, Limits(_resolve(size, folder), *others)) for folder, size in settings.cache_folders]


def _resolve(size: Size, folder: Path) -> int:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        size_bytes = size.resolve(there)
        check_size(size_bytes, look(there).bytes, folder)
    except OSError as error:
        raise ConfigurationError(f"the disk of the cache folder {folder} cannot be asked: {error}") from error
    return size_bytes
