"""``damfs mount``, ``umount``, ``reload``, ``status`` and ``sync``: starting a daemon, and talking to those that run.

Rules: a supervisor (daemon/supervisor.py) is exec'ed in a session of its own, and starts the daemon; the command
returns when the mount answers, or with the daemon's own error and exit status. Everything else goes through the control
sockets (daemon/client.py); a mountpoint is never touched, for its daemon may be stuck.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon import handed, mounts, paths
from daemon.client import Client
from daemon.inbox import supervisor_of
from manifest import errors
from manifest.errors import (
    Busy,
    ConfigurationError,
    DamfsError,
    NotFound,
    TransportError,
    Unavailable,
    UsageError,
)
from manifest.names import parse_address
from tools.address import is_local_path, locate
from tools.context import Context, private_folder, same_library
from tools.options import command
from tools.output import human_bytes, human_duration, plural

if TYPE_CHECKING:
    from daemon.config import Settings  # pydantic takes 0.1 s, and not every command needs it

READY_DEADLINE_S = 120.0
STOP_DEADLINE_S = 20.0
DRAIN_GLANCE_S = 1.0
"""How long a lazy unmount waits for a daemon that has nothing open to serve."""
READY_BYTES_MAX = 64 * 1024
LOG_BYTES_MAX = 16 * 1024 * 1024
SYNC_TIMEOUT_S = 60.0

Mountpoint = Annotated[Path, typer.Argument(metavar="MOUNTPOINT", help="An empty folder.")]


@command()
def mount(
    context: Context,
    mountpoint: Mountpoint,
    cache: Annotated[
        list[str] | None,
        typer.Option("--cache", metavar="DIR[=SIZE]", help="The cache folder, or one of several on several disks."),
    ] = None,
    cache_size: Annotated[
        str | None, typer.Option("--cache-size", metavar="SIZE", help="Its size: 200GB, 1.5TiB, or 20% of its disk.")
    ] = None,
    binding: Annotated[
        str | None, typer.Option("--binding", metavar="auto|pyfuse3", help="How to talk to the kernel.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option("-o", metavar="OPTION,…", help="allow_other, uid=N, gid=N.")
    ] = None,
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay, and log to stderr.")] = False,
) -> None:
    """Mount the library, and return when the mount answers."""
    overrides = {
        **_cache_options(cache or [], cache_size),
        "mount.binding": binding,
        **_mount_options(option or []),
    }
    settings = context.settings_with(overrides)
    settings.require_url()
    where = mounts.canonical(mountpoint)
    if not (foreground and handed.has("fuse")):  # else systemd has kept the mount for us: it is there
        mounts.prepare(where)
    said = ["-v"] * context.common.verbose + ["-q"] * context.common.quiet
    supervisor, daemon = _commands(where, settings, said)
    if foreground:
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(sys.executable, [*supervisor, "--", *daemon])  # noqa: S606 - a program by its path, no shell
    log = _log_file(where)
    up = _start(supervisor, daemon, where, log)
    if context.json:
        keys = ("pid", "supervisor_pid", "binding", "binding_reason", "offline")
        context.output.result({"mountpoint": str(where), **{key: up.get(key) for key in keys}, "log": str(log)})
    context.output.say(f"mounted {settings.library.url} at {where}")
    if up.get("offline"):
        context.output.warn("the library is not reachable: the mount serves what this machine has, until it is")


def _cache_options(folders: list[str], size: str | None) -> dict[str, object]:
    """The settings that --cache and --cache-size are. A single folder is the one of ``cache.folder``."""
    from daemon.config import split_folder  # noqa: PLC0415 - see above

    if not folders:
        return {"cache.size": size}
    if len(folders) > 1:
        return {"cache.folders": folders, "cache.size": size}
    folder, own_size = split_folder(folders[0])
    if own_size and size:
        raise UsageError(f"--cache {folders[0]} says its size already: leave out --cache-size {size}")
    return {"cache.folders": [], "cache.folder": folder, "cache.size": own_size or size}


def _commands(where: Path, settings: "Settings", said: list[str]) -> tuple[list[str], list[str]]:
    """The supervisor's program and options, and those of the daemon that it starts."""
    # -P: what lies in the current folder is never imported instead of ours.
    python = [sys.executable, "-P", "-m"]
    folder = str(paths.make_run_folder())
    supervisor = [*python, "daemon.supervisor", "--mountpoint", str(where), "--notify-folder", folder, *said]
    supervisor += ["--crashes-max", str(settings.daemon.crashes_max)]
    if not settings.daemon.standby:
        supervisor.append("--no-standby")
    return supervisor, [*python, "daemon", "--mountpoint", str(where), "--settings-json", settings.to_json(), *said]


