"""Forks at a bad moment."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pagein.testing.webserver import WebServer, serve_in_thread

CONTENT = bytes(range(256)) * 8192


@pytest.fixture
def web() -> Iterator[WebServer]:
    with serve_in_thread(WebServer({"/blob": CONTENT})) as server:
        yield server


def run(program: str, *arguments: object) -> None:
    command = [sys.executable, "-W", "error", "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout, done.stderr) == (0, "same\n", "")


LOCKED = """
import os, signal, sys, pagein
from pagein.library import runtime
file = pagein.open(sys.argv[1], cache=sys.argv[2])
wanted = file.pread(1000, 0)
use = file._blob._use
held = [
    file._blob._lock(), use.cookie.file.cache.open_files.lock,
    use.cookie.file.cache.inflight._lock,
    runtime._process.lock, runtime._process.starting,
]
for lock in held:
    lock.acquire()
child = os.fork()
if child == 0:
    signal.alarm(100)
    same = file.pread(1000, 0) == wanted and len(file.pread(100_000, 1 << 20)) == 100_000
    print("same", flush=True)
    os._exit(0)
status = os.waitpid(child, 0)[1]
for lock in held:
    lock.release()
sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_while_other_threads_hold_locks(web: WebServer, tmp_path: Path) -> None:
    run(LOCKED, web.url("/blob"), tmp_path / "cache")


THREADS = """
import os, signal, sys, threading, pagein
from pagein.library import runtime
file = pagein.open(sys.argv[1], cache=sys.argv[2])
wanted = file.pread(1 << 20, 0)
child = os.fork()
if child == 0:
    signal.alarm(100)
    start, right = threading.Barrier(8), []
    def read():
        start.wait()
        right.append(file.pread(1 << 20, 0) == wanted)
    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (only,) = runtime._process.living
    assert right == [True] * 8 and only.users == 1, only.users
    file.close()
    print("same", flush=True)
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_all_threads_of_a_child_use_one_cookie(web: WebServer, tmp_path: Path) -> None:
    run(THREADS, web.url("/blob"), tmp_path / "cache")


GRANDCHILD = """
import os, signal, sys, pagein
file = pagein.open(sys.argv[1], cache=sys.argv[2])
wanted = file.pread(1000, 0)
for _ in range(3):
    child = os.fork()
    if child:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    signal.alarm(100)
    assert file.pread(1000, 0) == wanted
print("same", flush=True)
"""


def test_children_of_children(web: WebServer, tmp_path: Path) -> None:
    run(GRANDCHILD, web.url("/blob"), tmp_path / "cache")
