"""``damfs explain``: why is it slow? Where each part of a file is, what the last read cost, what is queued.

Rules: one screen; everything is asked of the daemon, and neither the mount nor the network is touched.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tools.cache import Mount, Place, place_of
from tools.context import Context
from tools.options import command
from tools.output import human_bytes, human_duration, human_time, plural

RANGES_SHOWN = 6
SEQUENCES_SHOWN = 20
STEPS = (
    ("turn", "turn_s"), ("look in the cache", "nearby_s"), ("source", "source_s"), ("verify", "verify_s"),
    ("store", "store_s"),
)  # fmt: skip
"""Where the time of a fetch goes, in order: its name for people, and its key."""


@command(library=False)
def explain(context: Context, place: Place, mount: Mount = None) -> None:
    """Tell why reading a file is slow: where it is, where it comes from, what the last read cost, what to do.

    Of a folder or a sequence (``plate.####.exr``) it tells how much of each sequence is on this workstation, and which
    frames are not. Nothing is fetched. Anybody may ask about what they may read.
    """
    client, address = place_of(place, mount)
    found = client.explain(address)
    if context.json:
        context.output.result({"mountpoint": str(client.mountpoint), **found})
        return
    lines = _of_file(found) if found["kind"] == "file" else _of_folder(found)
    context.output.line(*_head(found))
    for name, text in (*lines, *_of_sources(found), ("queue", _queue(found["queue"]))):
        context.output.line(f"  {name:<10}{text}")
    context.output.line("", found["advice"])


def _head(found: Mapping[str, Any]) -> Iterator[str]:
    yield f"{found['show']}@{found['revision']}:{found['path']}"
    if found["path"] != found["asked"] and found["asked"]:
        yield f"  {'link':<10}{found['asked']} leads here"
    if found["offline"]:
        yield f"  {'OFFLINE':<10}{found['offline_reason']}"


def _of_file(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    file = found["file"]
    by = f" by {file['publisher']}" if file["publisher"] else ""
    when = f", {human_time(file['published_ns'])}" if file["published_ns"] else ""
    yield "file", f"{human_bytes(file['size_bytes'])}, revision {file['version']}{by}{when}"
    yield "digest", file["digest"]
    yield "chunks", _chunks(file)
    yield "here", _here(file)
    yield "coming", _coming(file["coming"])
    yield "read by", _reading(file)
    if file["pins"]:
        yield "pinned", f"by {plural(len(file['pins']), 'pin')}: {', '.join(map(str, file['pins']))}"
    yield from _of_reads(file)


def _chunks(file: Mapping[str, Any]) -> str:
    chunks = file["chunks"]
    if chunks is None:
        return "none" if not file["size_bytes"] else "not known: the list of them is fetched at the first read"
    if chunks["count"] == 1:
        return f"1 of {human_bytes(chunks['largest_bytes'])}"
    return (
        f"{chunks['count']:,} of {human_bytes(chunks['smallest_bytes'])} to {human_bytes(chunks['largest_bytes'])}, "
        f"half of them at most {human_bytes(chunks['median_bytes'])}"
    )


def _here(file: Mapping[str, Any]) -> str:
    text = f"{file['percent']}%, {human_bytes(file['here_bytes'])} of {human_bytes(file['size_bytes'])}"
    if file["here_bytes"]:
        text += f" in {file['folder']}"
    if not file["whole"] and file["ranges"]:
        shown = ", ".join(
            f"{human_bytes(start)} to {human_bytes(stop)}" for start, stop in file["ranges"][:RANGES_SHOWN]
        )
        more = len(file["ranges"]) - RANGES_SHOWN + file["ranges_more"]
        text += f": {shown}" + (f" and {more} more" if more > 0 else "")
    return text


def _coming(coming: Mapping[str, Any]) -> str:
    if not (coming["fetching"] or coming["queued"] or coming["storing"]):
        return "nothing"
    text = f"{plural(coming['fetching'], 'chunk')} being fetched as {coming['priority']}"
    if coming["queued"]:
        text += f", {coming['queued']} queued behind {plural(coming['ahead'], 'other')}"
    if coming["storing"]:
        text += f", {coming['storing']} being stored"
    return f"{text}, the longest for {human_duration(coming['longest_s'])}"


def _reading(file: Mapping[str, Any]) -> str:
    now = {"kernel": "the kernel itself, now", "daemon": "the daemon, now", None: "nobody now"}[file["read_by"]]
    if file["next_open_by"] == "kernel":
        return f"{now}; at the next open by the kernel itself (passthrough)"
    return f"{now}; at the next open through the daemon: {file['why_daemon']}"


def _of_reads(file: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    last, slowest = file["last_read"], file["slowest_read"]
    if last is None:
        yield "last read", "none that the daemon had to wait for, lately"
    else:
        yield "last read", _read(last)
        if slowest["total_s"] > last["total_s"]:
            yield "slowest", _read(slowest)
    for one in file["fetched"]:
        source = one["source"] or "nowhere"
        times = ", ".join(f"{name} {_s(one[key])}" for name, key in STEPS)
        count = plural(one["chunks"], "chunk")
        yield (
            "fetched",
            f"{count}, {human_bytes(one['bytes'])} from {source}: {times}; the slowest {_s(one['slowest_s'])}",
        )
        if one["error"]:
            yield "", one["error"]


def _read(read: Mapping[str, Any]) -> str:
    ago = human_duration(max(0.0, time.time() - read["time"]))
    text = f"{human_bytes(read['bytes'])} at {read['offset']:,} took {_s(read['total_s'])}"
    if read["fetch_s"]:
        text += f", {_s(read['fetch_s'])} of it for bytes that were not here"
    return f"{text}, {ago} ago" + (f": {read['error']}" if read["error"] else "")


def _of_folder(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    folder = found["folder"]
    more = f", {plural(folder['folders'], 'folder')} not counted" if folder["folders"] else ""
    hidden = f", {folder['unreadable']} that you may not read" if folder["unreadable"] else ""
    cut = "" if folder["complete"] else " (the first ones; there are more)"
    yield "files", f"{folder['files']:,}, {human_bytes(folder['size_bytes'])}{cut}{more}{hidden}"
    yield "here", f"{folder['percent']}%, {human_bytes(folder['here_bytes'])}"
    shown = folder["sequences"][:SEQUENCES_SHOWN]
    for one in shown:
        yield f"{one['percent']:>3}%", _sequence(one)
    rest = len(folder["sequences"]) - len(shown) + folder["sequences_more"]
    if rest:
        yield "", f"and {rest:,} more sequences and files"


def _sequence(one: Mapping[str, Any]) -> str:
    if one["first"] is None:
        return f"{one['name']}, {human_bytes(one['size_bytes'])}"
    text = f"{one['name']} {one['first']}-{one['last']}, {one['whole']} of {plural(one['files'], 'frame')} here"
    if one["gaps"]:
        text += f", {plural(one['gaps'], 'number')} not published"
    if one["absent"]:
        shown = ", ".join(_span(*span) for span in one["absent"][:RANGES_SHOWN])
        more = len(one["absent"]) - RANGES_SHOWN + one["absent_more"]
        text += f"; not whole: {shown}" + (f" and {more} more" if more > 0 else "")
    return text


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _of_sources(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for source in found["sources"]:
        text = f"{source['name']} at {source['url']}"
        if source["breaker"] == "closed":
            text += ", healthy" if source["healthy"] else f", its last answer was an error: {source['last_error']}"
        else:
            text += f", DOWN: {source['down_because']}"
        if source["latency_p50_s"] is not None:
            text += (
                f"; half of its answers within {_s(source['latency_p50_s'])}, 95% within {_s(source['latency_p95_s'])}"
            )
        if source["bytes_per_s"] is not None:
            text += f", {human_bytes(int(source['bytes_per_s']))}/s"
        yield "source", text


def _queue(queue: Sequence[Mapping[str, Any]]) -> str:
    told = [
        f"{one['priority']} {one['under_way']} and {one['waiting']}"
        for one in queue
        if one["under_way"] or one["waiting"]
    ]
    return "fetches under way and waiting: " + (", ".join(told) if told else "none")


def _s(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else human_duration(seconds)
