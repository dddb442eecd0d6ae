"""Changesets: what is written is read, and nothing else is. One attack a test."""

from __future__ import annotations

import json
import re
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from manifest import canonical, changeset, ops
from manifest.changeset import (
    CHANGESET_BYTES_MAX,
    ChangesetReader,
    File,
    Folder,
    Header,
    Link,
    Op,
    compress_changeset,
    encode_op,
    encode_post,
    scope_of,
)
from manifest.digest import EMPTY_DIGEST, Digest
from manifest.errors import DigestMismatch, FormatError, NewerFormat
from manifest.names import check_path
from manifest.ops import Order, op_of, parse_lines, parse_op
from manifest.recipe import CHUNK_BYTES_MAX, Recipe
from tests.manifest import builders

if TYPE_CHECKING:
    from collections.abc import Callable

HEADER = Header("apollo", "0" * 32, "")
A = "b3:" + "aa" * 32
B = "b3:" + "bb" * 32


def op_line(path: object = "a", post: object = None, pre: object = None) -> bytes:
    return canonical.encode({"path": path, "post": post, "pre": pre})


def file_post(**changed: object) -> dict[str, Any]:
    post = {"digest": A, "kind": "file", "mode": 0o644, "mtime_ns": 1, "recipe": [[A, 7]], "size": 7}
    return {**post, **changed}


def file_line(path: object = "a", **changed: object) -> bytes:
    return op_line(path, file_post(**changed))


def read(*lines: bytes, header: bytes | None = None) -> list[Op]:
    return list(ChangesetReader(builders.plain(*lines, header=header)))


def refused(*lines: bytes, match: str | None = None, header: bytes | None = None) -> None:
    with pytest.raises(FormatError, match=match):
        read(*lines, header=header)


# -- what is written is read ----------------------------------------------------------------------------------------


def test_every_kind_of_op_is_read_as_it_was_written() -> None:
    written = [
        Op("a", None, builders.file(b"")),
        Op("b", None, builders.file(b"one chunk")),
        Op("c", Digest.of(b"before"), builders.file(b"x" * 5000)),
        Op("d", None, builders.large_file()),
        Op("e", None, Link("../elsewhere")),
        Op("f", None, Folder(0o700)),
        Op("g", Digest.of(b"before"), None),
        Op('h/ü "quoted" \\ \t\x7f\u2028😀', None, builders.file(b"odd name")),
    ]
    digest, compressed = compress_changeset(HEADER, written)
    ChangesetReader.verify(compressed, digest)
    reader = ChangesetReader(compressed)
    assert reader.header == HEADER
    assert list(reader) == written
    assert list(reader) == written


def test_the_digest_is_that_of_the_plain_lines() -> None:
    written = [Op("a", None, builders.file()), Op("b", None, Link("a"))]
    digest, compressed = compress_changeset(HEADER, written)
    lines = changeset.encode_header(HEADER) + b"".join(map(encode_op, written))
    assert zstandard.ZstdDecompressor().decompressobj().decompress(compressed) == lines
    assert digest == Digest.of(lines)


def test_a_line_is_canonical_json() -> None:
    for post in (builders.file(b"x" * 3000), builders.large_file(), Link("é/\n"), Folder(0o755), None):
        line = encode_op(Op("é\n", Digest.of(b""), post))
        assert canonical.encode(json.loads(line)) + b"\n" == line


def test_what_a_later_op_gives_as_pre_is_the_digest_of_the_canonical_post() -> None:
    assert encode_post(Folder(0o755)) == b'{"kind":"dir","mode":493}'
    assert encode_post(Link("v001")) == b'{"kind":"link","target":"v001"}'
    assert encode_post(builders.file(b"abc", mode=0o600, mtime_ns=5)) == canonical.encode(
        {
            "digest": str(Digest.of(b"abc")),
            "kind": "file",
            "mode": 0o600,
            "mtime_ns": 5,
            "recipe": [[str(Digest.of(b"abc")), 3]],
            "size": 3,
        }
    )


