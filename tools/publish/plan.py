"""What a publish would do to a show: what is refused, what is the same already, and the ops for the rest.

State: none. Rules: a published version is write-once: what goes into one must be there already, with the same bytes;
names, modes and times are then as they were published. Elsewhere a file is the same when its bytes and its mode are;
a newer modification time alone publishes nothing. A folder is given a mode of its own only when it is new.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from manifest.canonical import INTEGER_MAX
from manifest.changeset import Op
from manifest.digest import Digest
from manifest.errors import Conflict, UsageError
from manifest.names import is_tag, is_version, join, split
from manifest.post import File, Folder, Link
from manifest.recipe import INLINE_CHUNKS_MAX, Recipe
from manifest.replica import Kind
from tools.publish.walk import SourceFile, SourceFolder, SourceLink

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from manifest.post import Post
    from manifest.replica import Row
    from tools.publish.live import Live
    from tools.publish.pipeline import Finished
    from tools.publish.walk import Item

FOLDER_MODE = 0o755
"""The mode of a folder that comes into being as the parent of something."""
_KNOWN_CHUNKS_MAX = 1_000_000
_KINDS = {Kind.FILE: "a file", Kind.LINK: "a link", Kind.FOLDER: "a folder"}


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be published over what the show has. ``frozen`` items lie in published versions."""

    show: str
    path: str
    live: Live
    free: Sequence[Item]
    frozen: Sequence[Item]

    def files(self) -> list[SourceFile]:
        """The files that have to be in the library before the commit."""
        return [item for item in self.free if isinstance(item, SourceFile)]

    def frozen_files(self) -> list[SourceFile]:
        """The files that have to be compared with what is published."""
        return [item for item in self.frozen if isinstance(item, SourceFile)]


@dataclass(frozen=True, slots=True)
class Change:
    """The ops that remain, sorted by path. ``newest`` is the last revision that has any of what is the same."""

    ops: list[Op]
    newest: int


def make_plan(show: str, path: str, live: Live, items: Iterable[Item]) -> Plan:
    """Part the items, and refuse what can be refused without reading a file. Raises Conflict."""
    free: list[Item] = []
    frozen: list[Item] = []
    for item in items:
        obstacle = live.obstacle(item.path)
        row = live.row(item.path)
        if obstacle is not None:
            kind = _KINDS[Kind(_there(live.row(obstacle)).kind)]
            raise Conflict(f"{show}:{item.path} cannot be: {obstacle} is {kind}; publish to another path", item.path)
        if row is not None and (row.kind == Kind.FOLDER) != isinstance(item, SourceFolder):
            kind, wanted = _KINDS[Kind(row.kind)], "a folder" if isinstance(item, SourceFolder) else "no folder"
            raise Conflict(
                f"{show}:{item.path} is {kind} and {item.source} is {wanted}; remove the one with `damfs rm` first",
                item.path,
            )
        version = live.frozen(item.path)
        if version is None:
            free.append(item)
            continue
        if row is None or not _may_be_same(row, item):
            raise _write_once(show, live, version, item, "is not in it" if row is None else "differs")
        frozen.append(item)
    return Plan(show, path, live, free, frozen)


def compare_frozen(plan: Plan, finished: Mapping[str, Finished]) -> int:
    """The last revision that has any of the frozen items. Raises Conflict when one has other bytes."""
    newest = 0
    for item in plan.frozen:
        row = _there(plan.live.row(item.path))
        if isinstance(item, SourceFile) and finished[item.path].digest != row.digest:
            raise _write_once(plan.show, plan.live, plan.live.frozen(item.path) or "", item, "has other bytes")
        newest = max(newest, row.since)
    return newest


def provisional_ops(plan: Plan) -> list[Op]:
    """Ops with made-up digests, for the readers' own apply to refuse what it would refuse, before any upload."""
    ops = []
    for item in plan.free:
        row = plan.live.row(item.path)
        if isinstance(item, SourceFile):
            both_empty = row is not None and row.kind == Kind.FILE and row.size == item.size == 0
            if not both_empty:
                ops.append(Op(item.path, plan.live.pre(row), _stand_in(item)))
        elif not is_same(item, row, None):
            ops.append(Op(item.path, plan.live.pre(row), _other_post(item)))
    return ops


def make_change(plan: Plan, finished: Mapping[str, Finished]) -> Change:
    """The ops of everything that is not the same already."""
    ops = []
    newest = 0
    for item in plan.free:
        row = plan.live.row(item.path)
        if is_same(item, row, finished.get(item.path)):
            newest = max(newest, row.since if row is not None and row.kind != Kind.FOLDER else 0)
            continue
        post = _file_post(finished[item.path]) if isinstance(item, SourceFile) else _other_post(item)
        ops.append(Op(item.path, plan.live.pre(row), post))
    return Change(ops, newest)


