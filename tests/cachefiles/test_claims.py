"""Range locks: processes that share a cache fetch each range once, and outlive each other."""

import asyncio
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cachefiles.files import PATH, content
from tests.cachefiles.rig import PAGE, soon

from pagein.cachefiles.cache import Cache

SIZE = 8 * PAGE


HOLDER = """
import asyncio, os, sys
from pagein.cachefiles.cache import Cache
PATH, PAGE = os.fsencode(sys.argv[3]), 4096
async def main():
    cache = Cache(os.fsencode(sys.argv[1]), shared=True)
    file = cache.look_up(PATH, 8 * PAGE)
    async with file.claim(0, 2 * PAGE, timeout=30) as missing:
        print(missing, flush=True)
        sys.stdin.readline()
        if sys.argv[2] == "entered":
            cache.inflight.enter(PATH, 0, 2 * PAGE)
        await file.write(memoryview(b"h" * PAGE), 0)
        if sys.argv[2] != "well":
            os.kill(os.getpid(), 9)
        await file.write(memoryview(b"h" * PAGE), PAGE)
    file.close()
    cache.close()
asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("ending", "missing"),
    [("well", []), ("killed", [(PAGE, 2 * PAGE)]), ("entered", [(0, 2 * PAGE)])],
)
def test_who_waits_for_a_range_fetches_what_the_holder_did_not(
    tmp_path: Path, ending: str, missing: list[tuple[int, int]]
) -> None:
    cache = Cache(os.fsencode(tmp_path), shared=True)
    file = cache.look_up(PATH, SIZE)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with file.claim(0, PAGE, timeout=0.01):
                pass
        async with file.claim(4 * PAGE, SIZE, timeout=30) as free:  # another range: no wait
            assert free == [(4 * PAGE, SIZE)]
        waiting = asyncio.create_task(claim_and_fill())
        await asyncio.sleep(0.01)
        assert holder.stdin is not None
        holder.stdin.write(b"\n")
        holder.stdin.flush()
        assert await waiting == missing
        assert not cache.inflight.of_path(PATH)

    async def claim_and_fill() -> list[tuple[int, int]]:
        async with file.claim(0, 2 * PAGE, timeout=30) as gaps:
            for start, end in gaps:
                await file.write(memoryview(b"w" * (end - start)), start)
            return gaps

    command = [sys.executable, "-c", HOLDER, str(tmp_path), ending, os.fsdecode(PATH)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"[(0, 8192)]\n"
            asyncio.run(soon(main()))
        finally:
            holder.kill()
    assert b"\0" not in content(file, 0, 2 * PAGE)
    file.close()
    cache.close()


def test_a_range_that_is_not_filled_keeps_its_entry(tmp_path: Path) -> None:
    cache = Cache(os.fsencode(tmp_path), shared=True)
    file = cache.look_up(PATH, SIZE)

    async def main() -> None:
        slot = cache.inflight.enter(PATH, 0, PAGE)
        async with file.claim(0, PAGE, timeout=30) as missing:
            assert missing == [(0, PAGE)]
        assert cache.inflight.of_path(PATH)
        cache.inflight.strike(slot)

    asyncio.run(main())
    file.close()
    cache.close()


def test_closed_while_it_was_claimed(tmp_path: Path) -> None:
    cache = Cache(os.fsencode(tmp_path), shared=True)
    file = cache.look_up(PATH, SIZE)

    async def main() -> None:
        async with file.claim(0, PAGE, timeout=30):
            file.close()
        with pytest.raises(OSError) as caught:
            async with file.claim(0, PAGE, timeout=30):
                pass
        assert caught.value.errno == errno.ENOBUFS

    asyncio.run(main())
    cache.close()