def _mount_options(words: list[str]) -> dict[str, object]:
    """``-o allow_other,uid=1000`` as settings. Raises UsageError."""
    overrides: dict[str, object] = {}
    for word in ",".join(words).split(","):
        name, has_value, value = word.partition("=")
        if word == "allow_other":
            overrides["mount.allow_other"] = True
        elif name in ("uid", "gid") and has_value:
            if not value.isdecimal():
                raise UsageError(f"-o {word}: expected a number, as in -o {name}=1000")
            overrides[f"mount.{name}"] = int(value)
        elif word not in ("", "ro"):
            raise UsageError(f"-o {word} is not known: expected allow_other, uid=N or gid=N")
    return overrides


def _log_file(mountpoint: Path) -> Path:
    """Where the daemon logs to; a large old log is moved aside."""
    log = paths.log_file(mountpoint)
    private_folder(log.parent)
    with suppress(FileNotFoundError):
        if log.stat().st_size > LOG_BYTES_MAX:
            log.rename(log.with_suffix(".log.old"))
    return log


def _start(supervisor: list[str], daemon: list[str], mountpoint: Path, log: Path) -> dict[str, Any]:
    """Start both, and wait until the daemon answers; what it then tells. Raises the error that it reports."""
    reading, writing = os.pipe()
    try:
        with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "wb") as output:
            child = subprocess.Popen(
                [*supervisor, "--ready-fd", str(writing), "--", *daemon],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(writing,),
                start_new_session=True,
            )
    except OSError as error:
        os.close(reading)
        raise ConfigurationError(f"cannot start the daemon, or write its log {log}: {error.strerror}") from error
    finally:
        os.close(writing)
    try:
        reply = _read_reply(reading)
    except BaseException:
        _end(child, mountpoint)
        raise
    finally:
        os.close(reading)
    if reply is None:
        _end(child, mountpoint)
        raise Unavailable(f"the daemon was not ready within {READY_DEADLINE_S:g} s and was ended; its log is {log}")
    if "error" in reply:
        with suppress(subprocess.TimeoutExpired):
            child.wait(STOP_DEADLINE_S)
        raise _reported(reply)
    if not reply:
        code = child.wait(STOP_DEADLINE_S)
        raise DamfsError(f"the daemon ended with status {code} before it was ready; its log is {log}")
    child.returncode = 0  # it lives on: nobody waits for it
    return {"supervisor_pid": child.pid, **reply}


def _reported(reply: Mapping[str, Any]) -> DamfsError:
    """The error that a daemon reported, as the class that it was there."""
    kind = getattr(errors, str(reply.get("kind")), None)
    if not (isinstance(kind, type) and issubclass(kind, DamfsError)):
        kind = DamfsError
    return kind(str(reply["error"]))


def _read_reply(descriptor: int) -> dict[str, Any] | None:
    """What the daemon writes when it is ready or has failed; empty when it died, None at the deadline."""
    deadline = time.monotonic() + READY_DEADLINE_S
    said = b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while b"\n" not in said and len(said) < READY_BYTES_MAX:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not selector.select(left_s):
                return None
            piece = os.read(descriptor, READY_BYTES_MAX)
            if not piece:
                break
            said += piece
    with suppress(ValueError):
        value = json.loads(said)
        return value if isinstance(value, dict) else {"ready": True}
    return {"ready": True} if said.strip() else {}


