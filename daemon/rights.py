"""What a user of this machine may be told of what lies in a mount: what the kernel would let them see there.

State: none. Rules, as the kernel has them with ``default_permissions`` (fs/fuse/dir.c, path_resolution(7)):

- Without ``allow_other`` the mount is its owner's alone, and who may not come as far as the mountpoint sees nothing of
  it. Its folders and files have the published modes, and the owner and the group of the configuration.
- A name is looked up in a folder that one may search (x), listed in one that one may read (r); what is told of a file
  is as much as reading it would tell, so it takes the right to read it (r).
- Whose groups are not known has the rights that a member of a group and anybody else both have.
- Who may administer the mount, which its cache belongs to, may know everything: root, and the daemon's own user.
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from manifest.errors import AccessDenied

if TYPE_CHECKING:
    from pathlib import Path

    from daemon.peercred import Peer
    from manifest.replica import Row

READ, SEARCH = 4, 1
_ACL_HEADER_BYTES = 4
_ACL_ENTRY = struct.Struct("<HHI")
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20


@dataclass(frozen=True, slots=True)
class Rights:
    """Of one who asks. ``peer`` None: somebody who may know everything. ``owner``: (uid, gid) of what is mounted."""

    peer: Peer | None
    owner: tuple[int, int]

    @classmethod
    def of(cls, peer: Peer | None, *, is_admin: bool, owner: tuple[int, int], allow_other: bool) -> Rights:
        """The rights of a client; ``is_admin``: it came through the admin socket. Raises AccessDenied without any."""
        if is_admin or (peer is not None and peer.uid in (0, os.geteuid())):
            return cls(None, owner)
        if peer is None:
            raise AccessDenied("who asks is not known: ask through the mount's socket")
        if not allow_other:
            raise AccessDenied(
                "this mount is its owner's alone (mount.allow_other is off): ask as that user, or as root"
            )
        return cls(peer, owner)

    def may(self, row: Row, what: int) -> bool:
        """Whether this is granted, of READ and SEARCH."""
        return self.peer is None or _grants(self.peer, row.mode, self.owner, what)

    def require(self, path: str, row: Row, what: int) -> None:
        """Raise AccessDenied unless it is granted."""
        if not self.may(row, what):
            assert self.peer is not None
            raise AccessDenied(
                f"uid {self.peer.uid} may not {'search' if what == SEARCH else 'read'} "
                f"{path or 'this show'}, so nothing is told of it"
            )

    def require_way(self, mountpoint: Path) -> None:
        """Raise AccessDenied unless all folders above the mountpoint may be searched. Blocking."""
        if self.peer is None:
            return
        for folder in mountpoint.parents:
            try:
                is_granted = _may_search(self.peer, folder)
            except OSError as error:
                raise AccessDenied(f"{folder} cannot be looked at: {error.strerror}") from error
            if not is_granted:
                raise AccessDenied(
                    f"uid {self.peer.uid} may not search {folder}, so nothing is told of what lies there"
                )

    def enter(self, path: str, folder: Row) -> None:
        """Raise AccessDenied unless names may be looked up in a folder."""
        self.require(path, folder, SEARCH)


def _grants(peer: Peer, mode: int, owner: tuple[int, int], what: int) -> bool:
    if peer.uid == owner[0]:
        granted = mode >> 6
    elif owner[1] in (peer.gid, *(peer.groups or ())):
        granted = mode >> 3
    elif peer.groups is None:  # perhaps it is one of them: what both have
        granted = mode >> 3 & mode
    else:
        granted = mode
    return granted & what == what


def _may_search(peer: Peer, folder: Path) -> bool:
    """By the folder's ACL, where it has one, else by its mode. Raises OSError.

    As acl_permission_check in fs/namei.c: without any right of the group, which is the ACL's mask, no ACL is looked at.
    """
    found = folder.stat()
    owner = found.st_uid, found.st_gid
    try:
        acl = os.getxattr(folder, "system.posix_acl_access") if found.st_mode & 0o070 else b""
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
            raise
        acl = b""
    return _acl_grants(peer, acl, owner, SEARCH) if acl else _grants(peer, found.st_mode, owner, SEARCH)


def _acl_grants(peer: Peer, acl: bytes, owner: tuple[int, int], what: int) -> bool:
    """As posix_acl_permission in fs/posix_acl.c; the attribute is as in include/uapi/linux/posix_acl_xattr.h."""
    entries: list[tuple[int, int, int]] = list(_ACL_ENTRY.iter_unpack(acl[_ACL_HEADER_BYTES:]))
    of = {tag: rights for tag, rights, _ in entries}
    mask = of.get(_MASK, 0o7)
    groups = {peer.gid, *(peer.groups or ())}
    if peer.uid == owner[0]:
        return of[_USER_OBJ] & what == what
    mine = [rights for tag, rights, uid in entries if tag == _USER and uid == peer.uid]
    if not mine:
        mine = [
            rights for tag, rights, gid in entries
            if (tag == _GROUP_OBJ and owner[1] in groups) or (tag == _GROUP and gid in groups)
        ]  # fmt: skip
    if mine:
        return any(rights & mask & what == what for rights in mine)
    perhaps = [rights & mask for tag, rights, _ in entries if tag in (_GROUP_OBJ, _GROUP) and peer.groups is None]
    return all(rights & what == what for rights in (of[_OTHER], *perhaps))
