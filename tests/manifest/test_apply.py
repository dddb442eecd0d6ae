"""Applying entries: the rules of the namespace, one attack a test, and what a refusal leaves."""

from __future__ import annotations

import secrets
import sqlite3
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from manifest import apply, rows
from manifest.apply import ReplicaWriter
from manifest.canonical import INTEGER_MAX
from manifest.changeset import (
    FILE_BYTES_MAX,
    ChangesetReader,
    Folder,
    Header,
    Link,
    Op,
    Post,
    compress_changeset,
    post_digest,
)
from manifest.digest import Digest
from manifest.entry import seal
from manifest.errors import ConfigurationError, Conflict, DamfsError, FormatError
from manifest.ops import line_of
from manifest.replica import Replica
from tests.manifest import builders
from tests.manifest.builders import KEY, Publish, dump, everything, file, make, ops_of, publish

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EXISTING: dict[str, Post | None] = {
    "file": file(b"file"),
    "link": Link("file"),
    "folder": Folder(0o700),
    "full/a": file(b"a"),
    "full/b": file(b"b"),
    "plate/v001/a.exr": file(b"v1"),
    "plate/v001/sub/b.exr": file(b"v1 b"),
    "plate/latest": Link("v001"),
}


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[ReplicaWriter]:
    """A replica with something of every kind in revision 1."""
    with builders.open_writer(tmp_path) as opened:
        publish(opened, EXISTING)
        yield opened


def refused(writer: ReplicaWriter, *ops: Op, match: str, path: str | None = None) -> None:
    """The ops are refused by check and by apply alike, and nothing is left."""
    before = dump(writer)
    header = Header(builders.SHOW, secrets.token_hex(16), "")
    with pytest.raises(Conflict, match=match) as checked:
        writer.check(header, ops)
    assert dump(writer) == before
    with pytest.raises(Conflict, match=match) as applied:
        builders.apply(writer, make(writer, ops))
    assert dump(writer) == before
    assert str(checked.value) == str(applied.value)
    assert path is None or applied.value.path == path
    assert not writer._connection.in_transaction


def right(writer: ReplicaWriter, **changes: Post | None) -> list[Op]:
    """Ops with the right ``pre``; ``__`` in a keyword stands for a slash."""
    return ops_of(writer, {path.replace("__", "/"): post for path, post in changes.items()})


# -- pre ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["file", "link", "folder", "full/a"])
@pytest.mark.parametrize("post", [None, file(b"new"), Link("new"), Folder(0o711)])
def test_an_op_whose_publisher_saw_something_else_is_a_conflict(
    writer: ReplicaWriter, path: str, post: Post | None
) -> None:
    refused(writer, Op(path, Digest.of(b"else"), post), match="changed in between", path=path)


@pytest.mark.parametrize("path", ["file", "link", "folder", "full"])
@pytest.mark.parametrize("post", [file(b"new"), Link("new"), Folder(0o711)])
def test_an_op_whose_publisher_saw_nothing_is_a_conflict_where_something_is(
    writer: ReplicaWriter, path: str, post: Post
) -> None:
    refused(writer, Op(path, None, post), match="did not know", path=path)


@pytest.mark.parametrize("post", [None, file(), Link("new"), Folder(0o711)])
@pytest.mark.parametrize("path", ["none", "full/none", "new/none"])
def test_an_op_whose_publisher_saw_something_is_a_conflict_where_nothing_is(
    writer: ReplicaWriter, path: str, post: Post | None
) -> None:
    refused(writer, Op(path, Digest.of(b"else"), post), match="is not there", path=path)


@pytest.mark.parametrize(
    ("changed", "path"),
    [
        ({"mode": 0o600}, "file"),
        ({"mtime_ns": 1}, "file"),
        ({"digest": Digest.of(b"else")}, "large"),
        ({"content": Digest.of(b"else")}, "large"),
        ({"size": 10**8}, "large"),
    ],
)
def test_pre_covers_every_field_of_a_file(writer: ReplicaWriter, changed: dict[str, int], path: str) -> None:
    publish(writer, {"large": builders.large_file()})
    now = {"file": file(b"file"), "large": builders.large_file()}[path]
    seen = replace(now, **changed)  # type: ignore[arg-type]
    refused(writer, Op(path, post_digest(seen), file(b"mine")), match="changed in between", path=path)