@pytest.mark.parametrize(
    ("paths", "scope"),
    [
        (["a"], ""),
        (["a/b"], "a"),
        (["a/b", "a/b/c"], "a"),
        (["a/b/c", "a/b/d"], "a/b"),
        (["a/bc", "a/bd"], "a"),
        (["a/b/x", "a/b-c/y"], "a"),
        (["a/b/x", "c"], ""),
    ],
)
def test_the_scope_is_the_deepest_folder_above_all_ops(paths: list[str], scope: str) -> None:
    assert scope_of(paths) == scope


# -- both ways of reading -------------------------------------------------------------------------------------------


def one_by_one(lines: list[str]) -> list[Op]:
    """The definition: every line the slow way, then the order and the scope."""
    order = Order("")
    found = []
    for line in lines:
        op = parse_op(line)
        order.take(op.path)
        found.append(op)
    return found


def damaged(line: str, damage: tuple[str, str], which: int) -> str:
    """The line with one of the places where the old text stands changed to the new one."""
    old, new = damage
    places = [match.start() for match in re.finditer(re.escape(old), line)] if old else []
    if not places:
        return line
    at = places[which % len(places)]
    return line[:at] + new + line[at + len(old) :]


def outcome(parse: Callable[[], list[Op]]) -> object:
    try:
        return parse()
    except FormatError:
        return "refused"


def fast(lines: list[str]) -> list[Op]:
    return [op_of(line) for line in parse_lines("".join(line + "\n" for line in lines), Order(""))]


GOOD = file_line("seq/sh010/plate.1001.exr").decode()
RECIPES: list[list[tuple[str, int]]] = [
    [(A, 7), (B, 1)],
    [(B, 7), (B, 16777216), (A, 10), (B, 7)],
    [(B, 16777216), *[(A, n + 1) for n in range(63)]],
    [(A, n + 1) for n in range(65)],
]
SEVERAL = [
    file_line("seq/sh010/plate.1001.exr", recipe=recipe, size=sum(length for _, length in recipe)).decode()
    for recipe in RECIPES
]
OTHERS = [
    file_line("seq/sh010/plate.1001.exr", digest=str(EMPTY_DIGEST), recipe=[], size=0).decode(),
    file_line("seq/sh010/plate.1001.exr", recipe=B, size=65).decode(),
    op_line("seq/sh010/plate.1001.exr", {"kind": "link", "target": "../elsewhere"}).decode(),
    op_line("seq/sh010/plate.1001.exr", {"kind": "link", "target": "é/😀"}).decode(),
    op_line("seq/sh010/plate.1001.exr", {"kind": "dir", "mode": 0o755}).decode(),
    op_line("seq/sh010/plate.1001.exr").decode(),
]
DAMAGE = st.one_of(
    st.just(("", "")),
    st.tuples(
        st.sampled_from(
            ["0", "7", "420", "1", '"', ",", ":", "[", "]", "{", "}", "null", "b3:", "aa", "plate", "/", "file", "size"]
        ),
        st.sampled_from(
            [
                "",
                "00",
                "-0",
                "07",
                "8",
                "1.0",
                "1e3",
                " ",
                "\\",
                '"',
                "\\u0000",
                "\\u0061",
                "..",
                "/",
                "//",
                ".",
                "é",
                "A",
                "9" * 8,
                "9" * 19,
                "9" * 400,
                "511",
                "512",
                "9223372036854775807",
                "9223372036854775808",
                "true",
                "null",
                "16777216",
                "16777217",
                "\x7f",
                "\u2028",
                "x" * 256,
                "a/" * 600,
                "b3:" + "bb" * 32,
                "\ufeff",
            ]
        ),
    ),
)
CHUNK_PIECES = [
    '["b3:', '",', "],", "]],", ",", "[", "]", '"', "b3:", "a", "aa", "b", "bb", "7", "1", "10", "16777216", "16777217",
    "0", "", '","size":', '],["b3:' + "bb" * 32 + '",7', '["b3:' + "aa" * 32 + '",1],', '["b3:' + "AA" * 32 + '",1],',
    '"size":8', '"size":9', '"size":16777240', ":", "\n",
]  # fmt: skip
PATH_TEXT = st.text(
    st.one_of(st.sampled_from('a.b/"\\\x01\n\x7f é😀-'), st.characters(codec="utf-8")), min_size=0, max_size=12
)


