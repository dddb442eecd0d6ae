"""Publishing: sources become the next revision of a show, or nothing does.

State: none here; what a publish that was ended takes up again is in its journal. The order, which makes every prefix of
it harmless: walk and check the names, read what is to be compared, let the readers' own apply judge the names, upload
chunks, upload the recipes that are objects, then ``manifest.commit``: changeset, sync, entry.
"""

from __future__ import annotations

import os
import time
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from manifest.changeset import Header, scope_of
from manifest.commit import Publish, commit
from manifest.digest import Digest
from manifest.entry import Entry, seal
from manifest.errors import Conflict, FormatError, OutcomeUnknown, TrustError, Unavailable, UsageError
from manifest.layout import recipe_key
from manifest.names import split
from manifest.recipe import INLINE_CHUNKS_MAX
from tools.publish.blocks import BUDGET_BYTES
from tools.publish.journal import Journal, Record, Subject
from tools.publish.live import Live
from tools.publish.pipeline import FOLDER_BUDGET_BYTES, FOLDER_UPLOADERS, UPLOADERS, Finished, Pipeline
from tools.publish.plan import (
    by_path,
    check_tag,
    compare_frozen,
    is_same,
    known_chunks,
    make_change,
    make_plan,
    provisional_ops,
    tag_op,
)
from tools.publish.source import Fingerprint
from tools.publish.upload import UploadCounts, Uploader
from tools.publish.walk import SourceFile, walk

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from manifest.changeset import Op
    from manifest.library import Library
    from manifest.replica import ReplicaReader
    from manifest.show import Show
    from manifest.trust import SigningKey
    from tools.output import Output
    from tools.publish.mirror import Mirror
    from tools.publish.plan import Plan
    from tools.publish.walk import Item

SYNC_DEADLINE_S = 600.0
TAG_ATTEMPTS = 16
"""How often a tag is put again that somebody else moved at the same moment."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where to publish, and as whom. ``state_folder`` is where the journals are; ``mirror`` gets copies."""

    library: Library
    library_id: str
    show: Show
    key: SigningKey
    author: str
    state_folder: Path
    mirror: Mirror | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """What to publish. ``path`` is relative to the show, and empty for its root; ``trace`` is to be its trace.

    ``rate``: so many bytes may be sent in a second; None: no limit.
    """

    sources: Sequence[Path]
    path: str
    message: str = ""
    tag: str | None = None
    dry_run: bool = False
    trace: Path | None = None
    rate: int | None = None


@dataclass(slots=True)
class Outcome:
    """What became of it. ``revision`` is the one that has it; None after a dry run that would publish something."""

    revision: int | None = None
    published: bool = False
    resumed: bool = False
    changed: list[str] = field(default_factory=list)
    files: int = 0
    size_bytes: int = 0
    uploads: UploadCounts = field(default_factory=UploadCounts)
    seconds: float = 0.0


def publish(target: Target, request: Request, output: Output) -> Outcome:
    """Publish, or find that it is published already.

    Raises UsageError and NotFound for the sources, Conflict, SourceChanged, Busy when the same publish is under way,
    TransportError, and OutcomeUnknown when the commit may have happened: the same publish, run again, finds out.
    """
    started = time.monotonic()
    if request.tag is not None:
        check_tag(request.tag, split(request.path)[1])
    items = walk(request.sources, request.path, request.trace)
    check_signature(target, request.message)
    outcome = Outcome(files=sum(isinstance(item, SourceFile) for item in items))
    outcome.size_bytes = sum(item.size for item in items if isinstance(item, SourceFile))
    with closing(target.show.reader()) as reader:
        plan = make_plan(target.show.log.show, request.path, advance(target.show, reader), items)
        if request.dry_run:
            _dry_run(target, request, plan, output, outcome)
        else:
            with _journal(target, request, output) as journal:
                _Run(target, request, output, journal, outcome).publish(items, plan)
    outcome.seconds = time.monotonic() - started
    return outcome


def _journal(target: Target, request: Request, output: Output) -> Journal:
    sources = [*request.sources, *([request.trace] if request.trace else ())]
    subject = Subject.of(target.library_id, target.show.log.show, request.path, sources)
    trust_files = not target.library.url.startswith("file:")
    return Journal.open(target.state_folder / "publish", subject, trust_files=trust_files, warn=output.warn)


