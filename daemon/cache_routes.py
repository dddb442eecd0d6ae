"""The routes of ``damfs cache``: limits, what is cached of which paths, eviction. All through the admin socket.

| | |
|---|---|
| POST /v1/cache/limits {"folder", "show", "set", "default"} | set values, given as text, or unset what was set |
| POST /v1/cache/ls {"show", "at", "path", "recursive"} | how much is cached of the files there |
| POST /v1/cache/evict {"show", "at", "path"} | let go of the files there |

How much the cache holds stands in GET /v1/status. Names of files are told through the admin socket only, for the view
socket is open to users who may not look into the mount.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import trio
from pydantic import Field
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cache.evict import Evicted
from cache.limits import NO_LIMITS
from daemon.limits import parse_show, parse_values
from daemon.routing import Body, guarded, read, require_admin
from manifest.digest import Digest
from manifest.errors import Busy, ConfigurationError, NotFound, Unavailable, UsageError
from manifest.names import check_show

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request

    from cache.admin import CacheAdmin
    from cache.limits import Values
    from daemon.places import Place, Places
    from manifest.replica import Row

log = logging.getLogger(__name__)

ENTRIES_MAX = 200_000
"""So many entries are told at once."""

Text = Annotated[str, Field(max_length=200)]


class LimitsRequest(Body):
    """The body of POST /v1/cache/limits. ``folder`` None: every folder."""

    folder: Annotated[str, Field(max_length=4096)] | None = None
    show: Text | None = None
    set: dict[Text, Text] = Field(default_factory=dict, max_length=16)
    default: bool = False


class PlaceRequest(Body):
    """The body of the routes about files. ``at`` is a revision or a time; None: what the mount shows now."""

    show: Text
    at: Text | None = None
    path: Annotated[str, Field(max_length=8192)] = ""


class ListRequest(PlaceRequest):
    """The body of POST /v1/cache/ls."""

    recursive: bool = False


def routes(cache: CacheAdmin, places: Places) -> list[Route]:
    """Those of the module's table."""

    async def limits(request: Request) -> Response:
        body = await read(request, LimitsRequest)
        require_admin(request, "the limits of a cache are set")
        log.info("%s sets limits of the cache: %s", request.state.peer, body.model_dump(exclude_defaults=True))
        await _set_limits(cache, body)
        return JSONResponse({"folders": [str(folder) for folder in cache.folders]})

    async def ls(request: Request) -> Response:
        body = await read(request, ListRequest)
        require_admin(request, "what is cached of which paths is asked")
        async with places.at(body.show, body.at, body.path) as place:
            entries = await _listed(cache, place, recursive=body.recursive)
        head = {"show": body.show, "revision": place.revision, "path": place.path}
        return JSONResponse({**head, "entries": [entry.to_json(name) for name, entry in entries.items()]})

    async def evict(request: Request) -> Response:
        body = await read(request, PlaceRequest)
        require_admin(request, "a cache is told to evict")
        log.info("%s evicts %s:%s", request.state.peer, body.show, body.path)
        async with places.at(body.show, body.at, body.path) as place:
            result = await _evict(cache, place)
        if not result.objects and (result.in_use or result.pinned):
            raise Busy(f"nothing of {body.show}:{place.path} was evicted: {_kept(result)}")
        return JSONResponse(result._asdict())

    table = {"limits": limits, "ls": ls, "evict": evict}
    return [Route(f"/v1/cache/{name}", guarded(handler), methods=["POST"]) for name, handler in table.items()]


async def _set_limits(cache: CacheAdmin, body: LimitsRequest) -> None:
    if not cache.folders:
        raise Unavailable("no folder of the cache is in service: damfs cache stats says why; see to its disk first")
    folders = cache.folders if body.folder is None else [Path(body.folder)]
    if not set(folders) <= set(cache.folders):
        raise NotFound(f"{body.folder} is no folder of this cache: it has {', '.join(map(str, cache.folders))}")
    if body.default == bool(body.set):
        raise UsageError("expected values to set, or --default to unset what was set")
    if body.show is not None:
        show = check_show(body.show)
        before = cache.limits(folders[0])[0].show(show)
        await cache.set_limits({}, {show: NO_LIMITS if body.default else parse_show(body.set, before)})
        return
    if body.default:
        await cache.unset_limits(folders)
        return
    if "size" in body.set and len(folders) > 1:
        raise UsageError(f"the cache has {len(folders)} folders: name the one that gets another size with --folder")
    await cache.set_limits({folder: await _parse_values(body.set, folder) for folder in folders}, {})


async def _parse_values(words: Mapping[str, str], folder: Path) -> Values:
    try:
        return await trio.to_thread.run_sync(parse_values, words, folder)
    except OSError as error:
        raise ConfigurationError(f"the disk of {folder} does not tell its size: {error}") from error


class _Sum:
    """What is cached of one entry of a listing, and of all below it."""

    __slots__ = ("cached_bytes", "files", "kind", "size_bytes")

    def __init__(self) -> None:
        self.kind = "folder"
        self.files = self.size_bytes = self.cached_bytes = 0

    def to_json(self, name: str) -> dict[str, Any]:
        percent = self.cached_bytes * 100 // self.size_bytes if self.size_bytes else 100
        return {"name": name, "kind": self.kind, "files": self.files, "size": self.size_bytes,
                "cached_bytes": self.cached_bytes, "percent": percent}  # fmt: skip


async def _listed(cache: CacheAdmin, place: Place, *, recursive: bool) -> dict[str, _Sum]:
    """By name: the entries of a folder, each with all below it, or all files below it."""
    entries: dict[str, _Sum] = {}
    async for batch in place.batches():
        files = _files(batch)
        present = await cache.present_bytes(place.show, [(content, row.size) for _, row, content in files])
        for (path, row, _), cached_bytes in zip(files, present, strict=True):
            name, has_more, _ = (path, "", "") if recursive else path.partition("/")
            entry = entries.setdefault(name, _Sum())
            entry.kind = "folder" if has_more else "file"
            entry.files += 1
            entry.size_bytes += row.size
            entry.cached_bytes += cached_bytes
        if len(entries) > ENTRIES_MAX:
            raise UsageError(f"{place.show}:{place.path} has more than {ENTRIES_MAX:,} entries: name a folder in it")
    return entries


async def _evict(cache: CacheAdmin, place: Place) -> Evicted:
    result = Evicted()
    async for batch in place.batches():
        result = result.plus(await cache.evict(place.show, {content for _, _, content in _files(batch)}))
    return result


def _files(batch: list[tuple[str, Row]]) -> list[tuple[str, Row, Digest]]:
    return [(path, row, Digest(row.content)) for path, row in batch if row.content is not None]


def _kept(result: Evicted) -> str:
    """Why something was not evicted."""
    reasons = []
    if result.in_use:
        reasons.append(f"{result.in_use} of its files are in use: close what has them open")
    if result.pinned:
        reasons.append(f"{result.pinned} of its files are pinned: damfs unpin lets go of them")
    return "; ".join(reasons)
