"""What a command works with: the library, its identity and trusted keys, the signing key, the tools' own replicas.

State: everything is opened when it is first asked for and closed when the command ends. The replicas are per user, in
the cache folder, apart from those of any daemon; the identity of a library is remembered beside them, so that what the
replica knows can be read while the library is not reachable. Rules: an option wins over the environment, the
environment over the configuration file. Nothing here loads obstore before a library is asked for: ``damfs mount``
starts the daemon from a process that never did.
"""

from __future__ import annotations

import os
import re
import urllib.parse
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

from cache import durable
from daemon import paths
from daemon.client import Client
from manifest.digest import Digest
from manifest.errors import ConfigurationError, Unavailable
from tools.address import locate
from tools.output import Output

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from daemon.config import LibrarySettings, Settings
    from manifest.identity import Identity
    from manifest.library import Library
    from manifest.names import Address
    from manifest.replica import ReplicaReader
    from manifest.show import Show
    from manifest.trust import PinnedKeys, SigningKey

IDENTITY_TIMEOUT_S = 5.0
_REMEMBERED_BYTES_MAX = 65536


@dataclass(frozen=True, slots=True)
class Common:
    """The options that every command has; see tools/options.py for what each one says."""

    library: str | None = None
    trust: Path | None = None
    endpoint: str | None = None
    region: str | None = None
    config: Path | None = None
    key: Path | None = None
    json: bool = False
    verbose: int = 0
    quiet: bool = False


