"""`pagein.testing.Kernel`: its clock, its steps, its faults, and what it writes down."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.machine.play import FAULTS, Play

from pagein.fscache import Cookie
from pagein.protocol.messages import Open, Read, decode
from pagein.testing import (
    POSSIBLE,
    AnonFd,
    Delay,
    Drop,
    Fail,
    Fault,
    Kernel,
    Kill,
    Killed,
    Short,
    Step,
    SteppedLoop,
    Stuck,
)

PAGE = 4096
SIZE = 4 * PAGE


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    with Kernel(tmp_path) as kernel:
        kernel.bind()
        yield kernel


def serve_open(kernel: Kernel) -> AnonFd:
    message = decode(kernel.device.read())
    assert isinstance(message, Open)
    fd = kernel.device.open_fd(message.object_id)
    kernel.device.write(b"copen %d,%d" % (message.msg_id, SIZE))
    return fd


def mount(kernel: Kernel) -> tuple[Cookie, AnonFd]:
    mounting = kernel.mount(b"v", b"k")
    fd = serve_open(kernel)
    return mounting.result(), fd


def take_read(kernel: Kernel) -> Read:
    message = decode(kernel.device.read())
    assert isinstance(message, Read)
    return message


# ---- every fault at every step ---------------------------------------------------------------

EVERY = [(step, fault) for step in Step for fault in FAULTS[step]]


def test_every_possible_fault_is_tried() -> None:
    tried = {step: {type(fault) for fault in FAULTS[step]} for step in Step}
    assert tried == {step: set(kinds) for step, kinds in POSSIBLE.items()}


@pytest.mark.parametrize(
    ("step", "fault"), EVERY, ids=[f"{step.name}-{fault}" for step, fault in EVERY]
)
def test_a_fault_at_a_step(tmp_path: Path, step: Step, fault: Fault) -> None:
    """It happens; nobody gets wrong bytes, and whoever waits is answered by the next daemon."""
    play = Play(tmp_path)
    try:
        play.kernel.faults.add(step, fault)
        right = 0x83  # an answer as it should be
        for action in (play.mount, play.take, play.answer, play.read, play.take, play.answer):
            with suppress(Killed):
                action(0, right)
            play.collect()
            play.check()
        if play.device.fds and play.device.alive:
            with suppress(Killed):
                play.close_fd(0, 0)
        assert play.kernel.faults.count == 1
        play.end()
    finally:
        play.close()


@pytest.mark.parametrize("step", Step)
def test_an_impossible_fault_is_refused(kernel: Kernel, step: Step) -> None:
    for fault in (Drop(), Delay(1), Kill(), Short(1), Fail(5)):
        if not isinstance(fault, POSSIBLE[step]):
            with pytest.raises(ValueError, match=f"cannot happen at {step.name}"):
                kernel.faults.add(step, fault)


def test_faults_are_counted_off(kernel: Kernel) -> None:
    _, fd = mount(kernel)
    kernel.faults.add(Step.PWRITE, Fail(errno.EIO), skip=1, times=2)
    done = []
    for _ in range(4):
        try:
            done.append(fd.pwrite(b"x" * PAGE, 0))
        except OSError as problem:
            done.append(-(problem.errno or 0))
    assert done == [PAGE, -errno.EIO, -errno.EIO, PAGE]


def test_a_chooser_is_asked_where_nothing_was_added(kernel: Kernel) -> None:
    asked: list[Step] = []

    def choose(step: Step) -> Fault | None:
        asked.append(step)
        return Fail(errno.EINTR) if step is Step.READ else None

    kernel.faults.chooser = choose
    with pytest.raises(InterruptedError):
        kernel.device.read()
    assert asked == [Step.READ]


def test_a_short_write(kernel: Kernel) -> None:
    cookie, fd = mount(kernel)
    kernel.faults.add(Step.PWRITE, Short(PAGE))
    assert fd.pwrite(b"x" * 2 * PAGE, 0) == PAGE
    assert kernel.present(cookie) == [(0, PAGE)]


def test_a_disk_that_fills_up_in_the_middle(kernel: Kernel) -> None:
    """Whole pages count, the rest is a hole again."""
    cookie, fd = mount(kernel)
    kernel.faults.add(Step.STORE, Short(PAGE + 100))
    kernel.faults.add(Step.STORE, Fail(errno.ENOSPC))
    assert fd.pwrite(b"x" * 2 * PAGE, 0) == PAGE
    assert kernel.present(cookie) == [(0, PAGE)]
    file = kernel.directory / os.fsdecode(cookie.object.path)
    assert file.stat().st_blocks * 512 <= PAGE


def test_no_fd_left_fails_the_open(kernel: Kernel) -> None:
    """Facts cachefiles-kernel 4.4."""
    mounting = kernel.mount(b"v", b"k")
    kernel.faults.add(Step.READ, Fail(errno.EMFILE))
    with pytest.raises(OSError) as caught:
        kernel.device.read()
    assert caught.value.errno == errno.EMFILE
    with pytest.raises(OSError):
        mounting.result()
    assert not kernel.pending and not kernel.device.poll()


# ---- the clock --------------------------------------------------------------------------------


def test_deadlines_run_out_when_time_passes(kernel: Kernel) -> None:
    cookie, _ = mount(kernel)
    reading = kernel.read(cookie, 0, PAGE)
    kernel.advance(119)
    assert not reading.done
    kernel.advance(1)
    with pytest.raises(OSError):
        reading.result()
    assert kernel.now == 120


def test_what_waits_is_stuck(kernel: Kernel) -> None:
    mounting = kernel.mount(b"v", b"k")
    with pytest.raises(Stuck, match=r"mount v k still waits: .*OPEN 0"):
        mounting.result()
    with pytest.raises(Stuck):
        kernel.loop.complete(asyncio.sleep(1))
    with pytest.raises(Stuck):
        kernel.loop.run_forever()


def test_a_kernel_that_is_not_eager_goes_step_by_step(tmp_path: Path) -> None:
    with Kernel(tmp_path, eager=False) as kernel:
        device = kernel.bind()
        kernel.mount(b"v", b"k")
        seen = []
        while kernel.step():
            seen.append(bool(device.poll()))
        assert seen[0] is False and seen[-1] is True
        assert seen == sorted(seen) and len(seen) > 3
        kernel.run()


def test_a_daemon_that_is_a_coroutine(kernel: Kernel) -> None:
    """On the kernel's clock: it waits for messages by time."""

    async def daemon() -> None:
        while True:
            if raw := kernel.device.read():
                message = decode(raw)
                assert isinstance(message, Open)
                kernel.device.open_fd(message.object_id)
                await asyncio.sleep(5)
                kernel.device.write(b"copen %d,%d" % (message.msg_id, SIZE))
                return
            await asyncio.sleep(1)

    running = kernel.start(daemon())
    kernel.advance(2.5)
    mounting = kernel.mount(b"v", b"k")
    kernel.advance(10)
    assert running.done() and mounting.result().size == SIZE


