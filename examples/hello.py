"""A daemon of one's own: serves the EROFS images of a directory, by name.

hello.py DEVICE DIRECTORY CACHE
"""

import asyncio
import os
import sys

import pagein


class Image(pagein.Origin):
    """Where the bytes of one image come from. This one reads a file; yours may ask anybody."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    async def size(self) -> int:
        return os.fstat(self.fd).st_size

    async def read(self, offset: int, length: int) -> bytes:
        return await asyncio.to_thread(os.pread, self.fd, length, offset)

    async def close(self) -> None:
        os.close(self.fd)


device, directory, cache = sys.argv[1:]


def origin(volume: bytes, cookie: bytes) -> pagein.Origin:
    if volume != b"hello":
        raise KeyError(volume)
    return Image(os.path.join(directory, os.path.basename(cookie.decode())))


asyncio.run(pagein.Daemon(device, origin, cache=cache).run())
