"""The bytes of SERVE."""

from __future__ import annotations

import struct

import pytest

from pagein.protocol.messages import IOC_READ_COMPLETE, MSG_MAX_SIZE
from pagein.protocol.serving import (
    DATA_MOST,
    SIZE_MOST,
    Serve,
    decode_answer,
    encode_answer,
    ioc_serve,
    is_serve,
)


@pytest.mark.parametrize("length", [0, 4096, DATA_MOST])
def test_what_is_said_arrives_with_room_for_the_answer(length: int) -> None:
    memory = memoryview(bytearray(b"x" * SIZE_MOST))
    said = Serve(0xFFFFFFFE, 1 << 40, b"a" * length)
    argument = said.encode_into(memory)
    assert Serve.decode(argument) == said
    assert len(argument) >= len(encode_answer(bytes(MSG_MAX_SIZE), 0.0))
    number = ioc_serve(len(argument))
    assert number.bit_length() == 32  # _IOWR
    assert is_serve(number, len(argument))
    assert not is_serve(number, len(argument) - 1)
    assert not is_serve(number - 1, len(argument))


def test_cread_is_none() -> None:
    assert not is_serve(IOC_READ_COMPLETE, 4)


@pytest.mark.parametrize(
    "argument",
    [
        bytes(MSG_MAX_SIZE),  # no room for an answer
        struct.pack("=QIIQ", 0, 1, 1100, 0).ljust(1100, b"x"),  # more data than there is
        struct.pack("=QIIQ", 0, 1, 0, 1).ljust(1100, b"x"),
    ],
)
def test_what_is_no_serve_is_refused(argument: bytes) -> None:
    with pytest.raises(ValueError):
        Serve.decode(memoryview(argument))


def test_answers() -> None:
    memory = memoryview(bytearray(SIZE_MOST))
    answer = encode_answer(b"message", 1.5)
    memory[: len(answer)] = answer
    assert decode_answer(memory, 7) == (b"message", 1.5)
    assert decode_answer(memory, 0) == (b"", 1.5)


def test_the_number_is_that_of_linux() -> None:
    """_IOWR(0x98, 0x70, size): direction, size, type and number (ioctl(2), asm-generic/ioctl.h)."""
    assert ioc_serve(0) == 3 << 30 | 0x98 << 8 | 0x70
    assert ioc_serve(1) - ioc_serve(0) == 1 << 16
    assert is_serve(ioc_serve((1 << 14) - 1), (1 << 14) - 1)
    assert is_serve(ioc_serve(1), 1)
    assert not is_serve(ioc_serve(1), 2)


def test_three_pages_are_what_the_number_has_room_for() -> None:
    assert DATA_MOST == 12288
    assert SIZE_MOST < 1 << 14 <= SIZE_MOST + 4096