def test_timers_that_were_cancelled_are_forgotten() -> None:
    loop = SteppedLoop()
    handles = [loop.call_later(60, lambda: None) for _ in range(5000)]
    for handle in handles:
        handle.cancel()
    loop.call_later(1, lambda: None)
    for _ in range(2000):
        loop.call_later(60, lambda: None).cancel()
    assert len(loop._timers) < 3000
    loop.advance(100)
    assert not loop._timers and loop.now == 100
    loop.close()


def test_what_an_executor_is_given_is_a_step_and_may_fail() -> None:
    loop = SteppedLoop()

    async def main() -> int:
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(None, lambda: 1 // 0)
        return await loop.run_in_executor(None, max, 1, 2)

    assert loop.complete(main()) == 2
    with loop.running():
        never = loop.run_in_executor(None, lambda: pytest.fail("was cancelled"))
    never.cancel()
    loop.run_until_idle()
    loop.close()


# ---- the two sides ----------------------------------------------------------------------------


def test_killed_readers_and_mounts(kernel: Kernel) -> None:
    cookie, fd = mount(kernel)
    reading = kernel.read(cookie, 0, PAGE)
    message = take_read(kernel)
    reading.kill()
    assert reading.killed and not kernel.pending
    with pytest.raises(OSError) as late:
        fd.cread(message.msg_id)  # facts 9.5
    assert late.value.errno == errno.EINVAL
    mounting = kernel.mount(b"v", b"other")
    mounting.kill()
    assert mounting.killed and len(kernel.pending) == 1  # it goes on to its end (facts 7.2)
    serve_open(kernel)
    assert [line.split()[0] for line in kernel.pending] == ["CLOSE"]


def test_a_dead_daemon_does_nothing(kernel: Kernel) -> None:
    _, fd = mount(kernel)
    kernel.device.kill()
    assert not kernel.device.fds
    for call in (kernel.device.read, lambda: kernel.device.write(b"restore"), fd.close):
        with pytest.raises(Killed):
            call()
    kernel.device.restart()
    assert kernel.device.write(b"restore") == 7
    with pytest.raises(OSError) as closed:
        fd.pwrite(b"x" * PAGE, 0)
    assert closed.value.errno == errno.EBADF


def test_a_closed_device(kernel: Kernel) -> None:
    cookie, _ = mount(kernel)
    reading = kernel.read(cookie, 0, PAGE)
    kernel.device.close()
    with pytest.raises(OSError) as dead:
        reading.result()
    assert dead.value.errno == errno.EIO
    with pytest.raises(OSError) as closed:
        kernel.device.read()
    assert closed.value.errno == errno.EBADF
    kernel.device.close()
    assert kernel.session is None
    kernel.umount(cookie).result()
    kernel.bind()


def test_only_one_device(kernel: Kernel) -> None:
    with pytest.raises(OSError) as busy:
        kernel.open()
    assert busy.value.errno == errno.EBUSY


def test_without_a_device(tmp_path: Path) -> None:
    with Kernel(tmp_path) as kernel, pytest.raises(ValueError, match="never opened"):
        kernel.device.read()


def test_lseek(kernel: Kernel) -> None:
    _, fd = mount(kernel)
    fd.pwrite(b"x" * PAGE, PAGE)
    assert fd.lseek(0, os.SEEK_DATA) == PAGE
    assert fd.lseek(PAGE, os.SEEK_HOLE) == 2 * PAGE
    assert fd.lseek(0, os.SEEK_END) == SIZE


def test_a_read_ends_where_the_blob_does(kernel: Kernel) -> None:
    cookie, fd = mount(kernel)
    assert kernel.read(cookie, SIZE, PAGE).result() == b""
    fd.pwrite(b"x" * PAGE, SIZE - PAGE)
    assert kernel.read(cookie, SIZE - PAGE, 10 * PAGE).result() == b"x" * PAGE


# ---- the recorder -----------------------------------------------------------------------------


def test_what_is_written_down(kernel: Kernel) -> None:
    cookie, fd = mount(kernel)
    kernel.recorder.lines.clear()
    kernel.advance(1.5)
    with suppress(OSError):
        fd.pwrite(b"x", 1)
    kernel.faults.add(Step.CREAD, Drop())
    reading = kernel.read(cookie, 0, PAGE)
    fd.cread(take_read(kernel).msg_id)
    fd.pwrite(bytes(range(256)) * 16, 0)
    fd.cread(1)
    assert reading.done
    assert str(kernel.recorder) == (
        "     1.500  daemon  pwrite(fd 1, 1 bytes, 1) = ENOBUFS\n"
        "     1.500  netfs   read k [0, +4096]\n"
        "     1.500  daemon  read() = READ msg_id=1 object_id=1 off=0 len=4096\n"
        "     1.500  fault   cread(fd 1, 1): Drop()\n"
        "     1.500  daemon  cread(fd 1, 1) = ok\n"
        "     1.500  daemon  pwrite(fd 1, 4096 bytes, 0) = 4096\n"
        "     1.500  daemon  cread(fd 1, 1) = ok\n"
        "     1.500  netfs   read k [0, +4096] = 4096 bytes\n"
    )


def test_two_runs_say_the_same(tmp_path: Path) -> None:
    said = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        with Kernel(tmp_path / name) as kernel:
            kernel.bind()
            kernel.recorder.lines.clear()
            mount(kernel)
            said.append(kernel.recorder.text)
    assert said[0] == said[1] != ""


def test_it_can_be_switched_off(kernel: Kernel) -> None:
    kernel.recorder.lines.clear()
    kernel.recorder.on = False
    mount(kernel)
    assert kernel.recorder.text == ""
