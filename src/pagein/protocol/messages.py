"""Requests of the kernel half to the user half: bytes <-> values.

A read() of the device returns one message: a header of 16 bytes and a payload that depends on its
opcode (seed: Protocol Communication; facts cachefiles-kernel 4). The layout is that of
<linux/cachefiles.h>: the byte order of the host, fixed sizes, no padding.

Messages go one way only, and their writer is trusted to be a kernel or a kernel half. Decoding is
strict all the same: whatever `decode` accepts, `encode` gives back byte for byte, and everything
else is a `ProtocolError` that says what is wrong and at which byte.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Final, TypeAlias

MSG_MAX_SIZE: Final = 1024
"""Bytes a daemon should offer to read(): CACHEFILES_MSG_MAX_SIZE. No message is longer than 543."""

PAGE_SIZE: Final = 4096
"""Bytes; the unit of writes through the anonymous fd, and one more than a command may have."""

IOC_READ_COMPLETE: Final = 0x40049801
"""CACHEFILES_IOC_READ_COMPLETE, `_IOW(0x98, 1, int)`, called CACHEFILES_IOC_CREAD in the seed.

The argument is the msg_id of the READ (facts cachefiles-kernel 8.3). The number is that of the
generic ioctl encoding; alpha, mips, parisc, powerpc and sparc encode _IOW differently.
"""

KEY_MAX: Final = 255
"""Bytes of a volume key (without its NUL) or of a cookie key: both lengths live in a u8."""

OFF_MAX: Final = (1 << 63) - 1
"""The highest file offset, in bytes: a range that ends beyond it cannot be written (loff_t)."""

_U32_MAX: Final = (1 << 32) - 1
_HEADER: Final = struct.Struct("=IIII")  # msg_id, opcode, len, object_id
_OPEN: Final = struct.Struct("=IIII")  # volume_key_size, cookie_key_size, fd, flags
_READ: Final = struct.Struct("=QQ")  # off, len

HEADER_SIZE: Final = _HEADER.size
"""Bytes of the header that starts every message: 16."""

OPEN_HEADER_SIZE: Final = HEADER_SIZE + _OPEN.size
"""Bytes of an OPEN before its keys: 32."""

READ_MSG_SIZE: Final = HEADER_SIZE + _READ.size
"""Bytes of a READ: 32."""


class ProtocolError(ValueError):
    """Bytes that are not a message, or values that cannot be said in one."""


class Opcode(IntEnum):
    """What a message asks for (enum cachefiles_opcode)."""

    OPEN = 0
    CLOSE = 1
    READ = 2


@dataclass(frozen=True, slots=True)
class Open:
    """The netfs looks an object up; answered by `copen` (seed: The OPEN Request).

    `volume_key` is without the NUL that ends it on the wire; `cookie_key` is binary. `fd` is the
    anonymous fd through which the object is written. `flags` is sent as 0, and kept as received.
    """

    opcode: ClassVar[Opcode] = Opcode.OPEN

    msg_id: int
    object_id: int
    volume_key: bytes
    cookie_key: bytes
    fd: int
    flags: int = 0

    def encode(self) -> bytes:
        """Return the message; ProtocolError if a key or a number does not fit."""
        _check_volume_key(self.volume_key)
        _check_cookie_key_size(len(self.cookie_key))
        _check_u32("fd", self.fd)
        _check_u32("flags", self.flags)
        sizes = len(self.volume_key) + 1, len(self.cookie_key)
        payload = _OPEN.pack(*sizes, self.fd, self.flags)
        return _message(self, payload + self.volume_key + b"\0" + self.cookie_key)


@dataclass(frozen=True, slots=True)
class Read:
    """A cache miss; answered by CREAD on an anonymous fd of the object (seed: The READ Request).

    `off` and `len` are in bytes. The range may begin or end beyond the size that copen gave
    (facts cachefiles-kernel 6).
    """

    opcode: ClassVar[Opcode] = Opcode.READ

    msg_id: int
    object_id: int
    off: int
    len: int

    def encode(self) -> bytes:
        """Return the message; ProtocolError if the range or a number does not fit."""
        _check_range(self.off, self.len)
        return _message(self, _READ.pack(self.off, self.len))


@dataclass(frozen=True, slots=True)
class Close:
    """The object is withdrawn: close all its fds. No answer (seed: The CLOSE Request).

    An `object_id` nobody knows is possible and to be ignored (facts cachefiles-kernel 4.2).
    """

    opcode: ClassVar[Opcode] = Opcode.CLOSE

    msg_id: int
    object_id: int

    def encode(self) -> bytes:
        """Return the message; ProtocolError if a number does not fit."""
        return _message(self, b"")


Message: TypeAlias = Open | Read | Close


def decode(data: bytes | bytearray | memoryview) -> Message:
    """Return the message that one read() of the device returned.

    Args:
        data: exactly what was read; its length must be that of the header's `len` field.

    Raises:
        ProtocolError: it is no message; the text says why and at which byte.
    """
    raw = bytes(data)
    if len(raw) < HEADER_SIZE:
        raise ProtocolError(f"message of {len(raw)} bytes, its header alone has {HEADER_SIZE}")
    msg_id, opcode, length, object_id = _HEADER.unpack_from(raw)
    if length != len(raw):
        raise ProtocolError(f"len at byte 8 is {length}, but {len(raw)} bytes were read")
    if opcode == Opcode.OPEN:
        return _decode_open(msg_id, object_id, raw)
    if opcode == Opcode.READ:
        return _decode_read(msg_id, object_id, raw)
    if opcode == Opcode.CLOSE:
        return _decode_close(msg_id, object_id, raw)
    raise ProtocolError(f"opcode at byte 4 is {opcode}, which is neither OPEN, CLOSE nor READ")


def _decode_open(msg_id: int, object_id: int, raw: bytes) -> Open:
    if len(raw) < OPEN_HEADER_SIZE:
        raise ProtocolError(f"OPEN of {len(raw)} bytes, it needs {OPEN_HEADER_SIZE} and its keys")
    volume_size, cookie_size, fd, flags = _OPEN.unpack_from(raw, HEADER_SIZE)
    keys = len(raw) - OPEN_HEADER_SIZE
    if volume_size + cookie_size != keys:
        raise ProtocolError(
            f"OPEN: key sizes at byte {HEADER_SIZE} are {volume_size} and {cookie_size}, "
            f"but {keys} bytes of keys follow"
        )
    split = OPEN_HEADER_SIZE + volume_size
    if not raw[OPEN_HEADER_SIZE:split].endswith(b"\0"):
        raise ProtocolError(f"OPEN: volume key at byte {OPEN_HEADER_SIZE} does not end in NUL")
    volume_key, cookie_key = raw[OPEN_HEADER_SIZE : split - 1], raw[split:]
    _check_volume_key(volume_key)
    _check_cookie_key_size(cookie_size)
    return Open(msg_id, object_id, volume_key, cookie_key, fd, flags)


def _decode_read(msg_id: int, object_id: int, raw: bytes) -> Read:
    if len(raw) != READ_MSG_SIZE:
        raise ProtocolError(f"READ of {len(raw)} bytes instead of {READ_MSG_SIZE}")
    off, length = _READ.unpack_from(raw, HEADER_SIZE)
    _check_range(off, length)
    return Read(msg_id, object_id, off, length)


def _decode_close(msg_id: int, object_id: int, raw: bytes) -> Close:
    if len(raw) != HEADER_SIZE:
        raise ProtocolError(f"CLOSE of {len(raw)} bytes instead of {HEADER_SIZE}")
    return Close(msg_id, object_id)


def _message(message: Message, payload: bytes) -> bytes:
    """Put the header before the payload."""
    _check_u32("msg_id", message.msg_id)
    _check_u32("object_id", message.object_id)
    length = HEADER_SIZE + len(payload)
    return _HEADER.pack(message.msg_id, message.opcode, length, message.object_id) + payload


def _check_u32(name: str, value: int) -> None:
    if not 0 <= value <= _U32_MAX:
        raise ProtocolError(f"{name} {value} does not fit in 32 bits")


def _check_range(off: int, length: int) -> None:
    # The kernel's offsets are loff_t; a range beyond them could only end in an OverflowError of
    # the pwrite that serves it, far from the cause.
    if off < 0 or length < 0 or off + length > OFF_MAX:
        raise ProtocolError(f"READ: {length} bytes at offset {off} is no range of a file")


def _check_volume_key(key: bytes) -> None:
    # The kernel takes the key as a C string, so one with a NUL inside could only be made by
    # something that is not one; two keys must not look alike to a reader of strings.
    if b"\0" in key:
        raise ProtocolError(f"OPEN: volume key {key!r} has a NUL inside")
    if len(key) > KEY_MAX:
        raise ProtocolError(f"OPEN: volume key of {len(key)} bytes, {KEY_MAX} at most")


def _check_cookie_key_size(size: int) -> None:
    if not 1 <= size <= KEY_MAX:
        raise ProtocolError(f"OPEN: cookie key of {size} bytes, 1 to {KEY_MAX} are possible")
