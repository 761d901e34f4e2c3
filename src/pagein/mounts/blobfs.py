"""Blobs as files: a FUSE directory with one read-only file per cookie, for kernel EROFS to mount.

Failure rule: a read returns the right bytes, waits, or fails EIO. Never a short read, which EROFS
would fill up with zeros, and never a byte of a hole. Files are FOPEN_DIRECT_IO: EROFS caches, so
nothing is cached twice, and a warm read comes nowhere near this process (facts frontends 4).

This adapter does not decide what is fetched or when: it asks the cookie.
"""

from __future__ import annotations

import asyncio
import errno
import mmap
import stat
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pagein.cachefiles.backing import BackingFile
from pagein.cachefiles.ondemand import Request, error
from pagein.fscache import Cookie, FsCache
from pagein.fuse import abi
from pagein.fuse.server import Body, FuseServer, interruptible
from pagein.mounts.stream import Stream

_KEPT_BUFFERS = 16
MAX_READ = 1 << 20


@dataclass(eq=False, slots=True)
class Export:
    """One cookie as a file of this directory."""

    node: int
    name: bytes
    cookie: Cookie
    holds: int = 0
    """Mounts being made or standing that need the file."""
    handles: set[int] = field(default_factory=set)
    """Open file descriptions: each EROFS mount has one."""
    reads: int = 0
    stream: Stream = field(default_factory=Stream)


