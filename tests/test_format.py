"""docs/FORMAT.md says what is stored: every example in it is proven, and nothing that is stored is missing from it.

The examples are taken out of the document; what they are compared with comes from the code, or (chunk boundaries, key
ids, signatures) from a second implementation that was written from the document's words.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import re
import sqlite3
import unicodedata
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

import pytest
import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cache.capacity import BLOCK_BYTES, span_charge
from cache.files import ObjectFiles
from cache.index import Index, ObjectRow
from cache.lock import FolderLock
from cache.owner import Owner, bind
from cache.small import small_key
from daemon import job_list, offline, pin_list, recorded
from daemon.job_list import JobRecord
from daemon.pin_list import Pin
from daemon.recorded import TracedFile
from daemon.remembered import Remembered
from daemon.wants import Want
from manifest import canonical, layout
from manifest.changeset import (
    CHANGESET_BYTES_MAX,
    FILE_BYTES_MAX,
    ChangesetReader,
    File,
    Folder,
    Link,
    Op,
    Post,
    compress_changeset,
    encode_header,
    encode_op,
    encode_post,
    post_digest,
)
from manifest.digest import EMPTY_DIGEST, Digest
from manifest.entry import ENVELOPE_BYTES_MAX, PAYLOAD_TYPE, Entry, decode_entry, encode_entry, genesis_prev, seal
from manifest.entry import open_envelope as open_stored
from manifest.identity import RULES, Identity, add_show, read_identity, show_exists, write_identity
from manifest.incoming import StallKind
from manifest.library import Library
from manifest.log import CHANGESET_STORED_BYTES_MAX
from manifest.names import REVISION_MAX, nfc
from manifest.recipe import CHUNK_BYTES_MAX, CHUNKS_MAX, MAGIC, Recipe
from manifest.schema import connect_writer
from manifest.show import Show
from manifest.trust import PinnedKeys, SigningKey
from tools.publish.chunk import RANDOM, STREAM, Cutter, Profile
from tools.publish.journal import Journal, Record, Subject
from tools.publish.source import Fingerprint
from vfs import inodes
from vfs.inodes import Slots

TEXT = (Path(__file__).resolve().parent.parent / "docs" / "FORMAT.md").read_text()
PROSE = " ".join(TEXT.split())
"""The document without its line breaks."""
SHOW = "apollo"
URL = "s3://studio-assets/dam"
MIB = 1024 * 1024

# -- the document ---------------------------------------------------------------------------------------------------


_MARKED = re.compile(r"^```(\w+) (?:example|schema)=([\w-]+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [(match[1], match[2], match[3].splitlines()) for match in _MARKED.finditer(TEXT)]
"""The marked code blocks: kind (text, hex, digests, lengths, rows, sql), name and lines."""


def lines_of(name: str, *kinds: str) -> tuple[str, list[str]]:
    """The kind and the lines of the one block of this name and of one of these kinds."""
    (found,) = [(kind, lines) for kind, there, lines in BLOCKS if there == name and kind in kinds]
    return found


def example(name: str) -> bytes:
    """The bytes of an example."""
    kind, lines = lines_of(name, "text", "hex")
    return bytes.fromhex("".join(lines)) if kind == "hex" else "".join(lines).replace("⏎", "\n").encode()


def digests(name: str) -> dict[str, str]:
    return {name: digest for name, _, digest in (line.partition(" ") for line in lines_of(name, "digests")[1])}


def lengths(name: str) -> list[int]:
    return [int(number) for line in lines_of(name, "lengths")[1] for number in line.split()]


def rows(name: str) -> list[list[Any]]:
    text, at = "".join(lines_of(name, "rows")[1]), 0
    found: list[list[Any]] = []
    while at < len(text):
        row, at = json.JSONDecoder().raw_decode(text, at)
        found.append(row)
    return found


def tables(heading: str, column: str) -> list[set[str]]:
    """What the tables under a heading (or bold words) name, those whose first column is called ``column``."""
    found: list[set[str]] = []
    here = within = False
    for line in TEXT.splitlines():
        if line.startswith(("#", "**")):
            here = line.lstrip("#* ").startswith(heading)
        if not line.startswith("|"):
            within = False
        elif here and line.startswith(f"| {column} |"):
            found.append(set())
            within = True
        elif within and not line.startswith("|---"):
            found[-1].update(re.findall(r"`([^`]+)`", line.split("|")[1]))
    return found


def fields(heading: str) -> set[str]:
    """The fields of the only table of fields under a heading."""
    (only,) = tables(heading, "field")
    return only


def keys(data: bytes | dict[str, Any]) -> set[str]:
    return set(json.loads(data) if isinstance(data, bytes) else data)


def test_every_example_is_proven_here() -> None:
    assert len(BLOCKS) > 40
    assert sorted({(kind, name) for kind, name, _ in BLOCKS}) == sorted((kind, name) for kind, name, _ in BLOCKS)
    source = Path(__file__).read_text()
    assert [name for _, name, _ in BLOCKS if f'"{name}"' not in source] == []


# -- the example's library ------------------------------------------------------------------------------------------


def key(folder: Path) -> SigningKey:
    """The signing key that the document prints."""
    path = folder / "key.pem"
    if not path.exists():
        path.touch(0o600)
        path.write_bytes(example("pem"))
    return SigningKey.load(path)


def library_of(folder: Path, *stored: bytes) -> Library:
    """A library in a folder whose every byte is the document's; ``stored`` are its log."""
    objects = {
        "damfs.json": example("library"),
        "shows/apollo/show.json": example("show"),
        f"shows/apollo/changes/{Digest.parse(digests('changesets')['change-1']).hex()}": example("change-1-stored"),
        f"shows/apollo/changes/{Digest.parse(digests('changesets')['change-3']).hex()}": zstandard.compress(
            example("change-3")
        ),
        **{f"shows/apollo/log/{n:020d}": data for n, data in enumerate(stored, 1)},
    }
    for name, data in objects.items():
        path = folder / "library" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return Library.open((folder / "library").as_uri())


