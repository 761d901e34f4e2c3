"""The keeper: what happens when it dies, gives up, or cannot replace a half."""

import asyncio
import contextlib
import errno
import itertools
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.e2e.harness import Pagein, mkfs, pagein_in, wait_for
from tests.ending import killed

from pagein.keeper import half as halves
from pagein.keeper.half import GivenUp, Half
from pagein.keeper.held import Runtime
from pagein.keeper.keeper import AnyKeeper
from pagein.keeper.process import arguments
from pagein.testing.webserver import WebServer, serve_in_thread

CONTENT = random.Random(5).randbytes(4 << 20)


@pytest.fixture
def image(public_tmp: Path) -> Path:
    tree = public_tmp / "tree"
    tree.mkdir()
    (tree / "large").write_bytes(CONTENT)
    return mkfs(public_tmp / "image.erofs", tree)


@pytest.fixture
def web(image: Path) -> Iterator[WebServer]:
    with serve_in_thread(WebServer({"/image": image})) as server:
        yield server


@pytest.fixture
def place(public_tmp: Path) -> Iterator[Pagein]:
    with pagein_in(public_tmp) as mine:
        yield mine


def pid_of(place: Pagein, module: str) -> int:
    return next(pid for pid, line in place.processes().items() if module in line)


def read_all(path: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["cat", path], capture_output=True, timeout=200, check=False)


@pytest.mark.root
def test_a_killed_keeper_takes_the_halves_along_and_readers_get_eio(
    place: Pagein, web: WebServer
) -> None:
    place.mount(web.url("/image"))
    os.kill(pid_of(place, "pagein.keeper"), signal.SIGKILL)
    wait_for(lambda: not place.processes())
    failed = read_all(place.target / "large")
    assert failed.returncode != 0
    assert os.strerror(errno.EIO).encode() in failed.stderr
    # What it left can be taken away, and everything can be begun anew, from what was fetched.
    place.umount()
    place.mount(web.url("/image"))
    assert read_all(place.target / "large").stdout == CONTENT
    place.umount()
    assert not place.leftovers()


@pytest.mark.root
def test_begun_anew_over_a_dead_mount(place: Pagein, web: WebServer) -> None:
    place.mount(web.url("/image"))
    os.kill(pid_of(place, "pagein.keeper"), signal.SIGKILL)
    wait_for(lambda: not place.processes())
    second = place.dir("second")
    place.mount(web.url("/image"), target=second)
    assert read_all(second / "large").stdout == CONTENT
    subprocess.run(["umount", place.target], check=True)
    place.umount(second)
    assert not place.leftovers()


@pytest.mark.root
def test_all_three_are_told_to_end(place: Pagein, web: WebServer) -> None:
    place.mount(web.url("/image"))
    os.kill(pid_of(place, "pagein.keeper"), signal.SIGTERM)
    wait_for(lambda: not place.processes())
    place.umount()
    assert not place.leftovers()


def half(program: str, *, replaceable: bool = True) -> Half:
    """A half that runs a Python program; its last argument is the fd to say `ready` on."""
    return Half("half", [sys.executable, "-c", program], [], replaceable=replaceable)


READY = "import os, sys; os.write(int(sys.argv[-1]), b'r'); os.close(int(sys.argv[-1]));"


def test_a_half_that_never_gets_ready_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(monotonic=itertools.count(step=10.0).__next__)
    monkeypatch.setattr(halves, "time", clock)  # each look at it is ten seconds later
    counter = tmp_path / "starts"
    program = f"import os; open({str(counter)!r}, 'a').write('x'); os._exit(3)"

    async def main() -> None:
        one = half(READY + f"os.environ.setdefault('n', ''); {program}")
        with pytest.raises(GivenUp):
            await half(program).start()
        counter.unlink()
        await one.start()
        # It was ready once; from then on it dies before it is.
        one.command[2] = program
        with pytest.raises(GivenUp):
            await one.watch()

    asyncio.run(main())
    assert len(counter.read_text()) > 2


def test_a_half_that_dies_is_started_again(tmp_path: Path) -> None:
    counter = tmp_path / "starts"
    program = f"""{READY}
with open({str(counter)!r}, "a") as file: file.write("x")
os._exit(0 if os.path.getsize({str(counter)!r}) == 4 else 9)"""

    async def main() -> None:
        one = half(program)
        await one.start()
        await one.watch()

    asyncio.run(main())
    assert counter.read_text() == "xxxx"


def test_a_half_that_cannot_be_replaced_is_given_up_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        one = half(READY + "os._exit(9)", replaceable=False)
        await one.start()
        with pytest.raises(GivenUp, match="cannot replace"):
            await one.watch()

    asyncio.run(main())


def test_stopping_ends_a_half_that_does_not_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(halves, "STOP_TIMEOUT", 0.2)

    async def main() -> int | None:
        program = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        one = half(program + READY + "time.sleep(60)")
        await one.start()
        await one.stop()
        assert one.process is not None
        return one.process.returncode

    assert asyncio.run(main()) == -signal.SIGKILL


