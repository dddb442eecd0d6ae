"""``damfs tag``: make a name beside versions lead to one of them. State: none."""

from __future__ import annotations

import secrets
from contextlib import closing
from typing import TYPE_CHECKING

from manifest.errors import Conflict, NotFound
from manifest.names import join
from manifest.replica import Kind
from tools.publish.plan import check_tag, tag_op
from tools.publish.publish import TAG_ATTEMPTS, advance, check_signature, commit_ops

if TYPE_CHECKING:
    from tools.publish.publish import Target


def move_tag(target: Target, folder: str, name: str, version: str, message: str = "") -> tuple[int, bool]:
    """Make or move the link ``folder``/``name`` → ``version``; (the revision that has it, whether that is new).

    When somebody else moves it at the same moment, the later one counts. Raises UsageError, NotFound when there is no
    such version, Conflict when something other than a link has the name, TransportError, OutcomeUnknown.
    """
    check_tag(name, version)
    check_signature(target, message)
    show = target.show.log.show
    with closing(target.show.reader()) as reader:
        for attempt in range(TAG_ATTEMPTS):
            live = advance(target.show, reader)
            path = join(folder, version)
            row = live.row(path)
            if row is None or row.kind != Kind.FOLDER:
                there = ", ".join(live.versions(folder)[-5:]) or "no version"
                raise NotFound(f"{show} has no version {path}: {folder or 'its root'} has {there}")
            op = tag_op(show, live, folder, name, version)
            if op is None:
                link = live.row(join(folder, name))
                assert link is not None
                return link.since, False
            try:
                return commit_ops(target, secrets.token_hex(16), message, [op]), True
            except Conflict as conflict:
                if conflict.path != op.path or attempt == TAG_ATTEMPTS - 1:
                    raise
    raise AssertionError("the last attempt returns or raises")
