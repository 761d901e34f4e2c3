"""A FUSE server for tests, run as a process of its own: ``python tinyfs.py '{"fd": 5, ...}'``.

Three files: ``blob`` (read-only, the bytes of a given file, FOPEN_DIRECT_IO), ``notes`` (writable,
in memory) and ``bell`` (poll). It tells each request of interest as a JSON line on stdout, and
takes orders as lines on stdin:

    hold, go       keep READs unanswered; answer them and all later ones
    ring           make ``bell`` readable and notify the pollers
    interrupt      answer held READs with EINTR
"""

import asyncio
import errno
import fcntl
import json
import os
import select
import stat
import struct
import sys
from collections.abc import Callable
from typing import Any

from pagein.fuse import abi
from pagein.fuse.connection import Connection

BLOB, NOTES, BELL = 2, 3, 4
NAMES = {b"blob": BLOB, b"notes": NOTES, b"bell": BELL}
CREAD = 0x40049801


def tell(event: str, **values: Any) -> None:
    print(json.dumps({"event": event, **values}), flush=True)


class TinyFs:
    """One connection and its files."""

    def __init__(self, job: dict[str, Any], done: asyncio.Event) -> None:
        self.blob = os.open(job["blob"], os.O_RDONLY)
        self.size = os.fstat(self.blob).st_size
        self.notes = bytearray()
        self.hold = bool(job.get("hold"))
        self.free_reads = int(job.get("hold_after", 0))
        self.held: list[abi.Request] = []
        self.reads: dict[int, abi.ReadIn] = {}
        self.pollers: set[int] = set()
        self.rung = False
        self.handles = 0
        self.done = done
        loop = asyncio.get_running_loop()
        self.connection = Connection(job["fd"], self.handle, loop=loop, on_close=self.closed)
        if job.get("resend"):
            tell("resend", known=self.connection.resend())

    def closed(self) -> None:
        tell("closed")
        self.done.set()

    def handle(self, request: abi.Request) -> None:
        handler = HANDLERS.get(request.opcode)
        if handler is not None:
            handler(self, request)
        elif request.opcode not in abi.UNANSWERED:
            self.connection.error(request.unique, errno.ENOSYS)

    def attr(self, node: int) -> abi.Attr:
        if node == abi.ROOT_ID:
            return abi.Attr(node, stat.S_IFDIR | 0o755, nlink=2)
        size = {BLOB: self.size, NOTES: len(self.notes), BELL: 0}[node]
        return abi.Attr(node, stat.S_IFREG | 0o644, size=size)

    def lookup(self, request: abi.Request) -> None:
        name = abi.name(request.body)
        if name == b"broken":
            raise RuntimeError("a bug in the handler")
        if name not in NAMES:
            self.connection.error(request.unique, errno.ENOENT)
            return
        self.connection.reply(request.unique, abi.entry_out(self.attr(NAMES[name])))

    def getattr(self, request: abi.Request) -> None:
        self.connection.reply(request.unique, abi.attr_out(self.attr(request.nodeid)))

    def setattr(self, request: abi.Request) -> None:
        change = abi.SetattrIn.parse(request.body)
        if change.valid & abi.Fattr.SIZE:
            tell("truncate", size=change.size)
            self.connection.error(request.unique, errno.EINVAL)
        else:
            self.getattr(request)

    def open(self, request: abi.Request) -> None:
        self.handles += 1
        tell("open", node=request.nodeid, fh=self.handles, pid=request.pid)
        self.connection.reply(request.unique, abi.open_out(self.handles, abi.Fopen.DIRECT_IO))

    def opendir(self, request: abi.Request) -> None:
        self.connection.reply(request.unique, abi.open_out(0))

    def readdir(self, request: abi.Request) -> None:
        read = abi.ReadIn.parse(request.body)
        entries = [(node, stat.S_IFREG, name) for name, node in NAMES.items()]
        answer = abi.dirents(entries, read.offset, read.size)
        self.connection.reply(request.unique, answer)

    def read(self, request: abi.Request) -> None:
        read = abi.ReadIn.parse(request.body)
        self.reads[request.unique] = read
        tell("read", unique=request.unique, size=read.size, resent=request.resent)
        if self.free_reads:
            self.free_reads -= 1
            self.hold = not self.free_reads
            self.answer(request)
        elif self.hold:
            self.held.append(request)
        else:
            self.answer(request)

    def answer(self, request: abi.Request) -> None:
        read = self.reads.pop(request.unique)
        if request.nodeid == NOTES:
            data = bytes(self.notes[read.offset : read.offset + read.size])
        else:
            data = os.pread(self.blob, read.size, read.offset)
        self.connection.reply(request.unique, data)

    def write(self, request: abi.Request) -> None:
        write = abi.WriteIn.parse(request.body)
        tell("write", offset=write.offset, size=write.size)
        # Answered from the loop later, with another request read meanwhile: the body must hold.
        asyncio.get_running_loop().call_later(0.01, self.store, request, write)

    def store(self, request: abi.Request, write: abi.WriteIn) -> None:
        end = write.offset + write.size
        self.notes.extend(bytes(max(0, end - len(self.notes))))
        self.notes[write.offset : end] = write.data
        self.connection.release(request)
        self.connection.reply(request.unique, abi.write_out(write.size))

    def flush(self, request: abi.Request) -> None:
        tell("flush", fh=abi.FlushIn.parse(request.body).fh)
        self.connection.reply(request.unique)

    def release(self, request: abi.Request) -> None:
        tell("release", fh=abi.ReleaseIn.parse(request.body).fh)
        self.connection.reply(request.unique)

    def lseek(self, request: abi.Request) -> None:
        seek = abi.LseekIn.parse(request.body)
        found = seek.offset if seek.whence == os.SEEK_DATA else self.size
        self.connection.reply(request.unique, abi.lseek_out(found))

    def ioctl(self, request: abi.Request) -> None:
        call = abi.IoctlIn.parse(request.body)
        if call.cmd != CREAD:
            self.connection.error(request.unique, errno.ENOTTY)
            return
        (number,) = struct.unpack("=I", call.data)
        self.connection.reply(request.unique, abi.ioctl_out(number % 1000))

    def poll(self, request: abi.Request) -> None:
        poll = abi.PollIn.parse(request.body)
        notify = bool(poll.flags & abi.POLL_SCHEDULE_NOTIFY)
        if notify:
            self.pollers.add(poll.kh)
        self.connection.reply(request.unique, abi.poll_out(select.POLLIN if self.rung else 0))
        tell("poll", notify=notify)

    def interrupt(self, request: abi.Request) -> None:
        tell("interrupt", unique=abi.InterruptIn.parse(request.body).unique)

    def order(self, order: str) -> None:
        if order == "hold":
            self.hold = True
        elif order == "go":
            self.hold = False
            while self.held:
                self.answer(self.held.pop())
        elif order == "interrupt":
            while self.held:
                self.connection.error(self.held.pop().unique, errno.EINTR)
        elif order == "ring":
            self.rung = True
            while self.pollers:
                self.connection.notify_poll(self.pollers.pop())
        tell("done", order=order)


