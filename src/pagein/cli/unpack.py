"""A tree written into a directory, and nowhere else.

Every step is taken from an open directory, by a name without a slash, and never through a symbolic
link: neither what the image holds nor what lies in the directory can lead out of it. A directory
gets its mode, owner and time when it is left, as what is made in it would change them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from pagein.cli.trees import Tree, pieces, shown, visits
from pagein.erofs.errors import ErofsError

if TYPE_CHECKING:
    from pagein.erofs.inode import Inode

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FOREIGN = stat.S_ISUID | stat.S_ISGID
# What an unprivileged user may not set, or not on this file system.
_REFUSED = {errno.EPERM, errno.EOPNOTSUPP}


class Unpacker:
    """Writes below `target`, which exists; `overwrite` replaces what is there.

    As root owner, devices and all attributes are kept. Without, files are the user's, not set-uid,
    and what the system refuses to set is left out; `skipped` counts files that could not be made.
    """

    def __init__(self, tree: Tree, target: str, *, overwrite: bool) -> None:
        self._tree = tree
        self._target = target
        self._overwrite = overwrite
        self._root = os.geteuid() == 0
        self._above: list[int] = []  # open directories, from the target down
        self._first: dict[object, tuple[str, int, int]] = {}  # of hard links: path, device, inode
        self._base = b""
        self.skipped = 0

    def run(self, top: Inode) -> None:
        """Write what is in `top`, a directory, or `top` itself. Raises OSError."""
        self._above.append(os.open(self._target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        try:
            self._base = top.path if top.is_dir else os.path.dirname(top.path)
            for found, entered in visits(self._tree, top):
                if found is not top or not top.is_dir:
                    self._visit(found, entered)
        finally:
            while self._above:
                os.close(self._above.pop())

    def _visit(self, found: Inode, entered: bool) -> None:
        try:
            if not entered:
                self._leave(found)
            elif found.is_dir:
                self._enter(found)
            elif found.key in self._first:
                self._link(found)
            else:
                self._make(found)
        except OSError as problem:
            if not isinstance(problem, ErofsError):
                problem.filename = self._place(found)
            raise

    def _place(self, found: Inode) -> str:
        """Where a file goes, for people."""
        below = os.fsdecode(found.path[len(self._base) + 1 :])
        return os.path.join(self._target, below)

    # ---- directories -----------------------------------------------------------------------------

    def _enter(self, found: Inode) -> None:
        name, above = os.path.basename(found.path), self._above[-1]
        self._clear(found, keep_directory=True)
        with contextlib.suppress(FileExistsError):  # `_clear` has let it stay
            os.mkdir(name, 0o700, dir_fd=above)
        self._above.append(os.open(name, _DIRECTORY, dir_fd=above))

    def _leave(self, found: Inode) -> None:
        fd = self._above.pop()
        try:
            self._dress_open(found, fd)
        finally:
            os.close(fd)

    # ---- everything else -------------------------------------------------------------------------

    def _clear(self, found: Inode, *, keep_directory: bool = False) -> None:
        """Make room for a file: what is there is in the way, unless it may be overwritten."""
        name, above = os.path.basename(found.path), self._above[-1]
        try:
            there = os.stat(name, dir_fd=above, follow_symlinks=False)
        except FileNotFoundError:
            return
        if not self._overwrite:
            text = "exists: --overwrite replaces it"
            raise OSError(errno.EEXIST, text, self._place(found))
        if not stat.S_ISDIR(there.st_mode):
            os.unlink(name, dir_fd=above)
        elif not keep_directory:
            text = "is a directory, where the image has something else"
            raise OSError(errno.EISDIR, text, self._place(found))

    def _make(self, found: Inode) -> None:
        name, above = os.path.basename(found.path), self._above[-1]
        device = stat.S_ISCHR(found.mode) or stat.S_ISBLK(found.mode)
        if device and not self._root:
            where = shown(os.fsencode(self._place(found)))
            print(f"pagein: {where}: left out: only root makes devices", file=sys.stderr)
            self.skipped += 1
            return
        self._clear(found)
        if stat.S_ISREG(found.mode):
            fd = os.open(name, _NEW, 0o600, dir_fd=above)
            try:
                self._fill(found, fd)
                self._dress_open(found, fd)
            finally:
                os.close(fd)
        else:
            if stat.S_ISLNK(found.mode):
                os.symlink(self._tree.readlink(found), name, dir_fd=above)
            else:
                kind = stat.S_IFMT(found.mode)
                before = os.umask(0)  # a mode that chmod(2) sets would go through a link
                try:
                    os.mknod(name, kind | self._mode(found), found.rdev, dir_fd=above)
                finally:
                    os.umask(before)
            self._dress_named(found, name, above)
        if found.nlink > 1:
            made = os.stat(name, dir_fd=above, follow_symlinks=False)
            below = os.fsdecode(found.path[len(self._base) + 1 :])
            self._first[found.key] = (below, made.st_dev, made.st_ino)

    def _fill(self, found: Inode, fd: int) -> None:
        for extent in self._tree.extents(found):
            at, end = extent.offset, min(extent.offset + extent.length, found.size)
            for piece in pieces(self._tree, found, at, end):
                at += _write(fd, piece, at)
        os.ftruncate(fd, found.size)

    def _link(self, found: Inode) -> None:
        first, *wanted = self._first[found.key]
        name, top, above = os.path.basename(found.path), self._above[0], self._above[-1]
        self._clear(found)
        os.link(first, name, src_dir_fd=top, dst_dir_fd=above, follow_symlinks=False)
        made = os.stat(name, dir_fd=above, follow_symlinks=False)
        if [made.st_dev, made.st_ino] != wanted:  # somebody moved what the path goes through
            os.unlink(name, dir_fd=above)
            raise OSError(errno.EBUSY, "changed while it was written", self._place(found))

    # ---- attributes ------------------------------------------------------------------------------

    def _dress_open(self, found: Inode, fd: int) -> None:
        times = (found.mtime_ns, found.mtime_ns)
        if self._root:
            os.fchown(fd, found.uid, found.gid)
        # After the owner, whose change takes capabilities away, and while it may be written.
        self._set_xattrs(found, lambda name, value: os.setxattr(fd, name, value))
        os.fchmod(fd, self._mode(found))
        os.utime(fd, ns=times)

    def _dress_named(self, found: Inode, name: bytes, above: int) -> None:
        """For what cannot be opened without an effect."""
        times = (found.mtime_ns, found.mtime_ns)
        if self._root:
            os.chown(name, found.uid, found.gid, dir_fd=above, follow_symlinks=False)
        path = b"/proc/self/fd/%d/%b" % (above, name)
        self._set_xattrs(
            found, lambda key, value: os.setxattr(path, key, value, follow_symlinks=False)
        )
        os.utime(name, ns=times, dir_fd=above, follow_symlinks=False)

    def _mode(self, found: Inode) -> int:
        mode = stat.S_IMODE(found.mode)
        return mode if self._root else mode & ~_FOREIGN

    def _set_xattrs(self, found: Inode, put: Callable[[bytes, bytes], None]) -> None:
        for name, value in self._tree.xattrs(found).items():
            try:
                put(name, value)
            except OSError as problem:
                if self._root or problem.errno not in _REFUSED:
                    text = f"{os.fsdecode(name)}: {problem.strerror}"
                    raise OSError(problem.errno, text, self._place(found)) from None


def _write(fd: int, data: bytes, offset: int) -> int:
    """All of `data`; returns its length."""
    with memoryview(data) as view:
        done = 0
        while done < len(view):
            done += os.pwrite(fd, view[done:], offset + done)
    return len(data)
