"""What is wrong in a show's log stops no reader, is told by number, kind and reason, and heals by itself."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from daemon.client import Client
from manifest import layout
from manifest.digest import Digest
from manifest.entry import genesis_prev
from manifest.incoming import PEEK_S
from manifest.library import Library
from manifest.post import encode_post
from manifest.trust import SigningKey
from tests.harness import Mount, Studio, studio, wait_until
from tests.manifest.logs import Scribe, file, flipped, put
from tests.mount.conftest import random_bytes, write_tree

EXIT_CODES = {"unavailable": 6, "invalid": 7, "newer": 3, "rewritten": 8}
SEEN_S = 6
"""A fault is noticed, and a repair heals, within so many seconds and without any command."""
COLD_FILES = 8
numbers = count(1)


def cold(number: int) -> bytes:
    return random_bytes(100_000, number)


@dataclass
class Victim:
    """A show on a running mount, its revision 1 in sight, and the pen of somebody who may write to its log."""

    user: Studio
    mount: Mount
    scribe: Scribe
    unread: Iterator[int] = field(default_factory=lambda: iter(range(COLD_FILES)))

    @property
    def name(self) -> str:
        return self.scribe.name

    @property
    def root(self) -> Path:
        return self.mount.path / self.name

    def status(self) -> dict[str, Any]:
        """The show in what the daemon answers, asked without a process of our own."""
        found: dict[str, Any] = Client.for_mountpoint(self.mount.path).status()["shows"][self.name]
        return found

    def stands(self, seq: int, kind: str) -> str:
        """The show stands still before ``seq``, tells why, and is read as before. Returns the reason."""
        wait_until(lambda: self.status()["stalled"], f"the stall at {seq} to be told", SEEN_S)
        status = self.status()
        stalled = status["stalled"]
        assert (stalled["seq"], stalled["kind"], status["revision"]) == (seq, kind, seq - 1)
        assert f"entry {seq}" in stalled["reason"]
        self.reads_on()
        reason: str = stalled["reason"]
        return reason

    def is_told(self, seq: int, kind: str) -> str:
        """As ``stands``, and ``damfs status`` says so in both its forms."""
        reason = self.stands(seq, kind)
        told = self.mount.status()["shows"][self.name]
        assert told["stalled"] == {"seq": seq, "kind": kind, "reason": reason}
        lines = self.user.run("status", self.mount.path).splitlines()
        assert f"  show     {self.name}: revision {seq - 1}, STALLED: {reason}" in lines
        done = self.user.complete("sync", self.name)
        assert (done.returncode, reason in done.stderr) == (EXIT_CODES[kind], True)
        return reason

    def reads_on(self) -> None:
        """What was there is there: what nobody read before, what the kernel holds, and no other name."""
        number = next(self.unread)
        for _ in range(2):
            assert (self.root / f"v001/{number}.exr").read_bytes() == cold(number)
        assert sorted(os.listdir(self.root / "v001")) == [f"{n}.exr" for n in range(COLD_FILES)]
        assert (self.root / "notes.txt").stat().st_size == 5
        assert (self.mount.path / f"{self.name}@1" / "v001").is_dir()

    def goes_on(self, revision: int) -> None:
        """The mount gets there by itself, and says that all is well."""
        wait_until(lambda: self.status()["revision"] == revision, f"revision {revision} to be served", SEEN_S)
        status = self.status()
        assert (status["stalled"], status["error"]) == (None, None)
        self.reads_on()

    def publish(self, version: str, *, code: int = 0) -> str:
        """A good publish with the real command; what it printed."""
        source = write_tree(self.user.folder / "good", {"good.exr": version.encode()})
        done = self.user.complete("publish", source, f"{self.name}:{version}")
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    def is_skipped_by_the_next_publish(self) -> None:
        """A good publish vouches for revision 1, 2 is empty, and 3 is what was published."""
        self.publish("v002")
        self.goes_on(3)
        assert (self.root / "v002/good.exr").read_bytes() == b"v002"
        assert sorted(os.listdir(self.mount.path / f"{self.name}@2")) == ["notes.txt", "v001"]


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """A mount that goes through everything below; each test has a show of its own."""
    with studio(tmp_path_factory.mktemp("bad-log")) as user, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", user.env()["XDG_RUNTIME_DIR"])
        user.run("init", user.url)
        yield user.mount()


@pytest.fixture
def victim(mount: Mount) -> Victim:
    user = mount.studio
    key = SigningKey.load(user.folder / "config/damfs/key.pem")
    library = Library.open(user.url)
    scribe = Scribe(library, user.folder / "scribe", name=f"show{next(numbers):02d}", key=key)
    files = {f"v001/{n}.exr": cold(n) for n in range(COLD_FILES)} | {"notes.txt": b"notes"}
    for data in files.values():
        library.put(layout.chunk_key(scribe.name, Digest.of(data)), data)
    scribe.add(scribe.entry([put(path, file(files[path])) for path in sorted(files)]))
    made = Victim(user, mount, scribe)
    wait_until((made.root / "v001").is_dir, "the show to appear", 10)
    made.reads_on()
    return made


def test_a_tampered_entry(victim: Victim) -> None:
    good = victim.scribe.entry([put("late")])
    victim.scribe.add(flipped(good, 8 * len(good) // 2))
    victim.is_told(2, "invalid")
    victim.is_skipped_by_the_next_publish()


def test_a_tampered_entry_that_is_repaired(victim: Victim) -> None:
    good = victim.scribe.entry([put("late")])
    victim.scribe.add(flipped(good, 8 * len(good) // 2))
    victim.is_told(2, "invalid")
    victim.scribe.overwrite(2, good)
    victim.goes_on(2)
    assert (victim.root / "late").exists()


@pytest.mark.parametrize("stored", [b"", b"{}", b"\0" * 4096, b"x" * 200_000], ids=["empty", "object", "zeros", "huge"])
def test_an_entry_that_is_none(victim: Victim, stored: bytes) -> None:
    victim.scribe.add(stored)
    victim.is_told(2, "invalid")
    victim.is_skipped_by_the_next_publish()


def test_a_replayed_entry(victim: Victim) -> None:
    victim.scribe.add(victim.scribe.stored(1))
    assert "signed as entry 1" in victim.is_told(2, "invalid")
    victim.is_skipped_by_the_next_publish()


def test_a_replayed_publish_in_a_new_entry(victim: Victim) -> None:
    """Its number and its chain are right: the publish id gives it away."""
    publish_id = json.loads(victim.user.run("log", victim.name, "--json"))["revisions"][0]["publish_id"]
    victim.scribe.publish("late", publish_id=publish_id)
    assert publish_id in victim.is_told(2, "invalid")
    victim.is_skipped_by_the_next_publish()


def test_an_entry_of_another_show(victim: Victim) -> None:
    victim.scribe.add(victim.scribe.entry([put("late")], show="gemini"))
    assert "gemini" in victim.is_told(2, "invalid")
    victim.is_skipped_by_the_next_publish()


def test_a_badly_signed_entry(victim: Victim) -> None:
    envelope = json.loads(victim.scribe.entry([put("late")]))
    signature = envelope["signatures"][0]["sig"]
    envelope["signatures"][0]["sig"] = ("A" if signature[0] != "A" else "B") + signature[1:]
    victim.scribe.add(json.dumps(envelope, sort_keys=True, separators=(",", ":")).encode())
    assert "signature" in victim.is_told(2, "invalid")
    victim.is_skipped_by_the_next_publish()


def test_an_entry_that_an_unknown_key_signed(victim: Victim) -> None:
    stranger = SigningKey.generate()
    victim.scribe.publish("late", key=stranger)
    assert stranger.keyid in victim.is_told(2, "invalid")
    victim.is_skipped_by_the_next_publish()


def test_one_bad_entry_with_good_ones_behind_it(victim: Victim) -> None:
    victim.scribe.add(b"rubbish")
    for number in (3, 4):
        victim.scribe.publish(f"late{number}")
    victim.goes_on(4)
    assert (victim.root / "late3").exists()
    assert not (victim.mount.path / f"{victim.name}@2/late3").exists()
    assert "late4" in os.listdir(victim.mount.path / f"{victim.name}@4")


def test_a_missing_entry_with_later_ones_behind_it(victim: Victim) -> None:
    victim.scribe.publish("late2")
    victim.scribe.publish("late3")
    lost = victim.scribe.lose(2)
    victim.user.complete("sync", victim.name)  # somebody asks: it is looked for at once
    assert "missing" in victim.is_told(2, "unavailable")
    assert "missing" in victim.publish("v002", code=6)
    victim.scribe.library.create(layout.log_key(victim.name, 2), lost)
    victim.goes_on(3)
    assert (victim.root / "late2").exists()
    assert (victim.root / "late3").exists()


def test_a_missing_entry_is_noticed_though_nobody_asks(victim: Victim) -> None:
    for number in (2, 3):
        victim.scribe.publish(f"late{number}")
    victim.scribe.lose(2)
    wait_until(lambda: victim.status()["stalled"], "the gap to be noticed", PEEK_S + SEEN_S)
    assert "missing" in victim.stands(2, "unavailable")


def change_of(victim: Victim, stored: bytes) -> str:
    """The key of the changeset that an entry names."""
    payload = json.loads(base64.b64decode(json.loads(stored)["payload"]))
    return layout.change_key(victim.name, Digest.parse(payload["change"]))


@pytest.mark.parametrize("how", ["missing", "flipped", "cut", "empty"])
def test_a_damaged_changeset(victim: Victim, how: str) -> None:
    library = victim.scribe.library
    stored = victim.scribe.entry([put("late")])
    key = change_of(victim, stored)
    whole = library.get(key)
    damaged = {"flipped": flipped(whole, 8 * len(whole) // 2), "cut": whole[:-3], "empty": b""}
    if how == "missing":
        library.delete(key)
    else:
        library.put(key, damaged[how])
    victim.scribe.add(stored)
    assert key.rpartition("/")[2] in victim.is_told(2, "unavailable")
    assert "changeset" in victim.publish("v002", code=6)
    library.put(key, whole)
    victim.goes_on(2)
    assert (victim.root / "late").exists()


def test_a_log_that_was_rewritten_behind_the_mounts_back(victim: Victim) -> None:
    """Somebody with a key puts another history into the store: nobody follows it, until the store's is ours again."""
    scribe = victim.scribe
    true = scribe.stored(1)
    scribe.seq, scribe.prev = 0, genesis_prev(scribe.identity.id, victim.name)
    forged = scribe.entry([put("forged")])
    scribe.overwrite(1, forged)
    scribe.seq, scribe.prev = 1, Digest.of(forged)
    scribe.publish("late")
    assert "rewritten" in victim.is_told(2, "rewritten")
    scribe.overwrite(1, true)
    scribe.seq, scribe.prev = 1, Digest.of(true)
    scribe.overwrite(2, scribe.entry([put("late")]))
    victim.goes_on(2)
    assert not (victim.root / "forged").exists()


