"""docs/COMMANDS.md, written from the commands themselves: ``python -m tools.reference > docs/COMMANDS.md``.

A test compares the file with what this module writes, so no command, argument or option is undocumented. What the
commands print with ``--json`` stands here, for nothing else would hold it together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from tools.exit_codes import MEANINGS
from tools.main import app
from tools.options import OPTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

HEAD = """# The `damfs` command

Written by `python -m tools.reference`; a test keeps it so.

A place is named as `SHOW[@REV][:PATH]`: `apollo:seq010/sh020/plate/v003` at the head, `apollo@412:seq010` at revision
412, `apollo@2026-11-20T10:15:00Z` at the last revision published by then (UTC unless an offset is given). Revisions
have no other names: `apollo@approved` is refused (a tag such as `plate/latest` is a link in a folder, no revision).
**A path in a mount does as well**, absolute or relative (`/mnt/dam/apollo@412/seq010`, `./plate.1001.exr`); text is
taken for a path when its part before the first colon holds a `/`. Links inside a show are followed.

The common options may stand before the command's name, too; what stands behind it wins. The library is the one of
`--library`, else of `$DAMFS_LIBRARY`, else of the configuration ([CONFIGURATION](CONFIGURATION.md)); with a path in a
mount it is the mount's, reached and trusted as the mount does it (endpoint, region and trust file; those of a mount of
root or of this user). `damfs --install-completion` sets up completion in bash, zsh and fish, which offers the shows and
paths that this user's replicas know.

The commands that read a library (`ls`, `log`, `diff`, `cat`, `export`, `verify`) keep replicas of their own in
`$XDG_CACHE_HOME/damfs/tools` (root: `/var/cache/damfs/tools`), which may be deleted at any time. While the library is
not reachable, `ls`, `log` and `diff` go on with what the replica knows, and say so on stderr.

Results go to stdout; notes, errors and progress to stderr. A progress bar appears after a second, on a terminal only,
never with `--json` or `-q`. In a pipe a table becomes tab-separated lines without a heading. A name may hold any
character that POSIX allows; control characters in it, line ends too, are printed as `\\n`, `\\x1b`, `\\u202e`, so that
no name drives a terminal or looks like two. A script that must tell such names apart reads `--json`.

## Exit status
"""

JSON_HEAD = """With `--json` stdout holds one JSON document. Keys are added, never renamed or removed. Sizes are in
bytes; `time` and `mtime` are ISO 8601 in UTC, `time_ns` and `mtime_ns` nanoseconds since 1970; modes are octal text.
A command that fails prints a document, too: `{"error":{"kind","message","exit_code"}}`, behind what it had found out
until then (the bad objects of `verify`, what `export` has written, the entries of a listing that broke off). `kind` is
`UsageError`, `NotFound`, `Conflict`, `ConfigurationError`, `Unavailable` or another class of `manifest/errors.py`,
`Interrupted` or `Bug`. The key `error` is there exactly when the exit status is not 0; the text is on stderr as well.