@settings(max_examples=600, deadline=None)
@given(damage=DAMAGE, which=st.integers(0, 12), path=st.none() | PATH_TEXT)
@example(damage=("", ""), which=0, path="a/../b")
@example(damage=("", ""), which=0, path="/a")
@example(damage=("7", "16777217"), which=0, path=None)
def test_the_fast_reader_accepts_and_produces_exactly_what_the_slow_one_does(
    damage: tuple[str, str], which: int, path: str | None
) -> None:
    line = GOOD if path is None else file_line(path).decode()
    line = damaged(line, damage, which)
    lines = [line_ for line_ in line.split("\n") if line_]
    assert outcome(lambda: fast(lines)) == outcome(lambda: one_by_one(lines))


@settings(max_examples=1500, deadline=None)
@given(
    line=st.sampled_from(SEVERAL),
    damage=DAMAGE | st.tuples(st.sampled_from(CHUNK_PIECES), st.sampled_from(CHUNK_PIECES)),
    which=st.integers(0, 200), pre=st.sampled_from([None, A]),
)  # fmt: skip
@example(line=SEVERAL[0], damage=("", ""), which=0, pre=None)
@example(line=SEVERAL[3], damage=("", ""), which=0, pre=None)
@example(line=SEVERAL[1], damage=("16777216", "16777217"), which=0, pre=None)
@example(line=SEVERAL[0], damage=("7],", "07],"), which=0, pre=A)
def test_several_chunks_are_read_fast_exactly_as_slowly(
    line: str, damage: tuple[str, str], which: int, pre: str | None
) -> None:
    if pre is not None:
        line = line.replace('"pre":null', f'"pre":"{pre}"')
    line = damaged(line, damage, which)
    lines = [line_ for line_ in line.split("\n") if line_]
    assert outcome(lambda: fast(lines)) == outcome(lambda: one_by_one(lines))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([A, B]), st.integers(0, 2**24 + 1) | st.just(1)), max_size=66),
    st.sampled_from([0, 0, 0, 1, -1]), st.sampled_from([A, B, str(EMPTY_DIGEST)]),
)  # fmt: skip
def test_a_recipe_of_any_length_is_read_alike_on_both_ways(
    chunks: list[tuple[str, int]], off: int, digest: str
) -> None:
    recipe = [[name, length] for name, length in chunks]
    line = file_line(recipe=recipe, size=sum(length for _, length in chunks) + off, digest=digest).decode()
    assert outcome(lambda: fast([line])) == outcome(lambda: one_by_one([line]))


@settings(max_examples=1500, deadline=None)
@given(line=st.sampled_from(OTHERS), damage=DAMAGE, which=st.integers(0, 12), pre=st.sampled_from([None, A]))
@example(line=OTHERS[0], damage=("size", "size"), which=0, pre=A)
@example(line=OTHERS[1], damage=("65", "64"), which=0, pre=None)
@example(line=OTHERS[2], damage=("elsewhere", "x" * 4096), which=0, pre=None)
@example(line=OTHERS[2], damage=("elsewhere", "é" * 2048), which=0, pre=None)
@example(line=OTHERS[4], damage=("493", "512"), which=0, pre=None)
@example(line=OTHERS[5], damage=("", ""), which=0, pre=None)
def test_every_kind_of_line_is_read_fast_exactly_as_slowly(
    line: str, damage: tuple[str, str], which: int, pre: str | None
) -> None:
    if pre is not None:
        line = line.replace('"pre":null', f'"pre":"{pre}"')
    line = damaged(line, damage, which)
    lines = [line_ for line_ in line.split("\n") if line_]
    assert outcome(lambda: fast(lines)) == outcome(lambda: one_by_one(lines))


