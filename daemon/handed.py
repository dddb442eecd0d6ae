"""What a predecessor left for this process: descriptors that its supervisor kept, by name.

systemd's protocol for passing descriptors: they begin at 3, ``$LISTEN_FDS`` is their number, ``$LISTEN_FDNAMES`` are
their names, and ``$LISTEN_PID`` is whom they are for. Source: sd_listen_fds(3).
"""

from __future__ import annotations

import os

from manifest.errors import ConfigurationError

FIRST = 3
"""The number of the first descriptor."""
HANDED_MAX = 64
"""No supervisor of ours keeps as many."""
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


def has(name: str) -> bool:
    """Whether a descriptor of this name was left for this process, or for what it becomes by an exec."""
    is_ours = os.environ.get("LISTEN_PID") == str(os.getpid())
    return is_ours and name in os.environ.get("LISTEN_FDNAMES", "").split(":")


def take() -> dict[str, int]:
    """The descriptors by name; empty on a first start. They are the caller's now, and no child's.

    To be called once, before anything else opens a descriptor. The variables are gone from the environment
    afterwards. Of several descriptors of one name the last one counts, the others are closed. Raises
    ConfigurationError when what is announced is not there.
    """
    for_pid, count, names = (os.environ.pop(name, "") for name in _VARIABLES)
    if for_pid != str(os.getpid()):
        return {}
    if not count.isdecimal() or int(count) > HANDED_MAX:
        raise ConfigurationError(f"$LISTEN_FDS is {count!r}: expected a number up to {HANDED_MAX} from the supervisor")
    labels = names.split(":") if names else []
    if len(labels) != int(count):
        raise ConfigurationError(f"$LISTEN_FDNAMES is {names!r}: expected {count} names from the supervisor")
    handed: dict[str, int] = {}
    for descriptor, label in enumerate(labels, FIRST):
        try:
            os.set_inheritable(descriptor, False)
        except OSError as error:
            raise ConfigurationError(f"descriptor {descriptor} ({label}) was announced and is not open") from error
        if label in handed:
            os.close(handed[label])
        handed[label] = descriptor
    return handed
