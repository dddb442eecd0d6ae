"""The replica's answers, and its file."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import pytest

from manifest import before, schema
from manifest.apply import ReplicaWriter
from manifest.changeset import File, Folder, Link, Post
from manifest.digest import Digest
from manifest.errors import ConfigurationError, FormatError, NotFound
from manifest.post import post_digest
from manifest.recipe import Recipe
from manifest.replica import ROOT, ROOT_NODE, Kind, Replica
from tests.manifest import builders
from tests.manifest.builders import LIBRARY_ID, SHOW, T0_NS, file, publish

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SECOND = 10**9


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[ReplicaWriter]:
    with builders.open_writer(tmp_path) as opened:
        yield opened


def paths(replica: Replica, revision: int, path: str = "") -> list[str]:
    return [where for where, _ in replica.walk(path, revision)]


# -- names ----------------------------------------------------------------------------------------------------------


def test_a_new_replica_is_the_empty_show(writer: ReplicaWriter) -> None:
    assert writer.head == 0
    assert writer.tip == builders.genesis()
    assert writer.resolve("", 0) == ROOT
    assert writer.list(ROOT_NODE, 0) == []
    assert writer.totals(0) == (0, 0)
    assert writer.folder_mtime_ns(ROOT_NODE, 0) == 0
    assert writer.at_time(2**63 - 1) == 0
    assert writer.revision(0) is None


def test_a_file_is_found_by_folder_and_name_with_all_that_was_published(writer: ReplicaWriter) -> None:
    post = file(b"x" * 3000, mode=0o640)
    publish(writer, {"seq/plate.exr": post})
    folder = writer.lookup(ROOT_NODE, "seq", 1)
    assert folder is not None
    assert (folder.kind, folder.mode, folder.node) == (Kind.FOLDER, 0o755, folder.id)
    row = writer.lookup(folder.node, "plate.exr", 1)
    assert row is not None
    assert (row.kind, row.mode, row.size, row.mtime_ns) == (Kind.FILE, 0o640, 3000, T0_NS)
    assert (row.digest, row.content, row.target, row.node) == (post.digest, post.content, None, 0)
    assert (row.since, row.until) == (1, None)
    assert writer.get(row.id) == row
    assert writer.post(row) == post
    assert writer.path_of(row, 1) == "seq/plate.exr"


def test_every_revision_keeps_its_answers(writer: ReplicaWriter) -> None:
    first, second = file(b"1"), file(b"22")
    publish(writer, {"a": first, "t": Link("1")})
    publish(writer, {"a": second})
    publish(writer, {"a": None, "t": Link("2")})
    assert [writer.resolve("a", revision) is not None for revision in range(4)] == [False, True, True, False]
    assert [builders.everything(writer, revision).get("a") for revision in range(4)] == [None, first, second, None]
    assert [builders.everything(writer, revision).get("t") for revision in range(4)] == [
        None,
        Link("1"),
        Link("1"),
        Link("2"),
    ]
    assert [writer.totals(revision) for revision in range(4)] == [(0, 0), (1, 1), (1, 2), (0, 0)]


def test_a_listing_is_sorted_by_bytes_and_can_be_continued(writer: ReplicaWriter) -> None:
    names = ["B", "a", "a-b", "a.b", "ab", "é", "z", "漢", "😀"]
    publish(writer, dict.fromkeys(names, file()))
    assert [row.name for row in writer.list(ROOT_NODE, 1)] == sorted(names)
    found: list[str] = []
    while page := writer.list(ROOT_NODE, 1, after=found[-1] if found else "", limit=2):
        assert len(page) <= 2
        found += [row.name for row in page]
    assert found == sorted(names)


EVERY_POST: list[Post] = [
    file(b""), file(b"one"), file(b"x" * 5000, mode=0), file(b"y" * 65536), Link("é"), Link('a "quoted" \\ \t'),
    builders.large_file(), Folder(0o700), Folder(0o755),
]  # fmt: skip


@pytest.mark.parametrize("at_once", [1, 3, 5, 9, 100])
@pytest.mark.parametrize("seen", ["right", "another", "nothing"])
def test_what_replaces_a_row_names_the_post_that_made_it(writer: ReplicaWriter, at_once: int, seen: str) -> None:
    posts = {f'd/{i:03} é"\\': post for i, post in enumerate(EVERY_POST * 12)}
    publish(writer, posts)
    folder = writer.lookup(ROOT_NODE, "d", 1)
    assert folder is not None
    digests = {path.removeprefix("d/"): post_digest(post) for path, post in posts.items()}
    for start in range(0, len(digests), at_once):
        names = sorted(digests)[start : start + at_once]
        wanted = {name: {"right": digests[name], "another": Digest.of(b"?"), "nothing": None}[seen] for name in names}
        found = before.posts(writer, writer._connection, folder.node, {**wanted, "missing": None}, 1)
        assert sorted(found) == names
        for name, (row, digest) in found.items():
            assert row == writer.lookup(folder.node, name, 1)
            assert digest == digests[name] == writer.pre(row)
    assert not before.posts(writer, writer._connection, folder.node, dict.fromkeys(digests), 0)


def test_what_is_told_from_rows_and_recipes_at_once_is_what_the_replica_says(
    writer: ReplicaWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    posts = {f"{i:03}": post for i, post in enumerate(EVERY_POST * 3)}
    publish(writer, posts)
    wanted = {name: post_digest(post) for name, post in posts.items()}
    monkeypatch.setattr(Replica, "pre", None)
    found = before.posts(writer, writer._connection, ROOT_NODE, wanted, 1)
    assert {name: digest for name, (_, digest) in found.items()} == wanted


def test_what_was_before_is_the_version_of_that_revision(writer: ReplicaWriter) -> None:
    versions = [{f"{i}": file(b"%d %d" % (i, version)) for i in range(8)} for version in range(4)]
    for version in versions:
        publish(writer, version)
    publish(writer, dict.fromkeys(versions[0]))
    for revision in range(6):
        found = before.posts(writer, writer._connection, ROOT_NODE, dict.fromkeys(versions[0]), revision)
        expected = {} if revision in {0, 5} else versions[revision - 1]
        assert {name: digest for name, (_, digest) in found.items()} == {
            name: post_digest(post) for name, post in expected.items()
        }


def test_the_lean_listing_says_what_the_rows_say_at_every_revision(writer: ReplicaWriter) -> None:
    publish(writer, {"d/é": file(), "d/ü/x": file(), "d/link": Link("../é"), "d/y": file(b"y" * 3000), "top": file()})
    publish(writer, {"d/ü/z": file()}, time_ns=T0_NS + SECOND)
    publish(writer, {"d/y": file(b"other", mode=0o600), "d/link": Link("elsewhere")}, time_ns=T0_NS + 2 * SECOND)
    folder = writer.lookup(ROOT_NODE, "d", 1)
    assert folder is not None
    for revision in range(4):
        for node in (ROOT_NODE, folder.node):
            expected = []
            for row in writer.list(node, revision):
                size, mtime_ns = row.size, row.mtime_ns
                if row.kind == Kind.LINK:
                    info = writer.revision(row.since)
                    assert info is not None
                    size, mtime_ns = len((row.target or "").encode()), info.time_ns
                elif row.kind == Kind.FOLDER:
                    mtime_ns = writer.folder_mtime_ns(row.node, revision)
                expected.append((row.id, row.name.encode(), int(row.kind), row.node, row.mode, size, mtime_ns))
            assert writer.listing(node, revision) == expected
            assert writer.listing(node, revision, limit=2) == expected[:2]
            assert writer.listing(node, revision, after="link") == [row for row in expected if row[1] > b"link"]


def test_a_walk_is_depth_first_and_sorted_within_each_folder(writer: ReplicaWriter) -> None:
    publish(writer, {"a-b/x": file(), "a/x": file(), "a/b/c": file(), "a.txt": file(), "e": Folder(0o700)})
    expected = ["a", "a/b", "a/b/c", "a/x", "a-b", "a-b/x", "a.txt", "e"]
    assert paths(writer, 1) == sorted(expected, key=lambda path: path.split("/"))
    assert paths(writer, 1, "a") == ["a/b", "a/b/c", "a/x"]
    assert paths(writer, 1, "a.txt") == []
    assert paths(writer, 1, "none") == []
    assert paths(writer, 0) == []


def test_a_walk_goes_on_in_pages_while_later_revisions_are_applied(writer: ReplicaWriter) -> None:
    publish(writer, {f"d/{i:04}": file() for i in range(2500)})
    walk = writer.walk("", 1)
    seen = [next(walk)[0] for _ in range(1500)]
    publish(writer, {"d/0003": None, "d/2400": None, "d/2401": file(b"new"), "d/9999": file()})
    seen += [path for path, _ in walk]
    assert seen == ["d", *(f"d/{i:04}" for i in range(2500))]


def test_a_tree_of_two_thousand_levels_can_be_walked_compared_and_resolved(writer: ReplicaWriter) -> None:
    deep = "/".join(["d"] * 2000)
    publish(writer, {deep: file()})
    assert paths(writer, 1)[-1] == deep
    assert [change.path for change in writer.changes(0, 1)][-1] == deep
    row = writer.resolve(deep, 1)
    assert row is not None
    assert writer.path_of(row, 1) == deep
    publish(writer, {deep: file(b"2")})
    assert [change.path for change in writer.changes(1, 2)] == [deep]


def test_a_path_through_a_file_is_nothing(writer: ReplicaWriter) -> None:
    publish(writer, {"a": file(), "l": Link("a")})
    assert writer.resolve("a/b", 1) is None
    assert writer.resolve("l/b", 1) is None


@pytest.mark.parametrize("path", ["/a", "..", "a//b", "a/", "a\0"])
def test_what_is_no_path_is_not_resolved(writer: ReplicaWriter, path: str) -> None:
    with pytest.raises(FormatError):
        writer.resolve(path, 0)


def test_a_folder_keeps_its_node_while_it_exists_and_gets_a_new_one_after(writer: ReplicaWriter) -> None:
    publish(writer, {"d/a": file()})
    publish(writer, {"d": Folder(0o700)})
    publish(writer, {"d/b": file()})
    nodes = [row.node for revision in (1, 2, 3) if (row := writer.resolve("d", revision))]
    assert len(nodes) == 3
    assert len(set(nodes)) == 1
    publish(writer, {"d/a": None, "d/b": None, "d": None})
    publish(writer, {"d/a": file()})
    again = writer.resolve("d", 5)
    assert again is not None
    assert again.node not in nodes
    assert [writer.folder(nodes[0], revision) is not None for revision in range(6)] == [
        False,
        *[True] * 3,
        False,
        False,
    ]
    assert [row and row.mode for row in (writer.folder(nodes[0], 1), writer.folder(nodes[0], 2))] == [0o755, 0o700]
    assert writer.folder(again.node, 5) == again
    assert writer.folder(again.node, 1) is None
    assert writer.list(nodes[0], 5) == []


def test_a_file_is_no_folder(writer: ReplicaWriter) -> None:
    publish(writer, {"a": file()})
    row = writer.resolve("a", 1)
    assert row is not None
    assert writer.folder(row.id, 1) is None
    assert writer.folder(999, 1) is None
    assert writer.get(999) is None


# -- times ----------------------------------------------------------------------------------------------------------


def test_a_folder_is_as_old_as_the_last_name_that_came_left_or_changed(writer: ReplicaWriter) -> None:
    publish(writer, {"d/a": file(), "d/sub/x": file(), "e/x": file()}, time_ns=1 * SECOND)
    publish(writer, {"d/a": file(b"2")}, time_ns=2 * SECOND)
    publish(writer, {"d/sub/y": file()}, time_ns=3 * SECOND)
    publish(writer, {"d/a": None}, time_ns=4 * SECOND)
    row, sub = writer.resolve("d", 4), writer.resolve("d/sub", 4)
    assert row is not None
    assert sub is not None
    assert [writer.folder_mtime_ns(row.node, revision) // SECOND for revision in (1, 2, 3, 4)] == [1, 2, 2, 4]
    assert [writer.folder_mtime_ns(sub.node, revision) // SECOND for revision in (1, 2, 3, 4)] == [1, 1, 3, 3]
    assert writer.folder_mtime_ns(ROOT_NODE, 4) == 1 * SECOND


def test_a_new_mode_touches_the_folder_and_not_the_one_above(writer: ReplicaWriter) -> None:
    publish(writer, {"d/e/a": file()}, time_ns=1 * SECOND)
    publish(writer, {"d/e": Folder(0o700)}, time_ns=2 * SECOND)
    above, row = writer.resolve("d", 2), writer.resolve("d/e", 2)
    assert above is not None
    assert row is not None
    assert writer.folder_mtime_ns(above.node, 2) == 1 * SECOND
    assert writer.folder_mtime_ns(row.node, 2) == 2 * SECOND


def test_time_never_goes_backwards(writer: ReplicaWriter) -> None:
    for number, time_ns in enumerate([5, 3, 9, 4]):
        publish(writer, {f"f{number}": file()}, time_ns=time_ns * SECOND)
    writer.apply_noop(5, Digest.of(b"?"), "reason")
    assert [info.time_ns // SECOND for info in writer.revisions(1, 99)] == [5, 5, 9, 9, 9]


def test_a_moment_is_the_last_revision_by_then(writer: ReplicaWriter) -> None:
    for number, time_ns in enumerate([5, 3, 9]):
        publish(writer, {f"f{number}": file()}, time_ns=time_ns * SECOND)
    moments = [4 * SECOND, 5 * SECOND, 6 * SECOND, 9 * SECOND - 1, 9 * SECOND, 2**63 - 1]
    assert [writer.at_time(moment) for moment in moments] == [0, 2, 2, 2, 3, 3]


# -- revisions ------------------------------------------------------------------------------------------------------


def test_a_revision_tells_who_published_what_and_when(writer: ReplicaWriter) -> None:
    made = builders.make(writer, builders.ops_of(writer, {"a": file()}), author="ada", message="first\nplate")
    builders.apply(writer, made)
    info = writer.revision(1)
    assert info is not None
    assert (info.seq, info.publish_id, info.author, info.message) == (1, made.entry.publish_id, "ada", "first\nplate")
    assert (info.time_ns, info.keyid, info.status, info.reason) == (T0_NS, builders.KEY.keyid, "applied", "")
    assert info.entry_digest == Digest.of(made.stored) == writer.tip
    assert writer.find_publish(made.entry.publish_id) == info
    assert writer.find_publish("f" * 32) is None


def test_a_no_op_is_a_revision_that_changes_nothing(writer: ReplicaWriter) -> None:
    publish(writer, {"a": file(b"abc")})
    writer.apply_noop(2, Digest.of(b"bad"), "bad signature")
    assert writer.head == 2
    assert writer.tip == Digest.of(b"bad")
    assert builders.everything(writer, 2) == builders.everything(writer, 1)
    assert writer.totals(2) == (1, 3)
    info = writer.revision(2)
    assert info is not None
    assert (info.publish_id, info.author, info.status, info.reason) == ("", "", "noop", "bad signature")
    assert writer.find_publish("") is None
    writer.apply_noop(3, Digest.of(b"worse"), "another")
    assert writer.head == 3


def test_revisions_come_in_order_and_in_pages(writer: ReplicaWriter) -> None:
    for seq in range(1, 1206):
        writer.apply_noop(seq, Digest.of(b"%d" % seq), "")
    assert [info.seq for info in writer.revisions(1, 1206)] == list(range(1, 1206))
    assert [info.seq for info in writer.revisions(3, 6)] == [3, 4, 5]
    assert list(writer.revisions(5, 5)) == []


# -- contents -------------------------------------------------------------------------------------------------------


def test_recipes_of_every_inline_length_are_kept(writer: ReplicaWriter) -> None:
    posts = {f"f{count}": file(b"x" * count * 10, chunk_bytes=10) for count in (0, 1, 2, 64)}
    publish(writer, posts)
    for post in posts.values():
        assert writer.recipe(post.content) == post.recipe
    assert builders.everything(writer, 1) == posts


def test_a_recipe_that_is_an_object_is_not_in_the_replica(writer: ReplicaWriter) -> None:
    post = builders.large_file()
    publish(writer, {"a": post})
    assert writer.recipe(post.content) is None
    assert builders.everything(writer, 1) == {"a": post}


def test_a_file_says_what_its_own_op_said_when_another_had_the_recipe_inline(writer: ReplicaWriter) -> None:
    inline = file(b"x" * 100, chunk_bytes=50)
    assert inline.recipe is not None
    named = File(0o644, 100, T0_NS, inline.digest, inline.content, None)
    publish(writer, {"named": named})
    publish(writer, {"inline": inline})
    assert builders.everything(writer, 2) == {"named": named, "inline": inline}
    assert writer.recipe(named.content) == inline.recipe
    publish(writer, {"named": None})


def test_an_empty_file_has_the_empty_recipe(writer: ReplicaWriter) -> None:
    publish(writer, {"a": file(b"")})
    assert writer.recipe(file(b"").content) == Recipe(b"")


# -- differences ----------------------------------------------------------------------------------------------------


def changes(replica: Replica, a: int, b: int, path: str = "") -> dict[str, tuple[Post | None, Post | None]]:
    found = list(replica.changes(a, b, path))
    order = [change.path.split("/") for change in found]
    assert order == sorted(order)
    return {
        change.path: (change.before and replica.post(change.before), change.after and replica.post(change.after))
        for change in found
    }


def test_changes_name_every_path_that_differs(writer: ReplicaWriter) -> None:
    publish(writer, {"d/a": file(b"1"), "d/same": file(), "l": Link("1")})
    publish(writer, {"d/a": file(b"2"), "d/sub/x": file(), "l": Link("2")})
    assert changes(writer, 1, 2) == {
        "d/a": (file(b"1"), file(b"2")),
        "d/sub": (None, Folder(0o755)),
        "d/sub/x": (None, file()),
        "l": (Link("1"), Link("2")),
    }
    assert changes(writer, 1, 1) == {}
    assert changes(writer, 2, 1) == {path: (after, before) for path, (before, after) in changes(writer, 1, 2).items()}


def test_changes_can_be_asked_for_below_a_path(writer: ReplicaWriter) -> None:
    publish(writer, {"d/a": file(b"1"), "e/a": file(b"1")})
    publish(writer, {"d/a": file(b"2"), "e/a": file(b"2")})
    assert list(changes(writer, 1, 2, "d")) == ["d/a"]
    assert list(changes(writer, 1, 2, "d/a")) == ["d/a"]
    assert list(changes(writer, 0, 2, "d")) == ["d", "d/a"]
    assert changes(writer, 1, 2, "none") == {}


def test_what_went_and_came_back_the_same_is_no_change(writer: ReplicaWriter) -> None:
    publish(writer, {"d/a": file(), "d/b": file()})
    publish(writer, {"d/a": None, "d/b": None, "d": None})
    publish(writer, {"d/a": file(), "d/c": file()})
    assert changes(writer, 1, 3) == {"d/b": (file(), None), "d/c": (None, file())}


def test_what_came_and_went_in_between_is_no_change(writer: ReplicaWriter) -> None:
    publish(writer, {"a": file()})
    publish(writer, {"d/e/f": file()})
    publish(writer, {"d/e/f": None, "d/e": None, "d": None})
    assert changes(writer, 1, 3) == {}


def test_the_kernel_is_told_the_topmost_names_of_what_is_new_or_gone(writer: ReplicaWriter) -> None:
    publish(writer, {"d/a": file(), "d/l": Link("a"), "old/sub/x": file()})
    publish(writer, {"d/a": file(b"2"), "d/l": Link("b"), "new/sub/x": file()})
    publish(writer, {"old/sub/x": None, "old/sub": None, "old": None})
    d, old, new = (writer.resolve(path, 2) for path in ("d", "old", "new"))
    assert d is not None
    assert old is not None
    assert new is not None
    assert sorted(writer.changed_names(1, 3)) == [
        (ROOT_NODE, "new", None, new.node, False),
        (ROOT_NODE, "old", old.node, None, False),
        (d.node, "a", None, None, False),
        (d.node, "l", None, None, True),
    ]
    assert writer.changed_names(2, 2) == []
    assert sorted(writer.changed_names(3, 2)) == [(ROOT_NODE, "old", None, old.node, False)]


def test_the_kernel_is_told_of_a_folder_with_another_mode_as_one_that_goes_on(writer: ReplicaWriter) -> None:
    publish(writer, {"d/a": file()})
    publish(writer, {"d": Folder(0o700)})
    row = writer.resolve("d", 2)
    assert row is not None
    assert writer.changed_names(1, 2) == [(ROOT_NODE, "d", row.node, row.node, False)]


def test_the_kernel_is_told_of_a_file_that_came_back_the_same_because_its_inode_is_another(
    writer: ReplicaWriter,
) -> None:
    publish(writer, {"a": file()})
    publish(writer, {"a": None})
    publish(writer, {"a": file()})
    assert writer.changed_names(1, 3) == [(ROOT_NODE, "a", None, None, False)]


def test_a_link_that_went_is_told_of_as_a_link(writer: ReplicaWriter) -> None:
    publish(writer, {"latest": Link("v1")})
    publish(writer, {"latest": None})
    assert writer.changed_names(1, 2) == [(ROOT_NODE, "latest", None, None, True)]


# -- the file -------------------------------------------------------------------------------------------------------


def test_a_reader_sees_what_the_writer_committed(writer: ReplicaWriter) -> None:
    with Replica.open_reader(writer.path) as reader:
        assert reader.head == 0
        assert reader.show == SHOW
        assert reader.tip == builders.genesis()
        publish(writer, {"a": file()})
        assert reader.head == 1
        assert paths(reader, 1) == ["a"]


def test_a_reader_cannot_write(writer: ReplicaWriter) -> None:
    with Replica.open_reader(writer.path) as reader, pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader._execute("DELETE FROM entries")


def test_no_call_of_a_reader_keeps_the_log_from_being_taken_in(writer: ReplicaWriter) -> None:
    publish(writer, {f"d/{i:04}": file() for i in range(1500)} | {"l": Link("d")})
    with Replica.open_reader(writer.path) as reader:
        row = reader.resolve("d/0001", 1)
        assert row is not None
        walk, listed, differing = reader.walk("", 1), reader.revisions(0, 9), reader.changes(0, 1)
        calls: list[Callable[[], object]] = [
            lambda: next(walk),
            lambda: next(listed),
            lambda: next(differing),
            lambda: reader.head,
            lambda: reader.tip,
            lambda: reader.get(row.id),
            lambda: reader.folder(row.parent, 1),
            lambda: reader.list(row.parent, 1, limit=10),
            lambda: reader.folder_mtime_ns(row.parent, 1),
            lambda: reader.recipe(row.content or b""),
            lambda: reader.revision(1),
            lambda: reader.find_publish("0" * 32),
            lambda: reader.at_time(T0_NS),
            lambda: reader.totals(1),
            lambda: reader.changed_names(0, 1),
            lambda: reader.path_of(row, 1),
        ]
        for number, call in enumerate(calls):
            call()
            publish(writer, {f"n{number}": file()})
            call()
            (busy, _, _) = writer._execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            assert not busy, f"call {number} keeps a read transaction open"


def test_a_reader_of_nothing_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        Replica.open_reader(tmp_path / "none.db")
    with pytest.raises(NotFound):
        ReplicaWriter.open(tmp_path / "none.db", SHOW, trust=b"", library_id=LIBRARY_ID, create=False)
    assert list(tmp_path.iterdir()) == []


def test_a_replica_is_the_same_when_it_is_opened_again(tmp_path: Path) -> None:
    with builders.open_writer(tmp_path) as writer:
        publish(writer, {"a": file()})
        before = builders.dump(writer)
    with builders.open_writer(tmp_path) as writer:
        assert builders.dump(writer) == before
        publish(writer, {"b": file()})
        assert paths(writer, 2) == ["a", "b"]


@pytest.mark.parametrize("which", ["trust", "library", "show"])
def test_a_replica_made_under_another_trust_library_or_show_is_built_anew(
    tmp_path: Path, which: str, caplog: pytest.LogCaptureFixture
) -> None:
    with builders.open_writer(tmp_path) as writer:
        publish(writer, {"a": file()})
    options = {"show": SHOW, "trust": builders.TRUST.digest, "library_id": LIBRARY_ID}
    other = {"show": "gemini", "trust": b"\1" * 32, "library_id": "f" * 32}
    key = "library_id" if which == "library" else which
    options[key] = other[key]
    with ReplicaWriter.open(tmp_path / "apollo.db", **options) as writer:  # type: ignore[arg-type]
        assert writer.head == 0
        assert paths(writer, 1) == []
    assert which in caplog.text
    assert "built anew" in caplog.text


def test_a_damaged_replica_is_built_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "apollo.db").write_bytes(b"this is no database at all, but long enough to look like one" * 100)
    with builders.open_writer(tmp_path) as writer:
        publish(writer, {"a": file()})
    assert "damaged" in caplog.text


def test_a_replica_of_a_newer_format_is_left_alone(tmp_path: Path) -> None:
    with builders.open_writer(tmp_path) as writer:
        publish(writer, {"a": file()})
        writer._execute(f"PRAGMA user_version = {schema.FORMAT + 1}")
    before = (tmp_path / "apollo.db").read_bytes()
    with pytest.raises(ConfigurationError, match="update it"):
        builders.open_writer(tmp_path)
    with pytest.raises(ConfigurationError, match="format 2"):
        Replica.open_reader(tmp_path / "apollo.db")
    assert (tmp_path / "apollo.db").read_bytes() == before


def test_a_replica_that_is_being_made_is_not_there_yet(tmp_path: Path) -> None:
    (tmp_path / "x.db").touch()
    with pytest.raises(NotFound, match="being made"):
        Replica.open_reader(tmp_path / "x.db")


def test_what_is_no_database_is_an_error_of_the_reader(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"hello" * 1000)
    with pytest.raises(ConfigurationError, match="can be deleted"):
        Replica.open_reader(tmp_path / "x.db")


def test_a_folder_that_is_not_there_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be opened"):
        builders.open_writer(tmp_path / "none")


def test_the_format_is_the_number_of_migrations(writer: ReplicaWriter) -> None:
    assert len(schema._MIGRATIONS) == schema.FORMAT
    assert writer._execute("PRAGMA user_version").fetchone() == (schema.FORMAT,)
    assert writer._execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize(
    "call",
    [
        lambda reader: reader.lookup(1, "x", 1),
        lambda reader: reader.list(1, 1),
        lambda reader: reader.folder(1, 1),
        lambda reader: reader.folder_mtime_ns(1, 1),
        lambda reader: reader.recipe(b""),
        lambda reader: reader.at_time(1),
        lambda reader: list(reader.changes(0, 1)),
        lambda reader: reader.changed_names(0, 1),
    ],
)
def test_every_question_is_answered_from_an_index(writer: ReplicaWriter, call: Callable[[Replica], object]) -> None:
    publish(writer, {"a/b": file()})
    plans: list[str] = []
    statements: list[str] = []
    writer._connection.set_trace_callback(statements.append)
    call(writer)
    writer._connection.set_trace_callback(None)
    for statement in statements:
        plans += [row[3] for row in writer._execute("EXPLAIN QUERY PLAN " + statement).fetchall()]
    assert statements
    scans = [plan for plan in plans if plan.startswith("SCAN") and not plan.startswith("SCAN CONSTANT")]
    assert [plan for plan in scans if "json_each" not in plan and "subquery" not in plan and plan[5:] != "p"] == []
    assert [plan for plan in plans if "ORDER BY" in plan] == []
