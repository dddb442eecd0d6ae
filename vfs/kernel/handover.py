"""Handing a mount from one daemon to the next: what is kept for a successor, and what a successor begins with.

Upgrade and crash are the same path. Whoever supervises the daemon keeps two descriptors, /dev/fuse and the journal. A
successor

1. takes both; the journal says for which mount and library they are, and what was settled at INIT,
2. takes up the open files: each keeps its way of reading and its backing id, which is still lent; what was about to
   be lent or given back at the death is given back,
3. asks for every request again that the predecessor had read and not answered (RESEND),
4. answers. Each show is attached with the revision that the kernel was last told of: the notices since then are
   queued first (``Filesystem.attach``), and no request of the show is answered before it is attached.

It does not wait for a killed predecessor to go: a killed process answers nothing any more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from manifest.errors import ConfigurationError
from vfs.kernel.device import Device
from vfs.kernel.journal import Facts, Journal, Open, read_facts

DEVICE: Final = "fuse"
JOURNAL: Final = "journal"
BARRIER_S: Final = 10.0


class Keeper(Protocol):
    """Who keeps descriptors for a successor: a supervisor, or systemd."""

    @property
    def supervised(self) -> bool:
        """Whether anything is kept at all."""
        ...

    def store(self, name: str, descriptor: int) -> None:
        """Keep a duplicate of a descriptor under a name. Blocking. Raises Unavailable."""
        ...

    def forget(self, name: str) -> None:
        """Close what is kept under a name. Blocking. Raises Unavailable."""
        ...

    def barrier(self, timeout_s: float) -> None:
        """Wait until all that is done. Blocking. Raises Unavailable."""
        ...


@dataclass(frozen=True, slots=True)
class Handed:
    """What a predecessor left. ``died_ns``: when it did, on the monotonic clock; 0: unknown."""

    device: int
    journal: int
    died_ns: int = 0


def from_descriptors(descriptors: Mapping[str, int], died_ns: int) -> Handed | None:
    """What a predecessor left, out of the descriptors that were kept; None when there is no mount to take over.

    Raises ConfigurationError when half of it is missing.
    """
    device, journal = descriptors.get(DEVICE), descriptors.get(JOURNAL)
    if device is None and journal is None:
        return None
    if device is None or journal is None:
        missing = DEVICE if device is None else JOURNAL
        raise ConfigurationError(f"the mount cannot be taken over: its descriptor {missing!r} was not kept")
    return Handed(device, journal, died_ns)


def check(handed: Handed, mountpoint: Path, library_id: str) -> Facts:
    """Whether this process can take over, without touching anything. Raises ConfigurationError when not."""
    facts = read_facts(handed.journal)
    if facts.mountpoint != str(mountpoint):
        raise ConfigurationError(f"the mount to take over is {facts.mountpoint}, not {mountpoint}")
    if facts.library_id != library_id:
        raise ConfigurationError(f"the mount to take over is of library {facts.library_id}, not {library_id}")
    return facts


def keep(keeper: Keeper, device: int, journal: int) -> None:
    """Have both kept, and wait until they are. Blocking. Raises Unavailable."""
    keeper.store(JOURNAL, journal)
    keeper.store(DEVICE, device)
    keeper.barrier(BARRIER_S)


def reclaim(device: Device, journal: Journal, opened: Sequence[Open]) -> None:
    """Give back what a predecessor lent to the kernel and had not written down, or had struck out, when it died.

    The kernel numbers what is lent upwards: what was lent last is the number before that of something lent now. Raises
    nothing: an id that is left costs an open file until the unmount.
    """
    ids = set(journal.ids_before)
    with suppress(OSError):
        newest = device.lend(journal.fd)
        ids |= {newest - 1, newest}
    for backing_id in ids - {one.backing_id for one in opened} - {0}:
        with suppress(OSError):  # ENOENT: it was given back
            device.take_back(backing_id)


def let_go(keeper: Keeper) -> None:
    """The mount is gone: nothing is to be taken over. Blocking. Raises Unavailable."""
    keeper.forget(DEVICE)
    keeper.forget(JOURNAL)