def is_same(item: Item, row: Row | None, finished: Finished | None) -> bool:
    """Whether the show has this already, or it comes by itself: a folder as the parent of what is in it.

    A file that was not read (``finished`` is None) is not the same.
    """
    if isinstance(item, SourceFile):
        if finished is None or row is None or row.kind != Kind.FILE:
            return False
        return row.digest == finished.digest and row.mode == finished.fingerprint.mode
    if isinstance(item, SourceLink):
        return row is not None and row.target == item.target
    return row is not None or not (item.empty or item.mode != FOLDER_MODE)


def tag_op(show: str, live: Live, folder: str, name: str, version: str) -> Op | None:
    """The op that makes or moves the link ``folder``/``name`` → ``version``; None when it leads there already.

    Raises Conflict when something else has the name.
    """
    path = join(folder, name)
    row = live.row(path)
    if row is not None and row.kind != Kind.LINK:
        raise Conflict(f"{show}:{path} is {_KINDS[Kind(row.kind)]} and cannot become a tag; choose another name", path)
    if row is not None and row.target == version:
        return None
    return Op(path, live.pre(row), Link(version))


def check_tag(name: str, version: str) -> None:
    """Raise UsageError unless a link ``name`` → ``version`` can be a tag."""
    if not is_tag(name):
        raise UsageError(
            f"{name[:80]!r} cannot be a tag: expected a name like latest or approved: at most 64 of A-Z, a-z, "
            "0-9, dot, hyphen and underscore, a letter or digit first, and nothing like a version (v001)"
        )
    if not is_version(version):
        raise UsageError(f"a tag leads to a version (v001), and {version or 'the root of a show'!r} is none")


def known_chunks(plan: Plan) -> set[bytes]:
    """The chunks that the show has of the same names: at the same path, or in the version before."""
    version = next((v for v in _ends(plan.path) if is_version(split(v)[1])), None)
    before = None
    if version is not None:
        folder, name = split(version)
        older = [other for other in plan.live.versions(folder) if int(other[1:]) < int(name[1:])]
        before = join(folder, older[-1]) if older else None
    known: set[bytes] = set()
    for item in plan.files():
        paths = [item.path] if before is None or version is None else [item.path, before + item.path[len(version) :]]
        for path in paths:
            row = plan.live.row(path)
            recipe = plan.live.reader.recipe(Digest(row.content)) if row is not None and row.content else None
            if recipe is not None:
                known.update(recipe[index].digest for index in range(len(recipe)))
        if len(known) > _KNOWN_CHUNKS_MAX:
            break
    return known


def by_path(ops: Iterable[Op]) -> list[Op]:
    """Ops in the order of a changeset."""
    return sorted(ops, key=lambda op: op.path)


def _file_post(finished: Finished) -> Post:
    mark, recipe = finished.fingerprint, finished.recipe
    assert recipe is not None, "what is published was cut"
    inline = recipe if len(recipe) <= INLINE_CHUNKS_MAX else None
    mtime_ns = min(max(mark.mtime_ns, 0), INTEGER_MAX)
    return File(mark.mode, mark.size, mtime_ns, finished.digest, recipe.content, inline)


def _other_post(item: SourceLink | SourceFolder) -> Post:
    return Link(item.target) if isinstance(item, SourceLink) else Folder(item.mode)


def _stand_in(item: SourceFile) -> Post:
    """A file of the right size that equals no other."""
    digest = Digest.of(item.path.encode())
    if item.size > INLINE_CHUNKS_MAX:
        return File(FOLDER_MODE, item.size, 0, digest, digest, None)
    recipe = Recipe.of([(digest, item.size)] if item.size else [])
    return File(FOLDER_MODE, item.size, 0, digest if item.size else Digest.of(b""), recipe.content, recipe)


def _may_be_same(row: Row, item: Item) -> bool:
    """Whether a look at the names alone leaves it open that both are the same."""
    if isinstance(item, SourceFile):
        return row.kind == Kind.FILE and row.size == item.size
    return row.kind == Kind.FOLDER or (isinstance(item, SourceLink) and row.target == item.target)


def _write_once(show: str, live: Live, version: str, item: Item, how: str) -> Conflict:
    since = _there(live.row(version)).since
    inside = item.path[len(version) + 1 :] or "its kind"
    return Conflict(
        f"{show}:{version} is published already (revision {since}) and never changes: {inside} {how}; "
        f"publish to {show}:{live.next_version(version)}, the next free version",
        item.path,
    )


def _ends(path: str) -> list[str]:
    """``path`` and the folders above it, deepest first."""
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(len(parts), 0, -1)]


def _there(row: Row | None) -> Row:
    assert row is not None
    return row