def test_what_is_handed_over_comes_to_each_successor(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    program = f"""import os, socket, sys
line = socket.socket(fileno=int(sys.argv[-1]))
_, fds, _, _ = socket.recv_fds(line, 1, 1)
with open({str(seen)!r}, "a") as file: file.write(os.read(fds[0], 1).decode())
line.send(b"r")
line.close()
os._exit(0 if os.path.getsize({str(seen)!r}) == 3 else 9)"""

    async def main() -> None:
        one = half(program)
        one.spawn()
        read, write = os.pipe2(os.O_CLOEXEC)
        os.write(write, b"abc")
        try:
            one.hand([read])
            await one.start()
            await one.watch()
        finally:
            os.close(read)
            os.close(write)

    asyncio.run(main())
    assert seen.read_text() == "abc"


class FakeHeld(Runtime):
    """Holds a directory without a lock, which would be held as long as this process lives."""

    def _take_lock(self) -> None:
        pass

    def hold(self) -> None:
        assert (Path(self.state_dir) / "control.sock").exists()


class FakeKeeper(AnyKeeper):
    """Its kernel half waits until the user half runs, and the other way round."""

    def kernel_half(self) -> Half:
        return half(self._met("kernel", "user") + READY)

    def user_half(self) -> Half:
        receive = (
            "import socket; line = socket.socket(fileno=os.dup(int(sys.argv[-1]))); line.recv(1);"
        )
        return half(self._met("user", "kernel") + receive + READY + "import time; time.sleep(60)")

    async def device(self) -> list[int]:
        return [0]

    def _met(self, mine: str, other: str) -> str:
        mark, wanted = (os.path.join(self.held.state_dir, name) for name in (mine, other))
        return (
            f"import os, sys, time; open({mark!r}, 'w').close()\n"
            f"while not os.path.exists({wanted!r}): time.sleep(0.01)\n"
        )


def test_both_halves_run_before_either_is_ready(tmp_path: Path) -> None:
    read, write = os.pipe2(os.O_CLOEXEC)
    words = ["--state-dir", str(tmp_path), "--cache", "unused", "--ready-fd", str(write)]
    options = arguments(words)
    keeper = FakeKeeper(options, FakeHeld(str(tmp_path), daemon_control=True))
    with contextlib.closing(keeper.held), open(read, "rb") as said:
        asyncio.run(keeper.run())
        assert said.read().split() == [b"listening", b"ok"]


@pytest.mark.root
def test_a_running_pagein_is_not_given_another_cache(place: Pagein, web: WebServer) -> None:
    place.mount(web.url("/image"))
    other = Pagein(place.directory, cache=place.directory / "other")
    refused = other.run("mount", web.url("/image"), place.dir("second"))
    assert refused.returncode == 1
    assert refused.stderr == (
        f"pagein: --cache {other.cache}: pagein runs in {place.state} with the cache"
        f" {place.cache}; use another --state-dir\n"
    )
    place.umount()
    assert not place.leftovers()


@pytest.mark.root
def test_a_user_that_does_not_exist(place: Pagein, web: WebServer) -> None:
    refused = place.run(
        "mount", "--daemon-user", "nobody-like-that", web.url("/image"), place.target
    )
    assert refused.returncode == 1
    assert refused.stderr == "pagein: --daemon-user: no user is called nobody-like-that\n"
    assert not place.leftovers()


@pytest.mark.root
def test_device_and_daemon_by_themselves(place: Pagein, web: WebServer) -> None:
    with ExitStack() as stack:
        device = subprocess.Popen(place.argv("device"), stdout=subprocess.DEVNULL)
        stack.enter_context(killed(device))
        path = place.state / "dev" / "cachefiles"
        wait_for(path.exists)
        lonely = place.run("mount", web.url("/image"), place.target)
        assert lonely.returncode == 1
        assert "no `pagein daemon` runs here" in lonely.stderr
        daemon = subprocess.Popen(place.argv("daemon", "--device", path))
        stack.enter_context(killed(daemon))
        wait_for((place.state / "daemon.sock").exists)
        second = place.run("daemon", "--device", path)
        assert second.returncode == 1
        assert second.stderr == f"pagein: {path}: another daemon holds this device\n"
        place.mount(web.url("/image"))
        assert read_all(place.target / "large").stdout == CONTENT
        assert Path(f"/proc/{daemon.pid}/status").read_text().split("Uid:\t")[1][0] != "0"
        place.umount()
        for process in (daemon, device):
            process.terminate()
            assert process.wait(100) == 0
    assert not place.leftovers()


@pytest.mark.root
def test_umount_waits_for_a_slow_daemon_to_take_its_close(place: Pagein, web: WebServer) -> None:
    place.mount(web.url("/image"))
    daemon = pid_of(place, "pagein.daemon")
    os.kill(daemon, signal.SIGSTOP)
    umount = subprocess.Popen(place.argv("umount", place.target))
    with killed(umount):
        try:
            with pytest.raises(subprocess.TimeoutExpired):
                umount.wait(4)
        finally:
            os.kill(daemon, signal.SIGCONT)
        assert umount.wait(100) == 0
    assert not place.leftovers()
