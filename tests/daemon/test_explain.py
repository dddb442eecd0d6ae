"""The parts of an explanation by themselves: who is told, sequences, advice. On a real mount: tests/mount."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from cache.metrics import Counters
from cache.queue import Queue
from daemon import explain
from daemon.advice import advise
from daemon.explain import Explain, Reading, why_daemon, without_names
from daemon.frames import RANGES_MAX, SEQUENCES_MAX, Sequences, pattern_of
from daemon.peercred import Peer, peer_of
from daemon.rights import READ, SEARCH, Rights, _may_search
from manifest.errors import AccessDenied, NotFound
from manifest.replica import ROOT, Kind, Row

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from manifest.digest import Digest

OWNER, GROUP, STRANGER = 4001, 4002, 4003


def row(mode: int) -> Row:
    """A file of this mode."""
    return ROOT._replace(mode=mode, kind=int(Kind.FILE), content=bytes(32))


def rights(uid: int, gid: int, *groups: int) -> Rights:
    """Of this user on a mount with allow_other."""
    return Rights.of(Peer(1, uid, gid, groups), is_admin=False, owner=(OWNER, GROUP), allow_other=True)


# Who is told


@pytest.mark.parametrize(
    ("who", "mode", "may"),
    [
        ((OWNER, 1), 0o400, True),
        ((OWNER, GROUP), 0o044, False),  # the owner's bits count for the owner, whatever the others are
        ((STRANGER, GROUP), 0o040, True),
        ((STRANGER, 1, GROUP), 0o040, True),
        ((STRANGER, GROUP), 0o404, False),
        ((STRANGER, 1), 0o004, True),
        ((STRANGER, 1), 0o770, False),
    ],
)
def test_a_user_is_told_what_the_modes_let_them_read(who: tuple[int, ...], mode: int, may: bool) -> None:
    assert rights(*who).may(row(mode), READ) is may


def test_whose_groups_are_not_known_has_no_right_that_a_member_would_not_have(tmp_path: Path) -> None:
    asked = Peer(1, STRANGER, 1, None)
    found = Rights.of(asked, is_admin=False, owner=(OWNER, GROUP), allow_other=True)
    assert not found.may(row(0o604), READ)
    assert found.may(row(0o644), READ)
    (above := tmp_path / "home").mkdir()
    try:
        os.setxattr(above, "system.posix_acl_access", acl(*BASE, (0x08, 0, GROUP), OPEN))
    except OSError:
        pytest.skip("no ACLs on the disk of the temporary files")
    assert not _may_search(asked, above)


def test_a_folder_takes_the_right_to_search_it() -> None:
    with pytest.raises(AccessDenied, match="uid 4003 may not search seq010"):
        rights(STRANGER, 1).enter("seq010", row(0o744))
    rights(STRANGER, 1).enter("seq010", row(0o711))
    assert not rights(STRANGER, 1).may(row(0o711), READ | SEARCH)


def test_without_allow_other_and_without_a_known_peer_nothing_is_told() -> None:
    peer = Peer(1, STRANGER, 1)
    with pytest.raises(AccessDenied, match="owner's alone"):
        Rights.of(peer, is_admin=False, owner=(OWNER, GROUP), allow_other=False)
    with pytest.raises(AccessDenied, match="not known"):
        Rights.of(None, is_admin=False, owner=(OWNER, GROUP), allow_other=True)


def test_who_may_administer_the_mount_is_told_everything() -> None:
    for peer, is_admin in ((Peer(1, 0, 0), False), (Peer(1, os.geteuid(), 1), False), (Peer(1, STRANGER, 1), True)):
        found = Rights.of(peer, is_admin=is_admin, owner=(OWNER, GROUP), allow_other=False)
        assert found.may(row(0), READ)


def test_who_may_not_come_to_the_mountpoint_is_told_nothing(tmp_path: Path) -> None:
    mountpoint = tmp_path / "home/mnt"
    mountpoint.mkdir(parents=True)
    mountpoint.chmod(0)  # it is the mount's own: never looked at
    mountpoint.parent.chmod(0o700)
    with pytest.raises(AccessDenied, match=f"may not search {mountpoint.parent}, "):
        rights(STRANGER, 1).require_way(mountpoint)


def acl(*entries: tuple[int, int, int]) -> bytes:
    """The attribute that holds these (tag, rights, id), as setfacl(1) writes it."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in sorted(entries))


NOBODY = 0xFFFFFFFF
BASE = ((0x01, 7, NOBODY), (0x04, 5, NOBODY), (0x10, 7, NOBODY))
CLOSED, OPEN = (0x20, 0, NOBODY), (0x20, 5, NOBODY)


