"""Devices that are files, with a socket and plain files in their place.

The real device and our kernel half's are in the tests that mount; here is what does not need them:
threads, deadlines, alignment, who closes what and when.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.fds import open_fds

from pagein.daemon import DeviceDead, FileDevice, filedevice
from pagein.daemon.device import Served
from pagein.daemon.filedevice import FileAnonFd, _aligned, _pwrite_all
from pagein.daemon.threads import Workers
from pagein.protocol.messages import IOC_READ_COMPLETE, Close, Message, Open, Read
from pagein.protocol.serving import DATA_MOST, Serve, encode_answer, is_serve

PAGE = 4096
TIMEOUT = 60.0


@pytest.fixture
def pair() -> Iterator[tuple[int, socket.socket]]:
    """A device fd whose requests and commands keep their boundaries, and its other end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    with theirs:
        yield ours.detach(), theirs


def fds_but(*numbers: int) -> set[tuple[str, str]]:
    return {each for each in open_fds() if int(each[0]) not in numbers}


async def until(happened: Callable[[], bool]) -> None:
    """Wait for what a thread does."""
    for _ in range(20_000):
        if happened():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never happened")


def test_requests_arrive_in_order_and_commands_leave(
    pair: tuple[int, socket.socket], tmp_path: Path
) -> None:
    fd, kernel = pair
    (tmp_path / "anon").mkdir()
    (tmp_path / "anon" / "7").write_bytes(b"")
    dirfd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    messages: list[Message] = [
        Open(0, 7, b"erofs,x", b"blob", 0),
        *(Read(index, 7, index * PAGE, PAGE) for index in range(1, 100)),
        Close(100, 7),
    ]

    async def main() -> None:
        device = FileDevice.from_fd(fd, dirfd, timeout=TIMEOUT)
        for message in messages[:50]:
            kernel.send(message.encode())
        got = [await device.read() for _ in range(50)]
        for message in messages[50:]:
            kernel.send(message.encode())
        got += [await device.read() for _ in range(51)]
        assert got == messages
        await device.command(b"copen 0,4096")
        assert kernel.recv(100) == b"copen 0,4096"

        assert isinstance(messages[0], Open)
        anon = await device.open_anon(messages[0])
        assert not os.get_inheritable(anon.fileno())
        twin = anon.dup()
        assert not os.get_inheritable(twin.fileno())
        await anon.close()
        await anon.close()
        with pytest.raises(OSError):
            await anon.pwrite(bytes(PAGE), 0)
        await twin.pwrite(b"\x01" * PAGE, PAGE)
        assert await twin.lseek(0, os.SEEK_END) == 2 * PAGE
        await twin.close()
        await device.close()
        await device.close()
        with pytest.raises(DeviceDead):
            await device.read()
        with pytest.raises(OSError):
            await device.command(b"x")

    before = fds_but(fd, dirfd)
    asyncio.run(main())
    assert open_fds() <= before
    assert (tmp_path / "anon" / "7").read_bytes() == bytes(PAGE) + b"\x01" * PAGE


def test_an_anonymous_fd_that_cannot_be_opened_says_why(
    pair: tuple[int, socket.socket], tmp_path: Path
) -> None:
    async def main() -> None:
        dirfd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
        device = FileDevice.from_fd(pair[0], dirfd, timeout=TIMEOUT)
        with pytest.raises(FileNotFoundError):
            await device.open_anon(Open(0, 1, b"v", b"c", 0))
        await device.close()

    asyncio.run(main())


def test_fds_of_the_real_device_get_close_on_exec_and_are_closed_when_nobody_took_them(
    pair: tuple[int, socket.socket], tmp_path: Path
) -> None:
    fd, kernel = pair
    file = tmp_path / "file"
    file.write_bytes(bytes(PAGE))
    fds = [os.open(file, os.O_WRONLY) for _ in range(2)]
    before = fds_but(fd, *fds)
    for index, number in enumerate(fds):
        os.set_inheritable(number, True)
        kernel.send(Open(index, index + 1, b"v", b"c", number).encode())

    async def main() -> None:
        device = FileDevice.from_fd(fd, timeout=TIMEOUT)
        first = await device.read()
        assert isinstance(first, Open)
        anon = await device.open_anon(first)
        assert anon.fileno() == fds[0]
        await device.read()
        assert [os.get_inheritable(number) for number in fds] == [False, False]
        await anon.close()
        await device.close()

    asyncio.run(main())
    assert open_fds() <= before


def test_bad_messages_are_dropped_and_the_rest_is_served(
    pair: tuple[int, socket.socket], tmp_path: Path
) -> None:
    async def main() -> None:
        fd, kernel = pair
        device = FileDevice.from_fd(fd, os.open(tmp_path, os.O_PATH), timeout=TIMEOUT)
        kernel.send(b"nonsense")
        kernel.send(Close(1, 2).encode())
        assert await device.read() == Close(1, 2)
        await device.close()

    asyncio.run(main())


