"""SERVE, an ioctl of our own anonymous fds: bytes of a READ, its CREAD and the next message in one.

What a daemon says after a READ whose bytes it has at once is always the same: pwrite, CREAD, poll,
read. Of a FUSE file each of these is a question and an answer between two processes, and both
sleep in between. SERVE is all of them. The kernel's device does not have it, nor does a daemon need
it; one that calls it elsewhere is told EINVAL or ENOTTY, and nothing has happened.

The argument is a header and the bytes, as long as the ioctl's number says. In the same memory comes
how long it was waited for the next message, in nanoseconds, and the message, whose length the ioctl
returns: 0 if there is none for a while. An errno means that nothing was completed; that the READ is
gone is none.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from pagein.protocol.messages import MSG_MAX_SIZE, PAGE_SIZE

DATA_MOST: Final = 3 * PAGE_SIZE
"""Bytes that one SERVE may bring: an ioctl's number has 14 bits for the length."""

_HEADER: Final = struct.Struct("=QIIQ")  # offset, msg_id, len, 0
_WAITED: Final = struct.Struct("=Q")
_NUMBER: Final = 0xC0009870  # _IOWR(0x98, 0x70, ...)
_SIZE_SHIFT: Final = 16
_SIZE_MASK: Final = 0x3FFF << _SIZE_SHIFT

_SIZE_LEAST: Final = _WAITED.size + MSG_MAX_SIZE
SIZE_MOST: Final = _HEADER.size + DATA_MOST
"""Bytes of the longest argument."""


class Serve(NamedTuple):
    """Complete the READ `msg_id` with `data`, which belongs at `offset`; no data: it is there."""

    msg_id: int
    offset: int
    data: memoryview | bytes

    def encode_into(self, memory: memoryview) -> memoryview:
        """The argument, in the first bytes of `memory`, which has SIZE_MOST."""
        end = _HEADER.size + len(self.data)
        _HEADER.pack_into(memory, 0, self.offset, self.msg_id, len(self.data), 0)
        memory[_HEADER.size : end] = self.data
        return memory[: max(end, _SIZE_LEAST)]

    @classmethod
    def decode(cls, argument: memoryview) -> Serve:
        """What an argument says, with a copy of its data. Raises ValueError."""
        if len(argument) < _SIZE_LEAST:
            raise ValueError(f"{len(argument)} bytes, which have no room for a message")
        offset, msg_id, length, zero = _HEADER.unpack_from(argument)
        if zero or length > len(argument) - _HEADER.size:
            raise ValueError(f"{length} bytes in an argument of {len(argument)}")
        return cls(msg_id, offset, bytes(argument[_HEADER.size : _HEADER.size + length]))


def encode_answer(message: bytes, waited: float) -> bytes:
    """What comes back: the next message, or b"", for which `waited` seconds passed."""
    return _WAITED.pack(int(waited * 1e9)) + message


def decode_answer(argument: memoryview, length: int) -> tuple[bytes, float]:
    """The message, and the seconds; `length` is what the ioctl returned."""
    message = argument[_WAITED.size : _WAITED.size + length]
    return bytes(message), _WAITED.unpack_from(argument)[0] / 1e9


def ioc_serve(size: int) -> int:
    """The ioctl's number for an argument of `size` bytes."""
    return _NUMBER | size << _SIZE_SHIFT


def is_serve(number: int, size: int) -> bool:
    """Whether an ioctl with `size` bytes of argument is SERVE."""
    return number & ~_SIZE_MASK == _NUMBER and number == ioc_serve(size)
