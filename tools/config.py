"""``damfs config``: what is set, where it was set, and whether this machine can work with it."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manifest.errors import ConfigurationError, DamfsError, NotFound
from tools.context import Context
from tools.options import command
from tools.output import plural

FUSE_DEVICE = Path("/dev/fuse")


@command(key=True)
def config_show(context: Context) -> None:
    """Show every setting, its value, and where it was set."""
    from daemon import config as settings_module  # noqa: PLC0415 - pydantic, see tools/context.py

    settings = context.settings
    values = settings.model_dump(mode="json")
    names = list(settings_module.names())
    if context.json:
        shown = {name: {"value": _value(values, name), "origin": settings.origin(name)} for name in names}
        context.output.result({"file": str(settings.file) if settings.file else None, "settings": shown})
        return
    context.output.table(
        ("setting", "value", "set by"), ((name, _text(_value(values, name)), settings.origin(name)) for name in names)
    )


def _value(values: dict[str, Any], name: str) -> Any:
    section, _, key = name.rpartition(".")
    return values[section][key] if section else values[key]


def _text(value: Any) -> str:
    if value is None:
        return ""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


@dataclass(frozen=True, slots=True)
class Finding:
    """How one check went; ``error`` is None when it went well."""

    check: str
    message: str
    error: DamfsError | None = None


@command(key=True)
def config_check(context: Context) -> None:
    """Check that the library, its keys, the cache folder and FUSE can be used from here."""
    context.settings  # noqa: B018 - a bad configuration ends the command here, with its own message
    findings = list(_findings(context))
    if context.json:
        checks = [{"check": f.check, "ok": f.error is None, "message": f.message} for f in findings]
        context.output.result({"ok": all(f.error is None for f in findings), "checks": checks})
    else:
        context.output.table(
            ("check", "", ""), ((f.check, "ok" if f.error is None else "FAILED", f.message) for f in findings)
        )
    failed = [finding for finding in findings if finding.error is not None]
    if failed and failed[0].error is not None:
        names = ", ".join(finding.check for finding in failed)
        raise type(failed[0].error)(f"{plural(len(failed), 'check')} failed: {names}")


def _findings(context: Context) -> Iterator[Finding]:
    checks: list[tuple[str, Callable[[Context], str]]] = [
        ("configuration", _check_file),
        ("library", _check_library),
        ("trust", _check_trust),
        ("key", _check_key),
        ("cache", _check_cache),
        ("fuse", _check_fuse),
    ]
    for name, check in checks:
        try:
            yield Finding(name, check(context))
        except DamfsError as error:
            yield Finding(name, str(error), error)


def _check_file(context: Context) -> str:
    return str(context.settings.file or "no file; defaults, environment and options only")


def _check_library(context: Context) -> str:
    return f"{context.online_library.url} is library {context.identity.id}"


def _check_trust(context: Context) -> str:
    if not context.identity_is_known:
        raise ConfigurationError("not checked: which keys count depends on the library")
    count = len(context.verifier.keyids)
    return f"{context.trust_path(context.identity.id)} trusts {plural(count, 'key')}"


def _check_key(context: Context) -> str:
    if not context.key_path.exists():
        return f"none at {context.key_path}; only publishing needs one (`damfs key new`)"
    trusted = ""
    if context.identity_is_known:
        with suppress(DamfsError):
            trusted = "" if context.key.keyid in context.verifier.keyids else ", which the trust file does NOT name"
    return f"{context.key_path}{trusted}: {context.key.keyid[:16]}…"


def _check_cache(context: Context) -> str:
    folders = context.settings.cache_folders
    for folder, _ in folders:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if not os.access(there, os.W_OK | os.X_OK):
            raise ConfigurationError(
                f"{there} is not writable for uid {os.geteuid()}: change its owner, or cache.folder"
            )
    return "; ".join(f"{folder}, {size}" for folder, size in folders)


def _check_fuse(_context: Context) -> str:
    if not FUSE_DEVICE.exists():
        raise NotFound(f"{FUSE_DEVICE} is missing: load the module with `modprobe fuse`")
    if os.geteuid() != 0 and not any(
        (Path(folder) / "fusermount3").exists() for folder in os.environ.get("PATH", "").split(":")
    ):
        raise ConfigurationError("fusermount3 is missing: install the package fuse3")
    return str(FUSE_DEVICE)