@settings(max_examples=800, deadline=None)
@given(
    lines=st.lists(st.sampled_from([*SEVERAL[:3], *OTHERS[:5], GOOD]), min_size=2, max_size=6),
    at=st.integers(0, 5),
    damage=DAMAGE | st.tuples(st.sampled_from(CHUNK_PIECES), st.sampled_from(CHUNK_PIECES)),
    which=st.integers(0, 200),
)  # fmt: skip
@example(lines=SEVERAL[:2], at=0, damage=("}", ""), which=0)
@example(lines=SEVERAL[:2], at=1, damage=("8", "9"), which=0)
def test_lines_that_are_read_together_are_read_as_one_by_one(
    lines: list[str], at: int, damage: tuple[str, str], which: int
) -> None:
    named = [line.replace("seq/sh010/plate.1001.exr", f"seq/{i}") for i, line in enumerate(lines)]
    named[at % len(named)] = damaged(named[at % len(named)], damage, which)
    listed = [line for text in named for line in text.split("\n") if line]
    assert outcome(lambda: fast(listed)) == outcome(lambda: one_by_one(listed))


MOVED = [
    ('"b3:aa', '"ab3:a'), ('aa",', 'a",a'), ('aa",10],', 'a",a10],'), ('],["b3:', '],a["b3:'), ('],["b3:', ']a,["b3:'),
    ('["b3:', '[1"b3:'), ('",1],["b3:', '",["b3:1],'), ('"b3:b', '"3b:b'), ('"b3:bb', '"b3:b'), ('bb","', 'b","'),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new"), MOVED)
def test_a_letter_on_the_wrong_side_of_what_separates_chunks_is_refused(old: str, new: str) -> None:
    chunks = [["b3:" + "ba" * 32, 1], ["b3:" + "ab" * 32, 10], ["b3:" + "aa" * 32, 1], ["b3:" + "bb" * 32, 110]]
    line = file_line(recipe=chunks, size=122).decode()
    assert outcome(lambda: fast([line])) != "refused"
    start = line.index('"recipe"')
    for match in re.finditer(re.escape(old), line[start:]):
        at = start + match.start()
        for way in (one_by_one, fast):
            with pytest.raises(FormatError):
                way([line[:at] + new + line[at + len(old) :]])


def test_letters_moved_from_one_digest_to_the_next_are_refused() -> None:
    one, two = "b3:" + "1" * 63 + "b", "b3:" + "2" * 64
    line = file_line(recipe=[[one, 1], [two, 1]], size=2).decode()
    moved = line.replace(f'"{two}"', f'"3:{"2" * 64}1"')
    assert len(moved) == len(line)
    for way in (one_by_one, fast):
        with pytest.raises(FormatError):
            way([moved])


def test_whatever_damfs_writes_is_read_without_decoding_json(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [*SEVERAL[:3], *OTHERS[:5], GOOD]
    lines += [line.replace('"pre":null', f'"pre":"{A}"') for line in lines] + [OTHERS[5].replace("null}", f'"{A}"}}')]

    def refuse(line: str) -> Op:
        raise AssertionError(line)

    monkeypatch.setattr(ops, "parse_op", refuse)
    for line in lines:
        assert parse_lines(line + "\n", Order(""))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(["a", "a/b", "a/..", "a//b", "a/b/c", "b", "b/.", "/b", "c/", "..", "c/d", "c/e"])))
def test_the_fast_reader_keeps_the_rules_of_paths_and_order_whatever_comes_before(paths: list[str]) -> None:
    lines = [file_line(path).decode() for path in sorted(paths)]
    assert outcome(lambda: fast(lines)) == outcome(lambda: one_by_one(lines))


