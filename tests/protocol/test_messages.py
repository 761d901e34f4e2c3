"""Messages: what is encoded is decoded again, and everything else is refused."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagein.protocol import messages
from pagein.protocol.messages import Close, Message, Opcode, Open, ProtocolError, Read, decode

U32_MAX = 2**32 - 1
U32 = st.integers(0, U32_MAX)
VOLUME_KEYS = st.binary(max_size=255).map(lambda key: key.replace(b"\0", b"\1"))
COOKIE_KEYS = st.binary(min_size=1, max_size=255)
OFFSETS = st.integers(0, messages.OFF_MAX)

OPENS = st.builds(Open, U32, U32, VOLUME_KEYS, COOKIE_KEYS, U32, U32)
READS = OFFSETS.flatmap(
    lambda off: st.builds(Read, U32, U32, st.just(off), st.integers(0, messages.OFF_MAX - off))
)
CLOSES = st.builds(Close, U32, U32)
MESSAGES: st.SearchStrategy[Message] = st.one_of(OPENS, READS, CLOSES)


@given(MESSAGES)
def test_a_message_survives_the_wire(message: Message) -> None:
    data = message.encode()
    assert decode(data) == message
    assert decode(memoryview(data)) == message
    assert decode(bytearray(data)) == message


@given(MESSAGES)
def test_the_header_says_what_follows(message: Message) -> None:
    data = message.encode()
    header = struct.unpack_from("=IIII", data)
    assert header == (message.msg_id, message.opcode, len(data), message.object_id)
    assert len(data) <= 543 < messages.MSG_MAX_SIZE


def test_an_open_as_a_kernel_sends_it() -> None:
    """EROFS with fsid=plain.erofs (facts cachefiles-kernel 4); the ids and the fd are made up."""
    data = struct.pack("=IIIIIIII", 0, 0, 61, 1, 18, 11, 5, 0) + b"erofs,plain.erofs\0plain.erofs"
    message = Open(0, 1, b"erofs,plain.erofs", b"plain.erofs", fd=5)
    assert decode(data) == message
    assert message.encode() == data


def test_layouts_written_out() -> None:
    read = Read(msg_id=3, object_id=7, off=0x1000, len=0x20000)
    assert read.encode() == struct.pack("=IIIIQQ", 3, 2, 32, 7, 0x1000, 0x20000)
    assert Close(msg_id=4, object_id=7).encode() == struct.pack("=IIII", 4, 1, 16, 7)


def test_unknown_open_flags_are_kept() -> None:
    message = Open(0, 1, b"v", b"c", fd=3, flags=0x80000001)
    assert decode(message.encode()) == message


def test_an_object_id_that_means_closed_is_tolerated() -> None:
    """A CLOSE may carry the kernel's -1 (facts cachefiles-kernel 4.2)."""
    assert decode(Close(9, 0xFFFFFFFF).encode()) == Close(9, 0xFFFFFFFF)


@given(MESSAGES, st.data())
def test_a_truncated_message_is_refused(message: Message, data: st.DataObject) -> None:
    encoded = message.encode()
    cut = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(ProtocolError, match="header alone" if cut < 16 else "len at byte 8"):
        decode(encoded[:cut])


@given(MESSAGES, st.binary(min_size=1, max_size=8))
def test_a_message_with_something_behind_it_is_refused(message: Message, junk: bytes) -> None:
    with pytest.raises(ProtocolError, match="len at byte 8"):
        decode(message.encode() + junk)


@given(MESSAGES, U32)
def test_a_wrong_len_field_is_refused(message: Message, length: int) -> None:
    encoded = bytearray(message.encode())
    if length == len(encoded):
        length ^= 1
    struct.pack_into("=I", encoded, 8, length)
    with pytest.raises(ProtocolError, match=f"len at byte 8 is {length}"):
        decode(encoded)


def refused_or_exact(data: bytes) -> None:
    try:
        message = decode(data)
    except ProtocolError:
        return
    assert message.encode() == data


@given(st.binary(max_size=200))
def test_random_bytes(data: bytes) -> None:
    refused_or_exact(data)


@given(U32, st.integers(0, 4), U32, st.binary(max_size=64))
def test_random_payloads_below_a_good_header(
    msg_id: int, opcode: int, object_id: int, payload: bytes
) -> None:
    header = struct.pack("=IIII", msg_id, opcode, 16 + len(payload), object_id)
    refused_or_exact(header + payload)


@given(MESSAGES, st.data())
def test_one_byte_changed(message: Message, data: st.DataObject) -> None:
    encoded = bytearray(message.encode())
    encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    refused_or_exact(bytes(encoded))


