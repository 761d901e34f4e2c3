"""Whom a container runs as: `User` of an image config, by the image's own passwd and group files.

The forms are those of the OCI image spec (config.md, "User"): user, uid, user:group, uid:gid,
uid:group, user:gid. Without a group it is that of the passwd entry, and all groups that have the
user as a member come too; with one it is that alone.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from pagein.containers import rootfs

_MAX_ID: Final = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class User:
    """Numbers, and the home directory of the passwd entry."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    home: str = "/"


def resolve(user: str, root: str) -> User:
    """The user that `user` names below the root directory `root`; "" is root.

    Raises OSError EINVAL in one line, when a name has no entry.
    """
    name, _, group = user.partition(":")
    name = name or "0"
    entry = _passwd(name, root)
    if entry is None:
        number = _number(name)
        if number is None:
            raise OSError(errno.EINVAL, f"unable to find user {name}: no entry in its /etc/passwd")
        entry = ("", User(number, 0))
    login, found = entry
    if group:
        return User(found.uid, _group(group, root), (), found.home)
    groups = {gid for _, gid, members in _groups(root) if login and login in members}
    return User(found.uid, found.gid, tuple(sorted(groups - {found.gid})), found.home)


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and int(text) <= _MAX_ID else None


def _passwd(name: str, root: str) -> tuple[str, User] | None:
    """The first entry of a name; else, of a number, of that uid."""
    number = _number(name)
    by_number = None
    for line in rootfs.lines_of(root, "/etc/passwd"):
        fields = line.split(":")
        if len(fields) < 6:
            continue
        uid, gid = _number(fields[2]), _number(fields[3])
        if uid is None or gid is None:
            continue
        entry = (fields[0], User(uid, gid, (), fields[5] or "/"))
        if fields[0] == name:
            return entry
        if uid == number and by_number is None:
            by_number = entry
    return by_number


def _groups(root: str) -> Iterator[tuple[str, int, set[str]]]:
    for line in rootfs.lines_of(root, "/etc/group"):
        fields = line.split(":")
        gid = _number(fields[2]) if len(fields) >= 4 else None
        if gid is not None:
            yield fields[0], gid, set(fields[3].split(","))


def _group(name: str, root: str) -> int:
    for found, gid, _ in _groups(root):
        if found == name:
            return gid
    number = _number(name)
    if number is None:
        raise OSError(errno.EINVAL, f"unable to find group {name}: no entry in its /etc/group")
    return number
