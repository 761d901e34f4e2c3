"""Who is cancelled, interrupted, or forgets to close leaves nothing behind."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.ending import killed
from tests.library.fulldisk import wait_until_unused

import pagein
from pagein.library import runtime
from pagein.testing.answers import Fault
from pagein.testing.webserver import WebServer, serve_in_thread

CONTENT = random.Random(7).randbytes(2 << 20)
CRAWL = 1000.0
"""Bytes per second: nothing that is read has come before the test lets it come."""


@pytest.fixture
def web() -> Iterator[WebServer]:
    with serve_in_thread(WebServer({"/blob": CONTENT})) as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[str]:
    """A cache directory that nothing of this process uses in the end."""
    yield str(tmp_path / "cache")
    wait_until_unused()


def test_a_file_that_was_never_closed(web: WebServer, cache: str) -> None:
    file = pagein.open(web.url("/blob"), cache=cache)
    assert file.pread(5, 0) == CONTENT[:5]
    del file


def test_an_async_file_that_was_never_closed(web: WebServer, cache: str) -> None:
    async def main() -> None:
        file = await pagein.aopen(web.url("/blob"), cache=cache)
        assert await file.pread(5, 0) == CONTENT[:5]

    asyncio.run(main())


@pytest.mark.parametrize("delay", [0.0, 0.005, 0.02, 0.05, 0.1])
def test_an_open_that_is_cancelled(web: WebServer, cache: str, delay: float) -> None:
    async def main() -> None:
        opening = asyncio.create_task(pagein.aopen(web.url("/blob"), cache=cache))
        await asyncio.sleep(delay)
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)

    asyncio.run(main())


def test_reads_that_are_cancelled(cache: str) -> None:
    async def main(web: WebServer) -> None:
        async with await pagein.aopen(web.url("/blob"), cache=cache) as file:
            for _ in range(20):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(file.pread(100_000, 500_000), 0.02)
            web.rate = None
            assert await file.pread(100_000, 500_000) == CONTENT[500_000:600_000]

    with serve_in_thread(WebServer({"/blob": CONTENT}, rate=CRAWL)) as web:
        asyncio.run(main(web))


def test_closed_by_many_threads_at_once(web: WebServer, cache: str) -> None:
    with pagein.open(web.url("/blob"), cache=cache) as other:
        for _ in range(30):
            file = pagein.open(web.url("/blob"), cache=cache)
            start = threading.Barrier(4)

            def close(file: pagein.BlobFile = file, start: threading.Barrier = start) -> None:
                start.wait(60)
                file.close()

            threads = [threading.Thread(target=close) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
        # Whose cookie it is as well.
        assert other.pread(5, 1 << 20) == CONTENT[1 << 20 : (1 << 20) + 5]


def test_closed_while_it_is_read(web: WebServer, cache: str) -> None:
    for _ in range(10):
        file = pagein.open(web.url("/blob"), cache=cache)
        wrong: list[object] = []

        def read(file: pagein.BlobFile = file, wrong: list[object] = wrong) -> None:
            try:
                for at in range(0, len(CONTENT), 50_000):
                    assert file.pread(100, at) == CONTENT[at : at + 100]
            except (OSError, ValueError):
                pass
            except BaseException as problem:
                wrong.append(problem)

        reader = threading.Thread(target=read)
        reader.start()
        time.sleep(0.005)
        file.close()
        reader.join(60)
        assert not wrong
        with pytest.raises(ValueError, match="closed"):
            file.pread(1, 0)


def test_a_runtime_that_died_is_replaced(web: WebServer, cache: str) -> None:
    with pagein.open(web.url("/blob"), cache=cache) as file:
        assert file.pread(5, 0) == CONTENT[:5]
        (mine,) = runtime._process.living
        mine.close()
        with pytest.raises(OSError):
            file.pread(5, 1 << 20)
        with pagein.open(web.url("/blob"), cache=cache) as again:
            assert again.pread(5, 0) == CONTENT[:5]


def test_a_runtime_ends_while_others_open(web: WebServer, cache: str) -> None:
    """Opened again and again just when the last file was closed long enough ago."""
    runtime_linger = runtime._LINGER
    runtime._LINGER = 0.001
    wrong: list[BaseException] = []

    def work(seed: int) -> None:
        draw = random.Random(seed)
        try:
            for _ in range(15):
                with pagein.open(web.url("/blob"), cache=cache) as file:
                    at = draw.randrange(len(CONTENT) - 10)
                    assert file.pread(10, at) == CONTENT[at : at + 10]
                time.sleep(draw.random() * 0.004)
        except BaseException as problem:
            wrong.append(problem)

    try:
        threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(100)
    finally:
        runtime._LINGER = runtime_linger
    assert not wrong


INTERRUPTED = """
import signal, sys, pagein
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell runs with &
file = pagein.open(sys.argv[1], cache=sys.argv[2], timeout=100)
print("ready", flush=True)
try:
    file.pread(1 << 20, 0)
except KeyboardInterrupt:
    print("interrupted", flush=True)
sys.stdin.readline()
print(len(file.pread(1 << 20, 0)), flush=True)
"""


def test_an_interrupted_read(tmp_path: Path) -> None:
    with serve_in_thread(WebServer({"/blob": CONTENT}, rate=CRAWL)) as web:
        command = [sys.executable, "-W", "error", "-c", INTERRUPTED, web.url("/blob")]
        process = subprocess.Popen(
            [*command, str(tmp_path / "cache")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with killed(process):
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            while not any(end - start > 1 for _, start, end in web.requests):
                assert process.poll() is None
                time.sleep(0.01)
            os.kill(process.pid, signal.SIGINT)
            said = process.stdout.readline()
            assert said == "interrupted\n", process.communicate(timeout=100)
            web.rate = None
            assert process.communicate("\n", timeout=100) == (f"{1 << 20}\n", "")
            assert process.returncode == 0


EXITING = """
import sys, threading, time, pagein
file = pagein.open(sys.argv[1], cache=sys.argv[2], timeout=200)
twin = pagein.open(sys.argv[1], cache=sys.argv[2], timeout=59)
def read():
    while True:
        try:
            file.pread(1 << 20, 0)
        except OSError:
            return
threading.Thread(target=read, daemon=True).start()
time.sleep(0.2)
print("over", flush=True)
"""


def test_the_end_of_a_program_that_is_reading(tmp_path: Path) -> None:
    def faults(number: int, path: str, start: int, end: int) -> Fault | None:
        return Fault("hang", after=5000) if end - start > 1 else None

    with serve_in_thread(WebServer({"/blob": CONTENT}, faults=faults)) as web:
        command = [sys.executable, "-W", "error", "-c", EXITING, web.url("/blob")]
        done = subprocess.run(
            [*command, str(tmp_path / "cache")], capture_output=True, text=True, timeout=100
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, "over\n", "")
