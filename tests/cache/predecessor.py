"""A daemon's cache, to be killed or stopped: ``python -m tests.cache.predecessor CACHE LIBRARY SOCKET MODE``.

SOCKET is the number of an inherited Unix socket, over which it sends its lock when it has done what MODE says:
- ``complete``: a content has just become complete; ``lent``: it may be lent. Then it waits.
- ``writing``: it holds a transaction open that writes to the index, and one that writes to the small contents.
"""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

import trio
import trio.lowlevel

from cache.folder import open_parts
from manifest.library import Library
from tests.cache.contents import MIB, OWNER, Sample, central, open_sample, opened, read_all, sample


def made() -> Sample:
    """The content that is read."""
    return sample(1, 9 * MIB, MIB)


async def fill(folder: Path, library: Library, channel: socket.socket, mode: str) -> None:
    async with opened(folder, [central(library)]) as cache:
        handle = await open_sample(cache, made())
        await read_all(handle, step=MIB)
        while not handle.complete or (mode == "lent" and handle.backing() is None):
            await trio.lowlevel.checkpoint()
        socket.send_fds(channel, [b"!"], [cache.shelves[0].lock.fd])
        time.sleep(60)  # noqa: ASYNC251 - nothing is to happen any more


def write(folder: Path, channel: socket.socket) -> None:
    parts = open_parts(folder, "/mnt/before", OWNER, [])
    parts.small.put(b"key", b"value")
    parts.index._writer.execute("BEGIN IMMEDIATE")
    parts.index._writer.execute("UPDATE objects SET used = 1")
    parts.small._cache._con.execute("BEGIN IMMEDIATE")
    parts.small._cache._con.execute("UPDATE Cache SET access_count = 1")
    socket.send_fds(channel, [b"!"], [parts.lock.fd])
    time.sleep(60)


if __name__ == "__main__":
    where, url, number, what = sys.argv[1:]
    with socket.socket(fileno=int(number)) as to:
        if what == "writing":
            write(Path(where), to)
        else:
            trio.run(fill, Path(where), Library.open(url), to, what)
