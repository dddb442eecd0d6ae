"""Bindings: how the kernel is spoken to. The protocol they share, and the choice between them.

A binding owns one mount from ``run`` until it returns. ``serve`` is what the daemon calls: it brings a binding, the
file system and the notifier of its invalidations together for the life of the mount.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, Protocol

import trio

from manifest.errors import ConfigurationError
from manifest.names import Revision
from vfs import mountpoint as mountpoints
from vfs.filesystem import Filesystem
from vfs.invalidation import Notice, Notifier
from vfs.kernel.binding import KernelBinding
from vfs.kernel.handover import Handed, Keeper
from vfs.mountpoint import MountOptions

KERNEL_MIN: Final = (6, 9)
"""The Linux that has passthrough and the hand-over of a mount."""


Way = Literal["kernel", "daemon"]
"""How the bytes of an open file come: the kernel reads the cached file by itself, or the daemon is asked."""


class Binding(Protocol):
    """One way to speak FUSE, for one mountpoint."""

    @property
    def name(self) -> str:
        """As it is called in the configuration and in ``status``."""
        ...

    @property
    def limits(self) -> Mapping[str, int | str]:
        """The limits in force and, under ``not_raised``, why one is not what it should be. Filled by ``run``."""
        ...

    def way_of(self, ino: int) -> Way | None:
        """Who reads an inode for those who have it open now; None: nobody has, as far as the binding knows."""
        ...

    async def run(
        self, filesystem: Filesystem, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Mount, serve until somebody unmounts, return. ``started`` once the kernel is answered.

        Cancellation unmounts (lazily, where something is still open), but for a mount that a successor can have and
        that nobody ``give_up``: that is left to it. Raises ConfigurationError when it cannot mount.
        """
        ...

    @property
    def handover(self) -> dict[str, int | float] | None:
        """How often the mount was handed over and how long nobody answered, in seconds; None: it cannot be."""
        ...

    @property
    def released(self) -> bool:
        """Whether the mount was left to a successor."""
        ...

    async def release(self) -> None:
        """Stop serving and leave the mount to a successor; ``run`` then returns. Raises ConfigurationError."""
        ...

    def give_up(self) -> None:
        """The mount is to end: from now on cancelling ``run`` unmounts, also where a successor could have it."""
        ...

    async def unmount(self, *, lazy: bool) -> None:
        """Unmount; ``run`` then returns. Raises Busy when something in it is open and ``lazy`` is False."""
        ...

    def notify(self, notices: Sequence[Notice]) -> list[tuple[Notice, int]]:
        """Make the kernel forget names and attributes. See ``vfs.invalidation.Target``."""
        ...

    def on_told(self, slot: int, revision: Revision) -> None:
        """The kernel holds nothing of a show that is older than this revision. On the notifier's thread."""
        ...


def choose(
    wanted: str,
    mountpoint: Path,
    options: MountOptions,
    library_id: str,
    *,
    keeper: Keeper | None = None,
    handed: Handed | None = None,
) -> tuple[Binding, str]:
    """The binding for a mountpoint (canonical), and why it is this one. Raises ConfigurationError.

    ``wanted`` is a binding's name, or "auto" for the best one that works here. ``keeper`` keeps the mount for a
    successor; ``handed`` is a mount to take over.
    """
    if wanted not in ("auto", "kernel", "pyfuse3"):
        raise ConfigurationError(f"binding = {wanted!r}: expected auto, kernel or pyfuse3")
    why_not = kernel_why_not()
    if handed is not None or wanted == "kernel" or (wanted == "auto" and why_not is None):
        if why_not is not None:
            raise ConfigurationError(f"binding = kernel does not work here: {why_not}")
        reason = "asked for" if wanted == "kernel" else "the fastest one, which works here"
        return KernelBinding(mountpoint, options, library_id, keeper=keeper, handed=handed), reason
    try:
        from vfs.pyfuse3_binding import Pyfuse3Binding  # noqa: PLC0415  it needs libfuse3, which may be missing
    except ImportError as error:
        raise ConfigurationError(f"pyfuse3 cannot be loaded ({error}): install libfuse3") from error
    reason = "asked for" if wanted == "pyfuse3" else f"the one that runs everywhere; not kernel: {why_not}"
    return Pyfuse3Binding(mountpoint, options), reason


def kernel_why_not() -> str | None:
    """Why the kernel binding does not work on this machine for this process; None when it does, as far as is known."""
    release = os.uname().release
    numbers = re.match(r"(\d+)\.(\d+)", release)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < KERNEL_MIN:
        return f"it needs Linux {KERNEL_MIN[0]}.{KERNEL_MIN[1]}, this is {release}"
    if not mountpoints.effective_capabilities() >> mountpoints.CAP_SYS_ADMIN & 1:
        return "it needs CAP_SYS_ADMIN"
    if Path("/proc/self/uid_map").read_text().split() != ["0", "0", str(2**32 - 1)]:
        return "it needs the initial user namespace"
    return None


async def serve(
    filesystem: Filesystem, binding: Binding, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Run a binding with its notifier until it is unmounted. Cancellation unmounts."""
    async with Notifier(binding, filesystem.metrics, on_told=binding.on_told) as notifier, trio.open_nursery() as ahead:
        await ahead.start(filesystem.ahead.run)
        filesystem.on_told = binding.on_told
        filesystem.notify_through(notifier)
        try:
            await binding.run(filesystem, task_status=task_status)
        finally:
            filesystem.notify_through(None)
            filesystem.handles.release_all()
            ahead.cancel_scope.cancel()
