"""Room in the cache without a full disk: statvfs says what the test says (facts 11)."""

import asyncio
import errno
import os
import select
from pathlib import Path

import pytest
from tests.cachefiles.rig import PAGE, Rig, fails, pages, soon, until

from pagein.protocol.messages import Open
from pagein.protocol.space import State

SIZE = 8 * PAGE
ALL = 100_000
"""Files and blocks of the file system."""


class Disk:
    """What os.fstatvfs answers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files = self.blocks = ALL
        monkeypatch.setattr(os, "fstatvfs", self._answer)

    def _answer(self, _: int) -> os.statvfs_result:
        return os.statvfs_result(
            (4096, 4096, ALL, self.blocks, self.blocks, ALL, *[self.files] * 3, 255)
        )


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def test_the_last_page_that_fits(tmp_path: Path, disk: Disk) -> None:
    """What a write takes is counted before it is taken: stop is 1,000 blocks here."""

    async def main() -> None:
        async with Rig(tmp_path) as rig:
            _, file = await rig.acquire(SIZE)
            disk.blocks = 1002
            assert await soon(file.pwrite(pages(1, 2), 0)) == 2 * PAGE
            await fails(asyncio.ensure_future(file.pwrite(pages(1, 2, 3), 0)), errno.ENOBUFS)
            disk.blocks, disk.files = ALL, 1000
            assert await soon(file.pwrite(pages(1), 0)) == PAGE
            disk.files = 999
            await fails(asyncio.ensure_future(file.pwrite(pages(1), 0)), errno.ENOBUFS)

    asyncio.run(main())


def test_pollers_are_woken_when_it_begins_and_when_it_ends(tmp_path: Path, disk: Disk) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            _, file = await rig.acquire(SIZE)
            for blocks, mask in ((4900, select.POLLOUT), (6900, select.POLLOUT), (7100, 0)):
                changes = rig.device.poll() != mask
                rig._woken.clear()
                disk.blocks = blocks
                await soon(file.pwrite(pages(1), 0))
                if changes:
                    await soon(rig._woken.wait())
                assert rig.device.poll() == mask

    asyncio.run(main())


def test_a_cache_that_processes_share_takes_all_there_is(tmp_path: Path, disk: Disk) -> None:
    async def main() -> None:
        disk.blocks = disk.files = 1
        async with Rig(tmp_path, shared=True) as rig:
            cookie, file = await rig.acquire(SIZE)
            assert await soon(file.pwrite(pages(1), 0)) == PAGE
            assert await soon(rig.reading(cookie, 0, PAGE)) == bytes([1]) * PAGE
            assert rig.device.poll() == 0

    asyncio.run(main())


def test_no_open_for_what_has_no_room(tmp_path: Path, disk: Disk) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            await rig.acquire(SIZE)
            disk.files = 1000
            problem = await fails(rig.acquiring(b"other"), errno.ENOBUFS)
            assert "No space left for the cache" in str(problem.__cause__)
            assert rig.read() is None
            assert not rig.session.looking_up

    asyncio.run(main())


def test_the_state_of_the_original_mode(tmp_path: Path, disk: Disk) -> None:
    async def main() -> None:
        async with Rig(tmp_path, bind=False) as rig:
            assert await rig.device.read_state(1024) == b""
            await rig.write(b"dir " + os.fsencode(tmp_path))
            await rig.write(b"bind")
            disk.blocks = 999
            state = State.decode(await soon(rig.device.read_state(1024)))
            assert (state.culling, state.marks.brun, state.marks.fstop) == (True, 7000, 1000)
            assert rig.device.read(1024) == b""
            await fails(rig.device.write(b"restore"), errno.EOPNOTSUPP)
            await fails(asyncio.ensure_future(rig.device.read_state(10)), errno.EMSGSIZE)

    asyncio.run(main())


def test_a_lookup_waits_for_who_culls(tmp_path: Path) -> None:
    """One of them comes first; then the other finds a file, or none."""

    async def main() -> None:
        async with Rig(tmp_path) as rig:
            async with rig.session.names:
                asking = rig.acquiring()
                await asyncio.sleep(0.01)
                assert rig.read() is None
            message = await rig.take(Open)
            volume = b"cache/Ierofs,test"
            assert rig.session.uses(volume)
            rig.open(message.object_id)
            await rig.write(b"copen %d,-5" % message.msg_id)
            await fails(asking, errno.EIO)
            await until(lambda: not rig.session.uses(volume))

    asyncio.run(main())


def test_cull_without_a_working_directory(tmp_path: Path) -> None:
    """Of a writer that nobody can see: in another PID namespace, or gone."""

    async def main() -> None:
        async with Rig(tmp_path) as rig:
            for cwd in (b"/proc/0/cwd", os.fsencode(__file__)):
                await fails(rig.device.write(b"inuse x", cwd), errno.ENOTDIR)
            await fails(rig.device.write(b"inuse x", b"/"), errno.EINVAL)

    asyncio.run(main())
