"""Publishing in one process: what lands in the show, what is refused, what is found to be there already."""

from __future__ import annotations

import os
import secrets
import threading
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from manifest.digest import Digest
from manifest.errors import (
    Busy,
    Conflict,
    NotFound,
    OutcomeUnknown,
    SourceChanged,
    TrustError,
    Unavailable,
    UsageError,
)
from manifest.identity import add_show, read_identity
from manifest.replica import Kind
from manifest.show import Show
from manifest.trust import PinnedKeys, SigningKey
from tools.output import Output
from tools.publish import publish as publish_module
from tools.publish.plan import check_tag
from tools.publish.publish import Outcome, Request, Target, publish
from tools.publish.remove import remove
from tools.publish.tag import move_tag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from manifest.library import Library
    from manifest.replica import Row

PLATE = "seq/sh020/plate"
MIB = 1024 * 1024


class Desk:
    """One artist at one machine: an own replica, an own key, an own state folder."""

    def __init__(self, library: Library, folder: Path, key: SigningKey, trusted: list[SigningKey]) -> None:
        identity = read_identity(library)
        verifier = PinnedKeys(identity.id, [one.public for one in trusted])
        self.show = Show.open(library, identity, verifier, "apollo", folder / "replicas")
        self.target = Target(library, identity.id, self.show, key, "ada@studio", folder / "state")

    def publish(self, *sources: Path, to: str, message: str = "", tag: str | None = None, dry: bool = False) -> Outcome:
        return publish(self.target, Request(sources, to, message, tag, dry), Output(quiet=True))

    def rows(self, path: str = "") -> dict[str, Row]:
        """Everything below ``path`` at the head."""
        self.show.follower.advance()
        with closing(self.show.reader()) as reader:
            return {name: row for name, row in reader.walk(path, reader.head) if name != path}

    def head(self) -> int:
        self.show.follower.advance()
        with closing(self.show.reader()) as reader:
            return int(reader.head)


@pytest.fixture
def key() -> SigningKey:
    return SigningKey.generate()


@pytest.fixture
def make_desk(file_library: Library, tmp_path: Path, key: SigningKey) -> Iterator[Callable[[], Desk]]:
    """Desks that work with one library in a folder."""
    add_show(file_library, "apollo")
    desks: list[Desk] = []

    def make() -> Desk:
        desks.append(Desk(file_library, tmp_path / f"desk{len(desks)}", key, [key]))
        return desks[-1]

    yield make
    for desk in desks:
        desk.show.close()


@pytest.fixture
def desk(make_desk: Callable[[], Desk]) -> Desk:
    return make_desk()