def test_pre_covers_how_a_file_is_cut(writer: ReplicaWriter) -> None:
    publish(writer, {"cut": file(b"x" * 100, chunk_bytes=50)})
    seen = file(b"x" * 100, chunk_bytes=25)
    refused(writer, Op("cut", post_digest(seen), file(b"mine")), match="changed in between")


def test_pre_of_a_link_is_its_target_and_of_a_folder_its_mode(writer: ReplicaWriter) -> None:
    refused(writer, Op("link", post_digest(Link("other")), Link("new")), match="changed in between")
    refused(writer, Op("folder", post_digest(Folder(0o755)), Folder(0o711)), match="changed in between")
    refused(writer, Op("file", post_digest(Link("file")), file(b"new")), match="changed in between")


def test_a_lost_update_is_a_conflict(writer: ReplicaWriter) -> None:
    mine = make(writer, right(writer, file=file(b"mine")))
    publish(writer, {"file": file(b"theirs")})
    entry = replace(mine.entry, seq=3, prev=writer.tip)
    with pytest.raises(Conflict, match="changed in between"):
        builders.apply(writer, Publish(seal(entry, KEY), entry, mine.compressed))


def test_an_op_that_changes_nothing_is_a_conflict(writer: ReplicaWriter) -> None:
    publish(writer, {"large": builders.large_file()})
    for path in ("file", "link", "folder", "large"):
        row = writer.resolve(path, writer.head)
        assert row is not None
        refused(writer, Op(path, builders.pre_of(writer, path), writer.post(row)), match="nothing changes", path=path)


def test_a_file_may_become_a_link_and_a_link_a_file(writer: ReplicaWriter) -> None:
    publish(writer, {"file": Link("x"), "link": file(b"x")})
    assert everything(writer, 2).items() >= {"file": Link("x"), "link": file(b"x")}.items()


# -- kinds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("post", [file(b"new"), Link("new")])
@pytest.mark.parametrize("path", ["folder", "full"])
def test_a_folder_does_not_become_something_else(writer: ReplicaWriter, path: str, post: Post) -> None:
    refused(writer, *ops_of(writer, {path: post}), match="is a folder and does not become", path=path)


@pytest.mark.parametrize("path", ["file", "link"])
def test_a_file_or_link_does_not_become_a_folder(writer: ReplicaWriter, path: str) -> None:
    refused(writer, *ops_of(writer, {path: Folder(0o755)}), match="is no folder and does not become", path=path)


@pytest.mark.parametrize("path", ["file", "link", "full/a"])
def test_an_op_through_something_that_is_no_folder_is_refused(writer: ReplicaWriter, path: str) -> None:
    for below in ("x", "x/y"):
        refused(writer, Op(f"{path}/{below}", None, file()), match=f"goes through {path}, which is no folder")


def test_a_removal_through_something_that_is_no_folder_is_refused(writer: ReplicaWriter) -> None:
    refused(writer, Op("file/x", Digest.of(b"x"), None), match="goes through file")


@pytest.mark.parametrize("post", [file(), Link("x")])
@pytest.mark.parametrize("between", [[], ["a-b"], ["a b", "a!", "a-b", "a-b/c"], ["a+", "a,"]])
def test_a_new_file_that_is_also_a_folder_is_refused(writer: ReplicaWriter, post: Post, between: list[str]) -> None:
    paths = {*between, "a/x"}
    ops = [Op(path, None, file()) for path in sorted(paths) if not any(p.startswith(path + "/") for p in paths)]
    refused(
        writer,
        Op("a", None, post),
        *ops,
        match="a/x goes through a, which is no folder",
    )


def test_a_new_file_that_is_also_a_folder_is_refused_far_below(writer: ReplicaWriter) -> None:
    ops = [Op("n/a", None, file()), Op("n/a-b", None, file()), Op("n/a/b/c/d", None, file())]
    refused(writer, *ops, match="goes through n/a,")


def test_a_file_that_goes_does_not_make_room_for_a_folder_in_the_same_publish(writer: ReplicaWriter) -> None:
    refused(writer, *right(writer, file=None), Op("file/x", None, file()), match="goes through file")