class Context:
    """One run of one command. Used from one thread, except for ``library`` and ``output``.

    Every attribute may raise what opening the thing raises: ConfigurationError, NotFound, Unavailable, AccessDenied,
    FormatError.
    """

    def __init__(self, common: Common) -> None:
        self.common = common
        self.json = common.json
        self.output = Output(json_wanted=common.json, quiet=common.quiet, verbose=common.verbose)
        self.offline = False
        self.offline_reason = ""
        self._exit = ExitStack()
        self._shows: dict[str, Show] = {}
        self._readers: dict[str, ReplicaReader] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.close()

    # ------------------------------------------------------------------ settings

    @cached_property
    def settings(self) -> Settings:
        """The configuration: options, then environment, then file."""
        return self.settings_with({})

    def settings_with(self, overrides: Mapping[str, object]) -> Settings:
        """The configuration with further settings (dotted names) from the command line; None sets nothing."""
        from daemon import config  # noqa: PLC0415 - pydantic, which takes longer than asking a daemon for its status

        common = self.common
        given = {
            "library.url": library_url(common.library) if common.library else None,
            "library.endpoint": common.endpoint,
            "library.region": common.region,
            "library.trust": common.trust,
            "key": common.key,
        }
        return config.load(common.config, {**given, **overrides})

    def use_library(self, url: str) -> None:
        """Work with the library at this URL, whatever the options say; before anything was opened.

        A trust file that is configured for another library is not taken for this one.
        """
        assert "library" not in self.__dict__, "the library is open"
        before = self.settings.library
        is_same = before.url is not None and same_library(before.url, url)
        self._set_library(before.model_copy(update={"url": url} if is_same else {"url": url, "trust": None}))

    def use_mount(self, mountpoint: Path) -> None:
        """Work with the library of a mount, and reach and trust it as the mount does; before anything was opened.

        What somebody else's daemon says of endpoints and keys is not taken: only ours and root's are believed.
        """
        client = Client.for_mountpoint(mountpoint)
        status = client.status()
        self.use_library(status["library"])
        if client.uid not in (os.geteuid(), 0) or "trust" not in status:
            return
        update: dict[str, object] = {"endpoint": status["endpoint"], "region": status["region"]}
        if os.access(status["trust"], os.R_OK):
            update["trust"] = Path(status["trust"])
        self._set_library(self.settings.library.model_copy(update=update))

    def _set_library(self, library: LibrarySettings) -> None:
        common = self.common
        given = {"endpoint": common.endpoint, "region": common.region, "trust": common.trust}
        library = library.model_copy(update={name: value for name, value in given.items() if value is not None})
        self.settings = self.settings.model_copy(update={"library": library})

    def address(self, text: str) -> Address:
        """Read SHOW[@REV][:PATH] or a path in a mount; the latter brings the mount's library."""
        place = locate(text)
        if place.mountpoint is not None:
            self.use_mount(place.mountpoint)
        return place.address

    @cached_property
    def state_folder(self) -> Path:
        """Where journals and mount logs are kept; made when it is missing, for this user only (0700)."""
        return private_folder(paths.state_folder())

    @cached_property
    def replica_folder(self) -> Path:
        """Where the tools' own replicas are, apart from any daemon's; made when it is missing (0700)."""
        return private_folder(paths.cache_folder() / "tools")

    @property
    def key_path(self) -> Path:
        """Where the signing key is, or will be made."""
        return self.settings.key_file

    def trust_path(self, library_id: str) -> Path:
        """Where the trusted keys of a library are. Raises ConfigurationError when there are none on this machine."""
        return self.settings.require_trust(library_id)

    def new_trust_path(self, library_id: str) -> Path:
        """Where the trust file of a library that is being made goes: as given with --trust, else its own."""
        return self.common.trust or paths.trust_file(library_id)

    # ------------------------------------------------------------------ the library

    @cached_property
    def library(self) -> Library:
        """The library, opened (which reaches no network)."""
        from manifest.library import Library  # noqa: PLC0415 - obstore, see the module's rules

        settings = self.settings.library
        return Library.open(self.settings.require_url(), endpoint=settings.endpoint, region=settings.region)

    @cached_property
    def identity(self) -> Identity:
        """Who the library says that it is; remembered from the last time when it is not reachable (``offline``)."""
        from manifest.identity import Identity, read_identity  # noqa: PLC0415 - obstore, see the module's rules

        library = self.library
        try:
            identity = read_identity(library, timeout_s=IDENTITY_TIMEOUT_S)
        except Unavailable as error:
            remembered = self.remembered_id()
            if remembered is None:
                raise
            self.offline, self.offline_reason = True, str(error)
            self.output.detail(self.offline_reason)
            return Identity(remembered)
        self.remember_id(identity.id)
        return identity

    @property
    def identity_is_known(self) -> bool:
        """Whether the library has said, or this machine remembers, which one it is; asks nobody."""
        return "identity" in self.__dict__

    def remember_id(self, library_id: str) -> None:
        """Remember which library lies at the URL in use; a hint for later, so that it cannot be kept is no error."""
        try:
            if self.remembered_id() != library_id:
                durable.write(self.replica_folder / self._id_name, library_id.encode())
        except (OSError, ConfigurationError) as error:
            self.output.detail(f"it is not remembered which library lies at {self.settings.library.url}: {error}")

    def remembered_id(self) -> str | None:
        """The id of the library that was last seen at the URL in use; None when none was."""
        try:
            text = (paths.cache_folder() / "tools" / self._id_name).read_text(errors="replace")
        except OSError:
            return None
        return text if re.fullmatch(r"[0-9a-f]{32}", text) else None

    @property
    def _id_name(self) -> str:
        url = self.settings.require_url().rstrip("/")
        return f"{Digest.of(url.encode()).hex()[:32]}.library"

    @property
    def online_library(self) -> Library:
        """The library, once it was proven reachable and to be one. Raises Unavailable, NotFound, FormatError."""
        self.identity  # noqa: B018 - read for what it raises
        if self.offline:
            raise Unavailable(self.offline_reason)
        return self.library

    @cached_property
    def verifier(self) -> PinnedKeys:
        """The trusted keys of the library."""
        from manifest.trust import PinnedKeys  # noqa: PLC0415

        path = self.trust_path(self.identity.id)
        keys = PinnedKeys.from_file(path)
        if keys.library_id != self.identity.id:
            raise ConfigurationError(
                f"{path} trusts keys of the library {keys.library_id}, but {self.library.url} is {self.identity.id}"
            )
        return keys

    @cached_property
    def key(self) -> SigningKey:
        """The key that signs what this user publishes."""
        from manifest.trust import SigningKey  # noqa: PLC0415

        if not self.key_path.exists():
            raise ConfigurationError(f"no signing key at {self.key_path}: make one with `damfs key new`, or give --key")
        return SigningKey.load(self.key_path)

    def show(self, name: str) -> Show:
        """The tools' replica and log of a show, opened once and not yet synced."""
        from manifest.show import Show  # noqa: PLC0415

        if name not in self._shows:
            show = Show.open(self.library, self.identity, self.verifier, name, self.replica_folder)
            self._exit.callback(show.close)
            self._shows[name] = show
        return self._shows[name]

    def reader(self, name: str) -> ReplicaReader:
        """The replica of a show for reading, in this thread; the same one each time."""
        if name not in self._readers:
            self._readers[name] = self.show(name).reader()
            self._exit.callback(self._readers[name].close)
        return self._readers[name]


def library_url(text: str) -> str:
    """A library as people write it: a URL as it stands, a folder's path as a file:// URL."""
    if re.match(r"[a-z][a-z0-9+.-]*:", text):
        return text
    return Path(os.path.abspath(Path(text).expanduser())).as_uri()  # noqa: PTH100 - resolves no link


def same_library(a: str, b: str) -> bool:
    """Whether two URLs name one library, as far as their spelling tells."""
    return _spelling(a) == _spelling(b)


def _spelling(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return os.path.realpath(urllib.parse.unquote(rest)) if scheme == "file" else url.rstrip("/")


def private_folder(path: Path) -> Path:
    """``path``, made with its parents when it is missing (0700). Raises ConfigurationError."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"cannot make the folder {path}: {error.strerror}") from error
    return path