def follow(library: Library, folder: Path) -> Show:
    """The example's show, open and not yet followed."""
    trust = PinnedKeys.from_bytes(example("trust"))
    return Show.open(library, read_identity(library), trust, SHOW, folder / "replicas")


LOG = (example("stored-1"), example("stored-2"), example("stored-3"))
LIBRARY_ID: str = json.loads(example("library"))["id"]


# -- conventions, library -------------------------------------------------------------------------------------------


def test_the_canonical_example_is_canonical() -> None:
    data = example("canonical")
    assert canonical.encode(canonical.decode(data, bytes_max=1000)) == data
    expected = {"nothing": str(EMPTY_DIGEST), "canonical": str(Digest.of(data))}
    assert digests("canonical") == expected


@pytest.mark.parametrize("name", [name for kind, name, lines in BLOCKS if kind == "text" and lines[0].startswith("{")])
def test_every_line_of_json_is_canonical(name: str) -> None:
    for line in example(name).removesuffix(b"\n").split(b"\n"):
        canonical.decode(line, bytes_max=100_000)


def test_the_identity_and_the_show_are_as_the_code_reads_and_writes_them(tmp_path: Path) -> None:
    library = library_of(tmp_path)
    assert read_identity(library) == Identity(LIBRARY_ID)
    assert show_exists(library, SHOW)
    (tmp_path / "new").mkdir()
    new = Library.open((tmp_path / "new").as_uri())
    identity = write_identity(new)
    add_show(new, SHOW)
    assert new.get("damfs.json") == example("library").replace(LIBRARY_ID.encode(), identity.id.encode())
    assert new.get("shows/apollo/show.json") == example("show")
    assert keys(new.get("damfs.json")) == fields("damfs.json")
    assert keys(new.get("shows/apollo/show.json")) == fields("show.json")


def test_the_keys_of_the_objects_are_the_documented_ones() -> None:
    digest = Digest.of(b"")
    named = {"<show>": SHOW, "<n>": f"{7:020d}", "<hex>": digest.hex(), "<hex[:2]>": digest.hex()[:2]}
    documented = set()
    for pattern in tables("The library", "key")[0]:
        name = pattern
        for placeholder, value in named.items():
            name = name.replace(placeholder, value)
        documented.add(name)
    made = {
        layout.IDENTITY, layout.show_key(SHOW), layout.log_key(SHOW, 7), layout.change_key(SHOW, digest),
        layout.recipe_key(SHOW, digest), layout.chunk_key(SHOW, digest), f"{layout.PROBE}<16 hex>/{7:020d}",
    }  # fmt: skip
    assert documented == made