def _end(child: subprocess.Popen[bytes], mountpoint: Path) -> None:
    """End a daemon that did not come up, and take away what it may have mounted."""
    child.terminate()
    try:
        child.wait(STOP_DEADLINE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    found = mounts.at(mountpoint)
    if found is not None and found.is_ours:
        with suppress(DamfsError):
            mounts.unmount(mountpoint, lazy=True)


@command(library=False)
def umount(
    context: Context,
    mountpoint: Annotated[Path, typer.Argument(metavar="MOUNTPOINT", help="Where it is mounted.")],
    lazy: Annotated[bool, typer.Option("--lazy", help="Detach it even while files in it are open.")] = False,
) -> None:
    """Unmount, and wait until the daemon is gone; with --lazy, it goes when what is open in the mount is closed."""
    where = mounts.canonical(mountpoint)
    found = mounts.at(where)
    if found is None or not found.is_ours:
        raise NotFound(f"no damfs is mounted at {where}")
    status = _stop(where, lazy=lazy)
    if not mounts.wait_gone(where, STOP_DEADLINE_S):
        raise Unavailable(f"{where} is still mounted after {STOP_DEADLINE_S:g} s; try --lazy")
    processes = [int(status[process]) for process in ("pid", "supervisor_pid") if status.get(process) is not None]
    for process in processes:
        _wait_for_end(process, DRAIN_GLANCE_S if lazy else STOP_DEADLINE_S)
    serving = next((process for process in processes if lazy and _lives(process)), None)
    if context.json:
        context.output.result({"mountpoint": str(where), "pid": status.get("pid"), "serving": serving is not None})
    rest = f"; pid {serving} serves what is open there until it is closed" if serving is not None else ""
    context.output.say(f"unmounted {where}{rest}")


def _stop(where: Path, *, lazy: bool) -> dict[str, Any]:
    """Have the daemon stop, or unmount without it when it does not answer; its status before, if it told one."""
    status: dict[str, Any] = {}
    try:
        client = Client.for_mountpoint(where)
        status = client.status()
        client.stop(lazy=lazy, timeout_s=STOP_DEADLINE_S)
    except Busy as error:
        raise Busy(f"{where} is in use: close what is open in it, or detach it with --lazy") from error
    except (NotFound, TransportError):
        # The daemon is dead, stuck, or somebody else's: the kernel decides.
        if mounts.at(where) is not None:
            lazy = lazy or not mounts.answers(where)
            supervisor = supervisor_of(paths.run_folder(), where) if lazy else None
            if supervisor is not None:  # it is not to start another daemon
                os.kill(supervisor, signal.SIGTERM)
            with suppress(NotFound):
                mounts.unmount(where, lazy=lazy)
    return status


def _wait_for_end(pid: int, deadline_s: float) -> None:
    deadline = time.monotonic() + deadline_s
    while _lives(pid) and time.monotonic() < deadline:
        time.sleep(0.02)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (OSError, IndexError):
        return False


@command(library=False)
def status(
    context: Context,
    mountpoint: Annotated[
        Path | None, typer.Argument(metavar="[MOUNTPOINT]", help="A mount; without it, every one.", show_default=False)
    ] = None,
) -> None:
    """Tell how mounts are: their shows, cache and sources. docs/STATUS.md describes the JSON."""
    if mountpoint is not None:
        one = Client.for_mountpoint(mountpoint).status()
        if context.json:
            context.output.result(one)
        else:
            _print_status(context, one)
        return
    found, dead = _all_statuses()
    if context.json:
        context.output.result({"mounts": found, "dead": [str(path) for path in dead]})
        return
    for one in found:
        _print_status(context, one)
    for path in dead:
        context.output.line(
            f"{path}: mounted, but its daemon does not answer; `damfs umount --lazy {path}` detaches it"
        )
    if not found and not dead:
        context.output.note("no damfs is mounted")


def _all_statuses() -> tuple[list[dict[str, Any]], list[Path]]:
    """The status of every mount that answers, and the mountpoints of those that do not."""
    found = []
    for client in Client.all():
        with suppress(NotFound, TransportError):
            found.append(client.status())
    alive = {one["mountpoint"] for one in found}
    return found, [one.mountpoint for one in mounts.ours() if str(one.mountpoint) not in alive]


def _print_status(context: Context, one: Mapping[str, Any]) -> None:
    line = context.output.line
    state = f"OFFLINE: {one.get('offline_reason') or 'the library is not reachable'}" if one["offline"] else "online"
    line(f"{one['mountpoint']}: {one['library']}, {state}")
    line(
        f"  daemon   pid {one['pid']}, up {human_duration(one['uptime_s'])}, {one['binding']} ({one['binding_reason']})"
    )
    cache = one["cache"]
    used, size = human_bytes(cache["used_bytes"]), human_bytes(cache["size_bytes"])
    counts = f"{plural(cache['hits'], 'hit')}, {plural(cache['misses'], 'miss')}"
    folders = cache["folders"]
    line(f"  cache    {used} of {size} in {', '.join(folder['folder'] for folder in folders)}, {counts}")
    for folder in folders:
        if not folder["in_service"]:
            line(f"           OUT OF SERVICE: {folder['folder']}: {folder['reason']}")
    if cache["verification_failures"]:
        line(f"           {plural(cache['verification_failures'], 'VERIFICATION FAILURE').upper()}, see the log")
    for name, show in sorted(one["shows"].items()):
        revision = "not loaded" if show["revision"] is None else f"revision {show['revision']}"
        fault = f", STALLED: {show['stalled']['reason']}" if show["stalled"] else ""
        if show["error"] and not show["stalled"]:
            fault = f", NOT FOLLOWED: {show['error']}"
        line(f"  show     {name}: {revision}{fault}")
    for source in one["sources"]:
        fault = f", last error: {source['last_error']}" if source["last_error"] else ""
        if source["breaker"] != "closed":
            fault = f", NOT ASKED: {source['down_because']}"
        fetched = f"{human_bytes(source['fetched_bytes'])} in {plural(source['fetches'], 'fetch')}"
        if source["latency_p95_s"] is not None:
            usual, late = source["latency_p50_s"] * 1000, source["latency_p95_s"] * 1000
            fetched += f", half of them within {usual:,.0f} ms, 95% within {late:,.0f} ms"
        line(f"  source   {source['name']}: {fetched}{fault}")


@command()
def sync(
    context: Context,
    show: Annotated[str, typer.Argument(metavar="SHOW", help="A show, or a path in the mount that is meant.")],
    at_least: Annotated[
        int | None, typer.Option("--at-least", metavar="REV", min=0, help="Wait until this revision is there.")
    ] = None,
    timeout_s: Annotated[
        float, typer.Option("--timeout", metavar="S", min=0.1, max=86400, help="Wait at most so many seconds.")
    ] = SYNC_TIMEOUT_S,
) -> None:
    """Have the mounts of this machine look for new revisions, and wait for one."""
    name, clients = _meant(context, show)
    deadline = time.monotonic() + timeout_s
    done: list[dict[str, Any]] = []
    missing: NotFound | None = None
    for client in clients:
        try:
            revision = client.sync(name, at_least, timeout_s=max(0.1, deadline - time.monotonic()))
        except NotFound as error:
            missing = error
            continue
        done.append({"mountpoint": str(client.mountpoint), "revision": revision})
        context.output.say(f"{client.mountpoint}: {name} is at revision {revision}")
    if not done and missing is None:
        left = [one.mountpoint for one in mounts.ours() if paths.socket_path(one.mountpoint, "view").exists()]
        dead = [mountpoint for mountpoint in left if mountpoint not in {client.mountpoint for client in clients}]
        if dead:
            raise Unavailable(f"{dead[0]} is mounted, but its daemon does not answer; `damfs status` tells more")
    if not done:
        raise missing or NotFound("no damfs is mounted here: `damfs mount` mounts one")
    if context.json:
        context.output.result({"show": name, "revision": min(one["revision"] for one in done), "mounts": done})


def _meant(context: Context, show: str) -> tuple[str, list[Client]]:
    """The show, and the daemons that are to sync it: of the mount, of the library in use, else all."""
    if is_local_path(show):
        place = locate(show)
        assert place.mountpoint is not None
        return place.address.show, [Client.for_mountpoint(place.mountpoint)]
    address = parse_address(show)
    if address.at is not None or address.path:
        raise UsageError(f"{show}: a whole show is synced; give its name, and a revision with --at-least")
    clients = Client.all()
    url = context.settings.library.url
    if url is None:
        return address.show, clients
    ours = [client for client in clients if same_library(str(client.status()["library"]), url)]
    if not ours and clients:
        raise NotFound(f"library {url} is not mounted here: `damfs status` shows what is")
    return address.show, ours