@settings(max_examples=300, deadline=None)
@given(PATH_TEXT)
def test_a_path_is_read_back_or_refused_on_both_ways(path: str) -> None:
    try:
        check_path(path)
    except FormatError:
        with pytest.raises(FormatError):
            encode_op(Op(path, None, builders.file()))
        refused(file_line(path))
        return
    assert [op.path for op in read(file_line(path))] == [path]


def test_lines_of_either_kind_may_alternate_over_many_blocks() -> None:
    written = [Op(f"d/{i:05}", None, builders.file(b"x" * (i % 3) * 700)) for i in range(5000)]
    _, compressed = compress_changeset(HEADER, written)
    assert list(ChangesetReader(compressed)) == written


# -- hostile paths --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["..", "a/..", "../a", "a/../b"])
def test_a_path_with_a_parent_component_is_refused(path: str) -> None:
    refused(file_line(path), match="not allowed")


def test_an_absolute_path_is_refused() -> None:
    refused(file_line("/etc/passwd"), match="not allowed")


def test_an_absolute_path_is_refused_behind_a_top_level_name() -> None:
    refused(file_line("!"), file_line("/x"), match="not allowed")


def test_an_empty_path_is_refused() -> None:
    refused(file_line(""))


@pytest.mark.parametrize("path", ["a//b", "a/", "a/./b", "."])
def test_an_empty_or_dot_component_is_refused(path: str) -> None:
    refused(file_line(path), match="not allowed")


def test_a_path_with_a_nul_is_refused() -> None:
    refused(file_line("a\0b"), match="NUL")


def test_a_component_of_300_bytes_is_refused() -> None:
    refused(file_line("a/" + "x" * 300), match="more than 255")


def test_a_component_of_86_three_byte_letters_is_refused() -> None:
    refused(file_line("a/" + "漢" * 86), match="more than 255")


def test_a_long_component_is_refused_behind_a_short_one_of_the_same_folder() -> None:
    refused(file_line("a/b"), file_line("a/c" + "x" * 255), match="more than 255")


def test_a_path_of_more_than_4095_bytes_is_refused() -> None:
    assert read(file_line("/".join(["abcdefg"] * 512)))
    refused(file_line("/".join(["abcdefg"] * 512) + "x"), match="at most 4095")


def test_a_path_with_a_lone_surrogate_is_refused() -> None:
    refused(file_line("a").replace(b'"a"', b'"\\ud800"'))


def test_a_path_that_is_not_utf_8_is_refused() -> None:
    refused(file_line("a").replace(b'"a"', b'"\xff"'), match="UTF-8")


def test_a_path_that_is_a_number_is_refused() -> None:
    refused(file_line(7))


# -- hostile order and scope ----------------------------------------------------------------------------------------


def test_unsorted_ops_are_refused() -> None:
    refused(file_line("b"), file_line("a"), match="sorted")


def test_a_path_that_comes_twice_is_refused() -> None:
    refused(file_line("a"), file_line("a"), match="sorted")


def test_a_path_that_comes_twice_as_a_folder_is_refused() -> None:
    refused(op_line("a", {"kind": "dir", "mode": 0}), op_line("a", {"kind": "dir", "mode": 0}), match="sorted")


def test_order_is_kept_over_the_border_of_two_blocks() -> None:
    lines = [file_line(f"d/{i:05}") for i in range(3000)]
    lines[2000], lines[2001] = lines[2001], lines[2000]
    refused(*lines, match="sorted")


def test_an_op_outside_the_scope_is_refused() -> None:
    header = canonical.encode({"_type": changeset.TYPE, "publish_id": "0" * 32, "scope": "seq/sh010", "show": "apollo"})
    assert read(file_line("seq/sh010/a"), header=header)
    refused(file_line("seq/sh0100/a"), header=header, match="outside the scope")


def test_the_scope_itself_is_outside_the_scope() -> None:
    header = canonical.encode({"_type": changeset.TYPE, "publish_id": "0" * 32, "scope": "seq", "show": "apollo"})
    refused(op_line("seq", {"kind": "dir", "mode": 0}), header=header, match="outside the scope")