# -- contents -------------------------------------------------------------------------------------------------------


def test_the_recipe_and_its_content_id(tmp_path: Path) -> None:
    one, two = example("chunk-1"), example("chunk-2")
    recipe = Recipe.of([(Digest.of(one), len(one)), (Digest.of(two), len(two))])
    assert Recipe.from_object(example("recipe")) == recipe
    assert recipe.to_object() == example("recipe") == MAGIC + recipe.packed
    assert Recipe(b"").to_object() == example("empty-recipe")
    made = {"chunk-1": Digest.of(one), "chunk-2": Digest.of(two), "file": Digest.of(one + two),
            "recipe": recipe.content, "empty-recipe": Recipe(b"").content}  # fmt: skip
    assert digests("contents") == {name: str(digest) for name, digest in made.items()}


def gear_table() -> list[int]:
    return [int.from_bytes(hashlib.md5(bytes([i]) * 64, usedforsecurity=False).digest()[:8], "big") for i in range(256)]


def profiles() -> dict[str, list[int]]:
    """Minimum, average, maximum, mask S and mask L of each profile, as the document's table has them."""
    units = {"KiB": 1024, "MiB": MIB}
    size, mask = r"(\d+) (.iB)", r"`(0x\w+)`"
    found = {}
    for match in re.finditer(rf"^\| `(\w+)` \| {size} \| {size} \| {size} \| {mask} \| {mask} \|$", TEXT, re.MULTILINE):
        sizes = [int(match[group]) * units[match[group + 1]] for group in (2, 4, 6)]
        found[match[1]] = [*sizes, int(match[8], 16), int(match[9], 16)]
    return found


