"""Random changesets against a model that is a dictionary: every revision, and the way between any two.

The model knows the rules in their plainest form: it copies the whole tree for every revision and looks at all of it.
What it refuses the replica refuses, what it accepts is in the replica as the model has it.
"""

from __future__ import annotations

import tempfile
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from manifest import rows
from manifest.changeset import ChangesetReader, File, Folder, Header, Link, Op, Post, compress_changeset, post_digest
from manifest.digest import Digest
from manifest.errors import Conflict
from manifest.names import is_version
from manifest.replica import ROOT_NODE, Replica, Row
from tests.manifest import builders

if TYPE_CHECKING:
    from collections.abc import Iterator

Tree = dict[str, Post]
NEVER_MADE = Folder(0o755)

NAMES = st.sampled_from(["a", "a-", "a.b", "ab", "b", "v001", "v002", "caf\u00e9", "cafe\u0301", "\u212a", "K", "l"])
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
POSTS: st.SearchStrategy[Post] = st.one_of(
    st.integers(0, 3).map(lambda number: builders.file(b"x" * number)),
    st.integers(0, 1).map(lambda number: builders.file(b"%d" % number * 90, chunk_bytes=30)),
    st.integers(0, 1).map(lambda number: builders.large_file(str(number))),
    st.sampled_from([Link("a"), Link("b"), Folder(0o755), Folder(0o700)]),
)


class Refused(Exception):
    """By the model."""


def parents(path: str) -> list[str]:
    """The folders above, deepest last."""
    parts = path.split("/")
    return ["/".join(parts[:length]) for length in range(1, len(parts))]


def step(tree: Tree, ops: list[Op]) -> Tree:
    """The tree after a changeset. Raises Refused."""
    after = dict(tree)
    written = {op.path: op for op in ops}
    for op in ops:
        before = tree.get(op.path)
        if op.pre != (None if before is None else post_digest(before)) or (before is None and op.post is None):
            raise Refused
        if op.post is not None and (
            op.post == before or any(_frozen(tree, path) for path in [*parents(op.path), op.path])
        ):
            raise Refused
        if before is not None and op.post is not None and isinstance(before, Folder) != isinstance(op.post, Folder):
            raise Refused
        for path in parents(op.path):
            if op.post is None and path not in tree:
                raise Refused
            if path in tree and not isinstance(tree[path], Folder):
                raise Refused
            if path in written and op.post is not None and not isinstance(written[path].post, Folder):
                raise Refused
            if op.post is not None and path not in after:
                after[path] = NEVER_MADE
        if op.post is None:
            del after[op.path]
        else:
            after[op.path] = op.post
    for path in after:
        if any(not isinstance(after.get(above), Folder) for above in parents(path)):
            raise Refused
    looks = {unicodedata.normalize("NFC", path) for path in after}
    if len(looks) != len(after):
        raise Refused
    return after


def _frozen(tree: Tree, path: str) -> bool:
    return is_version(path.rpartition("/")[2]) and isinstance(tree.get(path), Folder)


def in_order(path: str) -> list[str]:
    return path.split("/")