def test_a_cancelled_read_loses_no_message(pair: tuple[int, socket.socket], tmp_path: Path) -> None:
    async def main() -> None:
        fd, kernel = pair
        device = FileDevice.from_fd(fd, os.open(tmp_path, os.O_PATH), timeout=TIMEOUT)
        waiting = asyncio.create_task(device.read())
        await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        kernel.send(Close(1, 2).encode())
        assert await device.read() == Close(1, 2)
        await device.close()

    asyncio.run(main())


def test_a_device_that_dies_says_so(tmp_path: Path) -> None:
    async def main() -> None:
        # Reading a directory fails with EISDIR for ever, as no request would.
        fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
        device = FileDevice.from_fd(fd, os.open(tmp_path, os.O_PATH), timeout=TIMEOUT)
        with pytest.raises(DeviceDead, match="gone"):
            await device.read()
        await device.close()

    asyncio.run(main())


def test_open_knows_a_character_device_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "cachefiles"
    file.write_bytes(b"")

    async def main() -> None:
        real = await FileDevice.open("/dev/null", timeout=TIMEOUT)
        ours = await FileDevice.open(str(file), timeout=TIMEOUT)
        assert (real._dirfd is None, ours._dirfd is None) == (True, False)
        await real.close()
        await ours.close()
        with pytest.raises(FileNotFoundError):
            await FileDevice.open(str(tmp_path / "missing"), timeout=TIMEOUT)

    before = open_fds()
    asyncio.run(main())
    assert open_fds() <= before


