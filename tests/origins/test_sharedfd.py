"""An fd that threads share: open as long as somebody is in it, closed once, never twice."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from pagein.origins.sharedfd import SharedFd


def _made() -> SharedFd:
    return SharedFd(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))


def _is_open(fd: int) -> bool:
    return os.path.exists(f"/proc/self/fd/{fd}")


def test_closed_at_once_when_nobody_is_in_it() -> None:
    shared = _made()
    assert shared.enter()
    shared.leave()
    assert _is_open(shared.number)
    shared.close()
    assert not _is_open(shared.number)
    assert shared.closed
    assert not shared.enter()


def test_the_last_user_closes_it() -> None:
    shared = _made()
    assert shared.enter()
    assert shared.enter()
    shared.close()
    assert not shared.enter()
    shared.leave()
    assert _is_open(shared.number)
    shared.leave()
    assert not _is_open(shared.number)


def test_shut_closes_it_to_users_only() -> None:
    shared = _made()
    shared.shut()
    assert shared.closed
    assert _is_open(shared.number)
    assert not shared.enter()
    assert not _is_open(shared.number)  # who came too late was the last one


def test_closed_twice_another_file_of_the_same_number_stays_open() -> None:
    shared = _made()
    shared.close()
    other = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    try:
        assert other == shared.number
        shared.close()
        assert _is_open(other)
    finally:
        os.close(other)


@pytest.fixture
def _often_switched() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_often_switched")
def test_threads_that_enter_while_it_is_closed() -> None:
    """Whoever is in it finds it open; two close it; in the end it is closed, once."""
    for _ in range(150):
        _race()


def _race() -> None:
    read, write = os.pipe2(os.O_CLOEXEC)
    shared = SharedFd(write)
    wrong: list[str] = []
    begin = threading.Barrier(4)

    def use() -> None:
        while shared.enter():
            try:
                os.write(shared.number, b"x")
                os.read(read, 1)
            finally:
                shared.leave()

    def run(part: Callable[[], None]) -> None:
        begin.wait(10)
        try:
            part()
        except OSError as problem:
            wrong.append(str(problem))

    parts = (use, use, shared.close, shared.close)
    threads = [threading.Thread(target=run, args=(each,)) for each in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    try:
        assert not wrong
        assert not _is_open(write)
    finally:
        os.close(read)
