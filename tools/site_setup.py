"""The configuration of a site cache: systemd/site-cache/*.in with this library, this folder, these rules filled in.

State: none. Rules: nothing reaches nginx's configuration that was not checked for what could end a string in it;
and there is no configuration that lets everybody ask, since what is cached is answered without a signature.
"""

from __future__ import annotations

import ipaddress
import re
import sys
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.sizes import parse_size
from manifest.errors import ConfigurationError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from manifest.library import Library

CONFIGURATION, UNIT = "nginx.conf", "damfs-site-cache.service"
SOCKET_CHARACTERS_MAX = 100
"""A socket's path may have 107."""
KEY_BYTES = 160
"""nginx keeps about 8,000 keys in a MiB of shared memory."""
CHUNK_BYTES = 1024 * 1024
"""Chunks are larger as a rule: the memory for keys is ample."""
FREE_SHARE = 0.02
LISTING_S = 3
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
_SAFE_PATH = re.compile(r"/[A-Za-z0-9._/+@=-]*")
_SAFE_USER = re.compile(r"[a-z_][a-z0-9_-]*")
_ADDRESS = re.compile(r"(?:\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}")
_SIGNED = r"X-Amz-[A-Za-z-]+=[^&]*(?:&X-Amz-[A-Za-z-]+=[^&]*)*"


@dataclass(frozen=True, slots=True)
class Site:
    """What an admin chose. ``allow`` are networks; ``store`` is where nginx connects to, None: as the clients do."""

    folder: Path
    cache: Path
    listen: tuple[str, ...]
    size: str
    allow: tuple[str, ...] = ()
    store: str | None = None
    store_ca: Path = AUTHORITIES
    tls_cert: Path | None = None
    tls_key: Path | None = None
    client_ca: Path | None = None
    user: str | None = None


def render(site: Site, library: Library) -> dict[str, str]:
    """The files to be written into the folder, by name. Raises UsageError, ConfigurationError."""
    return {
        name: _filled(f"{name}.in", values) for values in [_values(site, library)] for name in (CONFIGURATION, UNIT)
    }


def template_folder() -> Path:
    """Where the templates are: in the sources, or as they were installed. Raises ConfigurationError."""
    source = Path(__file__).resolve().parent.parent / "systemd/site-cache"
    installed = Path(sys.prefix) / "share/damfs/site-cache"
    for folder in (source, installed):
        if (folder / f"{CONFIGURATION}.in").is_file():
            return folder
    raise ConfigurationError(f"{installed}/{CONFIGURATION}.in is missing: install damfs again")


def _filled(name: str, values: Mapping[str, str]) -> str:
    text = (template_folder() / name).read_text()
    filled = re.sub(r"@([A-Z_]+)@", lambda match: values[match[1]], text)
    return re.sub(r"\n{3,}", "\n\n", filled)


