"""Random publishes, removals and tags: the mounted tree is what a plain dictionary says, at every revision."""

from __future__ import annotations

import json
import os
import shutil
import stat
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daemon.client import Client
from tests.harness import Mount, Studio, drilled

NAMES = ["a", "b", "plate.1001.exr", "x y", "-dash", "é", "日本", "a.b"]
names = st.sampled_from(NAMES)
paths = st.lists(names, min_size=1, max_size=3).map("/".join)
contents = st.one_of(
    st.binary(max_size=40), st.tuples(st.integers(0, 255), st.integers(1, 300_000)).map(lambda p: bytes([p[0]]) * p[1])
)
nodes = st.one_of(contents, names)
publishes = st.tuples(st.just("publish"), st.one_of(st.just(""), paths), st.dictionaries(paths, nodes, max_size=4))
removals = st.tuples(st.just("rm"), paths, st.none())
steps = st.lists(st.one_of(publishes, publishes, removals), min_size=1, max_size=4)

FOLDER = None
"""What the model holds for a folder; a file is bytes, a link is its target."""
Tree = dict[str, bytes | str | None]


def parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:n]) for n in range(1, len(parts))]


@dataclass
class Model:
    """What one example's folder should look like, now and at each revision that it made."""

    base: str
    tree: Tree = field(default_factory=dict)
    history: dict[int, Tree] = field(default_factory=dict)

    def with_files(self, target: str, files: Tree) -> Tree | None:
        """The tree after a publish, or None when a file would be a folder or the other way round."""
        after = dict(self.tree)
        for name, node in files.items():
            path = f"{target}/{name}" if target else name
            for folder in parents(path):
                if after.get(folder, FOLDER) is not FOLDER:
                    return None
                after[folder] = FOLDER
            if path in after and after[path] is FOLDER:
                return None
            after[path] = node
        return after

    def without(self, target: str) -> Tree:
        return {path: node for path, node in self.tree.items() if path != target and not path.startswith(f"{target}/")}


def consistent(files: Tree) -> bool:
    """Whether the names can lie in one source folder at once."""
    return not any(folder in files for path in files for folder in parents(path))


def write_source(folder: Path, files: Tree) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, node in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(node, str):
            path.symlink_to(node)
        else:
            path.write_bytes(node or b"")


def read_tree(folder: Path) -> Tree:
    """What the mount shows below a folder."""
    tree: Tree = {}
    for name in sorted(os.listdir(folder)):
        path = folder / name
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            tree[name] = FOLDER
            tree |= {f"{name}/{below}": node for below, node in read_tree(path).items()}
        elif stat.S_ISLNK(mode):
            tree[name] = os.readlink(path)
        else:
            tree[name] = path.read_bytes()
            assert path.stat().st_size == len(tree[name] or b"")
    return tree


@pytest.mark.drill
@pytest.mark.timeout(3600)
def test_the_mounted_tree_is_what_the_model_says(artist: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", artist.env()["XDG_RUNTIME_DIR"])
    mount = artist.mount()
    daemon = Client.for_mountpoint(mount.path)
    numbers = count(1)

    @settings(max_examples=drilled(8, 200), deadline=None, suppress_health_check=list(HealthCheck), print_blob=False)
    @given(steps)
    def run(script: list[tuple[str, str, Tree]]) -> None:
        model = Model(f"example{next(numbers):04d}")
        for kind, target, files in script:
            play(artist, mount, daemon, model, kind, target, files)

    run()


def play(user: Studio, mount: Mount, daemon: Client, model: Model, kind: str, target: str, files: Tree) -> None:
    """One step on the library and on the model, then a comparison of the live view and of all older ones."""
    address = f"apollo:{model.base}" + (f"/{target}" if target else "")
    printed = ""
    if kind == "publish" and files and consistent(files):
        source = user.folder / "source"
        write_source(source, files)
        after = model.with_files(target, files)
        printed = user.run("publish", source, address, "--json", code=0 if after is not None else 5)
        model.tree = after if after is not None else model.tree
    elif kind == "rm":
        gone = target in model.tree
        printed = user.run("rm", address, "--json", code=0 if gone else 4)
        model.tree = model.without(target)
    else:
        return
    outcome = json.loads(printed) if printed else {"published": False}
    if "error" not in outcome and outcome.get("published", True):
        head = int(outcome["revision"])
        daemon.sync("apollo", head, timeout_s=20)
        model.history[head] = model.tree
    for number, tree in model.history.items():
        assert read_tree(mount.path / f"apollo@{number}" / model.base) == tree
    if model.history:
        assert read_tree(mount.path / "apollo" / model.base) == model.tree