class BlobFs:
    """Serves exported cookies on a FUSE connection."""

    def __init__(
        self,
        fd: int,
        fscache: FsCache,
        *,
        first_handle: int = 1,
        released: Callable[[Export], None],
        on_close: Callable[[], None] | None = None,
        changed: Callable[[], None] = lambda: None,
        paused: bool = False,
    ) -> None:
        """`released` is called when the last open of an export ends and no mount holds it."""
        self.fscache = fscache
        self.exports: dict[int, Export] = {}
        self.touched: Callable[[Cookie, int, int], None] | None = None
        """Told of each read: offset and length in bytes."""
        self.answered: Callable[[Cookie, int, int, bool], None] | None = None
        """Told of each read that gets its bytes, and whether some of them were missing."""
        self._next_node = 2
        self._next_handle = first_handle
        self._released = released
        self._changed = changed
        self._buffers: list[mmap.mmap] = []
        op = abi.Opcode
        self.server = FuseServer(
            fd,
            {
                op.LOOKUP: self._lookup,
                op.GETATTR: lambda r: abi.attr_out(self._attr(r.nodeid), valid=abi.FOREVER),
                op.OPEN: self._open,
                op.READ: self._read,
                op.RELEASE: self._release,
                op.STATFS: lambda _: abi.statfs_out(),
                op.OPENDIR: lambda _: abi.open_out(0),
                op.RELEASEDIR: lambda _: b"",
                op.READDIR: self._readdir,
            },
            on_close,
            paused=paused,
        )

    # ---- exports -----------------------------------------------------------------------------

    def find(self, cookie: Cookie) -> Export | None:
        """The export of a cookie, if it has one."""
        for export in self.exports.values():
            if export.cookie is cookie:
                return export
        return None

    def export(self, cookie: Cookie) -> Export:
        """The file of a cookie, made on first use, held until `let_go`."""
        export = self.find(cookie)
        if export is None:
            name = b"%d" % self._next_node
            export = self.add(Export(self._next_node, name, cookie))
        export.holds += 1
        return export

    def add(self, export: Export) -> Export:
        """Take an export up as it is: a new one, or a predecessor's."""
        self.exports[export.node] = export
        self._next_node = max(self._next_node, export.node + 1)
        return export

    def let_go(self, export: Export) -> None:
        """A mount that held the file is gone."""
        export.holds -= 1
        self.check_released(export)

    def check_released(self, export: Export) -> None:
        """Give an export back that no mount holds and nobody has open."""
        if not export.holds and not export.handles and export.node in self.exports:
            del self.exports[export.node]
            self._released(export)
        self._changed()

    # ---- names and attributes ----------------------------------------------------------------

    def _export(self, node: int) -> Export:
        export = self.exports.get(node)
        if export is None:
            raise error(errno.ENOENT)
        return export

    def _attr(self, node: int) -> abi.Attr:
        if node == abi.ROOT_ID:
            return abi.Attr(node, stat.S_IFDIR | 0o700, nlink=2)
        return abi.Attr(node, stat.S_IFREG | 0o400, size=self._export(node).cookie.length)

    def _lookup(self, request: abi.Request) -> bytes:
        name = abi.name(request.body)
        for export in self.exports.values():
            if export.name == name:
                return abi.entry_out(self._attr(export.node), attr_valid=abi.FOREVER)
        raise error(errno.ENOENT)

    def _readdir(self, request: abi.Request) -> bytes:
        entries = [(e.node, stat.S_IFREG, e.name) for e in self.exports.values()]
        wanted = abi.ReadIn.parse(request.body)
        return abi.dirents(entries, wanted.offset, wanted.size)

    def _open(self, request: abi.Request) -> bytes:
        export = self._export(request.nodeid)
        if abi.OpenIn.parse(request.body).flags & 3:
            raise error(errno.EACCES)
        handle = self._next_handle
        self._next_handle += 1
        export.handles.add(handle)
        self._changed()
        return abi.open_out(handle, abi.Fopen.DIRECT_IO | abi.Fopen.NOFLUSH)

    def _release(self, request: abi.Request) -> bytes:
        export = self.exports.get(request.nodeid)
        if export is not None:
            export.handles.discard(abi.ReleaseIn.parse(request.body).fh)
            self.check_released(export)
        return b""

    # ---- reading -----------------------------------------------------------------------------

    def _read(self, request: abi.Request) -> Body | Coroutine[Any, Any, Body]:
        wanted = abi.ReadIn.parse(request.body)
        export = self._export(request.nodeid)
        export.reads += 1
        cookie, length = export.cookie, wanted.size
        if wanted.offset + length > cookie.length:
            # Of an image longer than its blob. Whatever is short here, EROFS fills with zeros.
            raise error(errno.EIO)
        if self.touched is not None:
            self.touched(cookie, wanted.offset, length)
        if cookie.present(wanted.offset, length):
            buffer = self._take_buffer()
            view = memoryview(buffer)[:length]
            if cookie.file.read_now([view], wanted.offset) == length:
                if self.answered is not None:
                    self.answered(cookie, wanted.offset, length, False)
                self._answer(request.unique, buffer, view)
                self._follow(export, wanted.offset, length, waited=False)
                return self.server.ANSWERED
            self._give_buffer(buffer, view)
        # Asked at once: the daemon is at work before there is a task that waits for it.
        asked = self.fscache.ask(cookie, wanted.offset, length, request.pid)
        quick = None
        if asked is not None and asked.off + asked.len >= wanted.offset + length:
            quick = _Quick(self.server, request.unique, cookie.file, wanted.offset, length)
            asked.at_once = quick.answer
        return self._read_slowly(request.unique, export, wanted.offset, length, asked, quick)

    async def _read_slowly(
        self,
        unique: int,
        export: Export,
        offset: int,
        length: int,
        asked: Request | None,
        quick: _Quick | None,
    ) -> Body:
        cookie = export.cookie
        if asked is not None:
            try:
                await interruptible(self.fscache.answered(cookie, offset, length, asked))
            except asyncio.CancelledError:
                # Interrupted before it began to wait: nobody else has withdrawn its request.
                cookie.session.requests.complete(asked, errno.EIO)
                raise
            if quick is not None and quick.answered:
                self._taken(export, offset, length)
                return self.server.ANSWERED
        buffer = self._take_buffer()
        view = memoryview(buffer)[:length]
        # What was just written is in memory still.
        got = -1 if asked is None else cookie.file.read_now([view], offset)
        if waited := got != length:
            # A buffer whose thread was given up is not used again.
            loop = asyncio.get_running_loop()
            got = await loop.run_in_executor(None, cookie.file.read, [view], offset)
        if got != length:
            raise error(errno.EIO)  # a short read would be taken for zeros
        if self.answered is not None:
            self.answered(cookie, offset, length, asked is not None)
        self._answer(unique, buffer, view)
        self._follow(export, offset, length, waited=waited)
        return self.server.ANSWERED

    def _taken(self, export: Export, offset: int, length: int) -> None:
        if self.answered is not None:
            self.answered(export.cookie, offset, length, True)
        self._follow(export, offset, length, waited=False)

    def _answer(self, unique: int, buffer: mmap.mmap, view: memoryview) -> None:
        self.server.connection.reply(unique, view)
        self._give_buffer(buffer, view)

    def _take_buffer(self) -> mmap.mmap:
        return self._buffers.pop() if self._buffers else mmap.mmap(-1, MAX_READ)

    def _give_buffer(self, buffer: mmap.mmap, view: memoryview) -> None:
        view.release()
        if len(self._buffers) < _KEPT_BUFFERS:
            self._buffers.append(buffer)

    def _follow(self, export: Export, offset: int, length: int, *, waited: bool) -> None:
        """Look after the backing file's page cache, in threads."""
        drop, ahead = export.stream.follow(offset, length, waited=waited)
        file, loop = export.cookie.file, asyncio.get_running_loop()
        if drop is not None:
            loop.run_in_executor(None, file.drop_page_cache, *drop)
        if ahead is not None and ahead.offset < file.length:
            end = min(ahead.offset + ahead.length, file.present_from(ahead.offset))
            if end > ahead.offset:
                loop.run_in_executor(None, file.read_ahead, ahead.offset, end - ahead.offset)


class _Quick:
    """The answer to a read that need not wait for the loop."""

    __slots__ = ("_file", "_length", "_offset", "_server", "_unique", "answered")

    def __init__(
        self, server: FuseServer, unique: int, file: BackingFile, offset: int, length: int
    ) -> None:
        self._server = server
        self._unique = unique
        self._file = file
        self._offset = offset
        self._length = length
        self.answered = False

    def answer(self) -> None:
        """In any thread, when all of it is in the file; if that cannot be seen, the loop will."""
        data = bytearray(self._length)
        with suppress(OSError):
            if self._file.read_now([data], self._offset) == self._length:
                self.answered = True  # before the reader reads on, and the loop looks
                self._server.connection.reply(self._unique, data)
