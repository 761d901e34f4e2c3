"""A kernel half for tests, as a process of its own: ``python devhalf.py '{"device": 5, ...}'``.

Serves `DeviceFs` and, where a second fd is given, `BlobFs` on FUSE connections whose INIT is done.
A netfs is driven by lines on stdin, and tells what comes of it as JSON lines on stdout:

    acquire KEY, give-back KEY        a cookie of the volume `erofs,test`
    read KEY OFFSET LENGTH            as a netfs does
    export KEY, let-go KEY            a file of the blob directory
    state                             what there is
"""

import asyncio
import hashlib
import json
import os
import sys
from collections.abc import Coroutine
from typing import Any

from pagein.cachefiles.devfs import DeviceFs
from pagein.cachefiles.device import CachefilesDevice
from pagein.fscache import Advice, Cookie, FsCache
from pagein.mounts.blobfs import BlobFs, Export

VOLUME = b"erofs,test"


def tell(event: str, **values: Any) -> None:
    print(json.dumps({"event": event, **values}), flush=True)


class Half:
    """The device, its netfs, and the orders given to it."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.done = asyncio.Event()
        self.device = CachefilesDevice()
        self.fscache = FsCache(self.device)
        self.devfs = DeviceFs(job["device"], self.device, on_close=self.done.set)
        self.blobfs: BlobFs | None = None
        if "blobs" in job:
            self.blobfs = BlobFs(job["blobs"], self.fscache, released=self.released)
        self.cookies: dict[str, Cookie] = {}
        self.exports: dict[str, Export] = {}
        self.tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        orders = asyncio.StreamReader()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(orders), sys.stdin
        )
        tell("ready")
        while line := await orders.readline():
            self.start(self.obey(line.decode().split()))
        transport.close()
        await self.devfs.server.close()
        if self.blobfs is not None:
            await self.blobfs.server.close()

    async def obey(self, words: list[str]) -> None:
        verb, *rest = words
        try:
            result = await getattr(self, "do_" + verb.replace("-", "_"))(*rest)
        except OSError as problem:
            result = {"errno": problem.errno}
        tell(verb, key=rest[0] if rest else "", **(result or {}))

    async def do_acquire(self, key: str) -> dict[str, Any]:
        cookie = await self.fscache.acquire(VOLUME, key.encode(), Advice.WANT_CACHE_SIZE)
        self.cookies[key] = cookie
        return {"size": cookie.size}

    async def do_give_back(self, key: str) -> None:
        await self.fscache.relinquish(self.cookies.pop(key))

    async def do_read(self, key: str, offset: str, length: str) -> dict[str, Any]:
        cookie, data = self.cookies[key], bytearray(int(length))
        await self.fscache.make_present(cookie, int(offset), len(data))
        got = cookie.file.read([memoryview(data)], int(offset))
        return {"sha256": hashlib.sha256(data[:got]).hexdigest()}

    async def do_export(self, key: str) -> dict[str, Any]:
        assert self.blobfs is not None
        self.exports[key] = export = self.blobfs.export(self.cookies.pop(key))
        return {"name": os.fsdecode(export.name)}

    async def do_let_go(self, key: str) -> None:
        assert self.blobfs is not None
        self.blobfs.let_go(self.exports[key])

    def released(self, export: Export) -> None:
        self.start(self.leave(export))

    async def leave(self, export: Export) -> None:
        await self.fscache.relinquish(export.cookie)
        tell("released", key=os.fsdecode(export.cookie.key[1]))

    async def do_state(self) -> dict[str, Any]:
        session = self.device.session
        return {
            "objects": {
                number: [obj.state.name, len(obj.handles)]
                for number, obj in session.requests.objects.items()
            }
            if session
            else None,
            "pending": len(session.requests.pending) if session else 0,
            "anonymous": len(self.devfs.anonymous),
            "reads": [e.reads for e in self.blobfs.exports.values()] if self.blobfs else [],
        }


async def main() -> None:
    await Half(json.loads(sys.argv[1])).run()


if __name__ == "__main__":
    asyncio.run(main())