def second_cut(data: memoryview, limits: list[int], gear: list[int]) -> int:
    """The length of the first chunk, by the document's words."""
    minimum, average, maximum, mask_s, mask_l = limits
    if len(data) <= minimum:
        return len(data)
    n, h = min(len(data), maximum), 0
    normal = min(average, n) // 2 * 2
    for p in range(minimum, n // 2 * 2):
        h = (2 * h + gear[data[p]]) & 0xFFFFFFFFFFFFFFFF
        if not h & (mask_s if p < normal else mask_l):
            return p
    return n


@pytest.fixture(scope="module")
def chunking_input() -> bytes:
    return blake3(b"damfs chunking example\n").digest(length=24 * MIB)


@pytest.mark.parametrize(("profile", "size", "name"), [(STREAM, 24 * MIB, "stream"), (RANDOM, 4 * MIB, "random")])
def test_the_chunks_of_a_known_buffer(chunking_input: bytes, profile: Profile, size: int, name: str) -> None:
    data = memoryview(chunking_input)[:size]
    cuts = list(Cutter(profile, size).cut(data, last=True))
    assert [length for _, length in cuts] == lengths(name)
    recipe = Recipe.of((Digest.of(data[at : at + length]), length) for at, length in cuts)
    assert (str(recipe.content), recipe.size) == (digests("chunking")[name], size)
    assert str(Digest.of(chunking_input)) == digests("chunking")["first-24-MiB"]


@pytest.mark.parametrize(("name", "size", "count"), [("random", 4 * MIB, 20), ("stream", 24 * MIB, 2)])
def test_a_second_implementation_of_the_words_cuts_alike(
    chunking_input: bytes, name: str, size: int, count: int
) -> None:
    data, gear, limits = memoryview(chunking_input)[:size], gear_table(), profiles()[name]
    expected = lengths(name)[1 : 1 + count]
    at = lengths(name)[0]
    found: list[int] = []
    assert at == 65_536
    while at < size and len(found) < count:
        found.append(second_cut(data[at:], limits, gear))
        at += found[-1]
    assert found == expected


@pytest.mark.parametrize("profile", [STREAM, RANDOM])
@pytest.mark.parametrize("fill", [b"\0", b"\xff", b"damfs"])
def test_a_second_implementation_agrees_at_the_edges(profile: Profile, fill: bytes) -> None:
    limits, gear = profiles()[profile.name], gear_table()
    assert limits[:3] == [profile.min_bytes, profile.average_bytes, profile.max_bytes]
    for size in (1, profile.min_bytes, profile.min_bytes + 1, profile.min_bytes + 4097):
        data = (fill * size)[:size]
        # Small enough for no chunk of its own at the beginning, else cut behind it.
        start = 65_536 if size > MIB else 0
        cuts = [length for _, length in Cutter(profile, size).cut(memoryview(data), last=True)][bool(start) :]
        assert cuts[0] == second_cut(memoryview(data)[start:], limits, gear)


def test_the_rules_of_a_library_repeat_the_profiles() -> None:
    rules: Any = RULES["chunks"]
    for name, (minimum, average, maximum, *_) in profiles().items():
        assert rules[name] == {"min_bytes": minimum, "avg_bytes": average, "max_bytes": maximum}


# -- changesets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["change-1", "change-3"])
def test_a_changeset_is_read_and_made_as_it_stands(name: str) -> None:
    plain = example(name)
    reader = ChangesetReader(zstandard.compress(plain))
    digest, compressed = compress_changeset(reader.header, reader)
    assert zstandard.ZstdDecompressor().decompressobj().decompress(compressed) == plain
    assert str(digest) == digests("changesets")[name] == str(Digest.of(plain))
    ChangesetReader.verify(compressed, digest)
    assert encode_header(reader.header) + b"".join(map(encode_op, reader)) == plain


def test_the_stored_changeset_is_the_plain_one_compressed() -> None:
    stored = example("change-1-stored")
    ChangesetReader.verify(stored, Digest.parse(digests("changesets")["change-1"]))
    assert list(ChangesetReader(stored)) == list(ChangesetReader(zstandard.compress(example("change-1"))))


def test_pre_is_the_digest_of_the_post_before() -> None:
    first = {op.path: op.post for op in ChangesetReader(zstandard.compress(example("change-1")))}
    second = {op.path: op.pre for op in ChangesetReader(zstandard.compress(example("change-3")))}
    post = first["plate/latest"]
    assert post is not None
    assert encode_post(post) == example("post")
    assert second["plate/latest"] == post_digest(post) == Digest.of(example("post"))
    assert digests("changesets")["post"] == str(post_digest(post))


def test_every_field_of_a_changeset_is_documented() -> None:
    reader = ChangesetReader(example("change-1-stored"))
    assert keys(encode_header(reader.header)) == fields("The header of a changeset")
    assert keys(encode_op(next(iter(reader)))) == fields("Ops")
    posts: dict[str, Post] = {
        "A file": File(0o644, 0, 0, EMPTY_DIGEST, Recipe(b"").content, Recipe(b"")),
        "A symbolic link": Link("v001"),
        "A folder": Folder(0o755),
    }
    for heading, post in posts.items():
        assert keys(encode_post(post)) == fields(heading)


# -- entries --------------------------------------------------------------------------------------------------------


def test_the_entry_is_sealed_as_it_is_stored(tmp_path: Path) -> None:
    payload = example("entry-1")
    entry = decode_entry(payload)
    assert encode_entry(entry) == payload
    assert seal(entry, key(tmp_path)) == example("stored-1")
    assert entry.prev == genesis_prev(LIBRARY_ID, SHOW) == Digest.of(example("genesis"))
    assert keys(payload) == fields("The entry")


def test_the_signature_is_over_the_pre_authentication_encoding() -> None:
    envelope = json.loads(example("stored-1"))
    payload = base64.b64decode(envelope["payload"])
    assert payload == example("entry-1")
    pae = b"DSSEv1 %d %b %d %b" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)
    assert pae == example("pae-1")
    assert open_stored(example("stored-1")).signature == example("signature-1")
    public = json.loads(example("key"))["keyval"]["public"]
    Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(example("signature-1"), pae)
    assert keys(envelope) | keys(envelope["signatures"][0]) == fields("The envelope")


def test_the_chain_of_the_log() -> None:
    trust = PinnedKeys.from_bytes(example("trust"))
    named = digests("log")
    (first, keyid), (third, _) = trust.verify(LOG[0]), trust.verify(LOG[2])
    assert (str(first.prev), str(third.prev)) == (named["genesis"], named["stored-2"])
    assert [str(Digest.of(stored)) for stored in LOG] == [named[f"stored-{n}"] for n in (1, 2, 3)]
    assert str(first.change) == digests("changesets")["change-1"]
    assert str(third.change) == digests("changesets")["change-3"]
    assert keyid == digests("trust")["keyid"]


