"""A small library, and daemons on it: real processes, real mounts. Nothing is left behind, whatever a test did."""

from __future__ import annotations

import json
import os
import re
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from daemon import config, mounts
from daemon.client import Client
from manifest import layout
from manifest.changeset import Op
from manifest.commit import Publish, commit
from manifest.digest import Digest
from manifest.identity import add_show, write_identity
from manifest.library import Library
from manifest.post import File
from manifest.recipe import Recipe
from manifest.show import Show
from manifest.trust import PinnedKeys, SigningKey
from tests.harness import detach, mounted_below, process_lives, wait_until

READY_S = 30
STOP_S = 25


@dataclass
class Running:
    """One daemon, started by a test."""

    process: subprocess.Popen[bytes]
    mountpoint: Path
    log_file: Path
    reply: dict[str, Any]

    @property
    def client(self) -> Client:
        return Client.for_mountpoint(self.mountpoint)

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def wait(self, timeout_s: float = STOP_S) -> int:
        """The exit status."""
        return self.process.wait(timeout_s)


@dataclass
class House:
    """A library in a folder with a show ``apollo``, its key and trust file, a cache and a mountpoint."""

    folder: Path
    url: str = ""
    overrides: dict[str, object] = field(default_factory=dict)
    started: list[Running] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.library_folder = self.folder / "library"
        self.library_folder.mkdir()
        self.url = self.library_folder.as_uri()
        self.library = Library.open(self.url)
        self.identity = write_identity(self.library)
        self.key = SigningKey.generate()
        self.trust = PinnedKeys(self.identity.id, [self.key.public])
        self.trust_file = self.folder / "trust.json"
        self.trust_file.write_bytes(self.trust.to_bytes())
        self.mountpoint = self.folder / "mnt"
        self.mountpoint.mkdir()
        self.shows: dict[str, Show] = {}
        self.add_show("apollo")

    def add_show(self, show: str) -> None:
        add_show(self.library, show)

    def publish(self, files: Mapping[str, bytes], *, show: str = "apollo") -> int:
        """One revision that adds these files, each of one chunk; none may be there yet."""
        if show not in self.shows:
            self.shows[show] = Show.open(self.library, self.identity, self.trust, show, self.folder / "replicas")
        ops = []
        for path, data in sorted(files.items()):
            digest = Digest.of(data)
            recipe = Recipe.of([(digest, len(data))] if data else [])
            key = layout.chunk_key(show, digest)
            if data and self.library.size(key) is None:
                self.library.put(key, data)
            ops.append(Op(path, None, File(0o644, len(data), 10**18, digest, recipe.content, recipe)))
        publish = Publish(show, secrets.token_hex(16), "ann", "a test", "", ops)
        return commit(self.shows[show].follower, self.key, publish)

    def settings(self, **more: object) -> config.Settings:
        overrides = {
            "library.url": self.url,
            "library.trust": self.trust_file,
            "cache.folder": self.folder / "cache",
            "cache.size": "200MB",
            "reads.deadline_s": 2.0,
            **self.overrides,
            **more,
        }
        return config.load(None, overrides, {})

    def launch(self, mountpoint: Path | None = None, /, **settings: object) -> Running:
        """Start a daemon, and wait for what it says on its pipe: {} when it ended without a word."""
        where = mountpoint or self.mountpoint
        log_file = self.folder / f"daemon.{len(self.started)}.log"
        reading, writing = os.pipe()
        command = [sys.executable, "-m", "daemon", "--mountpoint", str(where), "-v", "--ready-fd", str(writing)]
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                [*command, "--settings-json", self.settings(**settings).to_json()],
                pass_fds=(writing,), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        os.close(writing)
        running = Running(process, where, log_file, {})
        self.started.append(running)
        with os.fdopen(reading, "rb") as pipe:
            assert select.select([pipe], [], [], READY_S)[0], f"not ready after {READY_S} s:\n{running.log}"
            running.reply = json.loads(pipe.readline() or b"{}")
        return running

    def mount(self, **settings: object) -> Running:
        """Start a daemon that must come up."""
        running = self.launch(**settings)
        assert running.reply.get("ready"), f"{running.reply}\n{running.log}"
        return running

    def refuse(self, mountpoint: Path | None = None, /, **settings: object) -> tuple[int, str]:
        """Start a daemon that must not come up: its exit status and message."""
        running = self.launch(mountpoint, **settings)
        assert "error" in running.reply, running.log
        code = running.wait()
        assert code == running.reply["exit_code"]
        assert "\n" not in running.reply["error"]
        return code, running.reply["error"]

    def take_away(self) -> None:
        """The library is not reachable any more."""
        self.library_folder.rename(self.folder / "gone")

    def bring_back(self) -> None:
        (self.folder / "gone").rename(self.library_folder)

    def close(self) -> None:
        for running in self.started:
            if running.process.poll() is None:
                running.process.terminate()
                try:
                    running.process.wait(STOP_S)
                except subprocess.TimeoutExpired:
                    running.process.kill()
                    running.process.wait()
        for path in mounted_below(self.folder):
            detach(path)
        for show in self.shows.values():
            show.close()


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    """See House; its daemons are ended and its mounts detached, and none of them may have met a bug."""
    (tmp_path / "run").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    for name in ("CONFIG", "CACHE", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    made = House(tmp_path)
    try:
        yield made
    finally:
        made.close()
    for running in made.started:
        assert "a bug" not in running.log, running.log
        assert not re.search(r"(ERROR|CRITICAL) .*\| Traceback", running.log), running.log


def within(seconds: float, condition: Callable[[], object]) -> float:
    """Wait for the condition; returns how long that took, in seconds."""
    started = time.monotonic()
    wait_until(condition, "the condition", seconds)
    return time.monotonic() - started


def is_mounted(path: Path) -> bool:
    return mounts.at(path) is not None


__all__ = ["House", "Running", "is_mounted", "process_lives", "wait_until", "within"]