HANDLERS: dict[int, Callable[[TinyFs, abi.Request], object]] = {
    abi.Opcode.LOOKUP: TinyFs.lookup,
    abi.Opcode.GETATTR: TinyFs.getattr,
    abi.Opcode.SETATTR: TinyFs.setattr,
    abi.Opcode.OPEN: TinyFs.open,
    abi.Opcode.READ: TinyFs.read,
    abi.Opcode.WRITE: TinyFs.write,
    abi.Opcode.FLUSH: TinyFs.flush,
    abi.Opcode.RELEASE: TinyFs.release,
    abi.Opcode.OPENDIR: TinyFs.opendir,
    abi.Opcode.READDIR: TinyFs.readdir,
    abi.Opcode.RELEASEDIR: lambda fs, request: fs.connection.reply(request.unique),
    abi.Opcode.LSEEK: TinyFs.lseek,
    abi.Opcode.IOCTL: TinyFs.ioctl,
    abi.Opcode.POLL: TinyFs.poll,
    abi.Opcode.INTERRUPT: TinyFs.interrupt,
}


async def main() -> None:
    done = asyncio.Event()
    loop = asyncio.get_running_loop()
    job = json.loads(sys.argv[1])
    fcntl.fcntl(job["fd"], fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    fs = TinyFs(job, done)

    def orders() -> None:
        data = os.read(0, 4096)
        if not data:  # whoever started us is gone
            done.set()
            loop.remove_reader(0)
        for order in data.decode().split():
            fs.order(order)

    loop.add_reader(0, orders)
    tell("ready")
    await done.wait()
    loop.remove_reader(0)
    fs.connection.close()
    os.close(fs.blob)


if __name__ == "__main__":
    asyncio.run(main())