# -- from entries to revisions --------------------------------------------------------------------------------------


def test_the_log_comes_to_the_rows_of_the_document(tmp_path: Path) -> None:
    library = library_of(tmp_path, *LOG)
    with follow(library, tmp_path) as show:
        assert show.follower.advance().head == 3
    with closing(sqlite3.connect(show.path)) as connection:
        for table in ("entries", "contents", "revisions", "touched", "meta", "spellings"):
            cursor = connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2")
            names = [column[0] for column in cursor.description]
            found = [[value.hex() if isinstance(value, bytes) else value for value in row] for row in cursor]
            for row in found:
                if table == "revisions" and row[names.index("reason")]:
                    row[names.index("reason")] = "…"
            assert found == (rows(table) if table != "spellings" else [])


def test_an_invalid_entry_is_pending_until_a_valid_one_chains_to_it(tmp_path: Path) -> None:
    library = library_of(tmp_path, *LOG[:2])
    with follow(library, tmp_path) as show:
        progress = show.follower.advance()
        assert progress.head == 1
        assert progress.stalled is not None
        assert (progress.stalled.seq, progress.stalled.kind) == (2, "invalid")
        library.create(layout.log_key(SHOW, 3), LOG[2])
        assert show.follower.advance().head == 3
        assert [row.status for row in show.writer.revisions(1, 4)] == ["applied", "noop", "applied"]


def test_an_oversized_object_is_chained_to_by_its_beginning(tmp_path: Path) -> None:
    oversized = b"x" * 70_000
    stand_in = Digest.of(oversized[: ENVELOPE_BYTES_MAX + 1])
    assert str(stand_in) == digests("log")["oversized"]
    trust = PinnedKeys.from_bytes(example("trust"))
    third = trust.verify(LOG[2])[0]
    chained = Entry(SHOW, 3, stand_in, third.publish_id, third.change, third.author, third.message, third.time_ns)
    with follow(library_of(tmp_path, LOG[0], oversized, seal(chained, key(tmp_path))), tmp_path) as show:
        assert show.follower.advance().head == 3
        second = show.writer.revision(2)
        assert second is not None
        assert (second.status, second.entry_digest) == ("noop", stand_in)


def test_a_changeset_that_is_not_there_is_a_stall_and_no_verdict(tmp_path: Path) -> None:
    library = library_of(tmp_path, *LOG)
    library.delete(layout.change_key(SHOW, Digest.parse(digests("changesets")["change-3"])))
    with follow(library, tmp_path) as show:
        progress = show.follower.advance()
        assert progress.head == 2
        assert progress.stalled is not None
        assert (progress.stalled.seq, progress.stalled.kind) == (3, "unavailable")


def test_a_valid_entry_that_chains_to_other_bytes_says_rewritten(tmp_path: Path) -> None:
    with follow(library_of(tmp_path, LOG[0], b"other bytes", LOG[2]), tmp_path) as show:
        progress = show.follower.advance()
        assert progress.head == 1
        assert progress.stalled is not None
        assert (progress.stalled.seq, progress.stalled.kind) == (3, "rewritten")


def test_a_number_that_is_missing_before_a_valid_entry_is_a_stall(tmp_path: Path) -> None:
    library = library_of(tmp_path, *LOG)
    library.delete(layout.log_key(SHOW, 2))
    with follow(library, tmp_path) as show:
        progress = show.follower.advance()
        assert progress.head == 1
        assert progress.stalled is not None
        assert (progress.stalled.seq, progress.stalled.kind) == (2, "unavailable")


# -- trust and keys -------------------------------------------------------------------------------------------------


def test_the_trust_file_and_its_key(tmp_path: Path) -> None:
    trust = PinnedKeys.from_bytes(example("trust"))
    assert trust.to_bytes() == example("trust")
    assert trust.library_id == LIBRARY_ID
    described = json.loads(example("trust"))["keys"]
    assert canonical.encode(described[digests("trust")["keyid"]]) == example("key")
    keyid = hashlib.sha256(example("key")).hexdigest()
    assert digests("trust") == {"keyid": keyid, "trust": str(trust.digest)}
    signing = key(tmp_path)
    assert (signing.keyid, canonical.encode(signing.public)) == (keyid, example("key"))
    assert keys(trust.to_bytes()) == fields("The trust file")
    assert keys(signing.public) | keys(signing.public["keyval"]) == fields("A key in it")