def test_a_changeset_without_ops_is_refused_in_both_directions() -> None:
    refused(match="without ops")
    with pytest.raises(FormatError, match="without ops"):
        compress_changeset(HEADER, [])


def test_unsorted_ops_are_not_written() -> None:
    with pytest.raises(FormatError, match="sorted"):
        compress_changeset(HEADER, [Op("b", None, Link("x")), Op("a", None, Link("x"))])


# -- hostile JSON ---------------------------------------------------------------------------------------------------


def test_json_with_spaces_is_refused() -> None:
    refused(file_line().replace(b":", b": ", 1), match="canonical")


def test_json_with_keys_in_another_order_is_refused() -> None:
    refused(b'{"post":null,"path":"a","pre":"%s"}' % A.encode(), match="canonical")


def test_a_repeated_key_is_refused() -> None:
    refused(op_line("a", None, A).replace(b'{"path"', b'{"path":"b","path"'), match="canonical")


def test_a_letter_written_as_an_escape_is_refused() -> None:
    refused(file_line().replace(b'"a"', b'"\\u0061"'), match="canonical")


def test_an_unknown_key_is_refused() -> None:
    refused(canonical.encode({"path": "a", "post": None, "pre": A, "zzz": 1}), match="expected an object")


def test_an_unknown_key_of_a_post_is_refused() -> None:
    refused(op_line("a", {**file_post(), "uid": 0}), match="expected an object")


def test_an_unknown_kind_is_refused() -> None:
    refused(op_line("a", {"kind": "device", "mode": 0}), match="unknown kind")


@pytest.mark.parametrize("number", [b"7.0", b"7e0", b"NaN", b"Infinity", b"-0", b"007"])
def test_a_number_that_is_no_plain_integer_is_refused(number: bytes) -> None:
    refused(file_line().replace(b'"mtime_ns":1', b'"mtime_ns":' + number))


@pytest.mark.parametrize("digits", [19, 20, 5000])
def test_a_huge_integer_is_refused(digits: int) -> None:
    refused(file_line().replace(b'"mtime_ns":1', b'"mtime_ns":' + b"9" * digits))


def test_a_boolean_is_no_integer() -> None:
    refused(file_line(mode=True), match="mode")


def test_deeply_nested_json_is_refused() -> None:
    refused(b'{"path":"a","post":' + b"[" * 30000 + b"]" * 30000 + b',"pre":null}')


def test_a_line_of_more_than_64_kib_is_refused() -> None:
    refused(op_line("a", {"kind": "link", "target": "x" * 70000}))
    refused(op_line("a", {"kind": "link", "target": "x" * 700_000}), match="line of more than")


def test_an_empty_line_is_refused() -> None:
    refused(file_line("a"), b"", file_line("b"), match="empty line")


def test_a_last_line_without_its_newline_is_refused() -> None:
    whole = zstandard.ZstdDecompressor().decompress(builders.plain(file_line()))
    with pytest.raises(FormatError, match="ends within a line"):
        list(ChangesetReader(zstandard.compress(whole[:-1])))


def test_a_byte_order_mark_is_refused() -> None:
    refused(b"\xef\xbb\xbf" + file_line())


# -- hostile posts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o1000, 0o4755, -1])
def test_a_mode_beyond_the_permission_bits_is_refused(mode: int) -> None:
    refused(file_line(mode=mode), match=r"mode|range")


def test_a_folder_with_a_set_uid_bit_is_refused() -> None:
    refused(op_line("a", {"kind": "dir", "mode": 0o4755}), match="mode")


def test_a_negative_size_is_refused() -> None:
    refused(file_line(size=-7), match="size")


def test_a_time_before_1970_is_refused() -> None:
    refused(file_line(mtime_ns=-1), match="mtime")


