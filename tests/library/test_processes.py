"""Many processes, one cache: each range is fetched once, and nobody's death spoils it."""

import contextlib
import hashlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.ending import killed
from tests.library.test_files import fetched, overlaps

import pagein
from pagein.testing.webserver import WebServer, serve_in_thread

CONTENT = random.Random(2).randbytes(8 << 20)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
WORKER = str(Path(__file__).with_name("worker.py"))


@pytest.fixture
def web() -> Iterator[WebServer]:
    with serve_in_thread(WebServer({"/blob": CONTENT}, rate=40_000_000)) as server:
        yield server


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts readers, which end with the test: URL, cache, seed, and more words."""
    with contextlib.ExitStack() as stack:

        def one(url: str, cache: Path, seed: int, *more: str) -> subprocess.Popen[str]:
            command = [sys.executable, "-W", "error", WORKER, url, str(cache), str(seed), *more]
            pipe = subprocess.PIPE
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
            stack.enter_context(killed(process))
            return process

        yield one


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_eight_processes_fetch_each_range_once(
    web: WebServer, tmp_path: Path, start: Start
) -> None:
    processes = [start(web.url("/blob"), tmp_path / "cache", seed) for seed in range(8)]
    assert [line(p) for p in processes] == ["ready"] * 8
    for process in processes:
        go(process)
    outputs = [p.communicate(timeout=200) for p in processes]
    assert outputs == [(DIGEST + "\n", "")] * 8
    ranges = fetched(web)
    assert not overlaps(ranges)
    assert sum(end - begin for begin, end in ranges) == len(CONTENT)


def test_one_of_them_is_killed(web: WebServer, tmp_path: Path, start: Start) -> None:
    victim = start(web.url("/blob"), tmp_path / "cache", 99)
    processes = [start(web.url("/blob"), tmp_path / "cache", seed) for seed in range(7)]
    assert [line(p) for p in [victim, *processes]] == ["ready"] * 8
    go(victim)
    time.sleep(0.05)
    for process in processes:
        go(process)
    time.sleep(0.1)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    outputs = [p.communicate(timeout=200) for p in processes]
    assert outputs == [(DIGEST + "\n", "")] * 7
    # Whatever it was fetching is fetched again, and nothing else.
    twice = sum(left[1] - right[0] for left, right in overlaps(fetched(web)))
    assert twice <= 17 << 20
    assert start_and_check(web, tmp_path, start) == DIGEST


def start_and_check(web: WebServer, tmp_path: Path, start: Start) -> str:
    process = start(web.url("/blob"), tmp_path / "cache", 5)
    assert line(process) == "ready"
    go(process)
    output, errors = process.communicate(timeout=200)
    assert not errors
    return output.strip()


def test_killed_again_and_again(web: WebServer, tmp_path: Path, start: Start) -> None:
    draw = random.Random(3)
    for seed in range(12):
        process = start(web.url("/blob"), tmp_path / "cache", seed)
        assert line(process) == "ready"
        go(process)
        time.sleep(draw.random() * 0.05)
        process.kill()
        process.communicate()
    assert start_and_check(web, tmp_path, start) == DIGEST


def digest(file: pagein.BlobFile) -> str:
    file.seek(0)
    return hashlib.sha256(file.read()).hexdigest()


def test_a_file_goes_on_after_a_fork(web: WebServer, tmp_path: Path) -> None:
    with pagein.open(web.url("/blob"), cache=str(tmp_path / "cache"), timeout=20) as file:
        assert file.pread(10, 4 << 20) == CONTENT[4 << 20 : (4 << 20) + 10]
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.write(write, digest(file).encode())
                status = 0
            finally:
                os._exit(status)
        os.close(write)
        assert digest(file) == DIGEST
        with os.fdopen(read) as pipe:
            assert pipe.read() == DIGEST
        assert os.waitpid(child, 0)[1] == 0
    assert not overlaps(fetched(web))


def test_a_forked_child_that_ends_quietly(web: WebServer, tmp_path: Path) -> None:
    program = f"""
import os, pagein
file = pagein.open({web.url("/blob")!r}, cache={str(tmp_path / "cache")!r})
file.pread(1, 0)
child = os.fork()
print(len(file.pread(5, 100)), flush=True)
if child:
    assert os.waitpid(child, 0)[1] == 0
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=200
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "5\n5\n", "")


def test_a_child_does_not_keep_what_its_parent_locked(
    web: WebServer, tmp_path: Path, start: Start
) -> None:
    """Range locks belong to open file descriptions, and a fork shares those."""
    program = f"""
import os, sys, threading, time, pagein
file = pagein.open({web.url("/blob")!r}, cache={str(tmp_path / "cache")!r})
threading.Thread(target=lambda: file.pread(8 << 20, 0), daemon=True).start()
time.sleep(0.1)
if os.fork() == 0:
    print("forked", flush=True)
    time.sleep(250)
    os._exit(0)
time.sleep(250)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert line(parent) == "forked"
        parent.kill()
        assert start_and_check(web, tmp_path, start) == DIGEST
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.communicate()


def test_spawned_processes_get_it_pickled(web: WebServer, tmp_path: Path) -> None:
    spawning = multiprocessing.get_context("spawn")
    with (
        pagein.open(web.url("/blob"), cache=str(tmp_path / "cache"), timeout=20) as file,
        spawning.Pool(2) as pool,
    ):
        assert pool.map(pagein.BlobFile.readall, [file, file]) == [CONTENT, CONTENT]
    assert not overlaps(fetched(web))
