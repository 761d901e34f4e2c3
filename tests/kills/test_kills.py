"""kill -9 of each half at random moments, under readers that compare every byte.

The short form is in the suite; the long one, `scripts/test --long tests/kills`, kills the user half
more than 500 times and the kernel half more than 100 times, and half-way through mounting.
"""

import contextlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.harness import DEADLINE, Pagein, pagein_in, wait_for
from tests.ending import killed
from tests.kills.places import Image, cache_on, make_image, wrong_pages

from pagein.testing.webserver import WebServer, serve_in_thread

HERE = Path(__file__).parent
RATE = 10_000_000
"""Bytes per second: slow enough that a blob is not complete before its daemon is killed."""
FILE_SYSTEMS = ["disk", "xfs", "tmpfs"]
USER_HALF, KERNEL_HALF, MAPPED = "pagein.daemon", "pagein.kernelhalf", "mmapdaemon.py"

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    directory = Path(f"/var/tmp/pagein-test-{os.environ['PAGEIN_TEST_RUN']}-kills")
    directory.mkdir(mode=0o755)
    try:
        yield make_image(directory, 96)
    finally:
        subprocess.run(["rm", "-rf", directory], check=True)


def pid_of(pagein: Pagein, module: str) -> int | None:
    """The pid of a part, None while there is none, as between a half's death and the next one."""
    state, found = str(pagein.state), {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if any(w.startswith(state) for w in words) and any(w.endswith(module) for w in words):
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                found[int(entry.name)] = int(stat[1])
    # A child of it that has not come to exec yet has its command line too.
    return next((pid for pid, parent in found.items() if parent not in found), None)


def kill(pagein: Pagein, module: str) -> bool:
    """Kill a part if it is there to be killed, and wait until it is dead."""
    pid = pid_of(pagein, module)
    return pid is not None and kill_process(pid)


def kill_process(pid: int) -> bool:
    """Kill a process, somebody else's child, and wait until it is dead; whether it was there."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        assert select.select([fd], [], [], DEADLINE)[0], f"process {pid} does not die"
    except ProcessLookupError:  # it was dead, and is waited for now
        return False
    finally:
        os.close(fd)
    return True


def kill_often(pagein: Pagein, module: str, times: int, draw: random.Random) -> None:
    """Kill a half at random moments, each time another process."""
    for _ in range(times):
        # Mostly when it serves, now and then when it has hardly begun.
        time.sleep(draw.choice((0.0, 0.3, 0.3, 0.3)) + 0.5 * draw.random())
        wait_for(lambda: kill(pagein, module))


@contextlib.contextmanager
def readers(pagein: Pagein, image: Image, seed: int) -> Iterator[list[dict[str, int]]]:
    """Processes that read and compare; their counts are in the list afterwards."""
    counts: list[dict[str, int]] = []
    command: list[str | Path] = [sys.executable, HERE / "reader.py"]
    command += [pagein.target / image.name, image.source]
    processes = [
        subprocess.Popen([*command, str(seed + i)], text=True, stdout=subprocess.PIPE)
        for i in range(3)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        yield counts
    finally:
        with killed(*processes):
            for process in processes:
                process.send_signal(signal.SIGTERM)
            outputs = [p.communicate(timeout=250)[0] for p in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
        counts.append(json.loads(output))


def kill_under_readers(
    pagein: Pagein, image: Image, sources: list[str], module: str, times: int
) -> None:
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    pagein.mount(*sources, options=("--timeout", "60"))
    try:
        with readers(pagein, image, seed) as counts:
            kill_often(pagein, module, times, random.Random(seed))
            time.sleep(1.0)
    finally:
        log = pagein.log()
        pagein.umount()
    assert not pagein.leftovers(), log
    assert all(c["right"] for c in counts), f"{counts}\n{log}"
    # Between two lives a read waits: nothing here is past a deadline, so nothing is EIO.
    assert not any(c["eio"] for c in counts), f"{counts}\n{log}"


def a_place(directory: Path) -> Path:
    directory.mkdir()
    directory.chmod(0o755)
    return directory


def kill_round(directory: Path, image: Image, kind: str, module: str, times: int) -> None:
    """One mount on an empty cache, and some kills."""
    files = {"/meta": image.meta, "/blob": image.blob}
    with (
        cache_on(kind, a_place(directory)) as cache,
        serve_in_thread(WebServer(files, rate=RATE)) as web,
    ):
        sources = [web.url("/meta"), web.url("/blob")]
        with pagein_in(directory, cache=cache) as pagein:
            kill_under_readers(pagein, image, sources, module, times)
        assert not wrong_pages(cache, [image.meta, image.blob])


def mapped_round(directory: Path, image: Image, kind: str, times: int) -> None:
    """The same with a daemon that writes from mapped files that are not in memory."""
    with cache_on(kind, a_place(directory)) as cache:
        pagein = Pagein(directory, cache=cache)
        pagein.state.mkdir()
        keeper: list[str | Path] = [sys.executable, HERE / "mmapkeeper.py"]
        keeper += ["--state-dir", pagein.state, "--cache", cache, "--linger", "100"]
        read, write = os.pipe()
        with (pagein.state / "log").open("wb") as log:
            process = subprocess.Popen(
                [*keeper, "--ready-fd", str(write)], pass_fds=[write], stdout=log, stderr=log
            )
        os.close(write)
        try:
            with os.fdopen(read) as ready:
                assert ready.read() == "listening\nok\n", pagein.log()
            paths = [str(path).strip("/") for path in (image.meta, image.blob)]
            keys = [f"key:mapped/{path.replace('/', '|')}" for path in paths]
            kill_under_readers(pagein, image, keys, MAPPED, times)
            assert process.wait(100) == 0
        finally:
            process.terminate()
            process.wait(100)
        assert not wrong_pages(cache, [image.meta, image.blob])


def mount_round(directory: Path, image: Image, module: str, times: int) -> None:
    """Kill a half while a mount is being made: it is made, or refused in one line."""
    files = {"/meta": image.meta, "/blob": image.blob}
    draw = random.Random(directory.name)
    with serve_in_thread(WebServer(files)) as web, pagein_in(a_place(directory)) as pagein:
        words = ["mount", "--timeout", "30", web.url("/meta"), "--device", web.url("/blob")]
        made = 0
        for _ in range(times):
            process = subprocess.Popen(
                pagein.argv(*words, pagein.target), stderr=subprocess.PIPE, text=True
            )
            with killed(process):
                time.sleep(draw.random() * 1.2)
                kill(pagein, module)
                _, errors = process.communicate(timeout=120)
            assert process.returncode in (0, 1), errors
            if process.returncode == 0:
                made += 1
                pagein.umount()
            else:
                assert errors.count("\n") == 1, errors
                assert errors.startswith("pagein: "), errors
            wait_for(lambda: not pagein.leftovers())
        print(f"made {made} of {times}")
        pagein.mount(web.url("/meta"), web.url("/blob"))
        pagein.umount()
        assert not pagein.leftovers(), pagein.log()


@pytest.mark.parametrize("kind", FILE_SYSTEMS)
def test_user_half_killed(public_tmp: Path, image: Image, kind: str) -> None:
    kill_round(public_tmp / "round", image, kind, USER_HALF, 10)


@pytest.mark.parametrize("kind", FILE_SYSTEMS)
def test_kernel_half_killed(public_tmp: Path, image: Image, kind: str) -> None:
    kill_round(public_tmp / "round", image, kind, KERNEL_HALF, 4)


@pytest.mark.parametrize("kind", ["disk", "tmpfs"])
def test_mapped_writer_killed(public_tmp: Path, image: Image, kind: str) -> None:
    mapped_round(public_tmp / "round", image, kind, 6)


@pytest.mark.parametrize("module", [USER_HALF, KERNEL_HALF])
def test_killed_while_mounting(public_tmp: Path, image: Image, module: str) -> None:
    mount_round(public_tmp / "round", image, module, 3)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", FILE_SYSTEMS)
def test_user_half_killed_often(public_tmp: Path, image: Image, kind: str) -> None:
    for number in range(12):
        kill_round(public_tmp / f"round{number}", image, kind, USER_HALF, 15)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", FILE_SYSTEMS)
def test_kernel_half_killed_often(public_tmp: Path, image: Image, kind: str) -> None:
    for number in range(5):
        kill_round(public_tmp / f"round{number}", image, kind, KERNEL_HALF, 8)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", FILE_SYSTEMS)
def test_mapped_writer_killed_often(public_tmp: Path, image: Image, kind: str) -> None:
    for number in range(12):
        mapped_round(public_tmp / f"round{number}", image, kind, 15)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("module", [USER_HALF, KERNEL_HALF])
def test_killed_while_mounting_often(public_tmp: Path, image: Image, module: str) -> None:
    mount_round(public_tmp / "round", image, module, 40)
