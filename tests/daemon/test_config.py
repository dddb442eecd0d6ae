"""Settings: layers, and everything that is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from daemon import config, paths
from daemon.config import Settings
from manifest.errors import ConfigurationError

DOCUMENT = Path(__file__).parent.parent.parent / "docs/CONFIGURATION.md"


@pytest.fixture(autouse=True)
def _homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONFIG", "CACHE", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def load(*, file: Path | None = None, options: dict[str, object] | None = None, **environ: str) -> Settings:
    return config.load(file, options, environ)


def test_without_anything_set_the_defaults_hold(tmp_path: Path) -> None:
    settings = load(XDG_CONFIG_HOME=str(tmp_path / "config"))
    assert settings.library.url is None
    assert settings.cache.folder == tmp_path / "cache/damfs"
    assert settings.cache.size == "20%"
    assert settings.sync.interval_s == 1.0
    assert settings.metrics.listen == "127.0.0.1:0"
    assert settings.origin("cache.size") == "default"


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "c.toml", '[cache]\nsize = "1GB"\n[sync]\ninterval_s = 3\n[mount]\nuid = 7\ngid = 7\n')
    environ = {"DAMFS_CACHE__SIZE": "2GB", "DAMFS_SYNC__INTERVAL_S": "2"}
    settings = load(file=file, options={"cache.size": "3GB", "key": None}, **environ)
    assert (settings.cache.size, settings.sync.interval_s, settings.mount.uid) == ("3GB", 2.0, 7)
    assert settings.origin("cache.size") == "command line"
    assert settings.origin("sync.interval_s") == "$DAMFS_SYNC__INTERVAL_S"
    assert settings.origin("mount.uid") == str(file)


def test_several_cache_folders_have_a_size_each(tmp_path: Path) -> None:
    file = write(tmp_path / "c.toml", '[cache]\nfolder = "/r"\nfolders = ["/a=1GB", "/b", "/c=d=50%"]\n')
    sizes = [(str(folder), size.text) for folder, size in load(file=file).cache_folders]
    assert sizes == [("/a", "1GB"), ("/b", "20%"), ("/c=d", "50%")]
    assert Settings.from_json(load(file=file).to_json()).cache_folders == load(file=file).cache_folders
    sizes = [
        (str(folder), size.text) for folder, size in load(file=file, DAMFS_CACHE__FOLDERS="/x=1GB:/y=2GB").cache_folders
    ]
    assert sizes == [("/x", "1GB"), ("/y", "2GB")]


def test_a_size_of_a_weaker_layer_does_not_stand_against_several_folders(tmp_path: Path) -> None:
    file = write(tmp_path / "c.toml", '[cache]\nsize = "1GB"\n')
    settings = load(file=file, options={"cache.folders": ["/a=1GB", "/b=2GB"]})
    assert [str(folder) for folder, _ in settings.cache_folders] == ["/a", "/b"]
    refuse("cache.size", "command line", options={"cache.folders": ["/a", "/b"], "cache.size": "1GB"})
    file = write(tmp_path / "d.toml", "[cache]\nsize = '1GB'\nfolders = ['/a=1GB']\n")
    refuse(f"cache.size in {file} is for cache.folder", "DIR=SIZE", file=file)


def test_one_folder_on_the_command_line_stands_for_all_those_in_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "c.toml", '[cache]\nfolders = ["/a=1GB", "/b=2GB"]\n')
    settings = load(file=file, options={"cache.folders": [], "cache.folder": "/x", "cache.size": "3GB"})
    assert [(str(folder), size.text) for folder, size in settings.cache_folders] == [("/x", "3GB")]


def test_the_url_has_the_short_variable() -> None:
    assert load(DAMFS_LIBRARY="s3://bucket/dam").library.url == "s3://bucket/dam"


def test_an_empty_variable_counts_as_not_set() -> None:
    assert load(DAMFS_LIBRARY="").library.url is None


def test_the_file_of_the_environment_is_read(tmp_path: Path) -> None:
    file = write(tmp_path / "c.toml", '[library]\nurl = "file:///srv/dam"\n')
    assert load(DAMFS_CONFIG=str(file)).library.url == "file:///srv/dam"


def test_the_file_in_the_configuration_folder_is_read(tmp_path: Path) -> None:
    file = write(tmp_path / "config/damfs/config.toml", '[library]\nurl = "file:///srv/dam"\n')
    settings = load(XDG_CONFIG_HOME=str(tmp_path / "config"))
    assert settings.library.url == "file:///srv/dam"
    assert settings.file == file


def test_settings_go_through_json_unchanged(tmp_path: Path) -> None:
    settings = load(DAMFS_LIBRARY="file:///srv/dam", DAMFS_KEY=str(tmp_path / "key"), DAMFS_MOUNT__ALLOW_OTHER="true")
    assert Settings.from_json(settings.to_json()) == settings
    assert settings.mount.allow_other


def test_the_profile_chooses_the_deadline_and_a_deadline_wins() -> None:
    assert load().read_deadline_s == 30
    assert load(DAMFS_READS__PROFILE="farm").read_deadline_s == 600
    assert load(DAMFS_READS__PROFILE="farm", DAMFS_READS__DEADLINE_S="2.5").read_deadline_s == 2.5


def refuse(*words: str, file: Path | None = None, options: dict[str, object] | None = None, **environ: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        config.load(file, options, environ)
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message


def test_an_unknown_key_is_refused_and_the_known_ones_are_named(tmp_path: Path) -> None:
    file = write(tmp_path / "c.toml", '[cache]\nfoldr = "/x"\n')
    refuse("cache.foldr", str(file), "cache.folder", file=file)


def test_an_unknown_section_is_refused(tmp_path: Path) -> None:
    refuse("chache", "cache", file=write(tmp_path / "c.toml", "[chache]\nsize = '1GB'\n"))


def test_an_unknown_key_outside_of_a_section_names_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "c.toml", "colour = 'blue'\n")
    refuse("colour", str(file), "cache, control", file=file)
    refuse("paint", str(file), "cache, control", file=write(file, "[paint]\n"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cache = 3", "cache in FILE is a section: write its settings below [cache]"),
        ("[cache]\nsize = 'blue'", "cache.size in FILE: 'blue' is no size: write for example 200GB, 1.5TiB or 20%"),
        ("[mount]\nuid = 'x'", "mount.uid in FILE: expected a whole number, got 'x'"),
        ("[mount]\nuid = 1.5", "mount.uid in FILE: expected a whole number, got 1.5"),
        ("[mount]\nuid = -3", "mount.uid in FILE: expected at least 0, got -3"),
        ("[mount]\nbinding = 'fuse4'", "mount.binding in FILE: expected auto, kernel or pyfuse3, got 'fuse4'"),
        ("[mount]\nallow_other = 'perhaps'", "mount.allow_other in FILE: expected true or false, got 'perhaps'"),
        ("[sync]\ninterval_s = 99999", "sync.interval_s in FILE: expected at most 3600"),
        ("[sync]\ninterval_s = 'soon'", "sync.interval_s in FILE: expected a number, got 'soon'"),
        ("[sync]\ninterval_s = inf", "sync.interval_s in FILE: expected a finite number, got inf"),
        ("[cache]\nfolders = 3", "cache.folders in FILE: expected a list of folders"),
        ("[cache]\nfolders = ['/a=1GB', '/a=2GB']", "cache.folders in FILE: /a is named twice"),
        ("[library]\nurl = 3", "library.url in FILE: expected text in quotes, got 3"),
        ("[library]\ntrust = true", "library.trust in FILE: expected a path in quotes, got true"),
    ],
)
def test_a_bad_value_is_told_in_words_of_its_own(tmp_path: Path, text: str, said: str) -> None:
    file = write(tmp_path / "c.toml", f"{text}\n")
    refuse(said.replace("FILE", str(file)), "docs/CONFIGURATION.md" if "section" not in said else "", file=file)


def test_an_unknown_variable_is_refused() -> None:
    refuse("$DAMFS_CASH", "unset", DAMFS_CASH="1")
    refuse("$DAMFS_CACHE_SIZE", DAMFS_CACHE_SIZE="1GB")


def test_a_named_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    refuse(str(tmp_path / "none.toml"), "--config", file=tmp_path / "none.toml")
    refuse(str(tmp_path / "none.toml"), DAMFS_CONFIG=str(tmp_path / "none.toml"))


def test_a_file_that_is_no_toml_is_refused(tmp_path: Path) -> None:
    refuse("c.toml", "TOML", "line 1", file=write(tmp_path / "c.toml", "library\n"))


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_bytes(b"\xff\xfe")
    refuse("c.toml", file=file)


@pytest.mark.parametrize("size", ["", "12XB", "-1GB", "0", "120%", "1e9", "lots"])
def test_a_bad_size_is_refused(size: str) -> None:
    refuse("cache.size", "command line", "no size", options={"cache.size": size})


@pytest.mark.parametrize("url", ["/srv/dam", "file://relative", "http://host/x", "s3://", "s3:bucket", "S3://B"])
def test_a_bad_url_is_refused(url: str) -> None:
    refuse("library.url", "$DAMFS_LIBRARY", "s3://bucket/prefix", DAMFS_LIBRARY=url)


def test_an_endpoint_with_credentials_is_refused() -> None:
    refuse("library.endpoint", "credentials", options={"library.endpoint": "https://me:secret@host"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sync.interval_s", "0"),
        ("sync.interval_s", "nan"),
        ("reads.profile", "gamer"),
        ("reads.deadline_s", "-1"),
        ("mount.binding", "fuse2"),
        ("mount.uid", "-1"),
        ("mount.allow_other", "perhaps"),
        ("metrics.listen", "9100"),
        ("metrics.listen", "localhost:99999"),
        ("control.group", "no-such-group-here"),
    ],
)
def test_a_value_out_of_range_is_refused(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(f"{name} in ${config.variable(name)}: ")):
        config.load(environ={config.variable(name): value})


def test_a_missing_url_says_where_to_set_it() -> None:
    with pytest.raises(ConfigurationError, match=r"--library URL.*DAMFS_LIBRARY.*config\.toml"):
        load().require_url()


def test_the_trust_file_is_the_named_one_else_the_librarys_else_the_common_one(tmp_path: Path) -> None:
    identity = "0" * 32
    with pytest.raises(ConfigurationError, match="trust FILE"):
        load().require_trust(identity)
    common = write(paths.config_folder() / "trust.json", "{}")
    assert load().require_trust(identity) == common
    own = write(paths.trust_file(identity), "{}")
    assert load().require_trust(identity) == own
    named = write(tmp_path / "named.json", "{}")
    assert load(DAMFS_LIBRARY__TRUST=str(named)).require_trust(identity) == named
    with pytest.raises(ConfigurationError, match="gone"):
        load(DAMFS_LIBRARY__TRUST=str(tmp_path / "gone.json")).require_trust(identity)


def test_every_setting_is_documented_with_its_variable() -> None:
    rows = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| `")]
    documented = {row.split("`")[1]: row.split("`")[3] for row in rows}
    assert documented == {name: config.variable(name) for name in config.names()}


def test_the_example_configuration_is_accepted(tmp_path: Path) -> None:
    example = DOCUMENT.parent.parent / "systemd/config.toml"
    assert load(file=example).mount.allow_other
    block = DOCUMENT.read_text().split("```toml\n")[1].split("```")[0]
    assert load(file=write(tmp_path / "c.toml", block)).reads.profile == "farm"


def test_a_site_cache_is_set_with_what_fits_its_kind(tmp_path: Path) -> None:
    text = '[site]\nurl = "https://site:8443"\ncert = "/etc/damfs/me.pem"\nkey = "/etc/damfs/me.key"\n'
    settings = load(file=write(tmp_path / "c.toml", text))
    assert (settings.site.kind, settings.site.url, settings.site.key) == (
        "http",
        "https://site:8443",
        Path("/etc/damfs/me.key"),
    )
    assert Settings.from_json(settings.to_json()).site == settings.site
    text = '[site]\nkind = "s3"\nurl = "s3://near/dam"\nendpoint = "http://near:9000"\nwrite_through = true\n'
    settings = load(file=write(tmp_path / "c.toml", text))
    assert (settings.site.kind, settings.site.write_through) == ("s3", True)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('url = "site:8080"', "is no site cache of the kind http"),
        ('url = "http://site/dam"', "is no site cache of the kind http"),
        ('url = "s3://near/dam"', "is no site cache of the kind http"),
        ('kind = "s3"\nurl = "http://site"', "is no site cache of the kind s3"),
        ('kind = "varnish"', "expected http or s3"),
        ('url = "https://site"\nkey = "/k.pem"', "a key needs its certificate"),
        ('url = "https://site"\nwrite_through = true', "site.write_through is not for a site cache of the kind http"),
        ('kind = "s3"\nurl = "s3://near"\nca = "/ca.pem"', "site.ca is not for a site cache of the kind s3"),
    ],
)
def test_what_does_not_fit_the_site_cache_is_an_error(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(reason)):
        load(file=write(tmp_path / "c.toml", f"[site]\n{text}\n"))
