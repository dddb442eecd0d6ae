"""``damfs cache advise``: what hit rate each size of a cache would give, by a sample of what was opened."""

import base64
from pathlib import Path
from typing import Annotated

import typer

from manifest.errors import NotFound, UsageError
from tools.cache import Mount, mount_of
from tools.context import Context
from tools.curve import Curve, as_png, as_svg, as_text
from tools.options import command
from tools.output import human_bytes, plural

DAY_MS = 24 * 3600 * 1000

HitRate = Annotated[str, typer.Option("--hit-rate", metavar="PERCENT", help="What is wanted, as in 95%.")]


@command(library=False)
def advise(
    context: Context,
    hit_rate: HitRate = "95%",
    svg: Annotated[Path | None, typer.Option("--svg", metavar="FILE", help="Draw it as an SVG, too.")] = None,
    png: Annotated[Path | None, typer.Option("--png", metavar="FILE", help="Draw it as a PNG, too.")] = None,
    mount: Mount = None,
) -> None:
    """Tell what hit rate each size of the cache would give, and which size gives the one that is wanted.

    A sample of the files that were opened, of two weeks at most, is replayed in simulated caches of many sizes, with
    the policy of this one. The hit rate is the part of the bytes of all files opened that were in the cache; files that
    were never opened before are no cache's hits. It takes some seconds of one CPU. Needs the right to administer the
    mount.
    """
    # Loaded here: no other command needs the cache's code, which takes a moment to load.
    from cache import advise as advice  # noqa: PLC0415
    from cache.trace import unpack  # noqa: PLC0415

    goal = _parse(hit_rate)
    for file in (svg, png):
        if file is not None and not file.parent.is_dir():
            raise UsageError(f"{file} cannot be written: {file.parent} is no folder")
    client = mount_of(mount)
    told = client.cache_reads()
    sample = unpack(base64.b64decode(told["sample"]))
    if len(sample.references) < advice.REFERENCES_MIN:
        raise NotFound(
            f"{plural(len(sample.references), 'open')} of files in {client.mountpoint} were seen, expected "
            f"{advice.REFERENCES_MIN} at least: ask again when it was worked with"
        )
    high, low = told["marks"]
    with context.output.progress("simulating", total=advice.SIZES + 1, unit="sizes") as progress:
        found = advice.advise(
            sample, told["policy"], told["size_bytes"], goal, marks=(high, low), simulated=lambda: progress.advance(1)
        )
    measured = told["found_bytes"] / told["asked_bytes"] if told["asked_bytes"] else None
    curve = Curve(found.points, found.today, measured, found.wanted)
    for file, draw in ((svg, as_svg), (png, as_png)):
        if file is not None:
            _write(file, draw(curve))
    context.output.result(
        {
            "mountpoint": str(client.mountpoint),
            "policy": told["policy"],
            "size_bytes": told["size_bytes"],
            "hit_rate": found.today.hit_rate,
            "measured": measured,
            "goal": {"hit_rate": goal, "size_bytes": found.wanted.size_bytes if found.wanted else None},
            "points": [point._asdict() for point in found.points],
            "opened_bytes": found.opened_bytes,
            "sampled": found.rate,
            "references": found.references,
            "span_s": found.span_ms / 1000,
        }
    )
    best = max(point.hit_rate for point in found.points)
    wanted = (
        f"{hit_rate} needs {human_bytes(found.wanted.size_bytes)}" if found.wanted
        else f"{hit_rate} is out of reach: no size gives more than {best:.1%}, the rest being opened for the first time"
    )  # fmt: skip
    seen = "" if measured is None else f"; measured since the daemon began: {measured:.1%}"
    context.output.line(
        *as_text(curve),
        f"{plural(found.references, 'open')} in {found.span_ms / DAY_MS:.1f} days, of {found.rate:.0%} of the files; "
        f"{human_bytes(found.opened_bytes)} were opened in all",
        f"today {human_bytes(told['size_bytes'])} (│) give {found.today.hit_rate:.1%}{seen}",
        wanted,
    )


def _parse(text: str) -> float:
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1
    if not 0 < value < 1:
        raise UsageError(f"{text!r} is no hit rate: expected more than 0% and less than 100%, as in 95%")
    return value


def _write(file: Path, data: bytes) -> None:
    try:
        file.write_bytes(data)
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}; name another file") from error
