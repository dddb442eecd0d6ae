"""A storm: a show changes all the time, in commits of one name to thousands, and everybody looks at it meanwhile.

Whatever is seen is of one of the revisions that are in flight at that moment, and after a commit has settled nobody
sees anything older: no name, size, time, link or listing. What each revision is says a model in this process.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from daemon.client import Client
from manifest import layout
from manifest.changeset import Op
from manifest.digest import Digest
from manifest.errors import DamfsError
from manifest.library import Library
from manifest.post import File, Folder, Link, Post, post_digest
from manifest.recipe import Recipe
from manifest.trust import SigningKey
from tests.harness import Mount, Studio, drilled
from tests.manifest.logs import Scribe
from tests.mount import observer
from tests.mount.observer import ABSENT, HEAD_BYTES, Epochs

OBSERVERS = 3
TIMEOUT_S = 60.0
CONTENTS = 24
MANY = 3000
T0_NS = 1_700_000_000_000_000_000
SHOW = "storm"
FOLDERS = ["d0", "d1", "d2/deep"]
FILES = [f"{folder}/n{number:02d}" for folder in FOLDERS for number in range(12)]
CHANGELINGS = [f"d{number}/changeling" for number in range(2)]
"""Names that are a file, a folder, a link or nothing in turn."""
MANIES = [f"many/m{number:04d}" for number in range(MANY)]
TAGS = ["plate/latest", "plate/approved"]
VERSIONS = [f"plate/v{number:03d}" for number in range(1, 400)]


class Show:
    """What the show is at each revision. The mount is never asked; the log is written by hand."""

    def __init__(self, user: Studio) -> None:
        library = Library.open(user.url)
        key = SigningKey.load(user.folder / "config/damfs/key.pem")
        self.scribe = Scribe(library, user.folder / "scribe", name=SHOW, key=key)
        self.posts: dict[str, Post] = {}
        self.touched_ns: dict[str, int] = {"": 0}
        self.revisions: list[tuple[dict[str, Post], dict[str, int]]] = [({}, {"": 0})]
        self._files = [self._content(library, number) for number in range(CONTENTS)]

    def _content(self, library: Library, number: int) -> tuple[int, Digest, Recipe, str]:
        """Some are small and some large, so that they are read in each way; the beginning tells which one it is."""
        head = f"{number:0{HEAD_BYTES}d}"
        data = (head * 25_000)[: 1000 + 7919 * number]
        library.put(layout.chunk_key(SHOW, Digest.of(data.encode())), data.encode())
        return len(data), Digest.of(data.encode()), Recipe.of([(Digest.of(data.encode()), len(data))]), head

    @property
    def head(self) -> int:
        return len(self.revisions) - 1

    def file(self, number: int) -> File:
        """A file with one of the contents and a time that no other revision gives."""
        size, digest, recipe, _ = self._files[number % CONTENTS]
        return File(0o644, size, T0_NS + (self.head + 1) * 1_000_000_007, digest, recipe.content, recipe)

    def commit(self, changes: dict[str, Post | None]) -> int:
        """One more revision."""
        ops = [
            Op(path, None if (before := self.posts.get(path)) is None else post_digest(before), changes[path])
            for path in sorted(changes)
            if path in self.posts or changes[path] is not None
        ]
        time_ns = T0_NS + (self.head + 1) * 1_000_000_000
        gone = {op.path for op in ops if op.post is None}
        for op in ops:
            folder = op.path.rpartition("/")[0]
            if folder not in gone:
                self._touch(folder, time_ns)
            if op.post is None:
                del self.posts[op.path]
                self.touched_ns.pop(op.path, None)
            else:
                self.posts[op.path] = op.post
                if isinstance(op.post, Folder):
                    self.touched_ns[op.path] = time_ns
                else:
                    self.touched_ns.pop(op.path, None)
        self.revisions.append((dict(self.posts), dict(self.touched_ns)))
        return self.scribe.add(self.scribe.entry(ops, time_ns=time_ns))

    def _touch(self, folder: str, time_ns: int) -> None:
        """A folder comes into being with the first name in it, and with it those above."""
        if folder and folder not in self.posts:
            self.posts[folder] = Folder(0o755)
            self._touch(folder.rpartition("/")[0], time_ns)
        self.touched_ns[folder] = time_ns

    def seen(self, kind: str, path: str, revision: int) -> str:
        """What ``observer.seen`` says at a revision; "through" is what lies behind a tag, whose target is given."""
        posts, touched_ns = self.revisions[revision]
        post = posts.get(path) if path else Folder(0o755)
        if kind == "link":
            return ABSENT if post is None else post.target if isinstance(post, Link) else "no link"
        if kind == "list":
            return self._listed(path, posts) if isinstance(post, Folder) else ABSENT
        if post is None:
            return ABSENT
        if isinstance(post, Link):
            target = f"{path.rpartition('/')[0]}/{post.target}"
            return f"l {len(post.target)}" if kind == "stat" else self.seen(kind, target, revision)
        if isinstance(post, Folder):
            return f"d {touched_ns[path]}" if kind == "stat" else "d"
        if kind == "stat":
            return f"f {post.size} {post.mtime_ns}"
        head = next(head for size, _, _, head in self._files if size == post.size)
        return f"{post.size} {post.size} {head}"

    def _listed(self, path: str, posts: dict[str, Post]) -> str:
        prefix = f"{path}/" if path else ""
        return " ".join(sorted(
            name.removeprefix(prefix) + ("/" if isinstance(post, Folder) else "@" if isinstance(post, Link) else "")
            for name, post in posts.items()
            if name.startswith(prefix) and "/" not in name.removeprefix(prefix)))  # fmt: skip


class Weather:
    """Random commits, each with everything that may change in it."""

    def __init__(self, show: Show, seed: int) -> None:
        self.show = show
        self.dice = random.Random(seed)
        self.version = 0

    def change(self, size: int) -> dict[str, Post | None]:
        """A commit of about so many names."""
        dice, show = self.dice, self.show
        changes: dict[str, Post | None] = {}
        if size > 100:
            kind = dice.choice(("fill", "replace", "remove"))
            names = MANIES[:size] if dice.random() < 0.5 else dice.sample(MANIES, size)
            changes = {name: None if kind == "remove" else show.file(dice.randrange(CONTENTS)) for name in names}
            if kind == "remove" and not any(name in show.posts for name in names):
                changes = {name: show.file(dice.randrange(CONTENTS)) for name in names}
        for name in dice.sample(FILES, min(size, dice.randrange(1, len(FILES)))):
            changes[name] = None if name in show.posts and dice.random() < 0.4 else show.file(dice.randrange(CONTENTS))
        if dice.random() < 0.5:
            self._turn_changeling(changes)
        if dice.random() < 0.7:
            self._tag(changes)
        if dice.random() < 0.2:
            self._remove_or_make_folder(changes)
        return changes

    def _turn_changeling(self, changes: dict[str, Post | None]) -> None:
        name = self.dice.choice(CHANGELINGS)
        now = self.show.posts.get(name)
        if isinstance(now, Folder):
            changes |= dict.fromkeys([path for path in self.show.posts if path.startswith(f"{name}/")])
        kinds: list[Post | None] = [None, self.show.file(3), Link("n00"), Folder(0o755)]
        if isinstance(now, Folder):  # it is removed before its name is something else
            kinds = [None]
        elif now is not None:
            kinds.pop()
        after = self.dice.choice([kind for kind in kinds if type(kind) is not type(now)])
        changes[name] = after
        if isinstance(after, Folder):
            changes[f"{name}/child"] = self.show.file(self.dice.randrange(CONTENTS))

    def _tag(self, changes: dict[str, Post | None]) -> None:
        """A new version, and tags that lead to it or to the one before; an old version goes."""
        if self.version < len(VERSIONS) and (self.version < 2 or self.dice.random() < 0.7):
            changes[f"{VERSIONS[self.version]}/plate.exr"] = self.show.file(self.version)
            self.version += 1
            if self.version > 3:
                old = VERSIONS[self.version - 4]
                changes |= {old: None, f"{old}/plate.exr": None}
        target = VERSIONS[self.version - 1 - self.dice.randrange(min(2, self.version))].rpartition("/")[2]
        if self.show.posts.get(TAGS[0]) != Link(target):
            changes[TAGS[0]] = Link(target)
        newest = VERSIONS[self.version - 1].rpartition("/")[2]
        if self.show.posts.get(TAGS[1]) != Link(newest):
            changes[TAGS[1]] = Link(newest)

    def _remove_or_make_folder(self, changes: dict[str, Post | None]) -> None:
        inside = [name for name in self.show.posts if name.startswith("d2/")]
        for name in [name for name in changes if name.startswith("d2/")]:
            del changes[name]
        if inside:
            changes |= dict.fromkeys(["d2", *inside])
        else:
            changes |= {name: self.show.file(5) for name in FILES if name.startswith("d2/")}


class Storm:
    """A show, its model, and the processes that look at it."""

    def __init__(self, mount: Mount, seed: int) -> None:
        self.mount = mount
        self.show = Show(mount.studio)
        self.weather = Weather(self.show, seed)
        self.root = mount.path / SHOW
        self.epochs = Epochs.create(mount.studio.folder / "epochs")
        self.client = Client.for_mountpoint(mount.path)
        self.seed = seed
        self.kills = 0

    def publish(self, size: int) -> int:
        """One commit that is not waited for."""
        changes = self.weather.change(size)
        self.epochs.newest = self.show.head + 1
        return self.show.commit(changes)

    def settle(self) -> None:
        """Wait as ``damfs sync --at-least`` does; nothing before the head is seen from now on."""
        head = self.show.head
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                served = self.client.sync(SHOW, head, timeout_s=TIMEOUT_S)
                break
            except (DamfsError, OSError):  # the daemon was killed while it was asked
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        assert served == head
        self.epochs.settled = head

    @contextmanager
    def awake(self) -> Iterator[None]:
        """The daemon looks at the log at once, and is not waited for."""
        head = self.show.head

        def ask() -> None:
            with suppress(DamfsError, OSError):
                self.client.sync(SHOW, head, timeout_s=TIMEOUT_S)

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            yield
        finally:
            thread.join(TIMEOUT_S)

    def kill(self) -> None:
        """End the daemon, if there is one; a successor comes by itself."""
        with suppress(DamfsError, OSError):
            os.kill(int(self.client.status()["pid"]), signal.SIGKILL)
            self.kills += 1

    @contextmanager
    def unheard(self) -> Iterator[None]:
        """The kernel hears nothing of what the daemon wants to tell it."""
        pid = int(self.client.status()["pid"])
        children = [child for task in Path(f"/proc/{pid}/task").iterdir()
                    for child in (task / "children").read_text().split()]  # fmt: skip
        writer = next(int(child) for child in children if "notices.py" in Path(f"/proc/{child}/cmdline").read_text())
        os.kill(writer, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(writer, signal.SIGKILL)

    def check(self) -> None:
        """Every name that there is or might be is as the model says."""
        head, wrong = self.show.head, []
        folders = ["", "plate", "many", "d2", *FOLDERS, *CHANGELINGS]
        paths = [*self.show.posts, *FILES, *MANIES, *CHANGELINGS, *TAGS, *folders]
        some = self.weather.dice.sample(FILES, 8)
        looks = [("stat", path) for path in paths] + [("list", path) for path in folders]
        looks += [("link", path) for path in TAGS] + [("open", path) for path in some]
        for kind, path in looks:
            found, expected = observer.seen(kind, f"{self.root}/{path}"), self.show.seen(kind, path, head)
            if found != expected:
                wrong.append(f"{kind} {path or '/'}: {found[:200]}, expected {expected[:200]}")
        assert not wrong, f"stale at revision {head}, seed {self.seed}:\n" + "\n".join(wrong[:20])

    def is_possible(self, kind: str, path: str, found: str, settled: int, newest: int) -> bool:
        """Whether one of the revisions in flight is like that. Who follows a link asks twice, in this order."""
        flying = range(settled, newest + 1)
        if kind in ("stat", "list", "link"):
            return any(found == self.show.seen(kind, path, revision) for revision in flying)
        link, _, name = path.rpartition("/") if kind == "through" else (path, "", "")
        for revision in flying:
            target = self.show.seen("link", link, revision)
            if target in (ABSENT, "no link"):
                if found == self.show.seen("open", path, revision):
                    return True
                continue
            behind = "/".join(filter(None, (link.rpartition("/")[0], target, name)))
            if any(found == self.show.seen("open", behind, later) for later in range(revision, newest + 1)):
                return True
        return False

    @contextmanager
    def observed(self) -> Iterator[None]:
        """Processes look at the show meanwhile; afterwards what they saw is compared with the model."""
        asked = {"names": [*FILES, *CHANGELINGS, *MANIES[:: MANY // 40], *(f"{v}/plate.exr" for v in VERSIONS[:20])],
                 "folders": ["", "plate", "many", "d2", *FOLDERS, *CHANGELINGS], "tags": TAGS}  # fmt: skip
        epochs = self.mount.studio.folder / "epochs"
        processes = [
            subprocess.Popen([sys.executable, observer.__file__, self.root, epochs, str(number)],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/")
            for number in range(OBSERVERS)
        ]  # fmt: skip
        try:
            for process in processes:
                assert process.stdin is not None
                process.stdin.write(json.dumps(asked).encode() + b"\n")
                process.stdin.flush()
            yield
            reports = [json.loads(process.communicate(timeout=TIMEOUT_S)[0]) for process in processes]
            assert [process.returncode for process in processes] == [0] * OBSERVERS
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                process.communicate(timeout=TIMEOUT_S)
        self._compare(reports)

    def _compare(self, reports: list[dict[str, Any]]) -> None:
        assert [fault for report in reports for fault in report["faults"]] == []
        observations = {tuple(one) for report in reports for one in report["observations"]}
        wrong = [
            f"{kind} {path or '/'}: {found[:200]} between {settled} and {newest}"
            for kind, path, found, settled, newest in sorted(observations)
            if not self.is_possible(kind, path, found, settled, newest)
        ]
        assert not wrong, f"{len(wrong)} of no revision in flight, seed {self.seed}:\n" + "\n".join(wrong[:20])
        assert sum(report["count"] for report in reports) > 100
        print(f"{self.show.head} revisions, {self.kills} kills, {sum(report['count'] for report in reports)} looks, "
              f"the longest {max(report['longest_s'] for report in reports):.3f} s")  # fmt: skip


@pytest.fixture
def storm(artist: Studio, monkeypatch: pytest.MonkeyPatch) -> Storm:
    monkeypatch.setenv("XDG_RUNTIME_DIR", artist.env()["XDG_RUNTIME_DIR"])
    artist.environment["DAMFS_DAEMON__CRASHES_MAX"] = "1000000"
    return Storm(artist.mount(), drilled(1, time.time_ns()))


SIZES = [3, 1, 3000, 20, 3, 400, 1, 3000, 20, 1500]


@pytest.mark.drill
def test_after_each_commit_has_settled_nobody_sees_anything_older(storm: Storm) -> None:
    storm.publish(50)
    storm.settle()
    storm.check()
    with storm.observed():
        for size in SIZES * drilled(1, 30):
            storm.publish(size)
            if storm.weather.dice.random() < 0.3:  # several at once
                storm.publish(5)
            storm.settle()
            storm.check()


@pytest.fixture
def surviving(storm: Storm, binding: str) -> Storm:
    if binding != "kernel":
        pytest.skip("a mount with pyfuse3 cannot be handed over: what the kernel was told goes with it")
    storm.mount.studio.expected.append("supervisor: ")
    storm.publish(50)
    storm.settle()
    return storm


@pytest.mark.drill
def test_nothing_is_stale_when_the_daemon_is_killed_while_it_takes_a_commit_in(surviving: Storm) -> None:
    storm, dice = surviving, surviving.weather.dice
    with storm.observed():
        for size in [3, 3000, 20, 400, 1, 3000] * drilled(1, 40):
            storm.publish(size)
            with storm.awake():
                time.sleep(dice.uniform(0.0, 0.3))
                storm.kill()
            if dice.random() < 0.3:
                storm.publish(5)
            storm.settle()
            storm.check()
    assert storm.mount.status()["handover"]["count"] == storm.kills > 3


@pytest.mark.drill
def test_what_a_killed_daemon_has_shown_and_not_told_is_told_by_its_successor(surviving: Storm) -> None:
    storm = surviving
    with storm.observed():
        for size in [3, 3000, 20] * drilled(1, 40):
            with storm.unheard():
                head = storm.publish(size)
                with storm.awake():
                    os.stat(storm.mount.path / f"{SHOW}@{head}")  # waits until the head is shown
                    storm.kill()
            storm.settle()
            storm.check()
    assert storm.mount.status()["handover"]["count"] == storm.kills