def raw(opcode: int, payload: bytes) -> bytes:
    return struct.pack("=IIII", 1, opcode, 16 + len(payload), 1) + payload


def raw_open(volume_size: int, cookie_size: int, keys: bytes) -> bytes:
    return raw(Opcode.OPEN, struct.pack("=IIII", volume_size, cookie_size, 3, 0) + keys)


MALFORMED = {
    "nothing": (b"", "message of 0 bytes"),
    "opcode": (raw(3, b""), "opcode at byte 4 is 3"),
    "OPEN without its sizes": (raw(Opcode.OPEN, bytes(15)), "OPEN of 31 bytes"),
    "OPEN, keys too short": (raw_open(3, 3, b"v\0c"), "3 and 3, but 3 bytes"),
    "OPEN, keys too long": (raw_open(2, 1, b"v\0cc"), "2 and 1, but 4 bytes"),
    "OPEN, sizes that wrap": (raw_open(U32_MAX, 4, b"v\0c"), "but 3 bytes"),
    "OPEN, no volume key": (raw_open(0, 3, b"v\0c"), "does not end in NUL"),
    "OPEN, no NUL": (raw_open(2, 1, b"vvc"), "volume key at byte 32 does not end in NUL"),
    "OPEN, NUL inside": (raw_open(3, 1, b"\0v\0c"), "NUL inside"),
    "OPEN, two NULs": (raw_open(3, 1, b"v\0\0c"), "NUL inside"),
    "OPEN, long volume key": (raw_open(257, 1, b"v" * 256 + b"\0c"), "volume key of 256"),
    "OPEN, no cookie key": (raw_open(2, 0, b"v\0"), "cookie key of 0"),
    "OPEN, long cookie key": (raw_open(2, 256, b"v\0" + b"c" * 256), "cookie key of 256"),
    "READ too short": (raw(Opcode.READ, bytes(15)), "READ of 31 bytes"),
    "READ too long": (raw(Opcode.READ, bytes(17)), "READ of 33 bytes"),
    "READ, no offset": (raw(Opcode.READ, struct.pack("=QQ", 2**63, 0)), "no range of a file"),
    "READ, end": (raw(Opcode.READ, struct.pack("=QQ", 2**63 - 4096, 4096)), "no range of a file"),
    "CLOSE with a payload": (raw(Opcode.CLOSE, b"\0"), "CLOSE of 17 bytes"),
}


@pytest.mark.parametrize(("data", "text"), MALFORMED.values(), ids=MALFORMED.keys())
def test_what_is_wrong_is_said(data: bytes, text: str) -> None:
    with pytest.raises(ProtocolError, match=text):
        decode(data)


UNSPEAKABLE: dict[str, tuple[Message, str]] = {
    "msg_id": (Close(2**32, 0), "msg_id"),
    "negative msg_id": (Close(-1, 0), "msg_id"),
    "object_id": (Close(0, -1), "object_id"),
    "fd": (Open(0, 1, b"v", b"c", fd=-1), "fd"),
    "flags": (Open(0, 1, b"v", b"c", fd=1, flags=2**32), "flags"),
    "volume key with NUL": (Open(0, 1, b"v\0", b"c", fd=1), "NUL inside"),
    "long volume key": (Open(0, 1, b"v" * 256, b"c", fd=1), "volume key of 256"),
    "no cookie key": (Open(0, 1, b"v", b"", fd=1), "cookie key of 0"),
    "long cookie key": (Open(0, 1, b"v", b"c" * 256, fd=1), "cookie key of 256"),
    "negative offset": (Read(0, 1, -1, 2), "no range"),
    "negative length": (Read(0, 1, 2, -1), "no range"),
    "end of range": (Read(0, 1, 1, messages.OFF_MAX), "no range"),
}


@pytest.mark.parametrize(("message", "text"), UNSPEAKABLE.values(), ids=UNSPEAKABLE.keys())
def test_what_cannot_be_said_is_refused(message: Message, text: str) -> None:
    with pytest.raises(ProtocolError, match=text):
        message.encode()


def test_the_longest_keys_and_the_last_offset_fit() -> None:
    longest = Open(U32_MAX, U32_MAX, b"v" * 255, b"c" * 255, U32_MAX, U32_MAX)
    assert len(longest.encode()) == 543
    last = Read(0, 1, messages.OFF_MAX, 0)
    assert decode(last.encode()) == last


@pytest.mark.parametrize("message", [Open(0, 1, b"v", b"c", 3), Read(0, 1, 0, 1), Close(0, 1)])
def test_messages_are_values(message: Any) -> None:
    assert hash(message) == hash(decode(message.encode()))
    with pytest.raises(AttributeError):
        message.msg_id = 1
