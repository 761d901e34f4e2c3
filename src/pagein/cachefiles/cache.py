"""A cache directory in use: taken by `bind`, checked, locked, and what lies in it.

One kernel half binds a cache directory alone; library processes, which have none, share theirs
(design decision 14). Everything here blocks and is called in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import logging
import os
import stat
import tempfile
import time
from collections.abc import Callable

from pagein.cachefiles import inflight, namei, tracepoints, xattr
from pagein.cachefiles.backing import BackingFile
from pagein.cachefiles.inflight import InflightTable
from pagein.cachefiles.inuse import claimed, open_cache_file, sole_user
from pagein.cachefiles.openfiles import OpenFiles, half_of_our_fds
from pagein.cachefiles.presence import probe, round_up
from pagein.cachefiles.space import Space
from pagein.cachefiles.tracepoints import trace
from pagein.cachefiles.writers import Writers
from pagein.protocol.space import LIMITS, Limits

log = logging.getLogger("pagein.cachefiles")
UNLIMITED = Limits(dict.fromkeys(LIMITS, 0))


class Cache:
    """One bound cache directory: its lock, its table of writes under way, its objects' files."""

    def __init__(
        self,
        directory: bytes,
        *,
        shared: bool = False,
        limits: Limits = UNLIMITED,
        space_changed: Callable[[], None] = lambda: None,
    ) -> None:
        """Take `directory`: alone, or with others when `shared`.

        `limits` say how much of the file system stays free; `space_changed` is called in whatever
        thread it happens in. Raises OSError: ENOENT, ENOTDIR or EACCES of the directory; EBUSY when
        another kernel half has bound it; EROFS; EOPNOTSUPP when its file system does not tell holes
        exactly; ENOBUFS when too little is free for it to be made.
        """
        self.directory: bytes = os.path.realpath(directory)
        self.shared = shared
        # What processes share they lock by their open files, and a lock goes with its fd.
        self.open_files = OpenFiles(None if shared else half_of_our_fds())
        self._burials = itertools.count(1)
        self._fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._lock()
            self._probe()
            self.space = Space(self._fd, limits, space_changed)
            for name in (namei.CACHE_DIR, namei.GRAVEYARD_DIR):
                self._mkdir(name)
            self.inflight = InflightTable(self.directory)
            self.writers = Writers(self.inflight.slots_free)
            """As many writes at once as this process has entries in the table."""
        except BaseException:
            os.close(self._fd)
            raise
        try:
            self._drop_dead()
            with contextlib.suppress(OSError):  # too little: then the daemon should make room
                self.space.check(self._fd)
        except BaseException:
            self.close()
            raise

    def _probe(self) -> None:
        try:
            probe(self.directory)
        except OSError as problem:
            # What a full disk has is still there to be read. Its file system told holes exactly
            # when the directory was bound before, and will be asked again at the next bind.
            full = problem.errno in (errno.ENOSPC, errno.EDQUOT)
            if not full or not os.path.exists(self.path_of(inflight.FILE_NAME)):
                raise
            log.warning("%s: %s: only what is in it can be read", self._name(), problem.strerror)

    def _drop_dead(self) -> None:
        for entry in self.inflight.drop_dead(self.directory):
            file_name = os.fsdecode(entry.path)
            log.warning(
                "dropped %d bytes at %d of %s: its writer died",
                entry.length,
                entry.offset,
                file_name,
            )

    def _lock(self) -> None:
        kind = fcntl.LOCK_SH if self.shared else fcntl.LOCK_EX
        try:
            fcntl.flock(self._fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(
                errno.EBUSY, "cache directory is in use by another pagein", self._name()
            ) from None

    def _name(self) -> str:
        return os.fsdecode(self.directory)

    def _mkdir(self, relative: bytes) -> None:
        path = os.path.join(self.directory, relative)
        if not os.path.lexists(path):
            self.space.check(self._fd, files=1)
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            if not os.path.isdir(path) or os.path.islink(path):
                raise OSError(errno.EIO, "not a directory", os.fsdecode(path)) from None

    def close(self) -> None:
        """Give the directory back. Files stay."""
        self.writers.close()
        self.inflight.close()
        fd, self._fd = self._fd, -1
        os.close(fd)

    def abandon(self) -> None:
        """In a forked child: close what the parent has open here."""
        self.inflight.abandon()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def path_of(self, relative: bytes) -> bytes:
        """Absolute path of something in the cache."""
        return os.path.join(self.directory, relative)

    def prepare_volume(self, volume_key: bytes, coherency: bytes = b"") -> None:
        """Make or check a volume's directory; ENOBUFS when it cannot be used (facts 7.3).

        One whose attribute says something else than the netfs's `coherency` goes to the graveyard
        and is made anew.
        """
        path = self.path_of(namei.CACHE_DIR + b"/" + namei.volume_name(volume_key))
        wanted = xattr.volume_coherency(coherency)
        if not os.path.lexists(path):
            self._make_volume(path, wanted)
        coherent = self._volume_coherency(path, len(wanted)) == wanted
        if trace.on:
            verdict = "VOL OK" if coherent else "VOL BAD cmp"
            trace.event(tracepoints.VOL_COHERENCY, b"", path, verdict)
        if not coherent:
            log.warning("%s is of another time", os.fsdecode(path))
            self.to_graveyard(path)
            self._make_volume(path, wanted)

    def _volume_coherency(self, path: bytes, longest: int) -> bytes:
        try:
            if stat.S_ISDIR(os.lstat(path).st_mode):
                value = os.getxattr(path, xattr.NAME, follow_symlinks=False)
                if len(value) <= longest:  # ERANGE is no verdict to the kernel, but a failure
                    return value
                log.error("%s: attribute of %d bytes", os.fsdecode(path), len(value))
        except OSError as problem:
            log.error("%s: %s", os.fsdecode(path), problem.strerror)
        raise OSError(errno.ENOBUFS, "unusable volume directory", os.fsdecode(path))

    def to_graveyard(self, path: bytes) -> None:
        """Move something aside by its name alone: whoever has it open or mounted keeps it."""
        while True:
            name = namei.grave_name(int(time.time()), next(self._burials))
            grave = self.path_of(namei.GRAVEYARD_DIR + b"/" + name)
            if not os.path.lexists(grave):
                break
        os.rename(path, grave)
        if trace.on:
            trace.event(tracepoints.RENAME, b"", path, "weird")
        log.info("%s: moved to %s", os.fsdecode(path), os.fsdecode(grave))

    def _make_volume(self, path: bytes, coherency: bytes) -> None:
        """With its attribute or not at all: without it a volume could never be used again."""
        self.space.check(self._fd, files=1)
        made = tempfile.mkdtemp(dir=self.path_of(namei.GRAVEYARD_DIR))
        try:
            os.setxattr(made, xattr.NAME, coherency)
            os.rename(made, path)
            if trace.on:
                trace.event(tracepoints.MKDIR, b"", path)
        except OSError as problem:
            os.rmdir(made)
            if problem.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # another was faster
                raise

    def find(self, relative: bytes) -> int | None:
        """Open an object's file, or None when there is none. The caller owns the fd.

        A directory in its place goes to the graveyard, what else is no file is removed (facts 7.3).
        """
        path = self.path_of(relative)
        try:
            kind = stat.S_IFMT(os.lstat(path).st_mode)
            if kind == stat.S_IFDIR:
                log.warning("%s is a directory", os.fsdecode(path))
                self.to_graveyard(path)
            elif kind != stat.S_IFREG:
                log.warning("%s is no regular file, removed", os.fsdecode(path))
                _unlink(relative, path, "weird")
            fd = open_cache_file(path)
        except FileNotFoundError:
            fd = None
        if trace.on:
            trace.event(tracepoints.LOOKUP, relative, -errno.ENOENT if fd is None else 0)
        return fd

    def store(self, fd: int, data: memoryview, offset: int) -> int:
        """pwrite to an open file of the cache."""
        return os.pwrite(fd, data, offset)

    def exists(self, relative: bytes) -> bool:
        """Whether there is a file of that name."""
        return os.path.lexists(self.path_of(relative))

    def check_room(self) -> None:
        """See whether there is room for a new file. Raises ENOBUFS (facts 11)."""
        self.space.check(self._fd, files=1)

    def state(self, size: int) -> bytes:
        """What a read() of `size` bytes says in the original mode. Raises EMSGSIZE."""
        return self.space.state(self._fd, size)

    def look_up(self, relative: bytes, object_size: int, aux: bytes = b"") -> BackingFile:
        """The backing file of an object whose size is now known: found, or made and linked.

        Follows the kernel's coherency check (facts 7.3), except that a new file is linked here,
        at copen, and not at the end (design decision 4). `aux` is what the netfs would know again
        of the object. Raises OSError: EBUSY when a stale file is in use and may not be replaced;
        ENODATA or ERANGE for an unusable attribute; ENOBUFS without room for a new file.
        """
        wanted = xattr.ObjectXattr(object_size, aux=aux)
        while True:
            fd = self.find(relative)
            if fd is None:
                fd = self._create(relative, wanted)
                if fd is None:
                    continue  # made by another process meanwhile
            elif not self._coherent(relative, fd, wanted):
                os.close(fd)
                self._bury(relative)
                continue
            self._used_now(fd)
            return BackingFile(self, relative, fd, object_size)

    @staticmethod
    def _used_now(fd: int) -> None:
        """Note that a file was looked up, which says in which order files are culled (facts 11).

        Whatever the mount options say of times of access; the kernel does it by them.
        """
        with contextlib.suppress(OSError):  # a full disk, on some file systems
            os.utime(fd, ns=(time.time_ns(), os.fstat(fd).st_mtime_ns))

    def _coherent(self, relative: bytes, fd: int, wanted: xattr.ObjectXattr) -> bool:
        try:
            found = xattr.get_object(fd, len(wanted.aux))
            matches = found is not None and found.matches(wanted)
            if trace.on:
                trace.event(tracepoints.COHERENCY, relative, "OK" if matches else "BAD")
            if not matches:
                return False
            if os.fstat(fd).st_size != round_up(wanted.object_size):
                self._resize(fd, wanted.object_size)
        except BaseException:
            os.close(fd)
            raise
        return True

    def _resize(self, fd: int, object_size: int) -> None:
        if not self.shared and not sole_user(fd):
            raise OSError(errno.EBUSY, "cache file has the wrong length and is in use")
        if trace.on:
            kind, before = tracepoints.TRUNC, os.fstat(fd).st_size
            trace.event(kind, b"", "SHRINK", before, round_up(object_size))
        os.ftruncate(fd, round_up(object_size))

    def _create(self, relative: bytes, wanted: xattr.ObjectXattr) -> int | None:
        self.check_room()
        parent = os.path.dirname(self.path_of(relative))
        os.makedirs(parent, 0o700, exist_ok=True)
        fd = os.open(parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, round_up(wanted.object_size))
            xattr.set_object(fd, wanted)
            # With a directory fd Python calls linkat(2), here with AT_SYMLINK_FOLLOW.
            os.link(f"/proc/self/fd/{fd}", self.path_of(relative), src_dir_fd=self._fd)
            if trace.on:
                inode = os.fstat(fd).st_ino
                trace.event(tracepoints.TMPFILE, relative, inode)
                trace.event(tracepoints.LINK, relative, inode)
        except FileExistsError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _bury(self, relative: bytes) -> None:
        """Remove a stale file, unless anybody uses it (design decision 7)."""
        path = self.path_of(relative)
        with claimed(path):
            _unlink(relative, path, "stale")


def _unlink(relative: bytes, path: bytes, why: str) -> None:
    os.unlink(path)
    if trace.on:
        trace.event(tracepoints.UNLINK, relative, path, why)