def test_chunks_that_do_not_sum_to_the_size_are_refused() -> None:
    refused(file_line(recipe=[[A, 3], [B, 3]]), match="6 bytes, the file 7")


def test_one_chunk_of_another_length_than_the_file_is_refused() -> None:
    refused(file_line(size=8), match="7 bytes, the file 8")


def test_one_chunk_of_another_digest_than_the_file_is_refused() -> None:
    refused(file_line(recipe=[[B, 7]]), match="one chunk")


def test_an_empty_file_has_the_digest_of_nothing() -> None:
    assert read(file_line(digest=str(EMPTY_DIGEST), size=0, recipe=[]))
    refused(file_line(size=0, recipe=[]), match="emptiness")


def test_a_file_of_bytes_without_chunks_is_refused() -> None:
    refused(file_line(recipe=[]), match="0 bytes, the file 7")


def test_a_chunk_of_no_bytes_is_refused() -> None:
    refused(file_line(recipe=[[A, 7], [B, 0]]), match="chunk length")


def test_a_chunk_of_more_than_16_mib_is_refused() -> None:
    size = CHUNK_BYTES_MAX + 1
    refused(file_line(recipe=[[A, size]], size=size))


def test_65_inline_chunks_are_refused() -> None:
    assert read(file_line(recipe=[[A, 1]] * 64, size=64))
    refused(file_line(recipe=[[A, 1]] * 65, size=65), match="at most 64")


def test_a_recipe_object_for_so_few_bytes_that_it_must_be_inline_is_refused() -> None:
    assert read(file_line(recipe=B, size=65))
    refused(file_line(recipe=B, size=64), match="inline")


def test_a_file_larger_than_any_recipe_is_refused() -> None:
    refused(file_line(recipe=B, size=2**47 + 1), match="size")


@pytest.mark.parametrize("digest", ["aa" * 32, "b3:" + "AA" * 32, "b3:" + "aa" * 31, "sha256:" + "aa" * 32, 7, None])
def test_a_digest_in_another_spelling_is_refused(digest: object) -> None:
    refused(file_line(digest=digest), match="digest")


@pytest.mark.parametrize("chunk", [[A], [A, 7, 7], {"digest": A}, "x", [7, A]])
def test_a_chunk_that_is_no_pair_is_refused(chunk: object) -> None:
    refused(file_line(recipe=[chunk]))


@pytest.mark.parametrize("target", ["", "a\0b", "x" * 4096, 7, None])
def test_a_link_target_that_no_system_could_hold_is_refused(target: object) -> None:
    refused(op_line("a", {"kind": "link", "target": target}), match="link target")


def test_an_op_that_was_nothing_and_becomes_nothing_is_refused() -> None:
    refused(op_line("a", None, None), match="neither")


def test_what_could_not_be_read_is_not_written() -> None:
    chunk = Recipe.of([(Digest.of(b"x"), 1)])
    for post in (
        File(0o644, 2, 0, Digest.of(b"x"), chunk.content, chunk),
        File(0o644, 1, 0, Digest.of(b"y"), chunk.content, chunk),
        File(0o644, 1, 0, Digest.of(b"x"), Digest.of(b"?"), chunk),
        File(0o1644, 1, 0, Digest.of(b"x"), chunk.content, chunk),
        File(0o644, 1, -1, Digest.of(b"x"), chunk.content, chunk),
        File(0o644, 1, 0, Digest.of(b"x"), chunk.content, None),
        Link(""),
        Link("\ud800"),
        Folder(-1),
    ):
        with pytest.raises(FormatError):
            encode_op(Op("a", None, post))


# -- hostile headers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed",
    [
        {"_type": "damfs.change/0"},
        {"_type": "damfs.entry/1"},
        {"show": "Apollo"},
        {"show": ".."},
        {"publish_id": "0" * 31},
        {"publish_id": "A" * 32},
        {"scope": "/"},
        {"scope": "a/.."},
        {"scope": None},
        {"extra": 1},
    ],
)
def test_a_header_that_breaks_a_rule_is_refused(changed: dict[str, object]) -> None:
    header = {"_type": changeset.TYPE, "publish_id": "0" * 32, "scope": "", "show": "apollo", **changed}
    with pytest.raises(FormatError):
        ChangesetReader(builders.plain(file_line(), header=canonical.encode(header)))


