"""A path resolved in a tree as the kernel does it, whatever the tree is made of."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Protocol, TypeVar

_LINKS_MAX = 40  # MAXSYMLINKS of the kernel
_WORK_MAX = 1 << 16
"""Bytes of path that remain to be resolved: links in links may blow up."""


class _Typed(Protocol):
    @property
    def mode(self) -> int: ...


T = TypeVar("T", bound=_Typed)


def resolve(
    path: bytes,
    root: T,
    child: Callable[[T, bytes], T | None],
    readlink: Callable[[T], bytes],
    *,
    follow: bool,
) -> T:
    """What is at `path`; links are followed within the tree, a last one only with `follow`.

    Raises OSError: ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG.
    """
    trail = [root]
    names = _names(path)
    follow = follow or path.endswith(b"/")
    links = 0
    while names:
        name = names.pop()
        if not stat.S_ISDIR(trail[-1].mode):
            raise _error(errno.ENOTDIR, path)
        if name == b"..":
            if len(trail) > 1:
                trail.pop()
            continue
        found = child(trail[-1], name)
        if found is None:
            raise _error(errno.ENOENT, path)
        if not stat.S_ISLNK(found.mode) or not (names or follow):
            trail.append(found)
            continue
        links += 1
        if links > _LINKS_MAX:
            raise _error(errno.ELOOP, path)
        target = readlink(found)
        names += _names(target)
        if sum(map(len, names)) > _WORK_MAX:
            raise _error(errno.ENAMETOOLONG, path)
        if target.startswith(b"/"):
            del trail[1:]
    return trail[-1]


def _names(path: bytes) -> list[bytes]:
    """The components, the first one last."""
    return [name for name in reversed(path.split(b"/")) if name not in {b"", b"."}]


def _error(number: int, path: bytes) -> OSError:
    return OSError(number, os.strerror(number), os.fsdecode(path))
