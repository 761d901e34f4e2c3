"""`handshake` and `Connection` without a kernel: a packet socket plays ``/dev/fuse``.

A SOCK_SEQPACKET socket keeps message boundaries and says EAGAIN, as the device does.
"""

import asyncio
import ctypes
import errno
import logging
import os
import select
import socket
import struct
from collections.abc import Awaitable, Callable

import pytest

from pagein.fuse import abi
from pagein.fuse.connection import BATCH, Connection, Handler
from pagein.fuse.handshake import MAX_BACKGROUND, MAX_WRITE, handshake

DEADLINE = 60.0


def message(opcode: int, unique: int, body: bytes = b"") -> bytes:
    size = abi.IN_HEADER_SIZE + len(body)
    return abi.LAYOUTS["fuse_in_header"].pack(size, opcode, unique, 1, 0, 0, 0, 0) + body


def write_body(data: bytes, offset: int = 0) -> bytes:
    return abi.LAYOUTS["fuse_write_in"].pack(1, offset, len(data), 0, 0, 0) + data


def pair() -> tuple[socket.socket, socket.socket]:
    ours, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, kernel):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    kernel.settimeout(DEADLINE)
    return ours, kernel


# --- handshake -----------------------------------------------------------------------------------


def init(major: int, minor: int, flags: int, *, long: bool = True) -> bytes:
    body = struct.pack("=IIII", major, minor, 1 << 17, flags & 0xFFFFFFFF)
    if long:
        body += struct.pack("=I44x", flags >> 32)
    return message(abi.Opcode.INIT, 2, body)


def shake(first: bytes) -> tuple[object, bytes]:
    ours, kernel = pair()
    with ours, kernel:
        kernel.send(first)
        info = handshake(ours.fileno(), timeout=DEADLINE)
        return info, kernel.recv(4096)


def test_a_new_kernel_is_asked_for_resend_and_large_requests() -> None:
    offered = abi.Init.INIT_EXT | abi.Init.HAS_RESEND | abi.Init.MAX_PAGES | 1 << 16
    ours, kernel = pair()
    with ours, kernel:
        kernel.send(init(7, 45, offered))
        info = handshake(ours.fileno(), timeout=DEADLINE)
        answer = kernel.recv(4096)
    assert info.resend
    assert info.flags == offered & ~(1 << 16)  # WRITEBACK_CACHE is not wanted
    assert (info.minor, info.max_readahead, info.max_write) == (40, 1 << 17, MAX_WRITE)
    assert struct.unpack_from("=IiQ", answer) == (len(answer), 0, 2)
    fields = struct.unpack_from("=IIIIHHIIHHI", answer, 16)
    assert fields[:4] == (7, 40, 1 << 17, info.flags & 0xFFFFFFFF)
    assert fields[4:] == (MAX_BACKGROUND, 49152, MAX_WRITE, 1, 256, 0, info.flags >> 32)


def test_an_old_kernel_gets_what_it_offers() -> None:
    info, answer = shake(init(7, 31, abi.Init.BIG_WRITES, long=False))
    assert isinstance(answer, bytes)
    assert struct.unpack_from("=IIII", answer, 16) == (7, 31, 1 << 17, abi.Init.BIG_WRITES)
    assert getattr(info, "resend", None) is False


@pytest.mark.parametrize(
    ("first", "text"),
    [
        (init(8, 0, 0), "8.0"),
        (init(6, 9, 0), "6.9"),
        (message(abi.Opcode.GETATTR, 2, bytes(16)), "opcode 3"),
    ],
)
def test_a_handshake_with_something_else(first: bytes, text: str) -> None:
    with pytest.raises(OSError, match=text) as failure:
        shake(first)
    assert failure.value.errno == errno.EPROTO


def test_a_handshake_that_nobody_begins_times_out() -> None:
    ours, kernel = pair()
    with ours, kernel, pytest.raises(TimeoutError):
        handshake(ours.fileno(), timeout=0.01)


# --- connection ----------------------------------------------------------------------------------

Scenario = Callable[[Connection, socket.socket, list[abi.Request]], Awaitable[None]]


def serve(scenario: Scenario, handler: Handler | None = None) -> None:
    """Run ``scenario`` with a connection, the kernel's end, and the requests handled so far."""

    async def main() -> None:
        ours, kernel = pair()
        handled: list[abi.Request] = []

        def handle(request: abi.Request) -> None:
            handled.append(request)
            if handler is not None:
                handler(request)

        connection = Connection(ours.detach(), handle, loop=asyncio.get_running_loop())
        with kernel:
            await scenario(connection, kernel, handled)
        connection.close()

    asyncio.run(asyncio.wait_for(main(), DEADLINE))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what is waited for knows nothing of events
        await asyncio.sleep(0.001)


def test_replies_errors_and_notifications_on_the_wire() -> None:
    async def scenario(fuse: Connection, kernel: socket.socket, _: list[abi.Request]) -> None:
        assert fuse.reply(7, b"ab", memoryview(b"cd"))
        assert kernel.recv(100) == struct.pack("=IiQ", 20, 0, 7) + b"abcd"
        assert fuse.error(1 << 63 | 7, errno.EIO)
        assert kernel.recv(100) == struct.pack("=IiQ", 16, -errno.EIO, 1 << 63 | 7)
        assert fuse.notify_poll(5)
        assert kernel.recv(100) == struct.pack("=IiQQ", 24, 1, 0, 5)
        assert fuse.resend()
        assert kernel.recv(100) == struct.pack("=IiQ", 16, 7, 0)

    serve(scenario)


