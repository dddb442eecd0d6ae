"""The journal: an id that is durable before the first upload, and what was done, through kills and damage."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from manifest.digest import Digest
from manifest.errors import Busy
from manifest.recipe import Recipe
from tools.publish import journal as journal_module
from tools.publish.journal import Journal, Record, Subject
from tools.publish.source import Fingerprint

SUBJECT = Subject.of("0" * 32, "apollo", "seq/v001", [Path("/plates/b"), Path("/plates/a")])
MARK = Fingerprint(1, 2**63 + 5, 3, -4, 5, 0o644)
DIGEST = Digest.of(b"abc")
RECORD = Record(MARK, DIGEST, Recipe.of([(DIGEST, 3)]))


class Said:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, line: str) -> None:
        self.lines.append(line)


def begin(folder: Path, said: Said | None = None, subject: Subject = SUBJECT, *, trust_files: bool = False) -> Journal:
    return Journal.open(folder, subject, trust_files=trust_files, warn=said or Said())


def test_a_journal_that_was_left_behind_is_taken_up(tmp_path: Path) -> None:
    with begin(tmp_path) as first:
        assert not first.resumed
        first.record("/plates/a/1.exr", RECORD)
    with begin(tmp_path) as second:
        assert second.resumed
        assert second.publish_id == first.publish_id
        assert second.find("/plates/a/1.exr", MARK) == RECORD
        assert second.find("/plates/a/1.exr", MARK._replace(mtime_ns=5)) is None
        assert second.find("/plates/a/2.exr", MARK) is None


def test_a_journal_that_was_removed_is_begun_anew(tmp_path: Path) -> None:
    first = begin(tmp_path)
    first.remove()
    assert not list(tmp_path.iterdir())
    with begin(tmp_path) as second:
        assert not second.resumed
        assert second.publish_id != first.publish_id


def test_the_order_of_the_sources_does_not_matter_and_everything_else_does(tmp_path: Path) -> None:
    names = {
        Subject.of("0" * 32, "apollo", "seq/v001", [Path(p) for p in order]).file_name()
        for order in (["/plates/a", "/plates/b"], ["/plates/b", "/plates/a", "/plates/../plates/a"])
    }
    assert names == {SUBJECT.file_name()}
    others = [
        Subject.of("1" * 32, "apollo", "seq/v001", [Path("/plates/a")]),
        Subject.of("0" * 32, "gemini", "seq/v001", [Path("/plates/a")]),
        Subject.of("0" * 32, "apollo", "seq/v002", [Path("/plates/a")]),
        Subject.of("0" * 32, "apollo", "seq/v001", [Path("/plates/a")]),
        Subject.of("0" * 32, "apollo", "seq/v001", [Path(os.fsdecode(b"/plates/\xff"))]),
    ]
    assert len({subject.file_name() for subject in others}) == len(others)


def test_the_same_publish_twice_at_once_is_refused(tmp_path: Path) -> None:
    with begin(tmp_path), pytest.raises(Busy, match="apollo:seq/v001 is under way"):
        begin(tmp_path)
    begin(tmp_path).close()


def test_an_id_that_was_used_up_is_replaced_and_the_files_stay(tmp_path: Path) -> None:
    with begin(tmp_path) as first:
        used = first.publish_id
        first.record("/plates/a/1.exr", RECORD)
        first.renew()
        assert first.publish_id != used
    with begin(tmp_path) as second:
        assert second.publish_id == first.publish_id
        assert second.find("/plates/a/1.exr", MARK) == RECORD


def test_a_last_line_that_was_cut_short_is_dropped(tmp_path: Path) -> None:
    with begin(tmp_path) as first:
        first.record("/plates/a/1.exr", RECORD)
        first.record("/plates/a/2.exr", RECORD)
    data = first.path.read_bytes()
    for cut in range(1, 40):
        first.path.write_bytes(data[:-cut])
        said = Said()
        with begin(tmp_path, said) as second:
            assert second.publish_id == first.publish_id
            assert second.find("/plates/a/1.exr", MARK) == RECORD
            assert second.find("/plates/a/2.exr", MARK) is None
            second.record("/plates/a/3.exr", RECORD)
        with begin(tmp_path, said) as third:
            assert third.find("/plates/a/3.exr", MARK) == RECORD
        assert not said.lines


@pytest.mark.parametrize(
    "damage",
    [
        b"nonsense\n",
        b"\0" * 4096 + b"\n",
        b'{"_type":"damfs.journal/2"}\n',
        b'{"publish_id":"../../etc"}\n',
        b"[]\n",
        b'{"digest":"b3:00","fingerprint":"1","recipe":"","source":"/a"}\n',
    ],
)
@pytest.mark.parametrize("where", ["instead", "behind"])
def test_a_damaged_journal_is_set_aside_with_a_message(tmp_path: Path, damage: bytes, where: str) -> None:
    with begin(tmp_path) as first:
        first.record("/plates/a/1.exr", RECORD)
    first.path.write_bytes(damage if where == "instead" else first.path.read_bytes() + damage)
    said = Said()
    with begin(tmp_path, said) as second:
        assert not second.resumed
        assert second.publish_id != first.publish_id
        assert second.find("/plates/a/1.exr", MARK) is None
    (line,) = said.lines
    (aside,) = tmp_path.glob("*.corrupt-*")
    assert str(aside) in line
    assert aside.read_bytes().endswith(damage)
    with begin(tmp_path, said) as third:
        assert third.publish_id == second.publish_id
    assert len(said.lines) == 1


def test_after_a_crash_of_the_machine_a_folders_chunks_are_not_taken_for_granted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with begin(tmp_path) as first:
        first.record("/plates/a/1.exr", RECORD)
    monkeypatch.setattr(journal_module, "_boot_id", lambda: "another boot")
    with begin(tmp_path, trust_files=True) as store:
        assert store.find("/plates/a/1.exr", MARK) == RECORD
    with begin(tmp_path) as folder:
        assert folder.publish_id == first.publish_id
        assert folder.find("/plates/a/1.exr", MARK) is None
    with begin(tmp_path) as again:
        assert again.publish_id == first.publish_id


def test_journals_that_nobody_touched_for_a_month_are_removed_unless_in_use(tmp_path: Path) -> None:
    old, used = begin(tmp_path), begin(tmp_path, subject=Subject.of("0" * 32, "apollo", "x", [Path("/x")]))
    old.close()
    long_ago = time.time() - 40 * 86400
    for path in (old.path, used.path):
        os.utime(path, (long_ago, long_ago))
    with begin(tmp_path, subject=Subject.of("0" * 32, "apollo", "y", [Path("/y")])):
        assert used.path.exists()
        assert not old.path.exists()
    used.close()
