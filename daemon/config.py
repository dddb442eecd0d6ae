"""Settings: what they are, where they come from, and which are refused.

Layers, the first one that sets a value wins: the command line, the environment, one configuration file, the
default. The file is the one of ``--config``, else of ``$DAMFS_CONFIG``, else the first that exists of
``$XDG_CONFIG_HOME/damfs/config.toml`` (by default ~/.config) and, as root, ``/etc/damfs/config.toml``. A variable's
name is DAMFS_SECTION__NAME; that of ``library.url`` is DAMFS_LIBRARY.

Rules: an unknown key, an unknown ``DAMFS_*`` variable and a named file that is missing are errors, for a setting that
is silently ignored is worse than none. Every setting stands in docs/CONFIGURATION.md (a test looks).
"""

from __future__ import annotations

import grp
import json
import math
import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from cache.sources.breaker import BreakerLimits
from cache.sources.policy import Policy
from daemon import paths
from daemon.config_errors import explain
from daemon.limits import parse_bandwidth, parse_inodes, parse_rate, parse_reserve, parse_window
from daemon.sizes import Size, parse_size
from manifest.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

PREFIX = "DAMFS_"
FILE_VARIABLE = "DAMFS_CONFIG"
FILE_BYTES_MAX = 1024 * 1024
URL_EXAMPLES = "file:///srv/library or s3://bucket/prefix"
DEADLINES_S = {"artist": 30.0, "farm": 600.0}
"""How long a read waits for bytes that are not here, by profile, in seconds."""

OUTAGES_S = {"artist": 5.0, "farm": math.inf}
"""Once no source has answered for so long, reads of bytes that are not here fail at once, by profile, in seconds."""

CACHE_SIZE = "20%"
FOLDERS_MAX = 8
"""No more cache folders: a supervisor keeps a limited number of descriptors."""

_URL = re.compile(r"(?:file:///.*|memory://.*|s3://[a-z0-9][a-z0-9.-]{1,62}(?:/\S*)?)")
_SITE_URLS = {
    "http": (re.compile(r"https?://[^\s/@?#]+/?"), "http://host:port or https://host:port"),
    "s3": (re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,62}(?:/\S*)?"), "s3://bucket/prefix"),
}
_SITE_FOREIGN = {"http": ("endpoint", "region", "profile", "write_through"), "s3": ("ca", "cert")}
"""The settings of a site cache that are for the other kind."""
_LISTEN = re.compile(r"(?:\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}")


def _check_url(value: str) -> str:
    if not _URL.fullmatch(value):
        raise ValueError(f"{value!r} is no library URL: expected {URL_EXAMPLES}")
    return value


def _check_endpoint(value: str) -> str:
    if not re.fullmatch(r"https?://[^\s/@]+(?:/\S*)?", value):
        raise ValueError(f"{value!r} is no endpoint: expected https://host[:port], without credentials")
    return value


def _check_size(value: str) -> str:
    return _checked(parse_size, value).strip()


def _check_bytes(value: str) -> str:
    if parse_size(value).bytes is None:
        raise ValueError(f"{value!r} is a share of something: expected a number of bytes, as in 64MiB")
    return value


def _check_reserve(value: str) -> str:
    return _checked(parse_reserve, value)


def _check_inodes(value: str) -> str:
    return _checked(parse_inodes, value)


def _check_rate(value: str) -> str:
    return _checked(parse_rate, value)


def _check_bandwidth(value: str) -> str:
    return _checked(parse_bandwidth, value)


def _check_window(value: str) -> str:
    return _checked(parse_window, value)


def _checked(parse: Callable[[str], object], value: str) -> str:
    try:
        parse(value)
    except ConfigurationError as error:
        raise ValueError(str(error)) from error
    return value


def split_folder(text: str) -> tuple[Path, str | None]:
    """A cache folder as people write it, ``DIR`` or ``DIR=SIZE``: the folder, and its size if it is told."""
    folder, _, size = text.rpartition("=")
    try:
        return _absolute(Path(folder)), parse_size(size).text
    except ConfigurationError:  # a folder can have a = in its name
        return _absolute(Path(text)), None