def test_a_name_that_only_begins_like_another_is_no_part_of_it(writer: ReplicaWriter) -> None:
    names = ["n", "n-", "n-/x", "n.x", "n0", "na/b", "nab/c"]
    changes: dict[str, Post | None] = {name: file() for name in names if name != "n-"}
    changes["n-"] = Folder(0o711)
    changes["f"] = Folder(0o711)
    changes["f-"] = Folder(0o711)
    changes["f-/f"] = file()
    changes["f/f"] = file()
    publish(writer, changes)
    found = everything(writer, 2)
    assert {path: found[path] for path in changes} == changes


# -- folders --------------------------------------------------------------------------------------------------------


def test_folders_come_as_parents_and_by_their_own_op(writer: ReplicaWriter) -> None:
    publish(writer, {"x/y/z": file(), "w": Folder(0o711), "w/z": file()})
    found = everything(writer, 2)
    assert (found["x"], found["x/y"], found["w"]) == (Folder(0o755), Folder(0o755), Folder(0o711))


def test_a_folder_does_not_go_with_its_last_file(writer: ReplicaWriter) -> None:
    publish(writer, {"full/a": None, "full/b": None})
    assert everything(writer, 2)["full"] == Folder(0o755)


def test_removal_of_a_folder_that_is_not_empty_is_refused(writer: ReplicaWriter) -> None:
    refused(writer, *right(writer, full=None), match="full is removed and not empty: full/[ab] is left")
    refused(writer, *right(writer, full=None, full__a=None), match="not empty: full/b is left")


def test_removal_of_a_folder_with_a_folder_left_in_it_is_refused(writer: ReplicaWriter) -> None:
    gone = right(writer, plate=None, plate__latest=None, plate__v001__sub=None)
    gone += [Op(path, builders.pre_of(writer, path), None) for path in ("plate/v001/a.exr", "plate/v001/sub/b.exr")]
    refused(writer, *sorted(gone, key=lambda op: op.path), match="plate is removed and not empty: plate/v001 is left")


def test_a_folder_goes_with_all_that_is_in_it(writer: ReplicaWriter) -> None:
    publish(writer, dict.fromkeys(("full", "full/a", "full/b"), None))
    assert not any(path.startswith("full") for path in everything(writer, 2))
    assert writer.totals(2) == (3, len(b"file") + len(b"v1") + len(b"v1 b"))


@pytest.mark.parametrize("path", ["folder/x", "folder/x/y"])
def test_nothing_comes_into_a_folder_that_the_same_publish_removes(writer: ReplicaWriter, path: str) -> None:
    refused(writer, *right(writer, folder=None), Op(path, None, file()), match="the same publish removes")


def test_nothing_comes_far_below_a_folder_that_the_same_publish_removes(writer: ReplicaWriter) -> None:
    publish(writer, {"full/sub": Folder(0o755)})
    ops = right(writer, full=None, full__a=None, full__b=None)
    refused(writer, *ops, Op("full/sub/x", None, file()), match="full is removed and not empty")


def test_a_removal_in_a_folder_that_is_not_there_is_refused(writer: ReplicaWriter) -> None:
    refused(writer, Op("none/x", Digest.of(b"x"), None), match="its folder none is not", path="none/x")


def test_a_folder_may_come_back_after_it_went(writer: ReplicaWriter) -> None:
    publish(writer, {"folder": None})
    publish(writer, {"folder/x": file()})
    assert everything(writer, 3)["folder"] == Folder(0o755)


# -- versions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["plate/v001/new", "plate/v001/sub/new", "plate/v001/new/deep/er"])
def test_nothing_is_added_to_a_version_that_is_there(writer: ReplicaWriter, path: str) -> None:
    refused(writer, Op(path, None, file()), match="write-once", path=path)


@pytest.mark.parametrize("path", ["plate/v001/a.exr", "plate/v001/sub/b.exr"])
def test_nothing_is_replaced_in_a_version_that_is_there(writer: ReplicaWriter, path: str) -> None:
    for post in (file(b"new"), Link("x")):
        refused(writer, *ops_of(writer, {path: post}), match="write-once", path=path)


@pytest.mark.parametrize("path", ["plate/v001", "plate/v001/sub"])
def test_no_mode_changes_on_or_in_a_version_that_is_there(writer: ReplicaWriter, path: str) -> None:
    refused(writer, *ops_of(writer, {path: Folder(0o500)}), match="write-once", path=path)


def test_an_older_version_is_no_more_open_than_the_newest(writer: ReplicaWriter) -> None:
    publish(writer, {"plate/v002/a.exr": file()})
    refused(writer, Op("plate/v001/x", None, file()), match="write-once")