def _values(site: Site, library: Library) -> dict[str, str]:
    signed = urllib.parse.urlsplit(library.sign_url("shows/", expires_s=60))
    listing = urllib.parse.urlsplit(library.sign_listing("shows/", after=None, folders=True, expires_s=60))
    top = signed.path.removesuffix("/shows/").removesuffix("/shows")
    prefix = re.match(r"list-type=2&prefix=(.*?)shows%2F&", listing.query)
    assert prefix is not None, listing.query
    store = urllib.parse.urlsplit(site.store or f"{signed.scheme}://{signed.netloc}")
    if store.scheme not in ("http", "https") or not store.hostname or store.path.strip("/") or store.username:
        raise UsageError(f"{site.store!r} is no store: expected http://host:port or https://host")
    keys = min(1024, max(16, _size_bytes(site) // CHUNK_BYTES * KEY_BYTES // 2**20))
    home, cache = _path(site.folder), _path(site.cache)
    if len(home) > SOCKET_CHARACTERS_MAX:
        raise UsageError(f"{home} is too long a path for the socket in it: at most {SOCKET_CHARACTERS_MAX} characters")
    return {
        "LIBRARY": library.url,
        "STORE_URL": f"{store.scheme}://{store.netloc}",
        "STORE_SCHEME": store.scheme,
        "STORE_HOST": signed.netloc,
        "STORE_ADDRESS": _with_port(store),
        "STORE_TLS": _store_tls(site, signed.hostname or "") if store.scheme == "https" else "",
        "USER": _user(site),
        "HOME": home,
        "CACHE": cache,
        "KEYS": f"{keys}m",
        "SIZE": str(_size_bytes(site)),
        "FREE": str(_free_bytes(site)),
        "PATH_RE": re.escape(top),
        "DECODED_RE": re.escape(urllib.parse.unquote(top)),
        "BUCKET": urllib.parse.unquote(listing.path),
        "BUCKET_RE": re.escape(listing.path),
        "PREFIX_RE": re.escape(prefix[1]),
        "SIGNED_RE": _SIGNED,
        "LISTING_S": str(LISTING_S),
        "LISTEN": _listen(site),
        "SERVER_TLS": _server_tls(site),
        "ACCESS": _access(site),
    }


def _listen(site: Site) -> str:
    for address in site.listen:
        if not _ADDRESS.fullmatch(address) or int(address.rpartition(":")[2]) > 65535:
            raise UsageError(f"{address!r} is no address: expected host:port")
    tls = " ssl" if site.tls_cert else ""
    return _lines(f"listen {address}{tls} default_server backlog=4096;" for address in site.listen)


def _server_tls(site: Site) -> str:
    if site.tls_cert is None:
        if site.tls_key or site.client_ca:
            raise UsageError("--tls-key and --client-ca need --tls-cert")
        return ""
    lines = [
        f'ssl_certificate "{_file(site.tls_cert)}";',
        f'ssl_certificate_key "{_file(site.tls_key or site.tls_cert)}";',
        "ssl_protocols TLSv1.2 TLSv1.3;",
        "ssl_session_cache shared:tls:16m;",
        "ssl_session_timeout 1d;",
    ]
    if site.client_ca:
        lines += [f'ssl_client_certificate "{_file(site.client_ca)}";', "ssl_verify_client on;", "ssl_verify_depth 3;"]
    return _lines(lines)


def _access(site: Site) -> str:
    """Who may ask. Without rules, only the machine itself: see the module's text."""
    if not site.allow:
        if site.client_ca:
            return ""
        raise UsageError(
            "who may ask? What is cached is answered without a signature: give --allow CIDR for the network of the "
            "workstations (more than once, if need be), or --tls-cert and --client-ca for client certificates"
        )
    networks = []
    for text in site.allow:
        try:
            networks.append(ipaddress.ip_network(text))
        except ValueError as error:
            raise UsageError(f"--allow {text}: {error}; expected an address or a network as 10.1.0.0/16") from error
    return _lines([*(f"allow {network};" for network in networks), "deny all;"])


def _store_tls(site: Site, name: str) -> str:
    lines = [
        "proxy_ssl_server_name on;",
        f'proxy_ssl_name "{name}";',
        "proxy_ssl_verify on;",
        "proxy_ssl_verify_depth 5;",
        f'proxy_ssl_trusted_certificate "{_file(site.store_ca)}";',
        "proxy_ssl_protocols TLSv1.2 TLSv1.3;",
    ]
    return _lines(lines, indent=4)


def _user(site: Site) -> str:
    if site.user is None:
        return ""
    if not _SAFE_USER.fullmatch(site.user):
        raise UsageError(f"{site.user!r} is no user's name")
    return f"user {site.user};"


def _size_bytes(site: Site) -> int:
    try:
        return parse_size(site.size).resolve(site.cache)
    except ConfigurationError as error:
        raise UsageError(str(error)) from error


def _free_bytes(site: Site) -> int:
    whole = parse_size("50%").resolve(site.cache) * 2
    return int(whole * FREE_SHARE)


def _with_port(store: urllib.parse.SplitResult) -> str:
    host = f"[{store.hostname}]" if ":" in (store.hostname or "") else store.hostname
    return f"{host}:{store.port or (443 if store.scheme == 'https' else 80)}"


def _path(path: Path) -> str:
    if not _SAFE_PATH.fullmatch(str(path)):
        raise UsageError(f"{path} cannot stand in nginx's configuration: use letters, digits and ._+@=- alone")
    return str(path)


def _file(path: Path) -> str:
    path = path.absolute()
    if not path.is_file():
        raise ConfigurationError(f"there is no file {path}")
    return _path(path)


def _lines(lines: Iterable[str], indent: int = 8) -> str:
    return "\n".join(" " * indent + line for line in lines)