class _Run:
    """One publish with its journal."""

    def __init__(self, target: Target, request: Request, output: Output, journal: Journal, outcome: Outcome) -> None:
        self.target = target
        self.request = request
        self.output = output
        self.journal = journal
        self.outcome = outcome

    def publish(self, items: list[Item], plan: Plan) -> None:
        journal, outcome = self.journal, self.outcome
        outcome.resumed = journal.resumed
        if journal.resumed and plan.live.reader.find_publish(journal.publish_id) is not None:
            # The run before was not told that it had succeeded; what it did is compared like anybody's.
            journal.renew()
        finished = self._finished_before(items)
        finished |= read(None, _missing(plan.frozen_files(), finished), self.output, "comparing")
        compare_frozen(plan, finished)
        check_ops(self.target.show, provisional_ops(plan), journal.publish_id)
        uploader = Uploader(
            self.target.library, plan.show, known_chunks(plan), mirror=self.target.mirror, rate=self.request.rate
        )
        self._upload(uploader, plan, finished)
        outcome.uploads = uploader.counts
        self._commit(items, plan, finished)
        journal.remove()

    def _finished_before(self, items: list[Item]) -> dict[str, Finished]:
        """The files that an earlier run finished and that are still what they were."""
        found: dict[str, Finished] = {}
        if not self.journal.resumed:
            return found
        for item in items:
            if isinstance(item, SourceFile):
                try:
                    fingerprint = Fingerprint.of(os.lstat(item.source))
                except OSError:
                    continue
                record = self.journal.find(item.source, fingerprint)
                if record is not None:
                    found[item.path] = Finished(item, fingerprint, record.digest, record.recipe, durable=True)
        return found

    def _upload(self, uploader: Uploader, plan: Plan, finished: dict[str, Finished]) -> None:
        todo = _missing(plan.files(), finished)
        total = sum(item.size for item in todo)
        if todo:
            with self.output.progress("publishing", total=total) as progress:
                folder = self.target.library.url.startswith("file:")
                uploaders = FOLDER_UPLOADERS if folder else UPLOADERS
                budget_bytes = FOLDER_BUDGET_BYTES if folder else BUDGET_BYTES
                for done in Pipeline(uploader, progress, budget_bytes=budget_bytes, uploaders=uploaders).run(todo):
                    assert done.recipe is not None
                    if done.durable:
                        self.journal.record(done.item.source, Record(done.fingerprint, done.digest, done.recipe))
                    finished[done.item.path] = done
        for item in plan.files():
            recipe = finished[item.path].recipe
            if recipe is not None and len(recipe) > INLINE_CHUNKS_MAX:
                uploader.object(recipe_key(plan.show, recipe.content), recipe.to_object())

    def _commit(self, items: list[Item], plan: Plan, finished: Mapping[str, Finished]) -> None:
        """Commit what is not the same already, and again when only the tag was somebody else's at that moment."""
        request, target = self.request, self.target
        folder, version = split(request.path)
        for attempt in range(TAG_ATTEMPTS):
            newest = compare_frozen(plan, finished)
            change = make_change(plan, finished)
            ops = change.ops
            tag = tag_op(plan.show, plan.live, folder, request.tag, version) if request.tag is not None else None
            ops = by_path([*ops, tag]) if tag is not None else ops
            if not ops:
                self.outcome.revision = max(newest, change.newest) or plan.live.revision
                return
            try:
                revision = commit_ops(target, self.journal.publish_id, request.message, ops)
            except Conflict as conflict:
                self.journal.renew()
                plan = self._planned_again(plan, items, conflict, tag, attempt)
            else:
                self.outcome.revision, self.outcome.published = revision, True
                self.outcome.changed = [op.path for op in ops]
                return

    def _planned_again(self, before: Plan, items: list[Item], conflict: Conflict, tag: Op | None, attempt: int) -> Plan:
        """A plan over what the show has now, when that may help; else raises ``conflict``, or one that says more."""
        live = advance(self.target.show, before.live.reader)
        plan = make_plan(before.show, before.path, live, items)
        tag_moved = tag is not None and conflict.path == tag.path
        version_appeared = live.frozen(conflict.path) is not None if conflict.path else False
        if not (tag_moved or version_appeared) or attempt == TAG_ATTEMPTS - 1:
            raise conflict
        return plan