def test_a_version_within_a_new_version_is_open(writer: ReplicaWriter) -> None:
    publish(writer, {"plate/v002/v001/a": file(), "plate/v002": Folder(0o555), "plate/v002/b": file()})
    refused(writer, Op("plate/v002/v002/a", None, file()), match="write-once")


def test_a_version_can_be_removed_and_is_free_then(writer: ReplicaWriter) -> None:
    publish(writer, {path: None for path in everything(writer, 1) if path.startswith("plate/v001")})
    publish(writer, {"plate/v001/a.exr": file(b"again")})
    assert everything(writer, 3)["plate/v001/a.exr"] == file(b"again")


def test_a_version_is_not_removed_and_filled_in_one_publish(writer: ReplicaWriter) -> None:
    ops = ops_of(writer, {path: None for path in everything(writer, 1) if path.startswith("plate/v001")})
    ops.append(Op("plate/v001/x", None, file()))
    refused(writer, *sorted(ops, key=lambda op: op.path), match="write-once")


@pytest.mark.parametrize("name", ["v1", "v01", "v001a", "V001", "latest"])
def test_what_is_not_named_like_a_version_is_open(writer: ReplicaWriter, name: str) -> None:
    publish(writer, {f"other/{name}/a": file()})
    publish(writer, {f"other/{name}/b": file()})


def test_a_file_named_like_a_version_is_an_ordinary_file(writer: ReplicaWriter) -> None:
    publish(writer, {"other/v001": file(b"1")})
    publish(writer, {"other/v001": file(b"2")})


# -- names that look the same ---------------------------------------------------------------------------------------

NFC, NFD = "caf\u00e9", "cafe\u0301"


@pytest.mark.parametrize(("first", "second"), [(NFC, NFD), (NFD, NFC), ("\u212a", "K"), ("K", "\u212a")])
def test_a_name_that_looks_like_a_sibling_is_refused(writer: ReplicaWriter, first: str, second: str) -> None:
    publish(writer, {f"full/{first}": file()})
    refused(writer, Op(f"full/{second}", None, file()), match="equal under NFC")
    refused(writer, Op(f"full/{second}/x", None, file()), match="equal under NFC")


def test_two_new_names_that_look_the_same_are_refused(writer: ReplicaWriter) -> None:
    refused(writer, Op(f"new/{NFD}", None, file()), Op(f"new/{NFC}", None, file()), match="equal under NFC")
    refused(writer, Op(f"{NFD}/x", None, file()), Op(f"{NFC}/x", None, file()), match="equal under NFC")


def test_two_names_that_look_the_same_are_refused_when_neither_is_in_nfc(writer: ReplicaWriter) -> None:
    one, two = "\u1e0b\u0323", "d\u0323\u0307"
    refused(writer, Op(two, None, file()), Op(one, None, file()), match="equal under NFC")
    publish(writer, {one: file()})
    refused(writer, Op(two, None, file()), match="equal under NFC")


def test_the_same_name_in_two_folders_may_be_spelt_differently(writer: ReplicaWriter) -> None:
    publish(writer, {f"a/{NFC}": file(), f"b/{NFD}": file()})


def test_a_name_may_be_respelt(writer: ReplicaWriter) -> None:
    publish(writer, {f"a/{NFD}": file(b"1")})
    publish(writer, {f"a/{NFD}": file(b"2")})
    publish(writer, {f"a/{NFD}": None, f"a/{NFC}": file()})
    publish(writer, {f"a/{NFC}": None, f"a/{NFD}": file()})


def test_letters_of_two_sizes_are_two_names(writer: ReplicaWriter) -> None:
    publish(writer, {"a/Plate": file(), "a/plate": file()})


# -- entries --------------------------------------------------------------------------------------------------------


def entry_refused(
    writer: ReplicaWriter, publish_: Publish, error: type[DamfsError], match: str, **changed: object
) -> None:
    before = dump(writer)
    entry = replace(publish_.entry, **changed)  # type: ignore[arg-type]
    with pytest.raises(error, match=match):
        writer.apply_entry(b"stored", entry, "key", ChangesetReader(publish_.compressed))
    assert dump(writer) == before