def test_the_key_file_is_written_as_it_is_shown(tmp_path: Path) -> None:
    key(tmp_path).save(tmp_path / "again.pem")
    assert (tmp_path / "again.pem").read_bytes() == example("pem")
    assert (tmp_path / "again.pem").stat().st_mode & 0o777 == 0o600


# -- databases ------------------------------------------------------------------------------------------------------


def shape(connection: sqlite3.Connection) -> dict[str, Any]:
    """Every table and index with all that SQLite knows of it but the spelling of its statement."""
    found: dict[str, Any] = {}
    for _, name, kind, _, without_rowid, strict in connection.execute("PRAGMA table_list").fetchall():
        if kind != "table" or name in {"sqlite_schema", "sqlite_temp_schema"}:
            continue
        indexes = {}
        for _, index, unique, origin, partial in connection.execute(f"PRAGMA index_list('{name}')").fetchall():
            columns = connection.execute(f"PRAGMA index_xinfo('{index}')").fetchall()
            sql = connection.execute("SELECT sql FROM sqlite_master WHERE name = ?", (index,)).fetchone()
            where = sql[0].partition(" WHERE ")[2] if sql and sql[0] else ""
            indexes[index] = (unique, origin, partial, where, columns)
        columns = connection.execute(f"PRAGMA table_xinfo('{name}')").fetchall()
        found[name] = (without_rowid, strict, columns, indexes)
    return found


def replica(folder: Path) -> sqlite3.Connection:
    return connect_writer(folder / "replica.db")


def index(folder: Path) -> sqlite3.Connection:
    Index(folder / "index.db").close()
    return sqlite3.connect(folder / "index.db")


DATABASES = {"replica": replica, "index": index}


@pytest.mark.parametrize("name", ["replica", "index"])
def test_a_database_is_what_the_statements_of_the_document_make(tmp_path: Path, name: str) -> None:
    documented = sqlite3.connect(":memory:")
    documented.executescript("\n".join(lines_of(name, "sql")[1]))
    with closing(documented), closing(DATABASES[name](tmp_path)) as made:
        assert shape(made) == shape(documented)


@pytest.mark.parametrize("name", ["replica", "index"])
def test_every_table_column_and_index_is_explained(tmp_path: Path, name: str) -> None:
    with closing(DATABASES[name](tmp_path)) as made:
        for table, (_, _, columns, indexes) in shape(made).items():
            assert tables(table, "column") == [{column[1] for column in columns}], table
            named = {name for name, (_, origin, *_) in indexes.items() if origin == "c"}
            assert set().union(*tables(table, "index")) == named, table


def test_the_marks_of_the_databases(tmp_path: Path) -> None:
    text = TEXT
    with closing(replica(tmp_path)) as made:
        assert made.execute("PRAGMA user_version").fetchone() == (1,)
        assert made.execute("PRAGMA application_id").fetchone() == (0,)
        assert made.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        steps = made.execute("SELECT migration_set, name FROM _sqlite_migrations").fetchall()
        assert steps == [("damfs.replica", "_first")]
    with closing(index(tmp_path)) as made:
        assert made.execute("PRAGMA user_version").fetchone() == (2,)
        (application,) = made.execute("PRAGMA application_id").fetchone()
        assert f"`application_id` is {application}" in text
        assert made.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_every_key_of_meta_is_explained() -> None:
    assert {row[0] for row in rows("meta")} == tables("meta", "key")[-1]


# -- inodes, cache, memory ------------------------------------------------------------------------------------------


def test_the_slots_and_the_inode_numbers(tmp_path: Path) -> None:
    path = tmp_path / "slots.json"
    path.write_bytes(example("slots"))
    slots = Slots(path)
    assert (slots.get("apollo"), slots.get("hubble")) == (1, 2)
    path.unlink()
    made = Slots(path)
    made.assign(["apollo"])
    made.assign(["hubble"])
    assert path.read_bytes() == example("slots")
    assert keys(example("slots")) == fields("Inode numbers and slots")
    numbers = [inodes.row_ino(1, 4), inodes.folder_ino(1, inodes.LIVE, 1), inodes.folder_ino(1, 3, 1)]
    assert numbers == [1 << 51 | 4, 1 << 51 | 4_194_303 << 29 | 1, 1 << 51 | 3 << 29 | 1]
    text = PROSE
    assert "row 4 of the example has the inode number {:,}; folder 1 is {:,} in the live view and {:,} at".format(
        *numbers
    ) in text  # fmt: skip


