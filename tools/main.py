"""The ``damfs`` command: what it is made of, and how it ends.

Each family of commands has a module of its own. An error that damfs raises on purpose becomes one or two lines on
stderr and the exit status of docs/COMMANDS.md; anything else is a bug, exits 1, and shows its traceback with -v only.
"""

import importlib.metadata
import logging
import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from manifest.errors import DamfsError, UsageError
from tools import (
    advise,
    browse,
    cache,
    complete,
    config,
    explain,
    export,
    library,
    mount,
    offline,
    options,
    pins,
    prefetch,
    reload,
    scrub,
    site,
    trace,
    verify,
)
from tools.bench.command import bench
from tools.context import Common
from tools.exit_codes import ExitCode
from tools.failure import Failure
from tools.output import Output, drop_stdout
from tools.publish.command import publish, rm, tag

app = typer.Typer(
    name="damfs",
    help="A film studio's asset library as a folder: publish, mount, verified reads.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"damfs {importlib.metadata.version('damfs')}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    library_url: options.Library = None,
    trust: options.Trust = None,
    endpoint: options.Endpoint = None,
    region: options.Region = None,
    config_file: options.Config = None,
    key: options.Key = None,
    json: options.Json = False,
    verbose: options.Verbose = 0,
    quiet: options.Quiet = False,
    version: Annotated[  # noqa: ARG001 - acts in its callback
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """What stands before the command's name is kept for the command; see tools/options.py."""
    context.obj = Common(
        library=library_url,
        trust=trust,
        endpoint=endpoint,
        region=region,
        config=config_file,
        key=key,
        json=json,
        verbose=verbose,
        quiet=quiet,
    )


show_app = typer.Typer(help="The shows of a library.", no_args_is_help=True, rich_markup_mode=None)
show_app.command("add")(library.show_add)
show_app.command("ls")(library.show_ls)
key_app = typer.Typer(help="The key that signs what this user publishes.", no_args_is_help=True, rich_markup_mode=None)
key_app.command("new")(library.key_new)
key_app.command("show")(library.key_show)
config_app = typer.Typer(help="The configuration of this machine.", no_args_is_help=True, rich_markup_mode=None)
config_app.command("show")(config.config_show)
config_app.command("check")(config.config_check)

app.command("init")(library.init)
app.add_typer(show_app, name="show")
app.add_typer(key_app, name="key")
app.add_typer(config_app, name="config")
app.command("publish")(publish)
app.command("tag")(tag)
app.command("rm")(rm)
app.command("mount")(mount.mount)
app.command("umount")(mount.umount)
app.command("reload")(reload.reload)
app.command("pin")(pins.pin)
app.command("unpin")(pins.unpin)
app.command("pins")(pins.pins)
app.command("prefetch")(prefetch.prefetch)
app.command("trace", context_settings={"allow_interspersed_args": False})(trace.trace)
app.command("status")(mount.status)
app.command("offline")(offline.offline)
app.command("explain")(explain.explain)
app.command("sync")(mount.sync)
cache.cache_app.command("scrub")(scrub.scrub)
cache.cache_app.command("verify")(scrub.verify)
cache.cache_app.command("advise")(advise.advise)
app.add_typer(cache.cache_app, name="cache")
app.add_typer(site.site_app, name="site")
app.command("ls")(browse.ls)
app.command("log")(browse.log)
app.command("diff")(browse.diff)
app.command("cat")(export.cat)
app.command("export")(export.export)
app.command("verify")(verify.verify)
app.command("bench")(bench)


def main() -> NoReturn:
    """Run the command of ``sys.argv`` and exit."""
    words = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
    verbose = any(word == "--verbose" or (word[:1] == "-" and word[:2] != "--" and "v" in word) for word in words)
    if sys.stdout is None:  # closed by who started us: nothing that is printed is wanted
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - for as long as the process lives
    output = Output(json_wanted="--json" in words, verbose=verbose)
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="damfs: %(message)s")
    try:
        with complete.bash_words(os.environ):
            status = app(prog_name="damfs", standalone_mode=False)
    except typer.Abort:
        _end(1)
    except typer.TyperException as error:
        _refuse_words(output, error)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the last arm: what is not expected is a bug
        failure = Failure.of(error)
        if verbose and not isinstance(error, (DamfsError, KeyboardInterrupt)):
            traceback.print_exc()
        if failure.exit_code != ExitCode.INTERRUPTED:
            output.error(*failure.lines)
        _end(failure.exit_code)
    _end(status)


def _refuse_words(output: Output, error: typer.TyperException) -> NoReturn:
    """Typer could not read the words of the command: it says so, and how the command is used."""
    error.show()  # type: ignore[attr-defined]  # Typer raises only what has it, but exports no such class
    message = error.format_message()
    with suppress(BrokenPipeError):
        output.end(Failure(UsageError.__name__, [message or "a command is missing"], error.exit_code))
    _end(error.exit_code)


def _end(code: object) -> NoReturn:
    status = code if isinstance(code, int) else 0 if code is None else 1
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        drop_stdout()
    if status == ExitCode.INTERRUPTED:
        # Nobody who pressed Ctrl-C waits for the time-outs of fetches that still run in threads.
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    main()
