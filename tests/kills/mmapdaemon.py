"""A daemon whose writes come straight from a mapped file that is not in memory.

The worst writer there is: a kill in the middle of its pwrite leaves pages of zeros that claim to
be data when it writes to the backing file itself (facts half-to-half 2). Started by `mmapkeeper`
in place of the user half, with the same arguments.
"""

import argparse
import asyncio
import mmap
import os
import socket
import sys

from pagein.daemon.filedevice import CALL_TIMEOUT, FileDevice
from pagein.daemon.handover import device_from
from pagein.protocol import commands
from pagein.protocol.messages import Close, Open, Read

MIB = 1 << 20


class Sources:
    """Mapped files by cookie key, which is their path."""

    def __init__(self) -> None:
        self.maps: dict[bytes, mmap.mmap] = {}

    def find(self, cookie: bytes) -> mmap.mmap:
        if cookie not in self.maps:
            fd = os.open(b"/" + cookie.replace(b"|", b"/"), os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            self.maps[cookie] = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
            os.close(fd)
        return self.maps[cookie]


async def serve(device: FileDevice, cache: str) -> None:
    sources, anons, cookies = Sources(), {}, {}
    try:
        await device.command(commands.dir_(cache))
        await device.command(commands.bind())
    except OSError:
        await device.command(commands.restore())
    while True:
        match await device.read():
            case Open() as opened:
                anons[opened.object_id] = await device.open_anon(opened)
                cookies[opened.object_id] = opened.cookie_key
                size = len(sources.find(opened.cookie_key))
                try:
                    await device.command(commands.copen(opened.msg_id, size))
                except OSError:
                    await anons.pop(opened.object_id).close()
            case Read() as read if read.object_id in anons:
                anon = anons[read.object_id]
                source = sources.find(cookies[read.object_id])
                start = read.off & -MIB
                with memoryview(source) as view:
                    # Not through pagein's own buffers: the mapped pages are what the kernel copies.
                    os.pwrite(anon.fileno(), view[start : start + MIB], start)
                try:
                    await anon.cread(read.msg_id)
                except OSError as problem:
                    print(problem, file=sys.stderr)
            case Close() as closed if closed.object_id in anons:
                await anons.pop(closed.object_id).close()


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--ready-fd", type=int)
    parser.add_argument("--cache")
    options, _ = parser.parse_known_args()

    async def run() -> None:
        device = await device_from(socket.socket(fileno=options.ready_fd), timeout=CALL_TIMEOUT)
        await serve(device, options.cache)

    asyncio.run(run())


if __name__ == "__main__":
    main()
