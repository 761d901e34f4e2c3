"""A user daemon of the tests' own: serves files by key, says what it is asked, does as it is told.

    python owndaemon.py DEVICE CACHE COOKIE=PATH[:SIZE]...

It prints one line for each request: "OPEN COOKIE", "READ COOKIE OFFSET LENGTH", "CLOSE COOKIE". A
line "write COOKIE OFFSET" on its standard input makes it write a page of its own through the
object's anonymous fd; it answers "wrote ERRNO".
"""

import asyncio
import contextlib
import os
import stat
import sys
from pathlib import Path

from pagein.daemon.filedevice import FileDevice
from pagein.daemon.loop import Daemon
from pagein.origins import Origin
from pagein.protocol.messages import Close, Message, Open, Read


class File(Origin):
    """A file that may claim another size."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.told = size

    async def size(self) -> int:
        return self.told

    async def read(self, offset: int, length: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(length).ljust(length, b"\0")


class Watched(FileDevice):
    """The device, saying aloud what is read from it."""

    def __init__(self, fd: int, dirfd: int | None) -> None:
        super().__init__(fd, dirfd)
        self.names: dict[int, str] = {}
        self.ids: dict[str, int] = {}

    async def read(self) -> Message:
        message = await super().read()
        match message:
            case Open():
                name = message.cookie_key.decode()
                self.names[message.object_id], self.ids[name] = name, message.object_id
                print("OPEN", name, flush=True)
            case Read():
                print("READ", self.names[message.object_id], message.off, message.len, flush=True)
            case Close():
                print("CLOSE", self.names[message.object_id], flush=True)
        return message


async def obey(device: Watched, daemon: Daemon) -> None:
    """Do what standard input says."""
    lines = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(lines)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: protocol, os.fdopen(0, "rb"))
    try:
        while line := (await lines.readline()).decode().split():
            anon = daemon.objects.dup(device.ids[line[1]])
            number = 0
            try:
                await anon.pwrite(b"\xee" * 4096, int(line[2]))
            except OSError as problem:
                number = problem.errno or -1
            await anon.close()
            print("wrote", number, flush=True)
    finally:
        transport.close()


async def main() -> None:
    """Serve until SIGTERM."""
    path, cache, *files = sys.argv[1:]
    known = {}
    for entry in files:
        name, _, rest = entry.partition("=")
        file, _, size = rest.partition(":")
        known[name] = File(Path(file), int(size) if size else Path(file).stat().st_size)
    opened = await asyncio.to_thread(os.open, path, os.O_RDWR | os.O_CLOEXEC)
    directory = None
    if not stat.S_ISCHR(os.fstat(opened).st_mode):  # else it is the kernel's
        directory = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    device = Watched(opened, directory)
    daemon = Daemon(device, lambda volume, cookie: known[cookie.decode()], cache=cache, timeout=5)
    asyncio.get_running_loop().add_signal_handler(15, daemon.stop)
    obeying = asyncio.create_task(obey(device, daemon))
    try:
        await daemon.run()
    finally:
        obeying.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await obeying


if __name__ == "__main__":
    asyncio.run(main())
