"""The user half becomes an ordinary user, after what needs root and before it reads the network."""

from __future__ import annotations

import ctypes
import errno
import os
import pwd
import signal
from collections.abc import Sequence

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38


def give_up_privileges(
    user: str, directories: Sequence[str], *, with_parent: bool, fds: Sequence[int] = ()
) -> None:
    """Become `user` for good; the directories become theirs, with all in them. Raises OSError.

    `fds` are open directories that become theirs as well. `with_parent`: be killed when the parent
    process ends.
    """
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise OSError(errno.EINVAL, f"no user is called {user}") from None
    for directory in directories:
        os.makedirs(directory, 0o700, exist_ok=True)
        _give(directory, entry.pw_uid, entry.pw_gid)
    for fd in fds:
        _give_all(fd, entry.pw_uid, entry.pw_gid)
    os.setgroups([])
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if with_parent:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a change of user forgets it


def _give(directory: str, uid: int, gid: int) -> None:
    # What lies in them was made by that user: a link there must not lead root to other files.
    for _, names, files, fd in os.fwalk(directory, follow_symlinks=False):
        os.chown(fd, uid, gid)
        for name in (*names, *files):
            os.chown(name, uid, gid, dir_fd=fd, follow_symlinks=False)


def _give_all(fd: int, uid: int, gid: int) -> None:
    os.chown(fd, uid, gid)
    for name in os.listdir(fd):
        os.chown(name, uid, gid, dir_fd=fd, follow_symlinks=False)