@pytest.mark.parametrize(
    ("entries", "who", "may"),
    [
        ((*BASE, (0x02, 0, STRANGER), OPEN), (STRANGER, 1), False),
        ((*BASE, (0x02, 1, STRANGER), CLOSED), (STRANGER, 1), True),
        ((*BASE, (0x08, 0, GROUP), OPEN), (STRANGER, 1, GROUP), False),
        ((*BASE, (0x08, 1, GROUP), CLOSED), (STRANGER, 1, GROUP), True),
        ((*BASE[:2], (0x10, 4, NOBODY), (0x02, 1, STRANGER), OPEN), (STRANGER, 1), False),
        ((*BASE, (0x02, 0, OWNER), OPEN), (STRANGER, 1), True),
        ((*BASE[:2], (0x10, 0, NOBODY), (0x02, 7, STRANGER), OPEN), (STRANGER, 1), True),
    ],
)
def test_an_acl_above_the_mountpoint_counts_as_it_does_for_the_kernel(
    tmp_path: Path, entries: tuple[tuple[int, int, int], ...], who: tuple[int, ...], may: bool
) -> None:
    (above := tmp_path / "home").mkdir()
    try:
        os.setxattr(above, "system.posix_acl_access", acl(*entries))
    except OSError:
        pytest.skip("no ACLs on the disk of the temporary files")
    asked = rights(*who).peer
    assert asked is not None
    assert _may_search(asked, above) is may


def test_the_peer_of_a_socket_has_its_supplementary_groups() -> None:
    one, other = socket.socketpair()
    with one, other:
        found = peer_of(one)
    assert found is not None
    assert found.groups is not None
    assert (found.uid, found.gid, set(found.groups)) == (os.geteuid(), os.getegid(), set(os.getgroups()))


DIGEST = "b3:" + 64 * "a"


@pytest.mark.parametrize(
    ("error", "is_told"),
    [
        ("", True),
        ("v001/a.exr: not in the cache, and nothing is fetched", True),
        (f"chunk {DIGEST} of apollo: source central is down", True),
        (f"shows/apollo/chunks/aa/{DIGEST[3:]} could not be read in library s3://dam: refused", True),
        ("private/b.exr: not in the cache, and nothing is fetched", False),
        ("v001/a.exr.old: not in the cache, and nothing is fetched", False),
        ("shows/secret.exr: not in the cache, and nothing is fetched", False),
    ],
)
def test_an_error_that_names_another_file_of_the_same_content_is_not_told(error: str, is_told: bool) -> None:
    assert (without_names(error, "v001/a.exr") == error) is is_told


# Sequences


@pytest.mark.parametrize("name", ["plate.####.exr", "plate.%04d.exr", "plate.@@@@.exr", "plate.<UDIM>.exr"])
def test_a_pattern_names_the_frames_of_a_sequence(name: str) -> None:
    assert pattern_of(name) == ("plate.", ".exr")
    assert Sequences(pattern_of(name)).takes("plate.1001.exr")
    assert not Sequences(pattern_of(name)).takes("other.1001.exr")


def test_a_name_without_a_placeholder_is_no_pattern() -> None:
    assert pattern_of("plate.1001.exr") is None


def test_what_is_told_of_sequences_is_bounded() -> None:
    found = Sequences()
    for number in range(1001, 1001 + 4 * RANGES_MAX):
        found.add(f"plate.{number}.exr", 10, 10 if number % 2 else 0)
    for number in range(SEQUENCES_MAX):
        found.add(f"file{chr(97 + number // 26)}{chr(97 + number % 26)}.txt", 10, 0)
    told = found.to_json()
    assert (len(told["sequences"]), told["sequences_more"]) == (SEQUENCES_MAX, 1)
    only = Sequences()
    for number in range(1001, 1001 + 4 * RANGES_MAX):
        only.add(f"plate.{number}.exr", 10, 10 if number % 2 else 0)
    (plate,) = only.to_json()["sequences"]
    assert (plate["name"], plate["percent"], plate["whole"]) == ("plate.####.exr", 50, 2 * RANGES_MAX)
    assert (len(plate["absent"]), plate["absent_more"]) == (RANGES_MAX, RANGES_MAX)


class Folder:
    """A place as ``Places`` yields it: a folder of many names, of which ``told`` were asked for; or a file."""

    show, revision, path = "apollo", 1, "v001"

    def __init__(self, names: int, kind: Kind = Kind.FOLDER) -> None:
        self.row = row(0o755)._replace(kind=int(kind))
        self.told = 0
        self._names = names

    @asynccontextmanager
    async def at(self, _show: str, _at: str | None, path: str, _enter: object) -> AsyncIterator[Folder]:
        if "#" in path:
            raise NotFound(path)
        yield self

    async def names(self, after: str = "") -> AsyncGenerator[list[Row], None]:
        self.after = after
        for first in range(1000, 1000 + self._names, 100):
            self.told += 100
            yield [row(0o600)._replace(name=f"plate.{first + n}.exr") for n in range(100)]
        yield [row(0o600)._replace(name="q")]
        raise AssertionError("nobody wants to know more")


