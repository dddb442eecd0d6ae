"""The control API's only client: synchronous, for commands.

Every call has a time-out. An error that the daemon reports is raised here as the error that it was there. Looking for a
daemon never touches its mount.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daemon import mounts, paths
from daemon.sockets import address_of, sockets_in
from manifest import errors
from manifest.errors import DamfsError, NotFound, Unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from manifest.names import Address

CONNECT_S = 2.0
STATUS_S = 10.0
SYNC_S = 60.0
STOP_S = 20.0
RELOAD_S = 100.0
EXPLAIN_S = 60.0
WALK_S = 600.0
"""For what looks at every file below a folder."""
REPLY_BYTES_MAX = 64 * 1024 * 1024

_KINDS: dict[str, type[DamfsError]] = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, DamfsError)
}


class _UnixConnection(http.client.HTTPConnection):
    """HTTP/1.1 over a Unix socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            connection.settimeout(min(CONNECT_S, self.timeout or CONNECT_S))
            with address_of(self._path) as address:
                connection.connect(address)
            connection.settimeout(self.timeout)
        except OSError:
            connection.close()
            raise
        self.sock = connection


@dataclass(frozen=True, slots=True)
class Client:
    """The daemon of one mount. ``mountpoint`` is canonical; ``uid`` is whose daemon it is."""

    mountpoint: Path
    uid: int

    @classmethod
    def for_mountpoint(cls, path: Path) -> Client:
        """The daemon whose mount is at ``path``, or holds it. Raises NotFound when no damfs is mounted there."""
        mount = mounts.containing(path)
        mountpoint = mount.mountpoint if mount else mounts.canonical(path)
        owners = [mount.uid] if mount and mount.uid is not None else []
        for uid in dict.fromkeys([*owners, os.geteuid(), 0]):
            if os.path.exists(paths.socket_path(mountpoint, "view", uid)):  # noqa: PTH110  false for what is not ours
                return cls(mountpoint, uid)
        raise _nobody_at(mountpoint)

    @classmethod
    def all(cls) -> list[Client]:
        """Every daemon whose control socket we can reach, by mountpoint; sockets that nobody answers are left out."""
        folders = {paths.run_folder(): os.geteuid(), paths.run_folder(0): 0}
        if os.geteuid() == 0:
            folders |= {user / "damfs": int(user.name) for user in Path("/run/user").glob("[0-9]*")}
        found: dict[Path, Client] = {}
        for folder, uid in folders.items():
            for path in sockets_in(folder, "view"):
                try:
                    reply = _ask(path, "GET", "/v1/status", None, CONNECT_S)
                except (DamfsError, OSError):
                    continue
                mountpoint = Path(str(reply.get("mountpoint")))
                found[mountpoint] = cls(mountpoint, uid)
        return [found[mountpoint] for mountpoint in sorted(found)]

    def status(self, *, timeout_s: float = STATUS_S) -> dict[str, Any]:
        """What docs/STATUS.md describes. Raises NotFound, Unavailable."""
        return self._call("view", "GET", "/v1/status", None, timeout_s)

    def sync(self, show: str, at_least: int | None = None, *, timeout_s: float = SYNC_S) -> int:
        """Have the mount look for new revisions now; the revision that it serves afterwards.

        With ``at_least`` it waits until that revision is served. Raises NotFound (no such show), Unavailable (not
        within ``timeout_s``).
        """
        body = {"show": show, "at_least": at_least, "timeout_s": timeout_s}
        return int(self._call("view", "POST", "/v1/sync", body, timeout_s + 5)["revision"])

    def stop(self, *, lazy: bool = False, timeout_s: float = STOP_S) -> None:
        """Unmount, and end the daemon. When this returns, the mountpoint is free.

        Raises Busy when the mount is in use and ``lazy`` is not set (nothing has changed then), NotFound,
        Unavailable.
        """
        self._call("admin", "POST", "/v1/stop", {"lazy": lazy}, timeout_s)

    def reload(self, *, timeout_s: float = RELOAD_S) -> int:
        """Have the daemon replaced by a fresh one; its pid, which another one has soon. Open files stay open.

        Raises ConfigurationError (it cannot be replaced: why, and nothing has changed), NotFound, Unavailable.
        """
        return int(self._call("admin", "POST", "/v1/reload", {}, timeout_s)["pid"])

    def set_offline(self, *, on: bool) -> None:
        """Have the mount use no network, or use it again. Raises ConfigurationError, AccessDenied, Unavailable."""
        self._call("admin", "POST", "/v1/offline", {"on": on}, STATUS_S)

    def explain(self, address: Address) -> dict[str, Any]:
        """What docs/STATUS.md says of explanations: why reading what lies there is slow.

        As who may administer the mount, if we may, else as any user. Raises NotFound, AccessDenied, UsageError,
        Unavailable.
        """
        admin = os.access(paths.socket_path(self.mountpoint, "admin", self.uid), os.W_OK)
        return self._call("admin" if admin else "view", "POST", "/v1/explain", _place(address), EXPLAIN_S)

    def set_cache_limits(
        self,
        values: Mapping[str, str],
        *,
        show: str | None = None,
        folder: Path | None = None,
        default: bool = False,
    ) -> None:
        """Set limits of the cache, or of a show in it, as text; with ``default`` unset them.

        Raises UsageError, ConfigurationError (why they cannot be, and nothing has changed), NotFound, Unavailable.
        """
        where = None if folder is None else str(mounts.canonical(folder))
        body = {"set": dict(values), "show": show, "folder": where, "default": default}
        self._call("admin", "POST", "/v1/cache/limits", body, STATUS_S)

    def cache_ls(self, address: Address, *, recursive: bool) -> dict[str, Any]:
        """How much is cached of what lies there. Raises NotFound, UsageError, Unavailable."""
        return self._call("admin", "POST", "/v1/cache/ls", {**_place(address), "recursive": recursive}, WALK_S)

    def cache_evict(self, address: Address) -> dict[str, Any]:
        """Have the cache let go of what lies there. Raises NotFound, Busy, UsageError, Unavailable."""
        return self._call("admin", "POST", "/v1/cache/evict", _place(address), WALK_S)

    def cache_scrub(self, address: Address | None, rate: int) -> dict[str, Any]:
        """Have what is cached checked, of a place or all of it, ``rate`` bytes a second (0: no limit).

        Returns the report, which has just begun. Raises Busy when one is under way, NotFound, UsageError, Unavailable.
        """
        body = {**({} if address is None else _place(address)), "rate": rate}
        return self._call("admin", "POST", "/v1/cache/scrub", body, WALK_S)

    def cache_report(self) -> dict[str, Any]:
        """What the check that was asked for last has found so far."""
        return self._call("admin", "GET", "/v1/cache/scrub", None, STATUS_S)

    def cache_reads(self) -> dict[str, Any]:
        """A sample of what was opened, and the cache that it is of (daemon/trace_routes.py)."""
        return self._call("admin", "GET", "/v1/cache/reads", None, STATUS_S)

    def pins(self) -> dict[str, Any]:
        """What is pinned, and how far each pin has come. Raises Unavailable."""
        return self._call("admin", "GET", "/v1/pins", None, STATUS_S)

    def measure_pin(self, address: Address, *, recursive: bool) -> dict[str, Any]:
        """How large a pin of what lies there would be. Raises NotFound, UsageError, Unavailable."""
        return self._call("admin", "POST", "/v1/pins/measure", {**_place(address), "recursive": recursive}, WALK_S)

    def add_pin(self, address: Address, *, recursive: bool) -> dict[str, Any]:
        """Pin what lies there. Raises as ``measure_pin``, and ConfigurationError when it is too large."""
        return self._call("admin", "POST", "/v1/pins/add", {**_place(address), "recursive": recursive}, WALK_S)

    def remove_pins(self, numbers: Sequence[int]) -> dict[str, Any]:
        """Unpin. Raises NotFound, Unavailable."""
        return self._call("admin", "POST", "/v1/pins/remove", {"ids": list(numbers)}, WALK_S)

    def prefetches(self) -> dict[str, Any]:
        """All jobs of a prefetch, and how far each has come. Raises Unavailable."""
        return self._call("admin", "GET", "/v1/prefetch", None, STATUS_S)

    def prefetch_job(self, number: int) -> dict[str, Any]:
        """One of them. Raises NotFound, Unavailable."""
        return self._call("admin", "GET", f"/v1/prefetch/{number}", None, STATUS_S)

    def measure_prefetch(self, wants: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """How large a job for these would be (daemon/wants.py). Raises NotFound, UsageError, Unavailable."""
        return self._call("admin", "POST", "/v1/prefetch/measure", {"wants": list(wants)}, WALK_S)

    def add_prefetch(self, wants: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
        """Have these brought. Raises as ``measure_prefetch``, and ConfigurationError when it is too large."""
        return self._call("admin", "POST", "/v1/prefetch/add", {"wants": list(wants), "name": name}, WALK_S)

    def cancel_prefetch(self, numbers: Sequence[int]) -> dict[str, Any]:
        """End jobs. Raises NotFound, Unavailable."""
        return self._call("admin", "POST", "/v1/prefetch/cancel", {"ids": list(numbers)}, STATUS_S)

    def start_recording(self) -> int:
        """Have recorded what the descendants of this process read: the number of it. Raises Busy, UsageError."""
        return int(self._call("admin", "POST", "/v1/recordings/start", {}, STATUS_S)["id"])

    def stop_recording(self, number: int) -> bytes:
        """End it: the trace (daemon/recorded.py). Raises NotFound when the daemon knows nothing of it."""
        return str(self._call("admin", "POST", "/v1/recordings/stop", {"id": number}, WALK_S)["trace"]).encode()

    def _call(self, surface: paths.Surface, method: str, target: str, body: object, timeout_s: float) -> dict[str, Any]:
        path = paths.socket_path(self.mountpoint, surface, self.uid)
        try:
            return _ask(path, method, target, body, timeout_s)
        except (FileNotFoundError, ConnectionRefusedError):
            raise _nobody_at(self.mountpoint) from None
        except PermissionError:
            raise errors.AccessDenied(
                f"{path} is not open to uid {os.geteuid()}: ask as the user who mounted {self.mountpoint}, or as root"
            ) from None
        except TimeoutError:
            raise Unavailable(f"the daemon of {self.mountpoint} did not answer within {timeout_s:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"the daemon of {self.mountpoint} went away while it was asked: {error}") from error


def _place(address: Address) -> dict[str, str | None]:
    return {"show": address.show, "at": None if address.at is None else str(address.at), "path": address.path}


def _nobody_at(mountpoint: Path) -> DamfsError:
    mount = mounts.at(mountpoint)
    if mount and mount.is_ours and os.geteuid() not in (0, mount.uid):
        return errors.AccessDenied(f"{mountpoint} was mounted by uid {mount.uid}: ask as that user, or as root")
    if mount and mount.is_ours:
        whose = f" of uid {mount.uid}: ask as that user, or" if mount.uid not in (None, os.geteuid()) else ":"
        return Unavailable(
            f"no daemon answers for the mount at {mountpoint}{whose} detach it with damfs umount --lazy {mountpoint}"
        )
    return NotFound(f"no damfs is mounted at {mountpoint}")


def is_alive(path: Path, *, timeout_s: float = CONNECT_S) -> int | None:
    """The pid of the daemon that answers at this socket; None when there is none."""
    try:
        return int(_ask(path, "GET", "/v1/status", None, timeout_s).get("pid", 0)) or None
    except (OSError, http.client.HTTPException, DamfsError):
        return None


def _ask(path: Path, method: str, target: str, body: object, timeout_s: float) -> dict[str, Any]:
    connection = _UnixConnection(path, timeout_s)
    try:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Connection": "close", "Accept": "application/json"}
        if data is not None:
            headers["Content-Type"] = "application/json"
        connection.request(method, target, data, headers)
        response = connection.getresponse()
        reply = response.read(REPLY_BYTES_MAX)
    finally:
        connection.close()
    try:
        value = json.loads(reply)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise Unavailable(f"{path} answered {response.status} with something that is no JSON object")
    if response.status >= 400:
        kind = _KINDS.get(str(value.get("kind")), DamfsError)
        raise kind(str(value.get("error", f"HTTP status {response.status}")))
    return value
