"""The device as a path: a small FUSE directory with `cachefiles` and `anon/<object_id>`.

open, poll, read, write and errno are those of the real device and of its anonymous fds, with two
differences (design decision 1, facts half-to-half 1): the fd of an OPEN is had by opening
`anon/<object_id>`, and CREAD passes its id by pointer.
"""

from __future__ import annotations

import errno
import select
import stat
import struct
from collections.abc import Callable, Coroutine
from typing import Any

from pagein.cachefiles.anonymous import AnonymousFile
from pagein.cachefiles.device import CachefilesDevice
from pagein.cachefiles.ondemand import error
from pagein.cachefiles.serving import Serving
from pagein.fuse import abi
from pagein.fuse.server import Answer, Body, FuseServer
from pagein.protocol.messages import IOC_READ_COMPLETE
from pagein.protocol.serving import is_serve

_ROOT, _DEVICE, _ANON, _FIRST_ANON = 1, 2, 3, 16
_ACCESS_MODES = 0o3
_O_WRONLY = 0o1
# NOFLUSH: a close must not wait for a kernel half that is being replaced, or has ended.
_DEVICE_FLAGS = abi.Fopen.DIRECT_IO | abi.Fopen.NOFLUSH
# Linux: DEFAULT_POLLMASK, of a file without a poll of its own
_ALWAYS_READY = select.POLLIN | select.POLLOUT | select.POLLRDNORM | select.POLLWRNORM
_ANON_FLAGS = _DEVICE_FLAGS | abi.Fopen.PARALLEL_DIRECT_WRITES