@pytest.mark.parametrize("seq", [1, 3, 4000])
def test_an_entry_out_of_turn_is_refused(writer: ReplicaWriter, seq: int) -> None:
    made = make(writer, [Op("new", None, file())])
    entry_refused(writer, made, Conflict, "where 2 comes next", seq=seq)
    with pytest.raises(Conflict, match="where 2 comes next"):
        writer.apply_noop(seq, Digest.of(b"x"), "reason")


def test_an_entry_that_chains_to_something_else_is_refused(writer: ReplicaWriter) -> None:
    made = make(writer, [Op("new", None, file())])
    entry_refused(writer, made, Conflict, "chains to", prev=Digest.of(b"else"))
    entry_refused(writer, made, Conflict, "chains to", prev=builders.genesis())


def test_an_entry_of_another_show_is_refused(writer: ReplicaWriter) -> None:
    made = make(writer, [Op("new", None, file())])
    entry_refused(writer, made, FormatError, "of show gemini", show="gemini")


def test_a_repeated_publish_id_is_refused(writer: ReplicaWriter) -> None:
    (info,) = writer.revisions(1, 2)
    again = make(writer, [Op("new", None, file())], publish_id=info.publish_id)
    before = dump(writer)
    with pytest.raises(Conflict, match="already, as revision 1"):
        builders.apply(writer, again)
    with pytest.raises(Conflict, match="already, as revision 1"):
        writer.check(Header(builders.SHOW, info.publish_id, ""), [Op("new", None, file())])
    assert dump(writer) == before


def test_an_entry_with_the_changeset_of_another_publish_is_refused(writer: ReplicaWriter) -> None:
    made = make(writer, [Op("new", None, file())])
    entry_refused(writer, made, FormatError, "another publish", publish_id="f" * 32)


def test_a_changeset_of_another_show_is_refused(writer: ReplicaWriter) -> None:
    made = make(writer, [Op("new", None, file())])
    _, compressed = compress_changeset(Header("gemini", made.entry.publish_id, ""), [Op("new", None, file())])
    entry_refused(writer, made._replace(compressed=compressed), FormatError, "another publish")
    with pytest.raises(FormatError, match="of show gemini"):
        writer.check(Header("gemini", "f" * 32, ""), [Op("new", None, file())])


def test_a_changeset_that_breaks_a_rule_behind_a_thousand_good_lines_leaves_nothing(writer: ReplicaWriter) -> None:
    lines = [builders.changeset_line(f"d/{i:05}") for i in range(9000)] + [builders.changeset_line("d/x/..")]
    made = make(writer, [Op("new", None, file())])
    header = b'{"_type":"damfs.change/1","publish_id":"%s","scope":"","show":"apollo"}' % made.entry.publish_id.encode()
    entry_refused(writer, made._replace(compressed=builders.plain(*lines, header=header)), FormatError, "not allowed")
    publish(writer, {"d/x": file()})
    assert writer.head == 2


@pytest.mark.parametrize("path", ["/x", "../x", "full/../x", "full//x", "x\0", "", "full/" + "x" * 256])
def test_a_hostile_path_is_refused_at_check_too(writer: ReplicaWriter, path: str) -> None:
    with pytest.raises(FormatError):
        writer.check(Header(builders.SHOW, "f" * 32, ""), [Op(path, None, file())])


def test_ops_outside_their_scope_are_refused_at_check_too(writer: ReplicaWriter) -> None:
    with pytest.raises(FormatError, match="scope"):
        writer.check(Header(builders.SHOW, "f" * 32, "full"), [Op("fuller", None, file())])