def test_every_request_is_handled_in_order_beyond_one_batch() -> None:
    async def scenario(_: Connection, kernel: socket.socket, handled: list[abi.Request]) -> None:
        count = 3 * BATCH + 1
        for unique in range(count):
            kernel.send(message(abi.Opcode.GETATTR, unique, bytes(16)))
        await until(lambda: len(handled) == count)
        assert [request.unique for request in handled] == list(range(count))

    serve(scenario)


def test_a_body_is_gone_when_the_handler_has_returned() -> None:
    async def scenario(_: Connection, kernel: socket.socket, handled: list[abi.Request]) -> None:
        kernel.send(message(abi.Opcode.LOOKUP, 2, b"name\0"))
        await until(lambda: bool(handled))
        with pytest.raises(ValueError, match="released"):
            bytes(handled[0].body)

    serve(scenario)


def test_the_body_of_a_write_is_lent_until_it_is_released() -> None:
    async def scenario(fuse: Connection, kernel: socket.socket, handled: list[abi.Request]) -> None:
        for unique in range(3):
            kernel.send(message(abi.Opcode.WRITE, unique, write_body(bytes([unique]) * 5000)))
        kernel.send(message(abi.Opcode.LOOKUP, 9, b"name\0"))
        await until(lambda: len(handled) == 4)
        for unique in range(3):
            data = abi.WriteIn.parse(handled[unique].body).data
            assert bytes(data) == bytes([unique]) * 5000
        fuse.release(handled[0])
        fuse.release(handled[0])  # twice is once
        fuse.release(handled[3])  # and of another request nothing
        with pytest.raises(ValueError, match="released"):
            bytes(handled[0].body)
        kernel.send(message(abi.Opcode.LOOKUP, 10, b"other\0"))
        await until(lambda: len(handled) == 5)
        assert bytes(abi.WriteIn.parse(handled[1].body).data) == b"\x01" * 5000

    serve(scenario)


def test_the_data_of_a_write_lies_on_a_page() -> None:
    async def scenario(fuse: Connection, kernel: socket.socket, handled: list[abi.Request]) -> None:
        kernel.send(message(abi.Opcode.WRITE, 2, write_body(bytes(4096))))
        await until(lambda: bool(handled))
        data = abi.WriteIn.parse(handled[0].body).data
        # O_DIRECT takes only aligned memory, so it tells.

        address = ctypes.addressof(ctypes.c_char.from_buffer(data))
        assert address % 4096 == 0
        del data

    serve(scenario)


def test_too_many_lent_buffers_stop_the_reading_until_one_is_back() -> None:
    async def scenario(fuse: Connection, kernel: socket.socket, handled: list[abi.Request]) -> None:
        for unique in range(65):
            kernel.send(message(abi.Opcode.WRITE, unique, write_body(b"x" * 4096)))
        await until(lambda: len(handled) == 64)
        # The 65th waits in the device: it is readable, and nobody reads it.
        assert select.select([fuse.fileno()], [], [], 0)[0]
        await asyncio.sleep(0)
        assert len(handled) == 64
        fuse.release(handled[5])
        await until(lambda: len(handled) == 65)

    serve(scenario)


def test_a_handler_that_raises_is_answered_for(caplog: pytest.LogCaptureFixture) -> None:
    def handler(request: abi.Request) -> None:
        raise RuntimeError("a bug")

    async def scenario(_: Connection, kernel: socket.socket, handled: list[abi.Request]) -> None:
        kernel.send(message(abi.Opcode.FORGET, 3, bytes(8)))  # takes no reply, not even this
        kernel.send(message(abi.Opcode.WRITE, 4, write_body(b"x")))
        await until(lambda: len(handled) == 2)
        assert kernel.recv(100) == struct.pack("=IiQ", 16, -errno.EIO, 4)
        with pytest.raises(ValueError, match="released"):
            bytes(handled[1].body)

    with caplog.at_level(logging.CRITICAL + 1, "pagein.fuse"):
        serve(scenario, handler)


def test_nonsense_from_the_device_ends_the_connection() -> None:
    async def main() -> None:
        ours, kernel = pair()
        ended: list[bool] = []
        connection = Connection(
            ours.detach(),
            lambda request: None,
            loop=asyncio.get_running_loop(),
            on_close=lambda: ended.append(True),
        )
        with kernel:
            kernel.send(b"too short")
            await until(lambda: bool(ended))
        assert connection.closed
        assert not connection.reply(2, b"")
        connection.close()
        assert ended == [True]

    asyncio.run(asyncio.wait_for(main(), DEADLINE))


@pytest.mark.parametrize("closefd", [True, False])
def test_close_closes_the_fd_if_it_is_to(closefd: bool) -> None:
    async def main() -> None:
        ours, kernel = pair()
        fd = ours.detach()
        loop = asyncio.get_running_loop()
        connection = Connection(fd, lambda request: None, loop=loop, closefd=closefd)
        connection.close()
        connection.close()
        with kernel:
            if closefd:
                assert kernel.recv(1) == b""
            else:
                os.write(fd, b"x")
                os.close(fd)

    asyncio.run(asyncio.wait_for(main(), DEADLINE))