def test_the_owner_of_a_cache_folder(tmp_path: Path) -> None:
    bind(tmp_path, Owner(LIBRARY_ID, URL))
    assert (tmp_path / "owner").read_bytes() == example("cache-owner")


def test_the_row_of_a_cached_file() -> None:
    row = json.loads(example("cache-row"))
    assert set(row) == tables("objects", "column")[0]
    assert row["content"] == Digest.parse(digests("chunking")["stream"]).hex()
    assert row["charge"] == span_charge(0, lengths("stream")[0]) + BLOCK_BYTES
    assert (row["present_bytes"], row["chunks"]) == (lengths("stream")[0], len(lengths("stream")))
    binary = {name: bytes.fromhex(row[name]) for name in ("content", "whole", "present")}
    values: dict[str, Any] = {
        field.name: row[field.name] for field in dataclasses.fields(ObjectRow) if field.name in row
    }
    values |= binary
    assert ObjectRow(**values).checksum() == row["checksum"]


def test_the_key_of_a_small_content() -> None:
    assert example("small-key") == small_key(SHOW, Digest.parse(digests("contents")["recipe"]))


def test_what_the_daemon_remembers(tmp_path: Path) -> None:
    identity = Identity(LIBRARY_ID)
    remembered = Remembered(tmp_path, URL)
    remembered.remember_identity(identity)
    remembered.remember_shows(identity, ["hubble", "apollo"])
    library, shows = example("known-library"), example("known-shows")
    url_key = example("url-key").hex()
    assert (tmp_path / f"{url_key}.identity").read_bytes() == library
    assert (tmp_path / identity.id / "shows.json").read_bytes() == shows
    pins = json.loads(example("pins"))
    shapes = [keys(value) for value in (library, shows, pins, pins["pins"][0], example("offline"))]
    job, want = ({field.name for field in dataclasses.fields(kind)} for kind in (JobRecord, Want))
    assert tables("What is remembered of a library", "field") == [*shapes, job | {"_type"}, want]


def test_the_pins(tmp_path: Path) -> None:
    pin = Pin(1, "apollo", None, "plate/latest", recursive=False, made_ns=1_700_000_000_123_456_789)
    pin_list.save(tmp_path / "pins.json", [pin])
    assert (tmp_path / "pins.json").read_bytes() == example("pins")
    assert pin_list.load(tmp_path / "pins.json") == [pin]


def test_a_mount_that_is_switched_offline(tmp_path: Path) -> None:
    (tmp_path / "offline.json").write_bytes(example("offline"))
    wish = offline.load(tmp_path / "offline.json")
    assert wish == offline.Wish(1_700_000_000_123_456_789, 1000)
    offline.save(tmp_path / "again.json", wish)
    assert (tmp_path / "again.json").read_bytes() == example("offline")


def test_a_job_is_kept_as_documented(tmp_path: Path) -> None:
    wants = [Want("apollo", "412", "plate/latest")]
    made_ns = 1_700_000_000_123_456_789
    job = JobRecord(1, job_list.what(wants), "apollo:plate/latest", made_ns, wants, files=1, bytes=1000)
    job_list.save(tmp_path, job)
    assert (tmp_path / "1.json").read_bytes() == example("job")
    assert job_list.load(tmp_path) == [job]


def test_a_trace_is_written_as_documented() -> None:
    content = Digest.parse("b3:" + "1".rjust(64, "0"))
    ranges = (0, 65_536), (1_048_576, 5_242_880)
    file = TracedFile("apollo", 412, "plate/v003/plate.1001.exr", content, 30_000_000, ranges)
    assert recorded.encode([file], cut=False) == example("trace")
    assert recorded.parse(example("trace")) == recorded.TraceFile([file], cut=False)
    head, line = example("trace").splitlines()
    assert tables("Traces", "field") == [keys(head), keys(line)]