class DeviceFs:
    """Serves one device on a FUSE connection."""

    def __init__(
        self,
        fd: int,
        device: CachefilesDevice,
        *,
        first_handle: int = 1,
        on_close: Callable[[], None] | None = None,
        changed: Callable[[], None] = lambda: None,
        paused: bool = False,
    ) -> None:
        """Serve `device` on the FUSE connection `fd`. Handles count up from `first_handle`."""
        self.device = device
        self.device_handle: int | None = None
        self.anonymous: dict[int, AnonymousFile] = {}
        self.poll_handles: set[int] = set()
        """Poll handles of the device's open file: whoever sleeps there is woken by these."""
        self._next_handle = first_handle
        self._changed = changed
        device.pollers.append(self.wake)
        op = abi.Opcode
        self.server = FuseServer(
            fd,
            {
                op.LOOKUP: self._lookup,
                op.GETATTR: self._getattr,
                op.SETATTR: self._setattr,
                op.OPEN: self._open,
                op.RELEASE: self._release,
                op.READ: self._read,
                op.WRITE: self._write,
                op.POLL: self._poll,
                op.IOCTL: self._ioctl,
                op.LSEEK: self._lseek,
                op.FSYNC: lambda _: _refuse(errno.EINVAL),
                op.FALLOCATE: lambda _: _refuse(errno.ENODEV),
                op.STATFS: lambda _: abi.statfs_out(),
                op.OPENDIR: lambda _: abi.open_out(0),
                op.RELEASEDIR: lambda _: b"",
                op.READDIR: self._readdir,
            },
            on_close,
            paused=paused,
        )
        self._serving = Serving(device, self.server)

    def wake(self) -> None:
        """Have everybody who polls the device ask again."""
        if self._serving.hand_over():
            return
        for kh in self.poll_handles:
            self.server.connection.notify_poll(kh)

    def adopt(self, device_handle: int | None, poll_handles: set[int]) -> None:
        """Go on with the open files of a predecessor; anonymous ones are added one by one."""
        self.device_handle = device_handle
        self.poll_handles = poll_handles

    # ---- names and attributes ----------------------------------------------------------------

    def _attr(self, node: int) -> abi.Attr:
        if node in (_ROOT, _ANON):
            return abi.Attr(node, stat.S_IFDIR | 0o700, nlink=2)
        if node == _DEVICE:
            return abi.Attr(node, stat.S_IFREG | 0o600)
        session = self.device.session
        obj = session.requests.objects.get(node - _FIRST_ANON) if session else None
        # lseek(SEEK_END) goes by the size told here, as the kernel's goes by the backing file's.
        size = obj.file.length if obj is not None and obj.file is not None else 0
        return abi.Attr(node, stat.S_IFREG | 0o600, size=size)

    def _lookup(self, request: abi.Request) -> bytes:
        name = abi.name(request.body)
        if request.nodeid == _ROOT and name in (b"cachefiles", b"anon"):
            node = _DEVICE if name == b"cachefiles" else _ANON
            return abi.entry_out(self._attr(node), entry_valid=abi.FOREVER)
        if request.nodeid != _ANON or not name.isdigit():
            raise error(errno.ENOENT)
        session = self.device.session
        obj = session.requests.objects.get(int(name)) if session else None
        if obj is None or obj.live_id != int(name):
            raise error(errno.ENOENT)
        return abi.entry_out(self._attr(_FIRST_ANON + int(name)))

    def _getattr(self, request: abi.Request) -> bytes:
        return abi.attr_out(self._attr(request.nodeid))

    def _setattr(self, request: abi.Request) -> bytes:
        if request.nodeid == _DEVICE:  # the O_TRUNC of a shell's `>`
            return abi.attr_out(self._attr(request.nodeid))
        raise error(errno.EINVAL)

    def _readdir(self, request: abi.Request) -> bytes:
        entries: list[abi.DirEntry] = []
        if request.nodeid == _ROOT:
            entries = [(_DEVICE, stat.S_IFREG, b"cachefiles"), (_ANON, stat.S_IFDIR, b"anon")]
        elif self.device.session is not None:
            ids = sorted(self.device.session.requests.objects)
            entries = [(_FIRST_ANON + i, stat.S_IFREG, b"%d" % i) for i in ids]
        wanted = abi.ReadIn.parse(request.body)
        return abi.dirents(entries, wanted.offset, wanted.size)

    # ---- open files --------------------------------------------------------------------------

    def _open(self, request: abi.Request) -> bytes:
        handle = self._next_handle
        self._next_handle += 1
        if request.nodeid == _DEVICE:
            if request.uid != 0:
                raise error(errno.EPERM)  # the kernel asks for CAP_SYS_ADMIN (facts 1)
            self.device.open()
            self.device_handle = handle
            self._changed()
            return abi.open_out(handle, _DEVICE_FLAGS)
        if abi.OpenIn.parse(request.body).flags & _ACCESS_MODES != _O_WRONLY:
            raise error(errno.EACCES)
        object_id = request.nodeid - _FIRST_ANON
        self.anonymous[handle] = AnonymousFile(self.device, object_id, handle)
        return abi.open_out(handle, _ANON_FLAGS)

    def _release(self, request: abi.Request) -> bytes:
        handle = abi.ReleaseIn.parse(request.body).fh
        if request.nodeid == _DEVICE:
            if handle == self.device_handle:
                self.device_handle = None
                self.poll_handles.clear()
                self.device.release()
            return b""
        file = self.anonymous.pop(handle, None)
        if file is not None:
            file.release()
        return b""

    def _file(self, handle: int) -> AnonymousFile:
        file = self.anonymous.get(handle)
        if file is None:
            raise error(errno.ENOBUFS)  # of a cache that is gone (facts 7.4)
        return file

    def _read(self, request: abi.Request) -> bytes | Coroutine[Any, Any, bytes]:
        if request.nodeid != _DEVICE:
            raise error(errno.EBADF)
        size = abi.ReadIn.parse(request.body).size
        session = self.device.session
        if session is not None and session.original:
            return self.device.read_state(size)
        return self.device.read(size)

    def _write(self, request: abi.Request) -> Answer:
        wanted = abi.WriteIn.parse(request.body)
        if request.nodeid == _DEVICE:
            return self._command(bytes(wanted.data), request.pid)
        return self._pwrite(self._file(wanted.fh), wanted, request.unique)

    async def _command(self, data: bytes, pid: int) -> bytes:
        return abi.write_out(await self.device.write(data, b"/proc/%d/cwd" % pid))

    def _pwrite(self, file: AnonymousFile, wanted: abi.WriteIn, unique: int) -> Answer:
        """Answered by the thread that writes: whoever asked goes on before the loop hears of it."""

        def answer(written: int) -> None:
            self.server.connection.reply(unique, abi.write_out(written))

        writing = file.begin_pwrite(wanted.data, wanted.offset, answer) if wanted.data else None
        if writing is None:
            return self._pwrite_later(file, wanted, answer)
        writing.add_done_callback(lambda _: wanted.data.release())
        return writing

    async def _pwrite_later(
        self, file: AnonymousFile, wanted: abi.WriteIn, answer: Callable[[int], None]
    ) -> Body:
        with wanted.data:
            if not await file.pwrite(wanted.data, wanted.offset, answer):
                return abi.write_out(0)
        return self.server.ANSWERED

    def _poll(self, request: abi.Request) -> bytes:
        wanted = abi.PollIn.parse(request.body)
        if request.nodeid != _DEVICE:
            return abi.poll_out(_ALWAYS_READY)
        if wanted.flags & abi.POLL_SCHEDULE_NOTIFY and wanted.kh not in self.poll_handles:
            self.poll_handles.add(wanted.kh)
            self._changed()
        return abi.poll_out(self.device.poll())

    def _ioctl(self, request: abi.Request) -> Answer:
        if request.nodeid == _DEVICE:
            raise error(errno.ENOTTY)
        wanted = abi.IoctlIn.parse(request.body)
        file = self.anonymous.get(wanted.fh)
        if file is None:
            raise error(errno.EINVAL)
        if is_serve(wanted.cmd, len(wanted.data)):
            return self._serving.begin(file, request.unique, wanted.data)
        if wanted.cmd != IOC_READ_COMPLETE or len(wanted.data) != 4:
            raise error(errno.EINVAL)
        file.cread(struct.unpack("=I", wanted.data)[0])
        return abi.ioctl_out(0)

    def _lseek(self, request: abi.Request) -> bytes:
        wanted = abi.LseekIn.parse(request.body)
        if request.nodeid == _DEVICE:
            raise error(errno.EINVAL)
        return abi.lseek_out(self._file(wanted.fh).lseek(wanted.offset, wanted.whence))


def _refuse(number: int) -> bytes:
    raise error(number)
