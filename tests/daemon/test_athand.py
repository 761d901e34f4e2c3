"""READs that the thread of the device serves by itself, and the loop that learns of them."""

from __future__ import annotations

import asyncio
import errno
import random
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from tests.daemon.helpers import (
    KIB,
    MIB,
    Cache,
    FakeOrigin,
    content,
    ensure,
    make_fill,
    run,
    settle,
)

from pagein.daemon.athand import LITTLE, AtHand
from pagein.daemon.device import AnonFd, Served
from pagein.daemon.objects import Blob, ObjectTable
from pagein.daemon.poller import Poller
from pagein.protocol.messages import Close, Message, Read

PAGE = 4096
SIZE = 4 * MIB


# ---- what is claimed


def test_what_a_thread_took_is_waited_for_and_not_fetched_again() -> None:
    async def main() -> None:
        origin = FakeOrigin(content(SIZE))
        fill = make_fill(origin, Cache(SIZE))
        assert fill.take(256 * KIB, 272 * KIB)
        assert not fill.take(260 * KIB, 264 * KIB)
        reading = asyncio.create_task(fill.read(256 * KIB, 16 * KIB))
        await settle()
        assert not reading.done()
        fill.settle(256 * KIB, 272 * KIB, landed=True)
        await reading
        assert origin.gets == []
        assert (fill.fetched, fill.requests) == (16 * KIB, 1)
        assert not fill.take(268 * KIB, 276 * KIB)  # some of it is here
        assert fill.take(272 * KIB, 276 * KIB)
        fill.settle(272 * KIB, 276 * KIB, landed=False)
        await fill.close()
        assert not fill.take(0, PAGE)

    run(main())


def test_what_a_thread_gave_up_is_fetched_for_those_who_wait() -> None:
    async def main() -> None:
        origin = FakeOrigin(content(SIZE))
        cache = Cache(SIZE)
        fill = make_fill(origin, cache)
        assert fill.take(MIB, MIB + 128 * KIB)
        reading = asyncio.create_task(fill.read(MIB + 4 * KIB, 300 * KIB))
        await settle()
        assert not reading.done()
        fill.settle(MIB, MIB + 128 * KIB, landed=False)
        await reading
        assert fill.present.covers(MIB + 4 * KIB, MIB + 304 * KIB)
        cache.check(origin.data)

    run(main())


def test_what_the_loop_fetches_cannot_be_taken() -> None:
    async def main() -> None:
        origin = FakeOrigin(content(SIZE), gate=asyncio.Event())
        fill = make_fill(origin, Cache(SIZE))
        reading = asyncio.create_task(fill.read(MIB, PAGE))
        await settle()
        assert not fill.take(MIB, MIB + PAGE)
        assert not fill.take(MIB + 12 * KIB, MIB + 20 * KIB)  # its granule
        assert fill.take(MIB + 16 * KIB, MIB + 20 * KIB)
        assert origin.gate is not None
        origin.gate.set()
        await reading
        fill.forget(MIB, PAGE)
        assert fill.take(MIB, MIB + PAGE)

    run(main())


