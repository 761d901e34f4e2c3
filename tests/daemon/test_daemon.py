"""The daemon against a fake device: what is answered, when, and what is closed."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from tests.daemon.fakes import FakeDevice, File
from tests.daemon.helpers import KIB, MIB, FakeOrigin, Get, content, now, passing, run, settle

from pagein.daemon import Daemon, DeviceDead
from pagein.origins.base import Origin, OriginError

DATA = content(MIB + 100)
OriginOf = Callable[[bytes, bytes], Origin | Awaitable[Origin]]


@asynccontextmanager
async def serving(
    device: FakeDevice, origin: OriginOf, timeout: float = 30.0, cache: str | None = "/c"
) -> AsyncIterator[Daemon]:
    daemon = Daemon(device, origin, cache=cache, timeout=timeout)
    task = asyncio.create_task(daemon.run())
    try:
        yield daemon
    finally:
        daemon.stop()
        await task
    assert device.closed
    assert [file.open_fds for file in device.files.values()] == [0] * len(device.files)


def test_it_binds_and_answers_open_and_read() -> None:
    async def main() -> None:
        device, origin = FakeDevice(), FakeOrigin(DATA)
        keys = []

        def origin_of(volume: bytes, cookie: bytes) -> Origin:
            keys.append((volume, cookie))
            return origin

        async with serving(device, origin_of) as daemon:
            opened = device.send_open(1, b"blob\0\xff")
            await device.answered(opened)
            read = device.send_read(1, 8192, 8192)
            await device.answered(read)
            file = device.files[1]
            assert file.present.covers(8192, 16384)
            assert file.data[8192:16384] == DATA[8192:16384]
            [stats] = daemon.stats()
        assert device.log == [
            "dir /c",
            "tag pagein",
            "bind ondemand",
            f"copen {opened},{len(DATA)}",
            f"cread {read}",
        ]
        assert keys == [(b"erofs,x", b"blob\0\xff")]
        assert stats["cookie"] == "blob\0\\xff"
        assert (stats["size"], stats["requests"], stats["fetched"]) == (len(DATA), 1, 64 * KIB)
        assert origin.closed
        assert len(origin.prepared) == 2  # when it was opened, and for the request

    run(main())


def test_a_bound_cache_is_taken_over() -> None:
    async def main() -> None:
        device = FakeDevice(
            command_errors={"dir": errno.EEXIST, "tag": errno.EEXIST, "bind": errno.EBUSY}
        )
        async with serving(device, lambda *_: FakeOrigin(DATA)):
            await settle()
        assert device.log == ["dir /c", "tag pagein", "bind ondemand", "restore"]

    run(main())


def test_a_kernel_without_restore_is_served_all_the_same() -> None:
    async def main() -> None:
        device = FakeDevice(command_errors={"restore": errno.EOPNOTSUPP})
        async with serving(device, lambda *_: FakeOrigin(DATA), cache=None):
            await device.answered(device.send_open(1, b"a"))
        assert device.log[0] == "restore"

    run(main())


@pytest.mark.parametrize(
    ("verb", "number"), [("bind", errno.EBUSY), ("bind", errno.EOPNOTSUPP), ("dir", errno.EINVAL)]
)
def test_a_cache_that_cannot_be_bound_is_an_error(verb: str, number: int) -> None:
    async def main() -> None:
        device = FakeDevice(command_errors={verb: number})
        daemon = Daemon(device, lambda *_: FakeOrigin(DATA), cache="/c")
        with pytest.raises(OSError) as caught:
            await daemon.run()
        assert caught.value.errno == number
        assert device.closed

    run(main())


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (KeyError("x"), errno.ENOENT),
        (FileNotFoundError(), errno.ENOENT),
        (OriginError(errno.EACCES, "403", retry=False), errno.EACCES),
        (OSError("without a number"), errno.EIO),
        (OSError(999_999, "no errno of a kernel"), errno.EIO),
        (ValueError("a bug"), errno.EIO),
    ],
)
def test_what_cannot_be_opened_is_refused_and_its_fd_closed(error: Exception, number: int) -> None:
    async def main() -> None:
        device = FakeDevice()

        async def origin_of(_volume: bytes, _cookie: bytes) -> Origin:
            raise error

        async with serving(device, origin_of) as daemon:
            opened = device.send_open(1, b"a")
            await device.answered(opened)
            await settle()
            assert device.log[-1] == f"copen {opened},{-number}"
            assert device.files[1].open_fds == 0
            assert daemon.stats() == []

    run(main())


def test_an_open_waits_for_a_server_that_comes_back() -> None:
    class Flaky(FakeOrigin):
        tries = 0

        async def size(self) -> int:
            self.tries += 1
            if self.tries < 4:
                raise passing()
            return len(self.data)

    async def main() -> None:
        device = FakeDevice()
        async with serving(device, lambda *_: Flaky(DATA)):
            opened = device.send_open(1, b"a")
            await device.answered(opened)
            assert device.log[-1] == f"copen {opened},{len(DATA)}"

    run(main())


def test_an_open_is_refused_at_the_deadline() -> None:
    class Silent(FakeOrigin):
        async def size(self) -> int:
            await asyncio.sleep(1e9)
            return 0

    async def main() -> None:
        device, origin = FakeDevice(), Silent(DATA)
        async with serving(device, lambda *_: origin, timeout=5.0):
            began = now()
            opened = device.send_open(1, b"a")
            await device.answered(opened)
            assert now() - began == 5.0
            assert device.log[-1] == f"copen {opened},{-errno.ETIMEDOUT}"
            assert origin.closed

    run(main())


def test_an_open_without_fd_is_refused() -> None:
    async def main() -> None:
        device = FakeDevice(open_error=errno.EMFILE)
        async with serving(device, lambda *_: FakeOrigin(DATA)):
            opened = device.send_open(1, b"a")
            await device.answered(opened)
            assert device.log[-1] == f"copen {opened},{-errno.EMFILE}"

    run(main())


def test_an_open_nobody_waits_for_any_more_is_dropped() -> None:
    async def main() -> None:
        device = FakeDevice(command_errors={"copen": errno.EINVAL})
        origin = FakeOrigin(DATA)
        async with serving(device, lambda *_: origin) as daemon:
            device.send_open(1, b"a")
            await settle()
            assert device.files[1].open_fds == 0
            assert daemon.stats() == []
            assert origin.closed

    run(main())


def test_refused_opens_that_come_again_at_once_are_slowed_down() -> None:
    async def main() -> None:
        device = FakeDevice()

        def origin_of(_volume: bytes, cookie: bytes) -> Origin:
            if cookie == b"missing":
                raise KeyError(cookie)
            return FakeOrigin(DATA)

        async with serving(device, origin_of):
            began = now()
            await device.answered(device.send_open(1, b"missing"))
            assert now() == began
            for object_id in range(2, 12):
                await device.answered(device.send_open(object_id, b"missing"))
            assert now() - began > 10
            later = now()
            await device.answered(device.send_open(20, b"there"))
            assert now() == later

    run(main())


def test_open_and_close_do_not_wait_behind_reads() -> None:
    async def main() -> None:
        device = FakeDevice()
        slow = FakeOrigin(DATA, lambda *_: Get(delay=20.0))
        origins = {b"slow": slow, b"fast": FakeOrigin(DATA)}
        async with serving(device, lambda _, cookie: origins[cookie]):
            await device.answered(device.send_open(1, b"slow"))
            reads = [device.send_read(1, 65536 * index, 4096) for index in range(8)]
            began = now()
            await device.answered(device.send_open(2, b"fast"))
            await device.answered(device.send_read(2, 0, 4096))
            device.send_close(2)
            await settle()
            assert device.files[2].open_fds == 0
            assert now() == began
            await device.answered(*reads)

    run(main())


def test_a_failed_read_is_completed_without_data() -> None:
    async def main() -> None:
        device = FakeDevice()
        origin = FakeOrigin(DATA, lambda *_: Get(stop=0, error=OriginError(13, "403", retry=False)))
        async with serving(device, lambda *_: origin) as daemon:
            await device.answered(device.send_open(1, b"a"))
            read = device.send_read(1, 0, 4096)
            await device.answered(read)
            assert device.files[1].present.total == 0
            assert daemon.stats()[0]["errors"] == 1
            assert daemon.stats()[0]["last_error"] == "403"

    run(main())


def test_a_read_beyond_the_end_is_completed() -> None:
    async def main() -> None:
        device, origin = FakeDevice(), FakeOrigin(DATA)
        async with serving(device, lambda *_: origin):
            await device.answered(device.send_open(1, b"a"))
            await device.answered(device.send_read(1, 1 << 40, 4096))
        assert origin.gets == []

    run(main())


def test_close_ends_fetches_and_closes_every_fd() -> None:
    async def main() -> None:
        device, origin = FakeDevice(), FakeOrigin(DATA, lambda *_: Get(delay=5.0))
        async with serving(device, lambda *_: origin) as daemon:
            await device.answered(device.send_open(1, b"a"))
            daemon.objects.dup(1)
            assert device.files[1].open_fds == 2
            device.send_read(1, 0, MIB)
            await asyncio.sleep(1.0)
            device.send_close(1)
            await settle()
            assert (origin.running, device.files[1].open_fds) == ([], 0)
            assert daemon.stats() == []
            device.send_close(1)  # an id nobody knows
            device.send_close(0xFFFFFFFF)
            device.send_read(77, 0, 4096)
            await settle()
            await device.answered(device.send_open(2, b"b"))

    run(main())


def test_cread_works_through_a_dup_after_the_first_fd_was_closed() -> None:
    async def main() -> None:
        device, origin = FakeDevice(), FakeOrigin(DATA)
        async with serving(device, lambda *_: origin) as daemon:
            await device.answered(device.send_open(1, b"a"))
            first = daemon.objects.fd(1)
            daemon.objects.dup(1)
            await daemon.objects.give_back(1, first)
            await device.answered(device.send_read(1, 0, 4096))
            assert device.files[1].present.covers(0, 4096)

    run(main())


def test_a_blob_opened_again_keeps_its_fill_and_learns_what_is_there() -> None:
    async def main() -> None:
        device, origin = FakeDevice(), FakeOrigin(DATA)
        made = []

        def origin_of(_volume: bytes, cookie: bytes) -> Origin:
            made.append(cookie)
            return origin

        async with serving(device, origin_of) as daemon:
            await device.answered(device.send_open(1, b"a"))
            await device.answered(device.send_read(1, 0, 64 * KIB))
            file = device.files[1]
            file.present.discard(8192, 12288)  # lost while it was closed
            await device.answered(device.send_open(2, b"a", file=file))
            await device.answered(device.send_read(2, 8192, 4096))
            assert file.present.covers(0, 64 * KIB)
            assert made == [b"a"]
            assert origin.gets == [(0, 64 * KIB), (8192, 12288)]
            device.send_close(1)
            await settle()
            await device.answered(device.send_read(2, 512 * KIB, 4096))
            assert len(daemon.stats()) == 1 and not origin.closed

    run(main())


def test_a_new_daemon_does_not_fetch_what_an_earlier_one_did() -> None:
    async def main() -> None:
        device, origin = FakeDevice(), FakeOrigin(DATA)
        file = File(bytearray(DATA[: 48 * KIB]))
        file.present.add(0, 16 * KIB)
        file.present.add(32 * KIB, 48 * KIB)
        async with serving(device, lambda *_: origin):
            await device.answered(device.send_open(1, b"a", file=file))
            await device.answered(device.send_read(1, 16 * KIB, 16 * KIB))
            await settle()
        assert origin.gets == [(16 * KIB, 32 * KIB), (48 * KIB, 64 * KIB)]

    run(main())


def test_a_read_of_what_we_took_for_present_is_checked() -> None:
    async def main() -> None:
        device, origin = FakeDevice(), FakeOrigin(DATA)
        async with serving(device, lambda *_: origin):
            await device.answered(device.send_open(1, b"a"))
            await device.answered(device.send_read(1, 0, 64 * KIB))
            await device.answered(device.send_read(1, 0, 64 * KIB))
            assert len(origin.gets) == 1
            device.files[1].present.discard(0, 4096)
            await device.answered(device.send_read(1, 0, 64 * KIB))
            assert origin.gets[1:] == [(0, 4096)]

    run(main())


def test_stop_leaves_waiting_reads_to_the_next_daemon() -> None:
    async def main() -> None:
        device = FakeDevice()
        origin = FakeOrigin(DATA, lambda *_: Get(delay=20.0))
        async with serving(device, lambda *_: origin):
            await device.answered(device.send_open(1, b"a"))
            read = device.send_read(1, 0, 4096)
            await asyncio.sleep(1.0)
        assert read in device.reads
        assert origin.closed and origin.running == []

    run(main())


def test_a_dead_device_ends_the_daemon() -> None:
    async def main() -> None:
        device = FakeDevice()
        daemon = Daemon(device, lambda *_: FakeOrigin(DATA), cache="/c")
        opened = device.send_open(1, b"a")
        device.queue.put_nowait(None)
        with pytest.raises(DeviceDead, match="dead"):
            await daemon.run()
        assert device.files.get(opened, File()).open_fds == 0
        assert device.closed

    run(main())


def test_without_a_device_it_says_how_to_name_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("PAGEIN_DEVICE"):
            monkeypatch.delenv(name)
    daemon = Daemon(None, lambda *_: FakeOrigin(DATA), cache=None)
    with pytest.raises(OSError, match="PAGEIN_DEVICE"):
        run(daemon.run())