def _check_folders(value: object) -> object:
    texts = value.split(":") if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) and text for text in texts):
        raise ValueError("expected a list of folders, as in ['/nvme0/damfs=1TB', '/nvme1/damfs=500GB']")
    parts = [split_folder(text) for text in texts]
    folders = [folder for folder, _ in parts]
    twice = next((folder for folder in folders if folders.count(folder) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} is named twice: a cache folder is used once")
    if len(folders) > FOLDERS_MAX:
        raise ValueError(f"expected at most {FOLDERS_MAX} folders, got {len(folders)}")
    return tuple(f"{folder}={size or CACHE_SIZE}" for folder, size in parts)


def _check_listen(value: str) -> str:
    if value != "off" and (not _LISTEN.fullmatch(value) or int(value.rpartition(":")[2]) > 65535):
        raise ValueError(f"{value!r} is no address: expected host:port (port 0: any free one) or off")
    return value


def _check_group(value: str) -> str:
    try:
        grp.getgrnam(value)
    except KeyError:
        raise ValueError(f"this machine has no group {value!r}") from None
    return value


def _absolute(value: Path) -> Path:
    return Path(os.path.abspath(value.expanduser()))  # noqa: PTH100  resolve() would follow links


HostPath = Annotated[Path, AfterValidator(_absolute)]
FolderTexts = Annotated[tuple[str, ...], BeforeValidator(_check_folders)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
WaterMark = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
BytesText = Annotated[str, BeforeValidator(str), AfterValidator(_check_size), AfterValidator(_check_bytes)]
RateText = Annotated[str, BeforeValidator(str), AfterValidator(_check_rate)]
SizeText = Annotated[str, BeforeValidator(str), AfterValidator(_check_size)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class LibrarySettings(_Section):
    """Which library, how it is reached, and whose signatures count."""

    url: Annotated[str, AfterValidator(_check_url)] | None = None
    endpoint: Annotated[str, AfterValidator(_check_endpoint)] | None = None
    region: str | None = None
    trust: HostPath | None = None


class CacheSettings(_Section):
    """The local store of bytes."""

    folder: HostPath = Field(default_factory=paths.cache_folder)
    size: SizeText = CACHE_SIZE
    folders: FolderTexts = ()
    policy: Literal["sequences", "lru", "sieve", "s3fifo"] = "sequences"
    free_reserve: Annotated[str, BeforeValidator(str), AfterValidator(_check_reserve)] = "5%,10GB"
    free_inodes: Annotated[str, BeforeValidator(str), AfterValidator(_check_inodes)] = "5%,100000"
    high_water: WaterMark = 0.95
    low_water: WaterMark = 0.90
    pin_share: WaterMark = 0.5
    prefetch_share: WaterMark = 0.25
    prefetch_traces: bool = False
    scrub_bandwidth: Annotated[str, BeforeValidator(str), AfterValidator(_check_bandwidth)] = "20MB"
    scrub_interval_days: Annotated[float, Field(gt=0, le=3650, allow_inf_nan=False)] = 30.0

    @model_validator(mode="after")
    def _marks_agree(self) -> Self:
        if self.low_water >= self.high_water:
            raise ValueError(
                f"low_water is {self.low_water:g}: expected less than high_water, which is {self.high_water:g}"
            )
        return self


class SiteSettings(_Section):
    """The cache that the machines of a site share, in front of the library's store."""

    kind: Literal["http", "s3"] = "http"
    url: str | None = None
    ca: HostPath | None = None
    cert: HostPath | None = None
    key: HostPath | None = None
    connect_timeout_s: Annotated[float, Field(ge=0.05, le=30, allow_inf_nan=False)] = 1.0
    endpoint: Annotated[str, AfterValidator(_check_endpoint)] | None = None
    region: str | None = None
    profile: str | None = None
    write_through: bool = False

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if self.url is not None:
            pattern, example = _SITE_URLS[self.kind]
            if not pattern.fullmatch(self.url):
                raise ValueError(f"{self.url!r} is no site cache of the kind {self.kind}: expected {example}")
        if self.key is not None and self.cert is None:
            raise ValueError("site.key is set and site.cert is not: a key needs its certificate")
        given = {"ca": self.ca, "cert": self.cert, "endpoint": self.endpoint, "region": self.region,
                 "profile": self.profile, "write_through": self.write_through or None}  # fmt: skip
        foreign = _SITE_FOREIGN[self.kind]
        wrong = next((name for name in foreign if given[name] is not None), None)
        if wrong is not None:
            raise ValueError(f"site.{wrong} is not for a site cache of the kind {self.kind}")
        return self


class MountSettings(_Section):
    """What the kernel is told."""

    uid: Annotated[int, Field(ge=0, le=2**32 - 2)] = Field(default_factory=os.geteuid)
    gid: Annotated[int, Field(ge=0, le=2**32 - 2)] = Field(default_factory=os.getegid)
    allow_other: bool = False
    binding: Literal["auto", "kernel", "pyfuse3"] = "auto"


class SyncSettings(_Section):
    """How the logs are followed."""

    interval_s: Annotated[float, Field(ge=0.1, le=3600, allow_inf_nan=False)] = 1.0


class ReadSettings(_Section):
    """How long readers wait."""

    profile: Literal["artist", "farm"] = "artist"
    deadline_s: Annotated[float, Field(ge=0.1, le=3600, allow_inf_nan=False)] | None = None
    outage_s: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] | None = None


class SourceSettings(_Section):
    """How the sources of bytes are asked: the site cache and the central store."""

    slow_s: Annotated[float, Field(ge=0.05, le=600, allow_inf_nan=False)] = 2.0
    relief_share: Share = 0.05
    relief_burst: BytesText = "64MiB"
    failures_max: Annotated[int, Field(ge=1, le=1000)] = 5
    silence_s: Annotated[float, Field(ge=1, le=600, allow_inf_nan=False)] = 10.0
    probe_s_max: Annotated[float, Field(ge=0.5, le=300, allow_inf_nan=False)] = 5.0
    retry_share: Share = 0.1
    retry_rate: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] = 2.0
    hedge_share: Share = 0.05
    requests_max: Annotated[int, Field(ge=1, le=64)] = 16
    prompt_s: Annotated[float, Field(ge=0.05, le=600, allow_inf_nan=False)] = 1.0


class NetworkSettings(_Section):
    """How much may go over the network."""

    download: RateText = "off"
    upload: RateText = "off"


class AheadSettings(_Section):
    """What is fetched before it is asked for."""

    enabled: bool = True
    window: Annotated[str, BeforeValidator(str), AfterValidator(_check_window)] = "64MiB"
    frames: Annotated[int, Field(ge=0, le=1000)] = 48


class MetricsSettings(_Section):
    """Where Prometheus finds the metrics."""

    listen: Annotated[str, AfterValidator(_check_listen)] = "127.0.0.1:0"


class ControlSettings(_Section):
    """Who may control a mount."""

    group: Annotated[str, AfterValidator(_check_group)] | None = None


class DaemonSettings(_Section):
    """The processes of a mount."""

    standby: bool = True
    crashes_max: Annotated[int, Field(ge=1, le=1_000_000)] = 5


class _Fields(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    library: LibrarySettings = LibrarySettings()
    key: HostPath | None = None
    cache: CacheSettings = Field(default_factory=CacheSettings)
    site: SiteSettings = SiteSettings()
    mount: MountSettings = Field(default_factory=MountSettings)
    sync: SyncSettings = SyncSettings()
    reads: ReadSettings = ReadSettings()
    sources: SourceSettings = SourceSettings()
    network: NetworkSettings = NetworkSettings()
    readahead: AheadSettings = AheadSettings()
    metrics: MetricsSettings = MetricsSettings()
    control: ControlSettings = ControlSettings()
    daemon: DaemonSettings = DaemonSettings()


class Settings(_Fields):
    """All settings, checked. ``file`` is the configuration file that was read, if one was."""

    file: HostPath | None = None
    origins: dict[str, str] = Field(default_factory=dict)

    @property
    def cache_folders(self) -> list[tuple[Path, Size]]:
        """The folders that bytes are kept in, with the size of each."""
        several = (text.rpartition("=") for text in self.cache.folders)
        return [(Path(folder), parse_size(size)) for folder, _, size in several] or [
            (self.cache.folder, parse_size(self.cache.size))
        ]

    @property
    def read_deadline_s(self) -> float:
        """The seconds after which a read of bytes that cannot be had is an error."""
        return DEADLINES_S[self.reads.profile] if self.reads.deadline_s is None else self.reads.deadline_s

    @property
    def asking(self) -> Policy:
        """How sources are asked."""
        outage_s, sources = self.reads.outage_s, self.sources
        burst_bytes = parse_size(sources.relief_burst).bytes
        assert burst_bytes is not None, "checked"
        return Policy(
            outage_s=OUTAGES_S[self.reads.profile] if outage_s is None else outage_s,
            breaker=BreakerLimits(
                failures_max=sources.failures_max,
                slow_s=sources.slow_s,
                silence_s=sources.silence_s,
                pause_s_max=sources.probe_s_max,
            ),
            retry_share=sources.retry_share,
            retry_rate=sources.retry_rate,
            hedge_share=sources.hedge_share,
            hedges_max=10.0 if sources.hedge_share else 0.0,
            relief_share=sources.relief_share,
            relief_bytes_max=burst_bytes if sources.relief_share else 0,
            prompt_s=sources.prompt_s,
            requests_max=sources.requests_max,
            download_rate=parse_rate(self.network.download),
            slow_s=sources.slow_s,
        )

    @property
    def upload_rate(self) -> int | None:
        """What a publish may send in a second, in bytes; None: no limit."""
        return parse_rate(self.network.upload)

    def require_url(self) -> str:
        """The library's URL. Raises ConfigurationError when none is set."""
        if self.library.url is None:
            raise ConfigurationError(
                f"no library is set: give --library URL, set {variable('library.url')}, or write url under "
                f"[library] in {self.file or default_file()} ({URL_EXAMPLES})"
            )
        return self.library.url

    def require_trust(self, library_id: str | None = None) -> Path:
        """Whose signatures count: ``library.trust``, else the library's own file, else the one for any library.

        Without ``library_id``, which an unreachable library does not tell, it is the first trust file that there is.
        Raises ConfigurationError when there is none.
        """
        known = sorted(paths.trust_file("").parent.glob("*.json")) if library_id is None else []
        own = [paths.trust_file(library_id)] if library_id else known
        candidates = [self.library.trust] if self.library.trust else [*own, default_trust_file()]
        found = next((path for path in candidates if path.is_file()), None)
        if found is None:
            raise ConfigurationError(
                f"no trust file at {candidates[0]}: copy the one that damfs init printed there, or give --trust FILE"
            )
        return found

    @property
    def key_file(self) -> Path:
        """What signs this user's publishes: ``key``, else the one in the configuration folder."""
        return self.key or paths.key_file()

    def origin(self, name: str) -> str:
        """Where the value of the setting ``name`` came from: "command line", a variable, a file or "default"."""
        return self.origins.get(name, "default")

    def to_json(self) -> str:
        """All values, for ``python -m daemon --settings-json``. Holds no secret."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Read what ``to_json`` wrote; no other layer is consulted. Raises ConfigurationError."""
        try:
            return cls.model_validate(json.loads(text))
        except ValidationError as error:
            raise explain(error, list(names()), {}, None) from error
        except ValueError as error:
            raise ConfigurationError(f"the settings are not valid JSON: {error}") from error


def default_file() -> Path:
    """The configuration file that a message can name: where this user's would lie."""
    return paths.config_folder() / "config.toml"


def default_trust_file() -> Path:
    """The trust file that counts for any library without one of its own."""
    return paths.config_folder() / "trust.json"


def names() -> Iterator[str]:
    """The dotted names of all settings, in the order of the documentation."""
    for name, field in _Fields.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            yield from (f"{name}.{key}" for key in section.model_fields)
        else:
            yield name


def variable(name: str) -> str:
    """The environment variable of a setting: DAMFS_LIBRARY for ``library.url``, else DAMFS_SECTION__NAME."""
    return f"{PREFIX}LIBRARY" if name == "library.url" else PREFIX + name.replace(".", "__").upper()


def load(
    file: Path | None = None,
    overrides: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Read all layers.

    ``file`` is that of ``--config``; ``overrides`` are the command line's, dotted names, None where nothing was given.
    Raises ConfigurationError, which names the setting, where it was set, and what it may be.
    """
    environ = os.environ if environ is None else environ
    given = {name: value for name, value in (overrides or {}).items() if value is not None}
    from_environment = _environment(environ)
    found = _find_file(file, environ)
    from_file = _read_file(found) if found else {}
    origins = dict.fromkeys(_dotted(from_file), str(found))
    origins |= {name: f"${variable(name)}" for name in from_environment}
    origins |= dict.fromkeys(given, "command line")
    layers = (_nested(given), _nested(from_environment), from_file)

    try:
        values = _layered(layers)
        _check_sizes(layers, origins)
        return Settings.model_validate({**values, "file": found, "origins": origins})
    except ValidationError as error:
        raise explain(error, list(names()), origins, found) from error


def _check_sizes(layers: Sequence[Mapping[str, Any]], origins: Mapping[str, str]) -> None:
    """With ``cache.folders`` each folder has its own size: a ``cache.size`` that does not count must not be set."""
    for layer in layers:
        cache = layer.get("cache", {})
        if "size" in cache and (cache.get("folders") or ("folders" not in cache and "cache.folders" in origins)):
            raise ConfigurationError(
                f"cache.size in {origins['cache.size']} is for cache.folder, and cache.folders is set in "
                f"{origins['cache.folders']}: give each folder its own size, as in DIR=SIZE"
            )
        if "folders" in cache:
            return


def _layered(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The validated values of all sections; what an earlier layer sets wins. Raises ValidationError."""
    # Loaded here: it takes 0.1 s, and a command that only asks a daemon reads no settings.
    from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict  # noqa: PLC0415

    class Layered(_Fields, BaseSettings):
        model_config = SettingsConfigDict(extra="forbid", frozen=True, validate_default=True)

        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *_args: Any, **_kwargs: Any
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return tuple(InitSettingsSource(settings_cls, dict(values)) for values in layers)

    return Layered().model_dump()


def _environment(environ: Mapping[str, str]) -> dict[str, object]:
    by_variable = {variable(name): name for name in names()}
    values: dict[str, object] = {}
    for key, value in sorted(environ.items()):
        if not key.startswith(PREFIX) or key == FILE_VARIABLE:
            continue
        if key not in by_variable:
            raise ConfigurationError(f"${key} is no setting of damfs: unset it, or see docs/CONFIGURATION.md")
        if value:
            values[by_variable[key]] = value
    return values


def _find_file(named: Path | None, environ: Mapping[str, str]) -> Path | None:
    if named is None and environ.get(FILE_VARIABLE):
        named = Path(environ[FILE_VARIABLE])
    if named is not None:
        if not named.is_file():
            raise ConfigurationError(f"no configuration file at {named}: correct --config or ${FILE_VARIABLE}")
        return named.absolute()
    home = Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    folders = [home / "damfs", *([Path("/etc/damfs")] if os.geteuid() == 0 else [])]
    return next((folder / "config.toml" for folder in folders if (folder / "config.toml").is_file()), None)


def _read_file(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            data = stream.read(FILE_BYTES_MAX + 1)
        if len(data) > FILE_BYTES_MAX:
            raise ConfigurationError(f"{file} is larger than {FILE_BYTES_MAX} bytes: it is no configuration file")
        return tomllib.loads(data.decode())
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError
        raise ConfigurationError(f"{file} is not valid TOML: {error}") from error


def _nested(dotted: Mapping[str, object]) -> dict[str, Any]:
    known = set(names())
    result: dict[str, Any] = {}
    for name, value in dotted.items():
        assert name in known, f"{name} is no setting"
        section, _, key = name.rpartition(".")
        (result.setdefault(section, {}) if section else result)[key] = value
    return result


def _dotted(nested: Mapping[str, Any]) -> Iterator[str]:
    for section, value in nested.items():
        if isinstance(value, dict):
            yield from (f"{section}.{key}" for key in value)
        else:
            yield section