def test_threads_and_the_loop_never_bring_the_same_byte_twice() -> None:
    size = 2 * MIB

    async def main() -> None:
        origin, cache = FakeOrigin(content(size)), Cache(size)  # these two check it
        fill = make_fill(origin, cache)
        loop = asyncio.get_running_loop()

        def settle_one(start: int, end: int, landed: bool) -> None:
            if landed:
                ensure(not cache.held.overlaps(start, end), "written twice")
                cache.held.add(start, end)
                cache.bytes[start:end] = origin.data[start:end]
            fill.settle(start, end, landed=landed)

        def thread(seed: int) -> None:
            dice = random.Random(seed)
            for _ in range(400):
                start = dice.randrange(size // PAGE) * PAGE
                end = min(start + PAGE * dice.randint(1, 9), size)
                if fill.take(start, end):
                    loop.call_soon_threadsafe(settle_one, start, end, dice.random() < 0.5)

        threads = [threading.Thread(target=thread, args=(seed,)) for seed in range(3)]
        for each in threads:
            each.start()
        dice = random.Random(7)
        while any(each.is_alive() for each in threads):
            await fill.read(dice.randrange(size // PAGE) * PAGE, 16 * KIB)
            await asyncio.sleep(0)
        for each in threads:
            each.join()
        await fill.read(0, size)
        assert (cache.held.total, fill.fetched) == (size, size)
        cache.check(origin.data)
        await fill.close()

    asyncio.run(main())


# ---- what is served


@dataclass(eq=False)
class Anon(AnonFd):
    """Notes what it is told to write, and what is completed."""

    error: OSError | None = None
    served: list[tuple[bytes, int, int]] = field(default_factory=list)

    def serve(self, data: memoryview, offset: int, msg_id: int) -> Served:
        if self.error is not None:
            raise self.error
        self.served.append((bytes(data), offset, msg_id))
        return Served()

    async def pwrite(
        self, data: memoryview | bytes, offset: int, then: Callable[[], None] | None = None
    ) -> None:
        raise AssertionError

    async def cread(self, msg_id: int) -> None:
        raise AssertionError

    async def lseek(self, offset: int, whence: int) -> int:
        raise AssertionError

    def dup(self) -> AnonFd:
        raise AssertionError

    def fileno(self) -> int:
        raise AssertionError

    async def close(self) -> None:
        return None


@dataclass
class Near(FakeOrigin):
    """An origin that has everything at hand, unless `far`."""

    instant: bool = True
    far: bool = False
    error: Exception | None = None

    def at_hand(self, offset: int, view: memoryview) -> bool:
        if self.error is not None:
            raise self.error
        view[:] = self.data[offset : offset + len(view)]
        return not self.far


class Rig:
    """An open object over `Near`, and its shortcut."""

    def serve(self, message: Read) -> bool:
        """As the thread asks: at once, and again when it knows that nothing else came."""
        return any(self.at_hand.serve(message, alone=a) is not None for a in (False, True))

    def __init__(self, size: int = SIZE) -> None:
        self.origin, self.cache, self.anon = Near(content(size)), Cache(size), Anon()
        self.fill = make_fill(self.origin, self.cache)
        objects = ObjectTable()
        self.blob = Blob((b"v", b"c"), self.origin, size, self.fill)
        self.blob.seeding = asyncio.create_task(asyncio.sleep(0))
        objects.attach(1, self.blob, self.anon)
        self.at_hand = AtHand(objects)


def test_a_read_is_written_and_completed_and_the_loop_hears_of_it() -> None:
    async def main() -> None:
        rig = Rig()
        await settle()
        assert rig.serve(Read(5, 1, 100 * PAGE, 2 * PAGE))
        assert rig.anon.served == [(rig.origin.data[100 * PAGE : 102 * PAGE], 100 * PAGE, 5)]
        assert rig.fill.fetched == 0
        rig.at_hand.report()
        rig.at_hand.report()
        assert rig.fill.fetched == 2 * PAGE
        assert rig.origin.gets == []
        assert not rig.serve(Read(6, 1, 100 * PAGE, PAGE))  # it is here: the loop looks

    run(main())


def test_the_last_page_is_filled_with_zeros() -> None:
    async def main() -> None:
        rig = Rig(size=2 * PAGE + 100)
        await settle()
        rig.at_hand._buffer.view[:] = b"x" * MIB  # of earlier reads
        assert rig.serve(Read(1, 1, 2 * PAGE, PAGE))
        assert rig.anon.served == [(rig.origin.data[-100:] + bytes(PAGE - 100), 2 * PAGE, 1)]

    run(main())


def test_a_stream_is_left_to_the_loop() -> None:
    async def main() -> None:
        rig = Rig()
        await settle()
        served = [rig.serve(Read(number, 1, number * 128 * KIB, 128 * KIB)) for number in range(4)]
        assert served == [True, False, False, False]
        assert rig.serve(Read(9, 1, 3 * MIB, 128 * KIB))

    run(main())


def failing_anon(rig: Rig) -> None:
    rig.anon.error = OSError(errno.ENOBUFS, "full")


def far_origin(rig: Rig) -> None:
    rig.origin.far = True


def failing_origin(rig: Rig) -> None:
    rig.origin.error = OSError(errno.EIO, "bad disk")


def broken_origin(rig: Rig) -> None:
    rig.origin.error = ZeroDivisionError("a bug")


@pytest.mark.parametrize("spoil", [failing_anon, far_origin, failing_origin, broken_origin])
def test_what_cannot_be_served_is_left_to_the_loop(spoil: Callable[[Rig], None]) -> None:
    async def main() -> None:
        rig = Rig()
        await settle()
        spoil(rig)
        assert not rig.serve(Read(5, 1, 0, 128 * KIB))
        assert rig.anon.served == []
        rig.at_hand.report()
        await rig.fill.read(0, 128 * KIB)
        rig.cache.check(rig.origin.data)
        assert rig.cache.held.covers(0, 128 * KIB)
        assert sum(end - start for start, end in rig.origin.gets) == 128 * KIB

    run(main())


def test_what_is_not_simple_is_left_to_the_loop() -> None:
    @asynccontextmanager
    async def claim(start: int, end: int):  # type: ignore[no-untyped-def]
        yield [(start, end)]

    async def main() -> None:
        rig = Rig()
        assert not rig.serve(Read(1, 1, 0, PAGE))  # what is in the cache is not known yet
        await settle()
        assert not rig.serve(Read(2, 9, 0, PAGE))  # nobody's object
        assert not rig.serve(Read(3, 1, 0, MIB + PAGE))  # longer than the buffer
        assert not rig.serve(Read(4, 1, SIZE, PAGE))  # beyond the end
        rig.fill.claim = claim
        assert not rig.serve(Read(5, 1, 0, PAGE))  # other processes fetch as well
        rig.fill.claim = None
        rig.origin.instant = False
        assert not rig.serve(Read(6, 1, 0, PAGE))
        rig.origin.instant = True
        assert rig.serve(Read(7, 1, 0, PAGE))
        rig.at_hand.report()
        assert rig.fill.fetched == PAGE
        assert rig.fill.take(PAGE, SIZE)  # none of the others left anything taken

    run(main())


def test_the_loop_hears_of_many_reads_before_they_end() -> None:
    async def main() -> None:
        rig = Rig()
        await settle()
        due = []
        for number in range(64):
            assert rig.serve(Read(number, 1, number * 64 * KIB, PAGE))
            due.append(rig.at_hand.due)
        assert due == [False] * 63 + [True]
        rig.at_hand.report()
        assert not rig.at_hand.due

    run(main())


# ---- who is asked


class Noted:
    """A shortcut that takes READs by their ids, some only if alone, and notes what happens."""

    due = False

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.coming: dict[int, bytes] = {}
        """By READ, the message that comes with it."""
        self.reported = asyncio.Event()
        self._unreported = False

    async def again(self) -> None:
        """The next report."""
        self.reported.clear()
        await self.reported.wait()

    def serve(self, message: Read, *, alone: bool) -> bytes | None:
        assert threading.current_thread() is not threading.main_thread()
        self.calls.append(f"{'alone' if alone else 'serve'} {message.msg_id}")
        self._unreported = True
        taken = message.msg_id % 4 == (2 if alone else 0)
        return self.coming.pop(message.msg_id, b"") if taken else None

    def report(self) -> None:
        assert threading.current_thread() is threading.main_thread()
        if self._unreported:
            self.calls.append("report")
            self.reported.set()
        self._unreported = False


@asynccontextmanager
async def asking() -> AsyncIterator[tuple[socket.socket, Poller, Noted]]:
    """A device that one writes to, the poller that reads it, and the shortcut it asks."""
    ours, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    with ours, kernel:
        poller = Poller(ours.fileno(), real=False)
        poller.shortcut = noted = Noted()
        try:
            yield kernel, poller, noted
        finally:
            await poller.close()


def test_a_larger_read_takes_the_shortcut_only_if_it_comes_alone() -> None:
    async def main() -> None:
        rig = Rig()
        await settle()
        large, little = Read(1, 1, MIB, LITTLE + PAGE), Read(2, 1, 0, LITTLE)
        assert rig.at_hand.serve(large, alone=False) is None
        assert rig.at_hand.serve(large, alone=True) == b""
        assert rig.at_hand.serve(little, alone=False) == b""
        assert [number for _, _, number in rig.anon.served] == [1, 2]

    run(main())


def test_the_thread_asks_before_and_after_it_looks_for_others() -> None:
    async def main() -> None:
        async with asyncio.timeout(20.0), asking() as (kernel, poller, noted):
            both: list[Message] = [Read(2, 1, 0, PAGE), Close(3, 1)]
            for each in both:  # they are there before anybody reads
                kernel.send(each.encode())
            assert [await poller.next() for _ in both] == both
            assert noted.calls == ["serve 2", "report"]  # not alone
            kernel.send(Read(4, 1, 0, PAGE).encode())
            await noted.again()  # nothing else comes: the loop hears of it all the same
            kernel.send(Read(6, 1, 0, PAGE).encode())
            await noted.again()
            kernel.send(Read(5, 1, 0, PAGE).encode())
            assert await poller.next() == Read(5, 1, 0, PAGE)
            expected = ["serve 4", "report", "serve 6", "alone 6", "report"]
            assert noted.calls[2:] == [*expected, "serve 5", "alone 5", "report"]
            kernel.send(Close(6, 1).encode())
            assert await poller.next() == Close(6, 1)

    asyncio.run(main())


def test_what_the_thread_serves_does_not_wait_for_what_is_behind() -> None:
    async def main() -> None:
        async with asyncio.timeout(20.0), asking() as (kernel, poller, noted):
            for each in (Read(8, 1, 0, PAGE), Close(3, 1)):
                kernel.send(each.encode())
            assert await poller.next() == Close(3, 1)
            assert noted.calls == ["serve 8", "report"]

    asyncio.run(main())


def test_what_comes_with_a_served_read_is_next() -> None:
    async def main() -> None:
        async with asyncio.timeout(20.0), asking() as (kernel, poller, noted):
            last = Close(3, 1)
            noted.coming = {4: Read(8, 1, 0, PAGE).encode(), 8: Read(6, 1, 0, PAGE).encode()}
            noted.coming[6] = last.encode()  # of one that was served because it came alone
            kernel.send(Read(4, 1, 0, PAGE).encode())
            assert await poller.next() == last
            assert noted.calls == ["serve 4", "serve 8", "serve 6", "alone 6", "report"]

    asyncio.run(main())