def explaining(place: Folder) -> Explain:
    async def present_bytes(_show: str, contents: list[tuple[Digest, int]]) -> list[int]:
        return [0] * len(contents)

    fetcher = SimpleNamespace(available=lambda: None, queue=Queue(1))
    cache = SimpleNamespace(
        admin=SimpleNamespace(present_bytes=present_bytes), counters=Counters(), fetcher=fetcher,
        sources=SimpleNamespace(status=list),
    )  # fmt: skip
    contact = SimpleNamespace(offline=False, reason=None, shut_because=None)
    parts: Any = (cache, place, SimpleNamespace(contact=contact), {}, lambda: Reading("kernel", has_passthrough=True))
    return Explain(*parts)


@pytest.mark.parametrize("who", [rights(OWNER, GROUP), rights(STRANGER, 1)])
async def test_so_many_names_of_a_folder_are_looked_at_and_no_more_whoever_may_read_them(
    who: Rights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explain, "FILES_MAX", 250)
    place = Folder(10_000)
    found = await explaining(place).explain("apollo", None, "v001", who)
    assert (place.told, found["folder"]["complete"]) == (300, False)


async def test_frames_are_looked_for_where_their_names_can_lie_and_nowhere_else() -> None:
    place = Folder(200)
    found = await explaining(place).explain("apollo", None, "v001/plate.####.exr", rights(OWNER, GROUP))
    assert (place.after, found["folder"]["files"], found["folder"]["complete"]) == ("plate.", 200, True)


async def test_frames_below_a_file_are_not_found() -> None:
    with pytest.raises(NotFound, match="v001 is not a folder"):
        await explaining(Folder(100, Kind.FILE)).explain("apollo", None, "v001/plate.####.exr", rights(OWNER, GROUP))


# Advice


def found(**file: Any) -> dict[str, Any]:
    """What was found of a file of 100 MB that is not here, but for what a test says."""
    coming = {"fetching": 0, "storing": 0, "queued": 0, "bytes": 0, "priority": None, "ahead": 0, "longest_s": 0.0}
    of_file = {"size_bytes": 100_000_000, "here_bytes": 0, "small": False, "why_daemon": None, "coming": coming, **file}
    source = {"name": "central", "breaker": "closed", "bytes_per_s": 10e6}
    return {"show": "apollo", "revision": 7, "path": "a.mov", "kind": "file", "offline": False, "offline_reason": None,
            "offline_switched": False, "sources_why_not": None, "sources": [source], "file": of_file}  # fmt: skip


def test_what_is_not_here_is_to_be_prefetched() -> None:
    assert advise(found(here_bytes=24_000_000)) == (
        "76 % of this file is not on this workstation; it comes from the source central at 10.0 MB/s, which takes "
        "about 8 s. Fetch it before it is needed: damfs prefetch apollo@7:a.mov"
    )


def test_what_waits_is_told_what_it_waits_for() -> None:
    coming = {"fetching": 0, "storing": 0, "queued": 3, "bytes": 9, "priority": "pin", "ahead": 12, "longest_s": 1.0}
    assert "it waits for its turn as pin, behind 12 other fetches; " in advise(found(coming=coming))


def test_offline_comes_before_everything_but_what_is_here() -> None:
    assert "damfs offline off" in advise({**found(), "offline_switched": True, "sources_why_not": "x"})
    assert "no source answers (central is down)" in advise({**found(), "sources_why_not": "central is down"})
    assert advise({**found(here_bytes=100_000_000), "offline_switched": True}).startswith("All of this file is on")


def test_a_whole_file_that_the_daemon_reads_says_why() -> None:
    assert "through the daemon, which is slower than the disk: it is larger than a quarter" in advise(
        found(here_bytes=100_000_000, why_daemon="it is larger than a quarter of the cache")
    )


def test_a_binding_without_passthrough_is_the_reason_where_the_cache_has_none() -> None:
    assert why_daemon("it is empty", Reading("pyfuse3", has_passthrough=False)) == "it is empty"
    assert "the binding pyfuse3" in (why_daemon(None, Reading("pyfuse3", has_passthrough=False)) or "")
    assert "this kernel" in (why_daemon(None, Reading("kernel", has_passthrough=False)) or "")
    assert why_daemon(None, Reading("kernel", has_passthrough=True)) is None
