"""Where things lie on this machine: configuration, cache, state, run folder, control sockets.

| | when the variable is set | root | everybody else |
|---|---|---|---|
| configuration | $XDG_CONFIG_HOME/damfs | /etc/damfs | ~/.config/damfs |
| cache | $XDG_CACHE_HOME/damfs | /var/cache/damfs | ~/.cache/damfs |
| state and logs | $XDG_STATE_HOME/damfs | /var/lib/damfs | ~/.local/state/damfs |
| control sockets | $XDG_RUNTIME_DIR/damfs | /run/damfs | /run/user/<uid>/damfs, else /tmp/damfs-<uid> |

Root's login sessions set $XDG_RUNTIME_DIR to /run/user/0, where nobody else could ask for a status: that value counts
as unset for root. Nothing here touches a mountpoint: a mount that hangs must not hang whoever asks where its socket is.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Literal

from manifest.digest import Digest
from manifest.errors import ConfigurationError

Surface = Literal["view", "admin"]
SURFACES: tuple[Surface, ...] = ("view", "admin")

NAME_CHARACTERS_MAX = 60
"""A longer escaped mountpoint is cut and given a digest: a socket's address holds 107 bytes."""
_PLAIN = re.compile(r"[A-Za-z0-9:_.]")


def _base(variable: str, for_root: str, fallback: str) -> Path:
    value = os.environ.get(variable, "")
    if value.startswith("/"):
        return Path(value) / "damfs"
    if os.geteuid() == 0:
        return Path(for_root) / "damfs"
    try:
        return Path.home() / fallback / "damfs"
    except RuntimeError as error:
        raise ConfigurationError(f"this user has no home folder: set HOME or {variable}") from error


def config_folder() -> Path:
    """Where ``config.toml``, keys and trust files lie."""
    return _base("XDG_CONFIG_HOME", "/etc", ".config")


def key_file() -> Path:
    """The default of ``key``: what signs the publishes of this user."""
    return config_folder() / "key.pem"


def trust_file(library_id: str) -> Path:
    """The default of ``library.trust`` for a library (32 hex digits)."""
    return config_folder() / "trust" / f"{library_id}.json"


def cache_folder() -> Path:
    """The default of ``cache.folder``."""
    return _base("XDG_CACHE_HOME", "/var/cache", ".cache")


def state_folder() -> Path:
    """Where the logs of mounts in the background lie, and what must outlive the cache."""
    return _base("XDG_STATE_HOME", "/var/lib", ".local/state")


def log_file(mountpoint: Path) -> Path:
    """Where a daemon that was sent to the background writes its log."""
    return state_folder() / "log" / f"{socket_stem(mountpoint)}.log"


def replica_folder(cache: Path) -> Path:
    """Where the daemon keeps its replicas and what it remembers of a library; inside its cache folder."""
    return cache / "replicas"


def run_folder(uid: int | None = None) -> Path:
    """Where the control sockets of the mounts of ``uid`` (default: ours) lie. It need not exist."""
    uid = os.geteuid() if uid is None else uid
    own = os.environ.get("XDG_RUNTIME_DIR", "") if uid == os.geteuid() else ""
    if own.startswith("/") and own.rstrip("/") != "/run/user/0":
        return Path(own) / "damfs"
    if uid == 0:
        return Path("/run/damfs")
    usual = Path(f"/run/user/{uid}")
    return usual / "damfs" if usual.is_dir() else Path(f"/tmp/damfs-{uid}")  # noqa: S108  owner is checked below


def make_run_folder() -> Path:
    """Create our run folder when it is missing. Raises ConfigurationError when it is not ours alone to write."""
    folder = run_folder()
    try:
        folder.mkdir(mode=0o755, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise ConfigurationError(f"no folder for the control sockets: {error}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise ConfigurationError(f"{folder} must be a folder that only uid {os.geteuid()} can write: remove it")
    return folder


def escape(path: Path) -> str:
    """A path as one word, the way systemd names units after paths (``systemd-escape --path``).

    Source: systemd.unit(5), "String escaping for inclusion in unit names".
    """
    plain = os.path.normpath(path).strip("/")
    if not plain:
        return "-"
    words = []
    for index, byte in enumerate(os.fsencode(plain)):
        character = chr(byte)
        if character == "/":
            words.append("-")
        elif _PLAIN.fullmatch(character) and not (index == 0 and character == "."):
            words.append(character)
        else:
            words.append(f"\\x{byte:02x}")
    return "".join(words)


def socket_stem(mountpoint: Path) -> str:
    """What the names of a mount's sockets and log begin with; distinct for distinct mountpoints."""
    name = escape(mountpoint)
    if len(name) <= NAME_CHARACTERS_MAX:
        return name
    return f"{name[:40]}~{Digest.of(name.encode()).hex()[:16]}"


def socket_path(mountpoint: Path, surface: Surface, uid: int | None = None) -> Path:
    """The control socket of a mount. ``mountpoint`` is canonical (``mounts.canonical``)."""
    return run_folder(uid) / f"{socket_stem(mountpoint)}.{surface}.sock"