def test_more_bytes_than_can_be_counted_are_refused(writer: ReplicaWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    assert INTEGER_MAX == 2**63 - 1
    monkeypatch.setattr(rows, "INTEGER_MAX", 10 * FILE_BYTES_MAX)  # 65,536 files of 128 TiB take a while
    publish(writer, {f"h/{i}": builders.large_file(str(i), FILE_BYTES_MAX) for i in range(6)})
    more = make(writer, [Op(f"i/{i}", None, builders.large_file(str(i), FILE_BYTES_MAX)) for i in range(6)])
    with pytest.raises(FormatError, match="more than can be counted"):
        builders.apply(writer, more)
    assert writer.head == 2


# -- what is the same in all replicas -------------------------------------------------------------------------------


def test_failed_and_checked_changesets_consume_no_ids(tmp_path: Path) -> None:
    clean, busy = builders.open_writer(tmp_path, "clean.db"), builders.open_writer(tmp_path, "busy.db")
    with clean, busy:
        for number in range(4):
            made = make(clean, ops_of(clean, {f"d{number}/a": file(b"%d" % number), "tag": Link(f"d{number}")}))
            with pytest.raises(Conflict):
                busy.check(
                    Header(builders.SHOW, "e" * 32, ""), [Op("x/y", None, file()), Op("x/z", Digest.of(b""), None)]
                )
            busy.check(Header(builders.SHOW, "f" * 32, ""), [Op("some/thing", None, file(b"checked"))])
            with pytest.raises(Conflict):
                builders.apply(busy, make(busy, [Op("x/y", None, file()), Op("x/z", Digest.of(b""), None)]))
            busy.apply_entry(made.stored, made.entry, "key", ChangesetReader(made.compressed), commit=False)
            for writer in (clean, busy):
                builders.apply(writer, made)
        assert dump(busy) == dump(clean)


def test_the_rows_do_not_depend_on_how_the_stream_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: dict[str, Post | None] = {f"d{i % 7}/f{i}": file(b"%d" % i) for i in range(300)}
    changes |= {f"d{i}-x": Link("d") for i in range(7)} | {"d0": Folder(0o711), "d1/f1": builders.large_file()}
    first, second = builders.open_writer(tmp_path, "a.db"), builders.open_writer(tmp_path, "b.db")
    with first, second:
        one = make(first, ops_of(first, changes))
        builders.apply(first, one)
        two = make(
            first,
            ops_of(first, {path: None if "3" in path else file(path.encode()) for path in changes if "/" in path}),
        )
        builders.apply(first, two)
        monkeypatch.setattr(rows, "_BATCH_ROWS", 3)
        monkeypatch.setattr(rows, "_BATCH_CONTENTS_BYTES", 1000)
        monkeypatch.setattr("manifest.changeset._BLOCK_BYTES", 700)
        builders.apply(second, one)
        builders.apply(second, two)
        assert dump(second) == dump(first)


def test_ops_and_their_stream_are_checked_alike(writer: ReplicaWriter) -> None:
    ops = ops_of(writer, {"file": file(b"2"), "full/a": None, "new/x": file()})
    header = Header(builders.SHOW, "f" * 32, "")
    before = dump(writer)
    writer.check(header, ops)
    writer.check(header, ChangesetReader(compress_changeset(header, ops)[1]))
    assert dump(writer) == before


# -- the file -------------------------------------------------------------------------------------------------------


def test_readers_see_all_of_an_entry_or_nothing(writer: ReplicaWriter) -> None:
    made = make(writer, [Op(f"n/{i:05}", None, file(b"%d" % i)) for i in range(20_000)])
    seen: set[tuple[int, int]] = set()
    done = threading.Event()

    def watch() -> None:
        with Replica.open_reader(writer.path) as reader:
            while not done.is_set():
                head = reader.head
                seen.add((head, len(reader.list(0, 99, limit=99))))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        builders.apply(writer, made)
        time.sleep(0.05)
    finally:
        done.set()
        thread.join()
    top = len(writer.list(0, 1, limit=99))
    assert seen <= {(1, top), (1, top + 1), (2, top + 1)}  # a commit may fall between the two questions
    assert (2, top + 1) in seen


def test_a_large_entry_is_taken_out_of_the_write_ahead_log(
    writer: ReplicaWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apply, "CHECKPOINT_OPS", 1000)
    publish(writer, {f"n/{i:05}": file(b"%d" % i) for i in range(2000)})
    assert Path(f"{writer.path}-wal").stat().st_size == 0


def test_a_process_that_dies_while_applying_leaves_the_revision_before(tmp_path: Path) -> None:
    with builders.open_writer(tmp_path) as writer:
        publish(writer, EXISTING)
        before = dump(writer)
    other = ReplicaWriter.open(
        tmp_path / "apollo.db", builders.SHOW, trust=builders.TRUST.digest, library_id=builders.LIBRARY_ID
    )
    other._execute("BEGIN IMMEDIATE")
    lines = [line_of(Op(f"x/{i}", None, file(b"%d" % i))) for i in range(100)]
    rows.Namespace(other._connection, other, 2).apply([lines])
    other.close()  # as a process that dies: nothing was committed
    with builders.open_writer(tmp_path) as writer:
        assert dump(writer) == before
        publish(writer, {"x/0": file()})


def test_a_disk_that_is_full_is_an_error_of_this_machine_and_leaves_nothing(writer: ReplicaWriter) -> None:
    before = dump(writer)
    (pages,) = writer._execute("PRAGMA page_count").fetchone()
    writer._execute(f"PRAGMA max_page_count = {pages + 2}")
    made = make(writer, [Op(f"n/{i:05}", None, file(b"%d" % i)) for i in range(5000)])
    with pytest.raises(ConfigurationError, match="cannot be written: database or disk is full"):
        builders.apply(writer, made)
    assert dump(writer) == before
    writer._execute("PRAGMA max_page_count = 1000000")
    builders.apply(writer, made)
    assert writer.head == 2


def test_a_replica_that_another_process_holds_is_an_error_of_this_machine(
    writer: ReplicaWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(writer, [Op("new", None, file())])
    writer._execute("PRAGMA busy_timeout = 50")
    holder = sqlite3.connect(writer.path, isolation_level=None)
    try:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(ConfigurationError, match="locked"):
            builders.apply(writer, made)
    finally:
        holder.close()
    builders.apply(writer, made)


# -- speed: ratios, no times ----------------------------------------------------------------------------------------


def many(count: int) -> tuple[Digest, bytes]:
    """A changeset of so many new files in folders of a thousand."""
    ops = (Op(f"seq{i // 1000:04}/plate.{i % 1000:04}.exr", None, file(b"%d" % i)) for i in range(count))
    return compress_changeset(Header(builders.SHOW, "0" * 32, ""), ops)


def apply_many(writer: ReplicaWriter, change: Digest, compressed: bytes) -> None:
    entry = replace(make(writer, [Op("x", None, file())], publish_id="0" * 32).entry, change=change)
    writer.apply_entry(seal(entry, KEY), entry, KEY.keyid, ChangesetReader(compressed))


def cpu(call: Callable[[], object]) -> float:
    begun = time.process_time()
    call()
    return time.process_time() - begun


@pytest.mark.alone
@pytest.mark.timeout(120)
def test_applying_takes_at_most_three_times_a_plain_executemany_of_the_same_rows(tmp_path: Path) -> None:
    change, compressed = many(60_000)
    ratios = []
    for attempt in range(3):
        with (
            builders.open_writer(tmp_path, f"ours{attempt}.db") as ours,
            builders.open_writer(tmp_path, f"plain{attempt}.db") as plain,
        ):
            taken = cpu(lambda writer=ours: apply_many(writer, change, compressed))  # type: ignore[misc]
            tables = dump(ours)
            begun = time.process_time()
            plain._execute("BEGIN")
            for table, values in tables.items():
                if values:
                    marks = ", ".join("?" * len(values[0]))
                    plain._connection.executemany(f"INSERT INTO {table} VALUES ({marks})", values)
            plain._execute("COMMIT")
            plain._checkpoint()
            ratios.append(taken / (time.process_time() - begun))
            assert dump(plain) == tables
    assert min(ratios) < 3, ratios


def peak_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def test_memory_stays_bounded_while_applying(tmp_path: Path) -> None:
    _, compressed = many(200_000)
    with builders.open_writer(tmp_path) as writer:
        Path("/proc/self/clear_refs").write_text("5")  # begin the peak anew, see proc(5)
        before = peak_mib()
        apply_many(writer, Digest.of(b"x"), compressed)
        assert peak_mib() - before < 110


def test_no_call_holds_the_interpreter_for_long_while_applying(tmp_path: Path) -> None:
    """What a waiting event loop sees: the CPU time that the applying thread uses up without giving way."""
    change, compressed = many(60_000)
    longest = 0.0
    done = threading.Event()

    def work() -> None:
        with builders.open_writer(tmp_path) as writer:
            apply_many(writer, change, compressed)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    clock = time.pthread_getcpuclockid(thread.ident or 0)
    while not done.is_set():
        begun = time.clock_gettime(clock)
        time.sleep(0.001)  # gives the interpreter up and takes it again
        if done.is_set():
            break
        longest = max(longest, time.clock_gettime(clock) - begun)
    thread.join()
    print(f"longest turn: {longest * 1000:.1f} ms")
    assert longest < 0.05, longest