def test_a_newer_header_is_told_apart() -> None:
    header = {"_type": "damfs.change/2", "whatever": 1}
    with pytest.raises(NewerFormat, match="a newer damfs is needed"):
        ChangesetReader(builders.plain(file_line(), header=canonical.encode(header)))


def test_nothing_is_no_changeset() -> None:
    for data in (b"", zstandard.compress(b""), zstandard.compress(b"\n")):
        with pytest.raises(FormatError):
            ChangesetReader(data)
    with pytest.raises(DigestMismatch):  # whoever verified it knows that it is one: that says nothing about it
        ChangesetReader(b"not zstd")


# -- hostile compression --------------------------------------------------------------------------------------------


def test_other_bytes_under_the_name_are_a_mismatch() -> None:
    _, compressed = compress_changeset(HEADER, [Op("a", None, Link("x"))])
    with pytest.raises(DigestMismatch, match="the stored bytes have the digest"):
        ChangesetReader.verify(compressed, Digest.of(b"other"))


def test_a_flipped_bit_is_a_mismatch() -> None:
    digest, compressed = compress_changeset(HEADER, [Op(f"{i:03}", None, builders.file(b"%d" % i)) for i in range(50)])
    for at in range(0, len(compressed), 7):
        damaged = bytearray(compressed)
        damaged[at] ^= 1
        try:
            ChangesetReader.verify(bytes(damaged), digest)
        except DigestMismatch:
            continue
        assert list(ChangesetReader(bytes(damaged))) == list(ChangesetReader(compressed))


def test_a_truncated_frame_is_a_mismatch() -> None:
    digest, compressed = compress_changeset(HEADER, [Op("a", None, builders.file())])
    for length in range(len(compressed)):
        with pytest.raises(DigestMismatch):
            ChangesetReader.verify(compressed[:length], digest)


def test_a_zip_bomb_is_refused_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changeset, "CHANGESET_BYTES_MAX", 64 * 1024**2)  # 2 GiB of zeros take seconds
    assert CHANGESET_BYTES_MAX == 2 * 1024**3
    compressor = zstandard.ZstdCompressor(level=3).compressobj()
    bomb = b"".join(compressor.compress(bytes(1024**2)) for _ in range(256)) + compressor.flush()
    assert len(bomb) < 100_000
    tracemalloc.start()
    try:
        with pytest.raises(DigestMismatch, match="plain bytes"):
            ChangesetReader.verify(bomb, Digest.of(b""))
        with pytest.raises(FormatError):
            ChangesetReader(bomb)
        assert tracemalloc.get_traced_memory()[1] < 8 * 1024**2
    finally:
        tracemalloc.stop()


def test_a_frame_that_asks_for_a_larger_window_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=27)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    large = compressor.compress(bytes(1024)) + compressor.flush()
    with pytest.raises(DigestMismatch, match="zstd"):
        ChangesetReader.verify(large, Digest.of(bytes(1024)))


def test_a_frame_that_announces_a_huge_content_is_refused() -> None:
    header = b"\x28\xb5\x2f\xfd" + b"\xe0" + (2**60).to_bytes(8, "little")
    with pytest.raises(DigestMismatch):
        ChangesetReader.verify(header + b"\x01\x00\x00", EMPTY_DIGEST)


@pytest.mark.parametrize("more", [b"x", b"garbage", zstandard.compress(b"more")])
def test_bytes_behind_the_frame_are_a_mismatch(more: bytes) -> None:
    digest, compressed = compress_changeset(HEADER, [Op("a", None, builders.file())])
    with pytest.raises(DigestMismatch):
        ChangesetReader.verify(compressed + more, digest)