POST = json.loads(encode_post(file(b"evil")))
HOSTILE: dict[str, list[str]] = {
    "parent": ["../evil"],
    "parent within": ["a/../../evil"],
    "dot": ["./evil"],
    "absolute": ["/etc/evil"],
    "empty": [""],
    "empty component": ["a//evil"],
    "closing slash": ["evil/"],
    "nul": ["evil\0name"],
    "300 bytes": ["e" * 300],
    "4096 bytes": ["/".join(["e" * 199] * 20) + "/" + "e" * 200],
    "file and folder": ["evil", "evil/below"],
    "through a file": ["notes.txt/evil"],
    "onto a folder": ["v001"],
    "into a version": ["v001/evil"],
    "twice": ["evil", "evil"],
    "unsorted": ["evil", "bad"],
    "twins": ["caf\u00e9", "cafe\u0301"],
}


@pytest.mark.parametrize("paths", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_path_in_a_signed_changeset(victim: Victim, paths: list[str]) -> None:
    before = sorted(os.listdir(victim.root))
    ops = [{"path": path, "post": POST, "pre": None} for path in paths]
    victim.scribe.add(victim.scribe.raw(ops))
    victim.stands(2, "invalid")
    assert sorted(os.listdir(victim.root)) == before
    victim.scribe.publish("good")
    victim.goes_on(3)
    assert sorted(os.listdir(victim.root)) == sorted([*before, "good"])


# -- at publish

ADDRESSES = {
    "parent": "apollo:../evil",
    "parent within": "apollo:a/../../evil",
    "dot": "apollo:./evil",
    "absolute": "apollo:/etc/evil",
    "empty component": "apollo:a//evil",
    "300 bytes": "apollo:" + "e" * 300,
    "4096 bytes": "apollo:" + "/".join(["e" * 199] * 20) + "/" + "e" * 200,
    "not utf-8": b"apollo:evil\xff".decode(errors="surrogateescape"),
    "show": "Apollo!:evil",
    "the past": "apollo@1:evil",
}


def stored(user: Studio) -> list[tuple[str, int]]:
    """Everything that lies in the library."""
    return sorted(Library.open(user.url).list("shows/", timeout_s=20))


def refused(user: Studio, *arguments: str | Path, code: int) -> str:
    """Run a publish that must be refused, and leave the library as it was. Returns the message."""
    before = stored(user)
    done = user.complete("publish", *arguments)
    assert done.returncode == code, done.stderr
    lines = done.stderr.strip().splitlines()
    assert 1 <= len(lines) <= 2, done.stderr
    assert "Traceback" not in done.stderr
    assert stored(user) == before
    return done.stderr


@pytest.fixture(scope="module")
def publisher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """A studio whose show has a file ``notes.txt`` and a version ``v001``."""
    with studio(tmp_path_factory.mktemp("hostile")) as user:
        user.run("init", user.url, "--show", "apollo")
        user.run("publish", write_tree(user.folder / "first", {"notes.txt": b"notes", "v001/a": b"a"}), "apollo:")
        yield user


@pytest.mark.parametrize("address", ADDRESSES.values(), ids=ADDRESSES.keys())
def test_a_hostile_address_is_refused_and_nothing_is_uploaded(publisher: Studio, address: str) -> None:
    source = write_tree(publisher.folder / "source", {"plate.exr": b"new bytes"})
    refused(publisher, source, address, code=2)


@pytest.mark.parametrize("tag", ["../evil", "a/b", "", ".", "..", "e" * 300, "v002"])
def test_a_hostile_tag_is_refused_and_nothing_is_uploaded(publisher: Studio, tag: str) -> None:
    source = write_tree(publisher.folder / "source", {"plate.exr": b"new bytes"})
    refused(publisher, source, "apollo:plate/v001", "--tag", tag, code=2)


def test_a_source_name_that_is_not_utf8_is_refused_and_nothing_is_uploaded(publisher: Studio) -> None:
    folder = write_tree(publisher.folder / "foreign", {"good.exr": b"new bytes"})
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.exr")).write_bytes(b"x")
    assert "caf" in refused(publisher, folder, "apollo:v002", code=2)


def test_a_source_name_with_markup_in_it_is_shown_as_it_is(publisher: Studio) -> None:
    folder = write_tree(publisher.folder / "markup", {"good.exr": b"new bytes"})
    os.mkfifo(folder / "[bold][red] \x1b[31m")
    message = refused(publisher, folder, "apollo:v002", code=2)
    assert "[bold][red]" in message
    assert "\x1b" not in message


@pytest.mark.parametrize(
    ("files", "address", "path"),
    [
        ({"evil": b"new bytes"}, "apollo:notes.txt", "notes.txt"),
        ({"notes.txt/evil": b"new bytes"}, "apollo:", "notes.txt"),
        ({"v001": b"new bytes"}, "apollo:", "v001"),
        ({"evil": b"new bytes"}, "apollo:v001", "v001"),
    ],
)
def test_a_file_that_is_a_folder_is_refused_and_nothing_is_uploaded(
    publisher: Studio, tmp_path: Path, files: dict[str, bytes], address: str, path: str
) -> None:
    assert path in refused(publisher, write_tree(tmp_path, files), address, code=5)
