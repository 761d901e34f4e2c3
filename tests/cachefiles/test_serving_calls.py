"""Who gets the message that comes while a SERVE waits."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

from tests.cachefiles.rig import PAGE, Rig, soon

from pagein.cachefiles.anonymous import AnonymousFile
from pagein.cachefiles.serving import Serving
from pagein.fuse.server import FuseServer
from pagein.protocol.messages import Message, Read, decode
from pagein.protocol.serving import SIZE_MOST, Serve

_HEAD = 16 + 8  # of the ioctl's answer, and of SERVE's


class Server:
    """Notes the answers, by their `unique`."""

    ANSWERED = ()

    def __init__(self) -> None:
        self.answers: dict[int, Message | None] = {}
        self.connection = self
        self.answered = asyncio.Event()

    def reply(self, unique: int, *buffers: bytes) -> bool:
        raw = b"".join(buffers)[_HEAD:]
        self.answers[unique] = decode(raw) if raw else None
        self.answered.set()
        return True


class Calls:
    """SERVEs of READs without data, as if something else had written that."""

    def __init__(self, rig: Rig) -> None:
        self.server = Server()
        self.serving = Serving(rig.device, cast(FuseServer, self.server))
        rig.device.pollers.insert(0, self.wake)

    def wake(self) -> None:
        self.serving.hand_over()

    def serve(self, file: AnonymousFile, unique: int, message: Read) -> None:
        memory = memoryview(bytearray(SIZE_MOST))
        self.serving.begin(file, unique, Serve(message.msg_id, 0, b"").encode_into(memory))

    @property
    def answers(self) -> dict[int, Message | None]:
        return self.server.answers


async def written(rig: Rig, file: AnonymousFile, page: int) -> Read:
    """A READ that was taken, and whose bytes are there."""
    message = await rig.take(Read)
    assert message.off == page * PAGE
    await soon(file.pwrite(memoryview(bytes(PAGE)), message.off))
    return message


def test_it_is_whoever_waits(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            cookie, file = await rig.acquire(8 * PAGE)
            calls = Calls(rig)
            first = rig.reading(cookie, 0, PAGE)
            calls.serve(file, 1, await written(rig, file, 0))
            calls.serve(file, 2, Read(99, 1, 0, PAGE))  # one waits, and no more
            assert calls.answers == {2: None}
            rig.fscache.ask(cookie, 4 * PAGE, PAGE, 0)
            found = calls.answers[1]
            assert isinstance(found, Read)
            assert found.off == 4 * PAGE
            assert rig.read() is None
            await soon(first)

    asyncio.run(main())


def test_after_a_restore_it_is_not_the_one_that_waited(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            cookie, file = await rig.acquire(8 * PAGE)
            calls = Calls(rig)
            first = rig.reading(cookie, 0, PAGE)
            calls.serve(file, 1, await written(rig, file, 0))
            await rig.write(b"restore")
            rig.fscache.ask(cookie, 4 * PAGE, PAGE, 0)
            found = rig.read()
            assert isinstance(found, Read)
            assert found.off == 4 * PAGE
            assert calls.answers.get(1) is None
            await soon(first)

    asyncio.run(main())


def test_it_is_answered_when_nothing_comes(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            cookie, file = await rig.acquire(8 * PAGE)
            calls = Calls(rig)
            first = rig.reading(cookie, 0, PAGE)
            calls.serve(file, 1, await written(rig, file, 0))
            await soon(first)
            await soon(calls.server.answered.wait())
            assert calls.answers == {1: None}
            rig.fscache.ask(cookie, 4 * PAGE, PAGE, 0)
            assert isinstance(rig.read(), Read)

    asyncio.run(main())
