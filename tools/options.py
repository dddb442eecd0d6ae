"""The options that every command has, declared once.

A command is a function whose first parameter is a Context; ``command`` turns it into what Typer expects: the common
options are added behind the command's own, gathered into a Common, and the Context made of them is closed when the
command ends. The same options stand before the command's name, too (``damfs -v --library URL ls …``); what stands
behind the name wins.

    @command()
    def ls(context: Context, address: Annotated[str, typer.Argument(…)]) -> None: …

    app.command("ls")(ls)
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec

import typer

from tools.context import Common, Context
from tools.failure import Failure
from tools.output import drop_stdout

P = ParamSpec("P")

_LIBRARY_PANEL = "Which library"
_PRINT_PANEL = "What is printed"

Library = Annotated[
    str | None,
    typer.Option(
        "--library",
        metavar="URL",
        rich_help_panel=_LIBRARY_PANEL,
        help="The library: file:///folder or s3://bucket/prefix. Else $DAMFS_LIBRARY, else the configuration.",
    ),
]
Trust = Annotated[
    Path | None,
    typer.Option(
        "--trust",
        metavar="FILE",
        rich_help_panel=_LIBRARY_PANEL,
        help="The trusted keys of the library. Else the configuration, else trust/<library id>.json beside it.",
    ),
]
Endpoint = Annotated[
    str | None,
    typer.Option(
        "--endpoint",
        metavar="URL",
        rich_help_panel=_LIBRARY_PANEL,
        help="The S3 endpoint. Else $AWS_ENDPOINT_URL_S3, else the configuration.",
    ),
]
Region = Annotated[
    str | None,
    typer.Option("--region", metavar="NAME", rich_help_panel=_LIBRARY_PANEL, help="The S3 region."),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        rich_help_panel=_LIBRARY_PANEL,
        help="The configuration file. Else $DAMFS_CONFIG, else config.toml in the configuration folder.",
    ),
]
Key = Annotated[
    Path | None,
    typer.Option(
        "--key",
        metavar="FILE",
        rich_help_panel=_LIBRARY_PANEL,
        help="The signing key. Else the configuration, else key.pem in the configuration folder.",
    ),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json", rich_help_panel=_PRINT_PANEL, help="Print one JSON document for scripts; see docs/COMMANDS.md."
    ),
]
Verbose = Annotated[
    int,
    typer.Option(
        "--verbose", "-v", count=True, show_default=False, rich_help_panel=_PRINT_PANEL, help="Say more on stderr."
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", rich_help_panel=_PRINT_PANEL, help="Print results and errors only.")
]

OPTIONS: dict[str, tuple[Any, Any]] = {
    "library": (Library, None),
    "trust": (Trust, None),
    "endpoint": (Endpoint, None),
    "region": (Region, None),
    "config": (Config, None),
    "key": (Key, None),
    "json": (Json, False),
    "verbose": (Verbose, 0),
    "quiet": (Quiet, False),
}
"""Each common option: its Typer annotation and its default. The keys are the fields of Common."""

assert set(OPTIONS) == {field.name for field in fields(Common)}, "OPTIONS and Common are one list"


def command(
    *, library: bool = True, key: bool = False, json: bool = True
) -> Callable[[Callable[Concatenate[Context, P], None]], Callable[..., None]]:
    """Make a Typer command of a function that takes a Context first.

    ``library``: it reaches a library, and takes --library, --trust, --endpoint and --region. ``key``: it signs, and
    takes --key. ``json``: it prints something that a script may want to read.
    """
    names = [name for name in OPTIONS if _wanted(name, library=library, key=key, json=json)]

    def decorate(function: Callable[Concatenate[Context, P], None]) -> Callable[..., None]:
        def run(*args: Any, **kwargs: Any) -> None:
            invocation: typer.Context = kwargs.pop("_invocation")
            given = Common(**{name: kwargs.pop(name) for name in names})
            before = invocation.find_root().obj
            common = merge(before, given) if isinstance(before, Common) else given
            with Context(replace(common, json=common.json and json)) as context:
                try:
                    with _told_to_scripts(context):
                        function(context, *args, **kwargs)
                    sys.stdout.flush()
                except BrokenPipeError:
                    # Whoever reads our output has enough of it: that is no error, and nothing more is flushed.
                    drop_stdout()
                    raise typer.Exit from None

        signature = inspect.signature(function)
        own = list(signature.parameters.values())[1:]
        common = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=OPTIONS[name][1], annotation=OPTIONS[name][0]
            )
            for name in names
        ]
        invocation = inspect.Parameter("_invocation", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        run.__signature__ = signature.replace(parameters=[*parameters, *common, invocation])  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *common, invocation]}
        run.__name__, run.__doc__ = function.__name__, function.__doc__
        run.__module__, run.__qualname__ = function.__module__, function.__qualname__
        return run

    return decorate


@contextmanager
def _told_to_scripts(context: Context) -> Iterator[None]:
    """Complete the JSON document, if one is wanted, however the command ends."""
    try:
        yield
    except BrokenPipeError:
        raise
    except (Exception, KeyboardInterrupt) as error:
        context.output.end(Failure.of(error))
        raise
    context.output.end()


def merge(before: Common, behind: Common) -> Common:
    """The options that stood before the command's name, overridden by those behind it; -v adds up."""
    given = {field.name: getattr(behind, field.name) for field in fields(Common) if getattr(behind, field.name)}
    return replace(before, **given | {"verbose": before.verbose + behind.verbose})


def _wanted(name: str, *, library: bool, key: bool, json: bool) -> bool:
    if name in ("library", "trust", "endpoint", "region"):
        return library
    return {"key": key, "json": json}.get(name, True)
