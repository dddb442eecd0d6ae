"""``damfs init``, ``show`` and ``key``: making a library, its shows, and the key that signs for it."""

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cache import durable
from manifest.errors import ConfigurationError, Conflict, FormatError, UsageError
from manifest.names import check_show
from tools.context import Context, library_url, private_folder
from tools.options import command
from tools.output import write_stdout

if TYPE_CHECKING:
    from manifest.trust import PinnedKeys, SigningKey

SLOW_S = 1.0

Shows = Annotated[list[str], typer.Argument(metavar="SHOW…", help="[a-z0-9][a-z0-9_-]{0,63}")]


@command(key=True)
def init(
    context: Context,
    url: Annotated[str, typer.Argument(metavar="URL", help="file:///folder, s3://bucket/prefix, or a folder's path.")],
    show: Annotated[list[str] | None, typer.Option("--show", metavar="NAME", help="Make this show, too.")] = None,
) -> None:
    """Make a library, and a signing key if there is none; print the trust file for other machines.

    A library has its folder, or its prefix in a bucket, to itself: one that holds anything else is refused. The store
    is proven first: it must let exactly one of many racing publishers create an object. A trust file that is there is
    never overwritten.
    """
    from manifest.identity import add_show, create_library  # noqa: PLC0415 - loads obstore
    from manifest.trust import PinnedKeys  # noqa: PLC0415 - loads boto3

    shows = list(dict.fromkeys(_checked(name) for name in show or []))
    context.use_library(library_url(url))
    if context.common.trust is not None and os.path.lexists(context.common.trust):
        raise Conflict(f"{context.common.trust} exists and is not overwritten: name another file, or leave --trust out")
    key, made = _key(context)
    slow = threading.Timer(
        SLOW_S, context.output.note, ["proving the store: many publishers race for one object, and one may win …"]
    )
    slow.start()
    try:
        identity = create_library(context.library)
    except Conflict as error:
        hint = f"; add shows to it with `damfs show add {' '.join(shows)}`" if shows else ""
        raise Conflict(f"{error}{hint}") from error
    finally:
        slow.cancel()
    context.remember_id(identity.id)
    trust = PinnedKeys(identity.id, [key.public])
    trust_path = _save_trust(context, trust)
    for name in shows:
        add_show(context.library, name)
    if context.json:
        context.output.result(
            {
                "library": context.library.url,
                "id": identity.id,
                "shows": shows,
                "keyid": key.keyid,
                "key_path": str(context.key_path),
                "key_made": made,
                "trust_path": str(trust_path),
                "trust": trust.to_bytes().decode(),
            }
        )
        return
    context.output.note(
        f"library {identity.id} at {context.library.url}" + (f" with {', '.join(shows)}" if shows else "")
    )
    context.output.note(
        f"{'made' if made else 'using'} the signing key {context.key_path}: keep it, and a copy of it, safe"
    )
    context.output.note(f"trust file for other machines (on this one: {trust_path}):")
    write_stdout(trust.to_bytes().decode())


def _key(context: Context) -> "tuple[SigningKey, bool]":
    """The user's key, and whether it had to be made."""
    if context.key_path.exists():
        return context.key, False
    return _make_key(context.key_path), True


def _make_key(path: Path) -> "SigningKey":
    from manifest.trust import SigningKey  # noqa: PLC0415 - loads boto3

    if not path.parent.exists():
        private_folder(path.parent)
    key = SigningKey.generate()
    try:
        key.save(path)
    except OSError as error:
        raise ConfigurationError(f"cannot write the key {path}: {error.strerror}") from error
    return key


def _save_trust(context: Context, trust: "PinnedKeys") -> Path:
    """Keep the trust file, durably, where this machine's next command looks for it."""
    path = context.new_trust_path(trust.library_id)
    private_folder(path.parent)
    try:
        durable.write(path, trust.to_bytes())
    except OSError as error:
        raise ConfigurationError(f"cannot write the trust file {path}: {error.strerror}") from error
    return path


def _shows(names: list[str]) -> str:
    return f"the show{'' if len(names) == 1 else 's'} {', '.join(names)}"


def _checked(name: str) -> str:
    try:
        return check_show(name)
    except FormatError as error:
        raise UsageError(str(error)) from error


@command()
def show_add(context: Context, show: Shows) -> None:
    """Make shows in the library."""
    from manifest.identity import add_show, show_exists  # noqa: PLC0415 - loads obstore

    names = list(dict.fromkeys(_checked(name) for name in show))
    library = context.online_library
    there = [name for name in names if show_exists(library, name)]
    if there:
        others = [name for name in names if name not in there]
        hint = f"; none was made: leave it away, as in `damfs show add {' '.join(others)}`" if others else ""
        raise Conflict(f"the library at {library.url} has {_shows(there)} already{hint}")
    for name in names:
        add_show(library, name)
        context.output.say(f"made the show {name} in {library.url}")
    if context.json:
        context.output.result({"library": library.url, "added": names})


@command()
def show_ls(context: Context) -> None:
    """List the shows of the library."""
    from manifest.identity import list_shows  # noqa: PLC0415 - loads obstore

    library = context.online_library
    names = list_shows(library)
    if context.json:
        context.output.result({"library": library.url, "shows": [{"show": name} for name in names]})
    for name in names:
        context.output.line(name)


@command(library=False, key=True)
def key_new(context: Context) -> None:
    """Make a signing key, readable by this user only. An existing one is never overwritten."""
    key = _make_key(context.key_path)
    _print_key(context, key)


@command(library=False, key=True)
def key_show(context: Context) -> None:
    """Show the public half of the signing key."""
    _print_key(context, context.key)


def _print_key(context: Context, key: "SigningKey") -> None:
    if context.json:
        context.output.result({"path": str(context.key_path), "keyid": key.keyid, "public": key.public})
    context.output.line(
        f"key     {context.key_path}", f"keyid   {key.keyid}", f"public  {key.public['keyval']['public']}"
    )
