"""The tables of `protocol.states` that nothing looks up: each row happens here."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pagein.fscache import Cookie
from pagein.protocol.messages import Open, Read, decode
from pagein.protocol.states import (
    CACHE_TABLE,
    COPEN_TABLE,
    WAIT_TABLE,
    CacheEvent,
    CacheState,
    End,
    Told,
    Wait,
)
from pagein.testing import AnonFd, Kernel, Waiting

PAGE = 4096
SAID = {
    Told.SIZE: b"4096",
    Told.ERRNO: b"-%d" % errno.ENOTSUP,
    Told.NO_ERRNO: b"-4096",
    Told.NO_NUMBER: b"4k",
    Told.TOO_LONG: b"9223372036854775808",
}


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    with Kernel(tmp_path) as kernel:
        yield kernel


def take_open(kernel: Kernel) -> tuple[Open, AnonFd]:
    message = decode(kernel.device.read())
    assert isinstance(message, Open)
    return message, kernel.device.open_fd(message.object_id)


def mount(kernel: Kernel, key: bytes = b"k") -> tuple[Cookie, AnonFd]:
    mounting = kernel.mount(b"v", key)
    message, fd = take_open(kernel)
    kernel.device.write(b"copen %d,4096" % message.msg_id)
    return mounting.result(), fd


def how(call: Callable[[], object]) -> str:
    """The name of the errno that it ends with, or nothing."""
    try:
        call()
    except OSError as problem:
        return errno.errorcode[problem.errno or 0]
    return ""


# ---- copen ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("told", "live"), list(COPEN_TABLE))
def test_copen(kernel: Kernel, told: Told, live: bool) -> None:
    wrote, opened = COPEN_TABLE[told, live]
    kernel.bind()
    mounting = kernel.mount(b"v", b"k")
    message, fd = take_open(kernel)
    if not live:
        fd.close()
    command = b"copen %d,%s" % (message.msg_id, SAID[told])
    assert how(lambda: kernel.device.write(command)) == wrote
    assert mounting.done and not kernel.pending
    try:
        mounting.result()
        outcome = ""
    except OSError as problem:
        assert isinstance(problem.__cause__, OSError)  # the netfs is told EIO or ENOBUFS (facts 6)
        outcome = errno.errorcode[problem.__cause__.errno or 0]
    assert outcome == opened.replace("that errno", errno.errorcode[errno.ENOTSUP])


def test_every_row_of_copen_is_there() -> None:
    assert set(COPEN_TABLE) == {(told, live) for told in Told for live in (True, False)}
    assert set(SAID) == set(Told)


# ---- caches -----------------------------------------------------------------------------------


def state_of(kernel: Kernel) -> CacheState:
    """By what can be done, not by what is noted."""
    session = kernel.session
    if session is None:
        return CacheState.WITHDRAWN
    if session.dead:
        return CacheState.DEAD
    return (
        CacheState.READY
        if how(lambda: kernel.device.write(b"bind")) == "EBUSY"
        else CacheState.UNBOUND
    )


def bring_to(kernel: Kernel, state: CacheState) -> list[AnonFd]:
    if state is CacheState.UNBOUND:
        kernel.open()
        return []
    kernel.bind()
    if state is CacheState.READY:
        return []
    _, fd = mount(kernel)
    with kernel.loop.running():
        kernel.cachefiles.release()  # of the device alone
    return [fd]


@pytest.mark.parametrize(("state", "event"), list(CACHE_TABLE))
def test_caches(kernel: Kernel, state: CacheState, event: CacheEvent) -> None:
    fds = bring_to(kernel, state)
    assert state_of(kernel) is state
    if event is CacheEvent.BIND:
        kernel.device.write(b"dir " + bytes(kernel.directory))
        kernel.device.write(b"bind ondemand")
    elif event is CacheEvent.DEVICE_CLOSED:
        fds = [mount(kernel)[1]]
        with kernel.loop.running():
            kernel.cachefiles.release()
    elif fds:
        for fd in fds:
            fd.close()
    else:
        kernel.device.close()
    assert state_of(kernel) is CACHE_TABLE[state, event]
    if state_of(kernel) is CacheState.DEAD:
        assert how(lambda: kernel.device.write(b"restore")) == "EIO"
        assert fds[0].pwrite(b"x" * PAGE, 0) == PAGE  # facts 7.5
        fds[0].close()
    if state_of(kernel) is CacheState.WITHDRAWN:
        kernel.bind()  # it can be opened again


# ---- waits ------------------------------------------------------------------------------------


def begin(kernel: Kernel, wait: Wait) -> tuple[Waiting[object], AnonFd | None, Cookie | None]:
    if wait is Wait.LOOKUP:
        return kernel.mount(b"v", b"k"), None, None  # type: ignore[return-value]
    cookie, fd = mount(kernel)
    if wait is Wait.READER:
        return kernel.read(cookie, 0, PAGE), fd, cookie  # type: ignore[return-value]
    return kernel.umount(cookie), fd, cookie  # type: ignore[return-value]


def answer(kernel: Kernel, fd: AnonFd | None) -> str:
    raw = kernel.device.read()
    if not raw:
        return "nothing to answer"
    message = decode(raw)
    if isinstance(message, Open):
        kernel.device.open_fd(message.object_id)
        kernel.device.write(b"copen %d,4096" % message.msg_id)
    elif isinstance(message, Read):
        assert fd is not None
        return how(lambda: fd.cread(message.msg_id))
    return ""


@pytest.mark.parametrize(("wait", "end"), list(WAIT_TABLE))
def test_waits(kernel: Kernel, wait: Wait, end: End) -> None:
    kernel.bind()
    waiting, fd, cookie = begin(kernel, wait)
    assert len(kernel.pending) == 1
    if end is End.ANSWERED:
        assert answer(kernel, fd) == ""
    elif end is End.KILLED:
        read = kernel.device.read() if wait is Wait.READER else b""
        waiting.kill()
        assert waiting.killed
        if fd is not None and read:
            assert how(lambda: fd.cread(decode(read).msg_id)) == "EINVAL"
    elif end is End.DEADLINE:
        kernel.advance(121 if wait is Wait.READER else 31)
    elif end is End.DEVICE_CLOSED:
        kernel.device.close()
    else:
        assert cookie is not None
        kernel.umount(cookie)
        answer_close(kernel)
    assert waiting.done
    if wait is Wait.LOOKUP and end is End.KILLED:
        answer(kernel, None)
        assert [text.split()[0] for text in kernel.pending] == ["CLOSE"]
    elif not waiting.killed:
        lookup_ok = wait is Wait.LOOKUP and end is End.ANSWERED
        assert how(waiting.result) == ("" if lookup_ok or wait is Wait.WITHDRAWAL else "EIO")
    if wait is Wait.WITHDRAWAL and not waiting.killed:
        assert cookie is not None and cookie.object.file is None


def answer_close(kernel: Kernel) -> None:
    """Read until the CLOSE comes: the READ is met first."""
    while kernel.device.read():
        pass


def test_every_wait_may_end_in_every_way_that_there_is() -> None:
    only_readers = {(wait, End.DROPPED) for wait in (Wait.LOOKUP, Wait.WITHDRAWAL)}
    assert set(WAIT_TABLE) == {(w, e) for w in Wait for e in End} - only_readers