def tree(folder: Path, files: dict[str, bytes | str]) -> Path:
    """Files of these bytes and links to these targets."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if isinstance(data, str):
            path.symlink_to(data)
        else:
            path.write_bytes(data)
    return folder


def chunks(library: Library) -> set[str]:
    return {key for key, _ in library.list("shows/") if "/chunks/" in key}


@pytest.mark.parametrize("kind", ["file", "s3"])
def test_a_published_folder_is_in_the_show_as_it_was(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, key: SigningKey
) -> None:
    library: Library = request.getfixturevalue(f"{kind}_library")
    add_show(library, "apollo")
    desk = Desk(library, tmp_path / "desk", key, [key])
    source = tree(tmp_path / "plate", {"a.dpx": b"one", "deep/er/b.dpx": b"two", "empty": b"", "best": "a.dpx"})
    (source / "nothing").mkdir()
    (source / "a.dpx").chmod(0o6751)
    os.utime(source / "a.dpx", ns=(1, 1_234_567_890_123_456_789))
    outcome = desk.publish(source, to=f"{PLATE}/v001", message="first", tag="latest")
    assert (outcome.revision, outcome.published, outcome.files, outcome.size_bytes) == (1, True, 3, 6)
    rows = desk.rows(PLATE)
    assert rows[f"{PLATE}/latest"].target == "v001"
    assert rows[f"{PLATE}/v001/best"].target == "a.dpx"
    assert rows[f"{PLATE}/v001/nothing"].kind == Kind.FOLDER
    assert rows[f"{PLATE}/v001/deep/er/b.dpx"].digest == Digest.of(b"two")
    row = rows[f"{PLATE}/v001/a.dpx"]
    assert (row.mode, row.mtime_ns, row.size, row.digest) == (0o751, 1_234_567_890_123_456_789, 3, Digest.of(b"one"))
    with closing(desk.show.reader()) as reader:
        info = reader.revision(1)
        assert info is not None
        assert (info.author, info.message, info.keyid) == ("ada@studio", "first", key.keyid)
    assert not list((tmp_path / "desk/state/publish").iterdir())
    desk.show.close()


def test_a_time_before_1970_becomes_1970(desk: Desk, tmp_path: Path) -> None:
    source = tree(tmp_path / "s", {"old": b"x"})
    os.utime(source / "old", ns=(0, -5_000_000_000))
    desk.publish(source, to="p")
    assert desk.rows()["p/old"].mtime_ns == 0


def test_identical_content_again_says_which_revision_has_it(desk: Desk, tmp_path: Path) -> None:
    source = tree(tmp_path / "plate", {"a.dpx": b"one", "sub/b.dpx": b"two", "link": "a.dpx"})
    desk.publish(source, to="plate/v001")
    desk.publish(tree(tmp_path / "other", {"c": b""}), to="elsewhere")
    os.utime(source / "a.dpx")
    (source / "a.dpx").chmod(0o600)
    again = desk.publish(source, to="plate/v001")
    assert (again.revision, again.published) == (1, False)
    one = desk.publish(source / "a.dpx", to="plate/v001", tag="latest")
    assert (one.revision, one.published, one.changed) == (3, True, ["plate/latest"])
    assert desk.publish(source, to="plate/v001", tag="latest").published is False
    assert desk.head() == 3


def test_identical_content_outside_versions_is_found_too(desk: Desk, tmp_path: Path) -> None:
    source = tree(tmp_path / "scripts", {"a.nk": b"one", "b.nk": b"two"})
    assert desk.publish(source, to="scripts").revision == 1
    os.utime(source / "a.nk")
    assert desk.publish(source, to="scripts").published is False
    (source / "b.nk").write_bytes(b"TWO")
    changed = desk.publish(source, to="scripts")
    assert (changed.revision, changed.changed) == (2, ["scripts/b.nk"])
    (source / "a.nk").chmod(0o600)
    assert desk.publish(source, to="scripts").changed == ["scripts/a.nk"]
    assert desk.rows()["scripts/a.nk"].mode == 0o600


def test_other_content_for_a_version_is_a_conflict_that_names_the_next_free_one(
    desk: Desk, file_library: Library, tmp_path: Path
) -> None:
    source = tree(tmp_path / "plate", {"a.dpx": b"one", "b.dpx": b"two"})
    desk.publish(source, to="plate/v001")
    desk.publish(source, to="plate/v007")
    before = chunks(file_library)
    (source / "b.dpx").write_bytes(b"TWO")
    with pytest.raises(Conflict, match=r"plate/v001 is published already \(revision 1\).*b.dpx has other bytes"):
        desk.publish(source, to="plate/v001")
    (source / "b.dpx").write_bytes(b"longer")
    with pytest.raises(Conflict, match=r"publish to apollo:plate/v008, the next free version"):
        desk.publish(source, to="plate/v001")
    (source / "b.dpx").write_bytes(b"two")
    tree(source, {"more.dpx": b"3"})
    with pytest.raises(Conflict, match=r"more.dpx is not in it"):
        desk.publish(source, to="plate/v001")
    assert chunks(file_library) == before
    assert desk.head() == 2


def test_a_new_version_uploads_only_what_is_new(desk: Desk, tmp_path: Path) -> None:
    frames = {f"f.{n:04d}.dpx": secrets.token_bytes(300_000) for n in range(10)}
    source = tree(tmp_path / "plate", dict(frames))
    assert desk.publish(source, to="plate/v001").uploads.size_bytes == 3_000_000
    tree(source, {"f.0003.dpx": secrets.token_bytes(300_000)})
    second = desk.publish(source, to="plate/v002")
    assert second.uploads.size_bytes == 300_000
    assert second.uploads.present_bytes == 2_700_000


def test_a_dry_run_says_what_would_happen_and_writes_nothing(desk: Desk, file_library: Library, tmp_path: Path) -> None:
    source = tree(tmp_path / "plate", {"a.dpx": b"one", "b.dpx": b"two"})
    before = sorted(file_library.list("shows/"))
    dry = desk.publish(source, to="plate/v001", tag="latest", dry=True)
    assert dry.changed == ["plate/v001/a.dpx", "plate/v001/b.dpx", "plate/latest"]
    assert (dry.revision, dry.published) == (None, False)
    assert sorted(file_library.list("shows/")) == before
    assert not (tmp_path / "desk0/state").exists()
    desk.publish(source, to="plate/v001", tag="latest")
    dry = desk.publish(source, to="plate/v001", tag="latest", dry=True)
    assert (dry.revision, dry.changed) == (1, [])
    (source / "a.dpx").write_bytes(b"ONE")
    with pytest.raises(Conflict):
        desk.publish(source, to="plate/v001", dry=True)
    assert desk.publish(source, to="scripts", dry=True).changed == ["scripts/a.dpx", "scripts/b.dpx"]
    assert desk.head() == 1


def test_a_tag_needs_a_version_and_a_name_of_its_own(desk: Desk, tmp_path: Path) -> None:
    source = tree(tmp_path / "plate", {"a": b"1"})
    for path, tag in (("scripts", "latest"), ("", "latest"), ("v001", "v002"), ("v001", "a/b"), ("v001", "..")):
        with pytest.raises((UsageError, Exception), match=r"tag|not allowed"):
            desk.publish(source, to=path, tag=tag)
    assert desk.head() == 0


@pytest.mark.parametrize(
    "name",
    ["", "v001", "v1", "V7", "a/b", "..", ".hidden", "-f", "two words", "a\nb", "a\x1b[31m", "geprüft", "x" * 65],
)
def test_a_name_that_a_shell_or_a_terminal_minds_is_no_tag(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a tag: expected a name like latest"):
        check_tag(name, "v001")


@pytest.mark.parametrize("name", ["latest", "approved-2", "client.final", "v", "v2_approved", "2026"])
def test_other_names_are_tags(name: str) -> None:
    check_tag(name, "v001")


def test_a_tag_does_not_replace_a_file_or_folder(desk: Desk, tmp_path: Path) -> None:
    desk.publish(tree(tmp_path / "s", {"latest/x": b"1"}), to="plate")
    with pytest.raises(Conflict, match="cannot become a tag"):
        desk.publish(tree(tmp_path / "v", {"a": b"1"}), to="plate/v001", tag="latest")


def test_what_is_a_file_in_the_show_is_no_folder_and_the_other_way_round(
    desk: Desk, file_library: Library, tmp_path: Path
) -> None:
    desk.publish(tree(tmp_path / "s", {"file": b"1", "folder/x": b"2", "link": "folder"}), to="p")
    before = chunks(file_library)
    for source, to in (
        (tree(tmp_path / "a", {"x": b"new"}), "p/file"),
        (tree(tmp_path / "a", {"x": b"new"}), "p/link"),
        (tree(tmp_path / "b", {"folder": b"new"}), "p"),
        (tree(tmp_path / "c", {"file/x": b"new"}), "p"),
    ):
        with pytest.raises(Conflict):
            desk.publish(source, to=to)
    assert chunks(file_library) == before
    assert desk.publish(tree(tmp_path / "d", {"file": "folder", "link": b"now a file"}), to="p").revision == 2


def test_another_spelling_of_a_name_in_the_show_is_refused_before_an_upload(
    desk: Desk, file_library: Library, tmp_path: Path
) -> None:
    desk.publish(tree(tmp_path / "s", {"caf\u00e9": b"1"}), to="p")
    before = chunks(file_library)
    with pytest.raises((Conflict, UsageError), match="NFC"):
        desk.publish(tree(tmp_path / "t", {"cafe\u0301": b"22"}), to="p")
    assert chunks(file_library) == before


def test_a_file_of_many_chunks_has_its_recipe_as_an_object(desk: Desk, file_library: Library, tmp_path: Path) -> None:
    data = secrets.token_bytes(40 * MIB)
    source = tree(tmp_path / "s", {"cache.vdb": data, "twin.vdb": data})
    assert desk.publish(source, to="p").published
    row = desk.rows()["p/cache.vdb"]
    assert row.content is not None
    recipe = desk.show.log.recipe(Digest(row.content))
    assert recipe.size == len(data)
    assert len(recipe) > 64
    assert desk.publish(source, to="p").published is False
    tree(source, {"cache.vdb": data[: 20 * MIB] + b"x" + data[20 * MIB :]})
    again = desk.publish(source, to="p")
    assert again.changed == ["p/cache.vdb"]
    assert again.uploads.size_bytes < 4 * MIB


def test_folders_get_modes_of_their_own_only_when_they_are_new(desk: Desk, tmp_path: Path) -> None:
    source = tree(tmp_path / "s", {"shared/x": b"1", "plain/x": b"1"})
    (source / "shared").chmod(0o775)
    (source / "plain").chmod(0o755)
    assert desk.publish(source, to="p").changed == ["p/plain/x", "p/shared", "p/shared/x"]
    (source / "shared").chmod(0o700)
    assert desk.publish(source, to="p").published is False
    assert desk.rows()["p/shared"].mode == 0o775


def test_a_source_that_is_being_written_publishes_nothing(desk: Desk, tmp_path: Path) -> None:
    source = tree(tmp_path / "s", {"a": b"1", "b": b"2"})
    with (source / "b").open("r+b"), pytest.raises(SourceChanged, match="b is open for writing"):
        desk.publish(source, to="p")
    assert desk.head() == 0
    assert desk.publish(source, to="p").revision == 1


def test_a_key_that_nobody_trusts_and_a_message_too_long_are_refused_before_an_upload(
    make_desk: Callable[[], Desk], file_library: Library, tmp_path: Path, key: SigningKey
) -> None:
    make_desk()
    stranger = Desk(file_library, tmp_path / "stranger", SigningKey.generate(), [key])
    source = tree(tmp_path / "s", {"a": b"1"})
    with pytest.raises(TrustError):
        stranger.publish(source, to="p")
    stranger.show.close()
    with pytest.raises(UsageError, match="message"):
        make_desk().publish(source, to="p", message="x" * 5000)
    assert not chunks(file_library)


def test_artists_who_publish_and_tag_at_once_all_succeed(make_desk: Callable[[], Desk], tmp_path: Path) -> None:
    desks = [make_desk() for _ in range(6)]
    revisions: list[int | None] = []
    errors: list[Exception] = []

    def work(number: int) -> None:
        source = tree(tmp_path / f"s{number}", {"a": str(number).encode()})
        try:
            revisions.append(desks[number].publish(source, to=f"plate/v{number + 1:03d}", tag="latest").revision)
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(desks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
    assert not errors
    assert sorted(number or 0 for number in revisions) == [1, 2, 3, 4, 5, 6]
    rows = desks[0].rows("plate")
    assert {name for name, row in rows.items() if row.kind == Kind.FOLDER} == {f"plate/v00{n}" for n in range(1, 7)}
    assert rows["plate/latest"].target in {f"v00{n}" for n in range(1, 7)}


def test_artists_who_publish_one_version_at_once_get_one_winner_and_a_next_version(
    make_desk: Callable[[], Desk], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = make_desk(), make_desk()
    real = publish_module.commit_ops

    def after_the_other(*arguments: object) -> int:
        monkeypatch.setattr(publish_module, "commit_ops", real)
        first.publish(tree(tmp_path / "a", {"x": b"first"}), to="plate/v001")
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(publish_module, "commit_ops", after_the_other)
    with pytest.raises(Conflict, match="publish to apollo:plate/v002"):
        second.publish(tree(tmp_path / "b", {"x": b"later"}), to="plate/v001")
    monkeypatch.setattr(publish_module, "commit_ops", after_the_other)
    (tmp_path / "a/x").write_bytes(b"later")
    first.publish(tree(tmp_path / "c", {"y": b"0"}), to="other")


def test_the_same_content_from_two_artists_at_once_is_published_once(
    make_desk: Callable[[], Desk], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = make_desk(), make_desk()
    source = tree(tmp_path / "a", {"x": b"same"})
    real = publish_module.commit_ops

    def after_the_other(*arguments: object) -> int:
        monkeypatch.setattr(publish_module, "commit_ops", real)
        first.publish(source, to="plate/v001")
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(publish_module, "commit_ops", after_the_other)
    outcome = second.publish(source, to="plate/v001")
    assert (outcome.published, outcome.revision) == (False, 1)


def test_a_file_that_somebody_else_changed_meanwhile_is_a_conflict(
    make_desk: Callable[[], Desk], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = make_desk(), make_desk()
    first.publish(tree(tmp_path / "a", {"x": b"base"}), to="scripts")
    real = publish_module.commit_ops

    def after_the_other(*arguments: object) -> int:
        monkeypatch.setattr(publish_module, "commit_ops", real)
        first.publish(tree(tmp_path / "a", {"x": b"theirs"}), to="scripts")
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(publish_module, "commit_ops", after_the_other)
    mine = tree(tmp_path / "b", {"x": b"mine"})
    with pytest.raises(Conflict, match="scripts/x"):
        second.publish(mine, to="scripts")
    assert first.rows()["scripts/x"].digest == Digest.of(b"theirs")
    assert second.publish(mine, to="scripts").revision == 3


def test_an_unknown_outcome_keeps_the_journal_and_the_same_publish_finds_out(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tree(tmp_path / "a", {"x": b"1"})
    real = publish_module.commit_ops

    def reply_lost(*arguments: object) -> int:
        real(*arguments)  # type: ignore[arg-type]
        raise OutcomeUnknown("the reply was lost")

    monkeypatch.setattr(publish_module, "commit_ops", reply_lost)
    with pytest.raises(OutcomeUnknown):
        desk.publish(source, to="plate/v001", tag="latest")
    assert list((tmp_path / "desk0/state/publish").iterdir())
    monkeypatch.setattr(publish_module, "commit_ops", real)
    outcome = desk.publish(source, to="plate/v001", tag="latest")
    assert (outcome.published, outcome.revision, desk.head()) == (False, 1, 1)
    assert not list((tmp_path / "desk0/state/publish").iterdir())


def test_the_same_publish_twice_at_once_is_refused(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tree(tmp_path / "a", {"x": b"1"})

    def second(*_: object) -> int:
        with pytest.raises(Busy, match="under way"):
            desk.publish(source, to="p")
        raise Unavailable("enough")

    monkeypatch.setattr(publish_module, "commit_ops", second)
    with pytest.raises(Unavailable, match="enough"):
        desk.publish(source, to="p")


def test_removing_takes_everything_below_and_leaves_older_revisions_alone(
    desk: Desk, file_library: Library, tmp_path: Path
) -> None:
    source = tree(tmp_path / "a", {"x": b"12", "deep/er/y": b"345", "l": "x"})
    desk.publish(source, to="plate/v001", tag="latest")
    before = chunks(file_library)
    assert remove(desk.target, "plate/v001", dry_run=True).revision is None
    removal = remove(desk.target, "plate/v001", "gone")
    assert (removal.revision, removal.files, removal.links, removal.folders, removal.size_bytes) == (2, 2, 1, 3, 5)
    assert removal.dangling == ["plate/latest"]
    assert set(desk.rows()) == {"plate", "plate/latest"}
    assert chunks(file_library) == before
    with closing(desk.show.reader()) as reader:
        assert reader.resolve("plate/v001/deep/er/y", 1) is not None
    with pytest.raises(NotFound, match="plate/v001"):
        remove(desk.target, "plate/v001")
    with pytest.raises(UsageError, match="whole show"):
        remove(desk.target, "")
    assert remove(desk.target, "plate/latest").links == 1
    assert desk.publish(source, to="plate/v001").revision == 4


def test_names_that_sort_between_a_folder_and_its_contents_are_removed_and_published_in_order(
    desk: Desk, tmp_path: Path
) -> None:
    source = tree(tmp_path / "a", {"d/x": b"1", "d.txt": b"2", "d-1/x": b"3", "d0": b"4"})
    (source / "d").chmod(0o700)
    desk.publish(source, to="p")
    assert remove(desk.target, "p").files == 4
    assert not desk.rows()


def test_a_tag_is_made_moved_and_left_alone(desk: Desk, tmp_path: Path) -> None:
    for version in ("v001", "v002"):
        desk.publish(tree(tmp_path / version, {"x": version.encode()}), to=f"plate/{version}")
    assert move_tag(desk.target, "plate", "approved", "v001") == (3, True)
    assert move_tag(desk.target, "plate", "approved", "v001") == (3, False)
    assert move_tag(desk.target, "plate", "approved", "v002", "by the supervisor") == (4, True)
    assert desk.rows()["plate/approved"].target == "v002"
    with pytest.raises(NotFound, match=r"no version plate/v003: plate has v001, v002"):
        move_tag(desk.target, "plate", "approved", "v003")
    with pytest.raises(UsageError):
        move_tag(desk.target, "plate", "approved", "latest")