class Namespace(RuleBasedStateMachine):
    """Publishes at random, most of it allowed; compares all revisions after each."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory(prefix="damfs-model-")
        self.writer = builders.open_writer(Path(self._folder.name))
        self.reader = Replica.open_reader(self.writer.path)
        self._patch = pytest.MonkeyPatch()
        self.trees: list[Tree] = [{}]
        self.births: list[dict[str, int]] = [{}]
        """For each revision: the revision in which the folder at a path came into being, which is its identity."""
        self.touched: list[dict[str, int]] = [{"": 0}]

    def teardown(self) -> None:
        self.reader.close()
        self.writer.close()
        self._folder.cleanup()
        self._patch.undo()

    @initialize(cut=st.sampled_from([1, 2, 2000]))
    def cut_the_stream(self, cut: int) -> None:
        self._patch.setattr(rows, "_BATCH_ROWS", cut)
        self._patch.setattr(rows, "_BATCH_CONTENTS_BYTES", cut * 200)

    @rule(changes=st.dictionaries(PATHS, POSTS, min_size=1, max_size=6), wrong=st.integers(0, 9))
    def add_or_replace(self, changes: dict[str, Post], wrong: int) -> None:
        self._publish(dict(changes), wrong)

    @rule(data=st.data(), changes=st.dictionaries(PATHS, POSTS, max_size=2))
    def change_what_is_there(self, data: st.DataObject, changes: dict[str, Post]) -> None:
        there = sorted(self.trees[-1])
        if there:
            chosen = data.draw(st.lists(st.sampled_from(there), min_size=1, max_size=5, unique=True))
            kept: dict[str, Post | None] = {path: data.draw(st.none() | POSTS) for path in chosen}
            self._publish({**changes, **kept}, 1)

    @rule(data=st.data(), changes=st.dictionaries(PATHS, POSTS, max_size=2))
    def remove_a_whole_folder(self, data: st.DataObject, changes: dict[str, Post]) -> None:
        tree = self.trees[-1]
        there = sorted(tree)
        if there:
            top = data.draw(st.sampled_from(there))
            gone: dict[str, Post | None] = dict.fromkeys(p for p in there if p == top or p.startswith(top + "/"))
            self._publish({**changes, **gone}, 1)

    @rule()
    def a_no_op(self) -> None:
        if len(self.trees) < 40:
            self.writer.apply_noop(len(self.trees), Digest.of(b"%d" % len(self.trees)), "bad")
            self._remember(self.trees[-1], set())

    def _publish(self, changes: dict[str, Post | None], wrong: int) -> None:
        tree = self.trees[-1]
        ops = []
        for path in sorted(changes):
            before = tree.get(path)
            pre = None if before is None else post_digest(before)
            if wrong == 0:
                pre, wrong = Digest.of(b"wrong"), 1
            if changes[path] is not None or pre is not None:
                ops.append(Op(path, pre, changes[path]))
        if not ops:
            return
        try:
            after = step(tree, ops)
        except Refused:
            self._refused(ops)
            return
        header = Header(builders.SHOW, "f" * 32, "")
        self.writer.check(header, ops)
        self.writer.check(header, ChangesetReader(compress_changeset(header, ops)[1]))
        builders.apply(self.writer, builders.make(self.writer, ops, time_ns=len(self.trees)))
        self._remember(after, {op.path for op in ops})

    def _refused(self, ops: list[Op]) -> None:
        made = builders.make(self.writer, ops)
        with pytest.raises(Conflict):
            self.writer.check(Header(builders.SHOW, "f" * 32, ""), ops)
        with pytest.raises(Conflict):
            builders.apply(self.writer, made)

    def _remember(self, after: Tree, written: set[str]) -> None:
        """What the new revision does to the identities and the times of folders."""
        before, births, touched = self.trees[-1], self.births[-1], self.touched[-1]
        seq = len(self.trees)
        folders = [path for path, post in after.items() if isinstance(post, Folder)]
        stays = {path for path in folders if path in births}
        self.births.append({path: births[path] if path in stays else seq for path in folders})
        now = {path: touched[path] if path in stays else seq for path in folders}
        now[""] = touched[""]
        for path in before.keys() | after.keys():
            above = path.rpartition("/")[0]
            is_folder = isinstance(before.get(path), Folder) and isinstance(after.get(path), Folder)
            if is_folder and path in written:
                now[path] = seq
            elif above in now and not is_folder and (path in written or (path in before) != (path in after)):
                now[above] = seq
        self.trees.append(after)
        self.touched.append(now)

    # -- what must hold ---------------------------------------------------------------------------------------------

    @invariant()
    def every_revision_is_as_the_model_has_it(self) -> None:
        assert self.reader.head == len(self.trees) - 1
        for revision, tree in enumerate(self.trees):
            walked = list(self.reader.walk("", revision))
            assert [path for path, _ in walked] == sorted(tree, key=in_order)
            assert {path: self.reader.post(row) for path, row in walked} == tree
            files = [post for post in tree.values() if isinstance(post, File)]
            assert self.reader.totals(revision) == (len(files), sum(post.size for post in files))

    @invariant()
    def names_nodes_and_times_agree_at_the_head(self) -> None:
        head = len(self.trees) - 1
        for path, row in self.reader.walk("", head):
            assert self.reader.resolve(path, head) == row
            assert self.reader.get(row.id) == row
            assert self.reader.path_of(row, head) == path
        for path, seq in self.touched[head].items():
            node = self._node(path, head)
            assert node is not None
            info = self.reader.revision(seq)
            assert self.reader.folder_mtime_ns(node, head) == (info.time_ns if info else 0)
            listed = [path_ for path_ in self.trees[head] if path_.rpartition("/")[0] == path]
            assert [row.name for row in self.reader.list(node, head)] == sorted(p.rpartition("/")[2] for p in listed)

    @invariant()
    def changes_between_revisions_are_the_model_s(self) -> None:
        for a, b in self._pairs():
            old, new = self.trees[a], self.trees[b]
            differing = {path for path in old.keys() | new.keys() if old.get(path) != new.get(path)}
            found = list(self.reader.changes(a, b))
            assert [change.path for change in found] == sorted(differing, key=in_order)
            for change in found:
                assert self._post(change.before) == old.get(change.path)
                assert self._post(change.after) == new.get(change.path)
            for top in sorted(old.keys() | new.keys())[:3]:
                below = [change for change in found if change.path == top or change.path.startswith(top + "/")]
                assert list(self.reader.changes(a, b, top)) == below

    @invariant()
    def changed_names_are_exactly_what_a_kernel_must_forget(self) -> None:
        for a, b in self._pairs():
            expected = set()
            for path in self.trees[a].keys() | self.trees[b].keys():
                above, _, name = path.rpartition("/")
                if above and not self._goes_on(above, a, b):
                    continue
                old, new = self.reader.resolve(path, a), self.reader.resolve(path, b)
                if (old and old.id) == (new and new.id):
                    continue
                parent = self._node(above, a)
                assert parent is not None
                kind = self.trees[b].get(path) or self.trees[a][path]
                expected.add((parent, name, self._node(path, a), self._node(path, b), isinstance(kind, Link)))
            found = self.reader.changed_names(a, b)
            assert len(found) == len(set(found))
            assert {tuple(change) for change in found} == expected

    @invariant()
    def a_folder_has_one_node_while_it_exists(self) -> None:
        nodes: dict[int, tuple[str, int]] = {}
        for revision, births in enumerate(self.births):
            for path, birth in births.items():
                node = self._node(path, revision)
                assert node is not None
                assert nodes.setdefault(node, (path, birth)) == (path, birth)
                row = self.reader.folder(node, revision)
                assert row == self.reader.resolve(path, revision)

    def _pairs(self) -> Iterator[tuple[int, int]]:
        head = len(self.trees) - 1
        yield from {(max(head - 1, 0), head), (0, head), (head, 0), (head // 2, head), (head, max(head - 3, 0))}

    def _goes_on(self, path: str, a: int, b: int) -> bool:
        return self.births[a].get(path, -1) == self.births[b].get(path, -2)

    def _node(self, path: str, revision: int) -> int | None:
        if not path:
            return ROOT_NODE
        row = self.reader.resolve(path, revision)
        return row.node if row is not None and isinstance(self.trees[revision][path], Folder) else None

    def _post(self, row: Row | None) -> Post | None:
        return None if row is None else self.reader.post(row)


Namespace.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=14,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
TestNamespace = pytest.mark.timeout(180)(Namespace.TestCase)
