"""How the command is made up and how it ends: options, help, exit statuses, completion, the reference."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import typer

from manifest import errors
from tests.harness import DAMFS, REPOSITORY
from tests.tools.content import publish
from tests.tools.test_library import error_of
from tools import exit_codes, main, reference
from tools.options import OPTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness import Studio


def commands(group: Any = None, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    group = group or typer.main.get_command(main.app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*words, name))
        else:
            yield (*words, name), command


def tree(error: type[errors.DamfsError]) -> Iterator[type[errors.DamfsError]]:
    yield error
    for below in error.__subclasses__():
        yield from tree(below)


def test_every_error_has_a_documented_status() -> None:
    assert {error.exit_code for error in tree(errors.DamfsError)} <= set(exit_codes.ExitCode)
    assert set(exit_codes.MEANINGS) == set(exit_codes.ExitCode)


def test_the_command_loads_nothing_heavy_before_it_is_used() -> None:
    heavy = "('asyncio', 'boto3', 'obstore', 'pydantic', 'rich', 'securesystemslib', 'sqlite_utils', 'trio')"
    code = f"import sys, tools.main; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout == "[]\n"


def test_the_reference_is_up_to_date() -> None:
    written = (REPOSITORY / "docs/COMMANDS.md").read_text()
    assert written == reference.write(), "run `python -m tools.reference > docs/COMMANDS.md`"


def test_every_command_is_documented() -> None:
    page = (REPOSITORY / "docs/COMMANDS.md").read_text()
    for words, command in commands():
        assert f"## damfs {' '.join(words)}\n" in page
        assert command.help, f"{words} has no help"
        for param in command.params:
            assert param.name in OPTIONS or param.name == "help" or getattr(param, "help", None), (words, param.name)


def test_every_command_that_prints_json_tells_its_shape() -> None:
    for words, command in commands():
        takes_json = any(param.name == "json" for param in command.params)
        assert takes_json == (" ".join(words) in reference.JSON), words


def test_the_commands_of_the_specification_are_there() -> None:
    mounts = "mount umount reload pin unpin pins prefetch trace status offline explain sync"
    wanted = f"init publish tag rm {mounts} ls log diff cat export verify bench"
    wanted = f"init publish tag rm {mounts} ls log diff cat export verify bench"
    families = {
        ("show", "add"),
        ("show", "ls"),
        ("key", "new"),
        ("key", "show"),
        ("config", "show"),
        ("config", "check"),
        ("site", "setup"),
        ("site", "check"),
        *(("cache", name) for name in ["stats", "ls", "resize", "set", "evict", "scrub", "verify", "advise"]),
    }
    assert {words for words, _ in commands()} == {(name,) for name in wanted.split()} | families


def test_every_command_takes_verbose_quiet_and_config() -> None:
    for words, command in commands():
        names = {param.name for param in command.params}
        assert {"verbose", "quiet", "config"} <= names, words


def test_the_version_is_printed(newcomer: Studio) -> None:
    assert newcomer.run("--version").startswith("damfs ")


@pytest.mark.parametrize("words", [words for words, _ in commands()], ids=" ".join)
def test_help_is_printed_without_an_error(newcomer: Studio, words: tuple[str, ...]) -> None:
    assert "Usage: damfs" in newcomer.run(*words, "--help")


@pytest.mark.parametrize("arguments", [("lss",), ("ls",), ("ls", "apollo", "--no-such-option"), ("cat", "a", "b")])
def test_wrong_words_are_a_usage_error(newcomer: Studio, arguments: tuple[str, ...]) -> None:
    done = newcomer.complete(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_common_options_stand_before_the_command_too(user: Studio) -> None:
    user.environment["DAMFS_LIBRARY"] = "file:///nowhere"
    assert user.run("--library", user.url, "show", "ls") == "apollo\n"
    assert user.run("--library", "file:///elsewhere", "show", "ls", "--library", user.url) == "apollo\n"


def test_the_library_falls_back_to_the_environment_and_then_to_the_file(user: Studio) -> None:
    assert user.run("show", "ls") == "apollo\n"
    user.environment["DAMFS_LIBRARY"] = ""
    file = user.folder / "config/damfs/config.toml"
    file.write_text(f'[library]\nurl = "{user.url}"\n')
    assert user.run("show", "ls") == "apollo\n"
    other = user.folder / "other.toml"
    other.write_text('[library]\nurl = "file:///nowhere"\n')
    error_of(user, "show", "ls", "--config", other, code=6)


BROKEN = """
import sys
from tools import browse, main
browse.open_target = lambda *_arguments, **_options: 1 / 0
sys.argv = ["damfs", *sys.argv[1:]]
main.main()
"""


@pytest.mark.parametrize("verbose", [False, True])
def test_a_bug_shows_its_traceback_only_when_asked(user: Studio, verbose: bool) -> None:
    command = [sys.executable, "-c", BROKEN, "ls", "apollo", *(["-v"] if verbose else [])]
    done = subprocess.run(
        command, env=user.env(), cwd=user.folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert ("Traceback" in done.stderr) == verbose
    assert "ZeroDivisionError" in done.stderr


def test_the_command_loads_no_obstore_before_it_needs_a_library(newcomer: Studio) -> None:
    code = "import sys, tools.main; print('obstore' in sys.modules, 'boto3' in sys.modules, 'trio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=newcomer.env(), capture_output=True, text=True, check=True)
    assert done.stdout == "False False False\n"


def complete(user: Studio, words: str) -> list[str]:
    environment = {**user.env(), "_DAMFS_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": f"damfs {words}"}
    done = subprocess.run(
        DAMFS, env=environment, cwd=user.folder, capture_output=True, text=True, timeout=60, check=False
    )
    return [line.split('"')[1] for line in done.stdout.splitlines() if '"' in line]


def test_the_shell_offers_commands_shows_and_paths(user: Studio) -> None:
    publish(user, {"plate/v001/a.exr": b"x", "plate/v002/a.exr": b"y"})
    user.run("ls", "apollo")
    assert "publish" in "".join(complete(user, "pub"))
    assert "apollo" in "".join(complete(user, "ls ap"))
    offered = "".join(complete(user, "ls apollo:plate/v"))
    assert "v001" in offered
    assert "v002" in offered


def test_the_shell_is_offered_nothing_while_nothing_is_known(newcomer: Studio) -> None:
    assert complete(newcomer, "ls ap") == []


# ---------------------------------------------------------------------------- config


def test_config_show_tells_where_each_setting_comes_from(user: Studio) -> None:
    file = user.folder / "config/damfs/config.toml"
    file.write_text('[cache]\nsize = "10GB"\n')
    shown = user.json("config", "show", "--region", "eu-west-1")
    assert shown["file"] == str(file)
    settings = shown["settings"]
    assert settings["cache.size"] == {"value": "10GB", "origin": str(file)}
    assert settings["library.url"] == {"value": user.url, "origin": "$DAMFS_LIBRARY"}
    assert settings["library.region"] == {"value": "eu-west-1", "origin": "command line"}
    assert settings["sync.interval_s"]["origin"] == "default"
    assert "cache.size\t10GB" in user.run("config", "show")


def test_config_check_is_content_with_a_good_machine(user: Studio) -> None:
    told = user.json("config", "check")
    assert told["ok"] is True
    assert [one["check"] for one in told["checks"]] == ["configuration", "library", "trust", "key", "cache", "fuse"]


def test_config_check_names_what_is_wrong(user: Studio) -> None:
    for file in (user.folder / "config/damfs/trust").iterdir():
        file.unlink()
    done = user.complete("config", "check")
    assert done.returncode == 3
    assert "trust\tFAILED" in done.stdout
    assert "library\tok" in done.stdout


def test_config_check_says_once_that_the_library_is_not_reachable(user: Studio) -> None:
    (user.folder / "library").rename(user.folder / "elsewhere")
    done = user.complete("config", "check")
    assert done.returncode == 6
    assert (done.stdout + done.stderr).count("is not reachable") == 1
    assert "trust\tok" in done.stdout, "the library is remembered"
    assert done.stderr == "damfs: 1 check failed: library\n"
    shutil.rmtree(user.folder / "cache")
    done = user.complete("config", "check")
    assert (done.stdout + done.stderr).count("is not reachable") == 1
    assert "trust\tFAILED\tnot checked" in done.stdout
    assert done.stderr == "damfs: 2 checks failed: library, trust\n"


def test_config_check_refuses_an_unknown_key(user: Studio) -> None:
    (user.folder / "config/damfs/config.toml").write_text('[cache]\ncolour = "blue"\n')
    assert "cache.colour" in error_of(user, "config", "check", code=3)