def test_the_locks_name_their_holders(tmp_path: Path) -> None:
    with follow(library_of(tmp_path), tmp_path) as show, show.follower.locked():
        assert show.path.with_suffix(".lock").read_bytes() == f"{os.getpid():<20}\n".encode()
    lock = FolderLock.take(tmp_path, "/mnt/dam")
    assert (tmp_path / "lock").read_bytes() == f"{os.getpid()}\n/mnt/dam\n".encode()
    lock.release()


def test_a_sparse_file_has_the_documented_name_and_size(tmp_path: Path) -> None:
    files = ObjectFiles(tmp_path / "objects")
    files.prepare()
    content = Digest.parse(digests("chunking")["stream"])
    made = files.create(content, 24 * MIB)
    made.done()
    files.close_disposed()
    name = content.hex()
    assert re.fullmatch(rf"{name[:2]}/{name}\.[0-9a-f]{{24}}", made.name)
    assert (tmp_path / "objects" / made.name).stat().st_size == 24 * MIB


def test_the_index_is_dropped_where_its_mark_lies(tmp_path: Path) -> None:
    assert Index.rebuild_mark(tmp_path / "index.db") == tmp_path / "index.rebuild"


def test_the_journal_of_a_publish(tmp_path: Path) -> None:
    header, file, renewed = (json.loads(line) for line in example("journal").splitlines())
    source = os.fsdecode(header["sources"][0].encode("latin-1"))
    subject = Subject.of(header["library"], header["show"], header["path"], [Path(source)])
    assert f"`{subject.file_name().removesuffix('.journal')}`" in TEXT
    fingerprint = Fingerprint(*map(int, file["fingerprint"].split(" ")))
    record = Record(fingerprint, Digest.parse(file["digest"]), Recipe(base64.b64decode(file["recipe"])))
    path = tmp_path / subject.file_name()
    path.write_bytes(example("journal"))
    with Journal.open(tmp_path, subject, trust_files=True, warn=pytest.fail) as journal:
        assert (journal.publish_id, journal.resumed) == (renewed["publish_id"], True)
        assert journal.find(source, fingerprint) == record
    path.unlink()
    with Journal.open(tmp_path, subject, trust_files=True, warn=pytest.fail) as journal:
        journal.record(source, record)
        journal.renew()
        lines = path.read_bytes().splitlines(keepends=True)
    assert lines[1] == example("journal").splitlines(keepends=True)[1]
    assert (
        [keys(line) for line in lines]
        == tables("The publish journal", "field")
        == [*map(keys, (header, file, renewed))]
    )


# -- numbers that are said in words ---------------------------------------------------------------------------------


SAID = [
    ("nested at most {:,} deep", canonical.DEPTH_MAX),
    ("1 to {:,} |", REVISION_MAX),
    ("1 to {:,} |", CHUNK_BYTES_MAX),
    ("at most {:,} of them", CHUNKS_MAX),
    ("bytes, 0 to {:,}", FILE_BYTES_MAX),
    ("| stored bytes | {:,} ", CHANGESET_STORED_BYTES_MAX),
    ("at most {:,} bytes", ENVELOPE_BYTES_MAX),
    ("Ids and nodes go up to {:,}", inodes.ID_MAX),
]


@pytest.mark.parametrize(("words", "number"), SAID)
def test_a_limit_is_the_one_of_the_code(words: str, number: int) -> None:
    assert words.format(number) in PROSE


def test_the_normal_form_is_the_one_of_the_tables_that_are_named() -> None:
    assert f"the tables of Unicode **{unicodedata.ucd_3_2_0.unidata_version}**, without Corrigendum 4" in PROSE
    corrected = {0x2F868: 0x2136A, 0x2F874: 0x5F33, 0x2F91F: 0x43AB, 0x2F95F: 0x7AAE, 0x2F9BF: 0x4D57}
    assert {number: ord(nfc(chr(number))) for number in corrected} == corrected


def test_every_way_to_stall_is_told() -> None:
    assert {*re.findall(r"\*stall, (\w+)\*", TEXT), "invalid"} == set(get_args(StallKind))


def test_the_limit_of_a_changeset_is_two_gibibytes() -> None:
    assert CHANGESET_BYTES_MAX == 2 * 1024**3


def test_an_op_that_removes_has_no_post() -> None:
    line = encode_op(Op("a", EMPTY_DIGEST, None))
    assert line == b'{"path":"a","post":null,"pre":"%b"}\n' % str(EMPTY_DIGEST).encode()