@pytest.mark.parametrize("real", [True, False])
def test_cread_is_by_value_on_the_real_device_and_by_pointer_on_ours(
    real: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []

    def ioctl(fd: int, request: int, argument: object) -> int:
        assert request == IOC_READ_COMPLETE
        calls.append(argument)
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    monkeypatch.setattr(filedevice, "_ioctl_by_value", ioctl)
    file = tmp_path / "file"
    file.write_bytes(b"")

    async def main() -> None:
        device = FileDevice.from_fd(os.open("/dev/null", os.O_RDWR), timeout=TIMEOUT)
        anon = FileAnonFd(os.open(file, os.O_WRONLY), device, real=real)
        await anon.cread(5)
        await anon.cread(0xFFFFFFFE)
        await anon.close()
        await device.close()

    asyncio.run(main())
    assert calls == (
        [5, 0xFFFFFFFE] if real else [struct.pack("=I", 5), struct.pack("=I", 0xFFFFFFFE)]
    )


@pytest.mark.parametrize("msg_id", [0, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_an_id_of_32_bits_reaches_the_system_call_whole(
    msg_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A C function in place of ioctl(2), called as that is: the id is not squeezed into an int."""
    calls: list[tuple[int, int, int]] = []

    def record(fd: int, request: int, argument: int) -> int:
        calls.append((fd, request, argument))
        return -1 if argument == 0 else 0

    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong)
    address = ctypes.cast(callback := kind(record), ctypes.c_void_p).value
    assert address is not None
    # Without argument types, like a function of the C library.
    ioctl = ctypes.CDLL(None)._FuncPtr(address)
    monkeypatch.setattr(filedevice, "_libc", SimpleNamespace(ioctl=ioctl))
    with pytest.raises(OSError) if msg_id == 0 else contextlib.nullcontext():
        filedevice._ioctl_by_value(7, IOC_READ_COMPLETE, msg_id)
    assert calls == [(7, IOC_READ_COMPLETE, msg_id)]
    del callback


def test_what_is_not_whole_pages_is_never_written(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")

    async def main() -> None:
        device = FileDevice.from_fd(os.open("/dev/null", os.O_RDWR), timeout=TIMEOUT)
        anon = FileAnonFd(os.open(file, os.O_WRONLY), device, real=True)
        for length, offset in ((100, 0), (PAGE, 512)):
            with pytest.raises(OSError) as caught:
                await anon.pwrite(bytes(length), offset)
            assert caught.value.errno == errno.EINVAL
        await anon.close()
        await device.close()

    asyncio.run(main())
    assert file.read_bytes() == b""


def test_short_writes_go_on_at_whole_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[int, int]] = []
    answers = [PAGE + 100, PAGE, 3 * PAGE]

    def pwrite(_fd: int, data: memoryview, offset: int) -> int:
        written.append((offset, len(data)))
        return min(answers.pop(0), len(data))

    monkeypatch.setattr(os, "pwrite", pwrite)
    _pwrite_all(3, memoryview(bytes(4 * PAGE)), 0)
    assert written == [(0, 4 * PAGE), (PAGE, 3 * PAGE), (2 * PAGE, 2 * PAGE)]
    answers[:] = [100]
    with pytest.raises(OSError, match="only 100 of 4096"):
        _pwrite_all(3, memoryview(bytes(PAGE)), 0)


def test_no_space_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def pwrite(_fd: int, _data: memoryview, _offset: int) -> int:
        raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(OSError, match="no space left in the cache") as caught:
        _pwrite_all(3, memoryview(bytes(PAGE)), 0)
    assert caught.value.errno == errno.ENOBUFS


def test_memory_for_direct_io_is_aligned_and_copied_only_if_it_must() -> None:
    aligned = memoryview(mmap.mmap(-1, 4 * PAGE))
    assert _aligned(aligned[PAGE:]).obj is aligned.obj
    odd = _aligned(aligned[100 : 100 + PAGE])
    assert odd.obj is not aligned.obj and len(odd) == PAGE
    assert bytes(_aligned(b"x" * PAGE)) == b"x" * PAGE


def test_a_call_that_was_given_up_keeps_its_fd_until_it_ends(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    entered, leave = threading.Event(), threading.Event()

    def slow(fd: int) -> None:
        entered.set()
        leave.wait(TIMEOUT)
        os.fstat(fd)  # EBADF, or another file, if the number had been given back

    async def main() -> None:
        device = FileDevice.from_fd(os.open("/dev/null", os.O_RDWR), timeout=TIMEOUT)
        anon = FileAnonFd(os.open(file, os.O_WRONLY), device, real=False)
        number = anon.fileno()
        call = asyncio.create_task(anon._use(slow))
        await until(entered.is_set)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await anon.close()
        assert os.path.samefile(f"/proc/self/fd/{number}", file)
        leave.set()
        await until(lambda: not os.path.lexists(f"/proc/self/fd/{number}"))
        await device.close()

    asyncio.run(main())


def test_workers_have_a_deadline_and_give_back_late_results() -> None:
    late = threading.Event()
    discarded: list[str] = []
    done = threading.Event()

    def call() -> str:
        late.wait(TIMEOUT)
        return "fd"

    def discard(result: str) -> None:
        discarded.append(result)
        done.set()

    async def main() -> None:
        workers = Workers(2, "test")
        with pytest.raises(OSError) as caught:
            await workers.run(call, 0.01, discard=discard)
        assert caught.value.errno == errno.ETIMEDOUT
        assert await workers.run(lambda: 5, TIMEOUT) == 5
        with pytest.raises(ZeroDivisionError):
            await workers.run(lambda: 1 // 0, TIMEOUT)
        late.set()
        await until(done.is_set)
        assert discarded == ["fd"]
        workers.close()
        with pytest.raises(OSError):
            await workers.run(lambda: 5, TIMEOUT)

    asyncio.run(main())


def test_a_call_of_the_threads_own_timeout_error_is_passed_on() -> None:
    def call() -> None:
        raise TimeoutError(errno.ETIMEDOUT, "from the file system")

    async def main() -> None:
        workers = Workers(1, "test")
        with pytest.raises(TimeoutError, match="from the file system"):
            await workers.run(call, TIMEOUT)
        workers.close()

    asyncio.run(main())


def test_a_write_and_its_cread_in_one_call_of_a_thread(
    pair: tuple[int, socket.socket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.touch()
    completed: list[tuple[bytes, object]] = []

    def complete(_fd: int, request: int, argument: object) -> None:
        assert request == IOC_READ_COMPLETE
        completed.append((path.read_bytes(), argument))
        raise OSError(errno.EINVAL, "the reader was killed")

    monkeypatch.setattr(filedevice, "_ioctl_by_value", complete)
    data = memoryview(mmap.mmap(-1, 2 * PAGE))
    data[:] = b"\x05" * 2 * PAGE

    async def main() -> None:
        device = FileDevice.from_fd(pair[0], timeout=TIMEOUT)
        anon = FileAnonFd(os.open(path, os.O_WRONLY), device, real=True)
        with pytest.raises(OSError):
            anon.serve(data[:100], 0, 6)
        assert completed == []
        assert anon.serve(data, PAGE, 7) == Served()
        await anon.close()
        with pytest.raises(OSError):
            anon.serve(data, 0, 8)
        await device.close()

    asyncio.run(main())
    assert completed == [(bytes(PAGE) + b"\x05" * 2 * PAGE, 7)]


@pytest.mark.parametrize("size", [DATA_MOST, DATA_MOST + PAGE])
def test_of_our_device_all_is_said_in_one_call(
    size: int, pair: tuple[int, socket.socket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.touch()
    said: list[Serve] = []

    def answer(_fd: int, request: int, argument: memoryview, mutate: bool) -> int:
        assert mutate
        assert is_serve(request, len(argument))
        said.append(Serve.decode(argument))
        found = encode_answer(b"next", 0.25)
        argument[: len(found)] = found
        return 4

    monkeypatch.setattr(fcntl, "ioctl", answer)
    data = bytes([5]) * size

    async def main() -> None:
        device = FileDevice.from_fd(pair[0], os.open(tmp_path, os.O_PATH), timeout=TIMEOUT)
        anon = FileAnonFd(os.open(path, os.O_WRONLY), device, real=False)
        assert anon.serve(memoryview(data), PAGE, 7) == Served(b"next", 0.25)
        await anon.close()
        await device.close()

    asyncio.run(main())
    if size > DATA_MOST:  # which an ioctl cannot bring
        assert said == [Serve(7, PAGE, b"")]
        assert path.read_bytes() == bytes(PAGE) + data
    else:
        assert said == [Serve(7, PAGE, data)]
        assert path.read_bytes() == b""