def advance(show: Show, reader: ReplicaReader) -> Live:
    """Bring the replica up to the log's end; the show as of then. Raises Unavailable, TrustError."""
    progress = show.follower.advance(deadline=time.monotonic() + SYNC_DEADLINE_S)
    name = show.log.show
    if progress.stalled is not None and progress.stalled.kind == "rewritten":
        raise TrustError(f"nothing can be published to {name}: {progress.stalled.reason}")
    if progress.stalled is not None and progress.stalled.kind == "unavailable":
        raise Unavailable(f"nothing can be published to {name} at the moment: {progress.stalled.reason}")
    if not progress.reachable:
        raise Unavailable(f"library {show.log.library.url} is not reachable, so nothing can be published; try again")
    return Live(reader, reader.head)


def check_signature(target: Target, message: str) -> None:
    """Refuse a message or key that no reader would take, before anything is uploaded. Raises UsageError, TrustError."""
    nothing = Digest.of(b"")
    try:
        entry = Entry(target.show.log.show, 1, nothing, "0" * 32, nothing, target.author, message, time.time_ns())
        target.show.follower.verifier.verify(seal(entry, target.key))
    except FormatError as error:
        raise UsageError(f"the message cannot be published: {error}") from error


def check_ops(show: Show, ops: Sequence[Op], publish_id: str) -> None:
    """Let the readers' own apply judge these ops and roll it back. Raises Conflict, UsageError."""
    if not ops:
        return
    ops = by_path(ops)
    header = Header(show.log.show, publish_id, scope_of(op.path for op in ops))
    try:
        with show.follower.locked(time.monotonic() + SYNC_DEADLINE_S):
            show.writer.check(header, ops)
    except FormatError as error:
        raise UsageError(f"this cannot be published: {error}") from error


def commit_ops(target: Target, publish_id: str, message: str, ops: Sequence[Op]) -> int:
    """Make these ops, sorted by path, the next revision. Raises as ``manifest.commit.commit`` does."""
    show = target.show
    scope = scope_of(op.path for op in ops)
    try:
        return commit(
            show.follower,
            target.key,
            Publish(show.log.show, publish_id, target.author, message, scope, ops),
        )
    except FormatError as error:
        raise UsageError(f"this cannot be published: {error}") from error
    except KeyboardInterrupt:
        raise OutcomeUnknown(
            "interrupted while publishing: it may have become a revision; publish the same again to find out"
        ) from None


def read(uploader: Uploader | None, files: Sequence[SourceFile], output: Output, what: str) -> dict[str, Finished]:
    """Read files to their ends, with progress; by their paths in the show."""
    if not files:
        return {}
    with output.progress(what, total=sum(item.size for item in files)) as progress:
        return {done.item.path: done for done in Pipeline(uploader, progress).run(files)}


def _dry_run(target: Target, request: Request, plan: Plan, output: Output, outcome: Outcome) -> None:
    """Find out what would be published, without uploading or writing anything."""
    existing = [item for item in plan.files() if (row := plan.live.row(item.path)) and row.size == item.size]
    finished = read(None, [*plan.frozen_files(), *existing], output, "comparing")
    compare_frozen(plan, finished)
    check_ops(target.show, provisional_ops(plan), "0" * 32)
    for item in plan.free:
        if not is_same(item, plan.live.row(item.path), finished.get(item.path)):
            outcome.changed.append(item.path)
    if request.tag is not None:
        folder, version = split(request.path)
        tag = tag_op(plan.show, plan.live, folder, request.tag, version)
        outcome.changed += [tag.path] if tag is not None else []
    if not outcome.changed:
        outcome.revision = plan.live.revision


def _missing(files: Iterable[SourceFile], finished: Mapping[str, Finished]) -> list[SourceFile]:
    return [item for item in files if item.path not in finished]