An *item* is `{"kind":"file"|"link"|"folder","revision"}` and, for a file, `mode`, `size`, `mtime`, `mtime_ns`,
`digest` (`b3:<hex>`, what `b3sum` prints); for a link `target`; for a folder `mode`. `revision` is the one that
made it what it is.
"""

JSON: dict[str, str] = {
    "init": '`{"library","id","shows":[name],"keyid","key_path","key_made","trust_path","trust"}`; `trust` is the text '
    "of the trust file, which is printed alone without `--json`",
    "show add": '`{"library","added":[name]}`',
    "show ls": '`{"library","shows":[{"show"}]}`',
    "key new": '`{"path","keyid","public"}`; `public` is the key as a trust file has it',
    "key show": "as `key new`",
    "config show": '`{"file","settings":{name:{"value","origin"}}}`',
    "config check": '`{"ok","checks":[{"check","ok","message"}]}`',
    "site setup": '`{"folder","files":[path]}`',
    "site check": '`{"url","ok","checks":[{"check","ok","message"}]}`; `ok` of a check is null when it cannot be told',
    "mount": '`{"mountpoint","pid","supervisor_pid","binding","binding_reason","offline","log"}`',
    "umount": '`{"mountpoint","pid"}`',
    "reload": '`{"mountpoint","pid","version","pause_s"}`; `pause_s` is how long nobody answered',
    "pin": '`{"id","show","at","path","recursive","made_ns","state":"counting"|"downloading"|"complete"|"incomplete",'
    '"revision","files","bytes","cached_bytes","error"}`; with `--dry-run` '
    '`{"revision","files","bytes","cached_bytes","why_not"}`, where `why_not` is null or why it would be refused',
    "unpin": '`{"pins":[…as pin…]}`, those that were removed',
    "pins": '`{"pins":[…as pin…],"limit_bytes"}`',
    "explain": '`{"mountpoint",…}` and what [STATUS](STATUS.md) calls an explanation',
    "offline": '`{"mounts":[{"mountpoint","offline","offline_reason","offline_switch"}]}`, as in [STATUS](STATUS.md)',
    "prefetch": '`{"id","name","state":"queued"|"counting"|"downloading"|"waiting"|"complete"|"failed"|"cancelled",'
    '"made_ns","ended_ns","files","bytes","cached_bytes","brought_bytes","missing","missing_examples","rate_bytes_s",'
    '"eta_s","error","kind"}`; with `--dry-run` `{"files","bytes","cached_bytes","missing","missing_examples",'
    '"why_not"}`; with `--jobs` `{"jobs":[…as a job…],"limit_bytes"}`, with `--cancel` the first of these. A job that '
    "was waited for in vain has `is_late` and `deadline_s`, too",
    "status": "with MOUNTPOINT what [STATUS](STATUS.md) describes; without it "
    '`{"mounts":[…the same…],"dead":[mountpoint]}`',
    "cache stats": '`{"mountpoint",…}` and what [STATUS](STATUS.md) calls the cache',
    "cache ls": '`{"show","revision","path","entries":[{"name","kind":"file"|"folder","files","size","cached_bytes",'
    '"percent"}]}`; with `-r` `name` is a path relative to `path`. Without a place '
    '`{"mountpoint","shows":[{"show","used_bytes","objects"}]}`',
    "cache resize": '`{"mountpoint","folders":[…]}`, the folders as in [STATUS](STATUS.md)',
    "cache set": "as `cache resize`",
    "cache evict": '`{"objects","bytes","in_use","pinned"}`: contents evicted, bytes of the disk that are free now, '
    "contents that stay",
    "cache advise": '`{"mountpoint","policy","size_bytes","hit_rate","measured","goal":{"hit_rate","size_bytes"},'
    '"points":[{"size_bytes","hit_rate"}],"opened_bytes","sampled","references","span_s"}`; hit rates are parts of 1, '
    "`measured` is since the daemon began, of files over 64 KiB, `goal.size_bytes` null when no size reaches it",
    "cache scrub": '`{"running","objects_total","objects","size_bytes","unknown","bad_objects","bad":[{"show",'
    '"content","reason"}]}`; without `--wait` what is known at the beginning',
    "cache verify": "as `cache scrub`",
    "sync": '`{"show","revision","mounts":[{"mountpoint","revision"}]}`; `revision` is the lowest of the mounts',
    "ls": '`{"show","revision","path","entries":[{"name",…item}]}`; with `-r` `name` is a path relative to `path`',
    "log": '`{"show","path","oldest","revisions":[{"revision","publish_id","author","message","key","time","time_ns",'
    '"status","reason"}]}`, newest first; `status` is `applied` or `noop`; what is older than '
    "`oldest` was not looked through",
    "diff": '`{"show","path","a","b","changes":[{"path","change":"added"|"removed"|"changed","before":item|null,'
    '"after":item|null}]}`',
    "publish": '`{"show","path","dry_run","published","revision","resumed","changes","files","size_bytes",'
    '"uploaded_chunks","uploaded_bytes","reused_chunks","reused_bytes","seconds"}`, with `--dry-run` `would_change` '
    "too; `published` is false when a revision has it already",
    "tag": '`{"show","folder","tag","version","revision","published"}`',
    "rm": '`{"show","path","dry_run","revision","files","links","folders","size_bytes","dangling"}`',
    "export": '`{"show","revision","path","folder","files","bytes","skipped","links","folders","failed":[path]}`',
    "bench": "what [BENCH](BENCH.md) describes",
    "verify": '`{"ok","shows":[{"show","revision","chunks","recipes","bytes","bad":[{"kind":"chunk"|"recipe","object",'
    '"problem","paths","paths_more"}]}]}`',
}
"""What each command prints with ``--json``."""

_COMMON = {name: f"--{name}" for name in OPTIONS}


def write() -> str:
    """The whole page."""
    page = [HEAD, "| status | meaning |\n|---|---|"]
    page += [f"| {code.value} | {meaning} |" for code, meaning in MEANINGS.items()]
    page += ["", "## Common options", "", *_common_options(), "", "## JSON", "", JSON_HEAD]
    for name, command in _commands(typer.main.get_command(app)):
        page += [f"## damfs {name}", "", f"`damfs {name} {_usage(command)}`", "", _help(command), ""]
        rows = [row for row in _rows(command) if row]
        if rows:
            page += ["| | |", "|---|---|", *rows, ""]
        common = [_COMMON[p.name] for p in command.params if p.name in _COMMON]
        page += ["Takes " + ", ".join(f"`{option}`" for option in common) + ".", ""]
        if name in JSON:
            page += [f"`--json`: {JSON[name]}", ""]
    return "\n".join(page).rstrip() + "\n"


def _commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix}{name} ")
        else:
            yield prefix + name, command


def _common_options() -> list[str]:
    lines = ["| | |", "|---|---|"]
    for annotation, _ in OPTIONS.values():
        option = annotation.__metadata__[0]
        words = ", ".join(
            f"`{word}`" for word in (option.default, *(option.param_decls or ())) if isinstance(word, str)
        )
        value = f" {option.metavar}" if option.metavar else ""
        lines.append(f"| {words}{value} | {option.help} |")
    return [*lines, "| `--version` | Print the version and exit. |"]


def _usage(command: Any) -> str:
    words = [_metavar(param) for param in command.params if param.param_type_name == "argument"]
    return " ".join(["[OPTION]…", *words])


def _rows(command: Any) -> Iterator[str]:
    for param in command.params:
        if param.name in _COMMON or param.name == "help":
            continue
        if param.param_type_name == "argument":
            yield f"| {_metavar(param)} | {_cell(param.help)} |"
        else:
            words = ", ".join(f"`{word}`" for word in (*param.opts, *param.secondary_opts))
            value = "" if param.is_flag or param.count else f" {_cell(_metavar(param))}"
            again = " May be given again." if param.multiple else ""
            unset = param.is_flag or param.default in (None, False, "", [], ())
            default = "" if unset else f" Default: {param.default}."
            yield f"| {words}{value} | {_cell(param.help)}{default}{again} |"


def _metavar(param: Any) -> str:
    return str(param.metavar or (param.name or "").upper())


def _help(command: Any) -> str:
    return "\n".join(line.strip() for line in (command.help or "").splitlines())


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    print(write(), end="")
