"""The form of a recording: what one program did with the device of a kernel, call by call.

A file begins with one line of text: what it is, and the kernel. Entries follow, each a header
(little-endian: kind, result, length of the payload) and a payload. `recordings/README.md` says how
they are made, `replay.py` what they prove.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

MAGIC = b"pagein recording 1, Linux "

_HEADER = struct.Struct("<cqI")
_CREAD = struct.Struct("<II")
_WRITTEN = struct.Struct("<IQQ")
_CLOSED = struct.Struct("<I")


class Kind(Enum):
    """What was called."""

    MARK = b"#"
    """Nothing: the payload says in words what comes next."""
    POLL = b"p"
    """poll(2) of the device, waiting for POLLIN; the result is the mask."""
    READ = b"r"
    """read(2) of the device; the payload is what it returned."""
    COMMAND = b"w"
    """write(2) to the device; the payload is the command."""
    CREAD = b"c"
    """CACHEFILES_IOC_READ_COMPLETE; the payload has the anonymous fd and the msg_id."""
    WRITTEN = b"d"
    """pwrite(2) through an anonymous fd; the payload has fd, offset and length, not the data."""
    CLOSED = b"x"
    """close(2) of an anonymous fd."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One call. `result` is what it returned, or the negative errno."""

    kind: Kind
    result: int
    payload: bytes = b""

    @property
    def text(self) -> str:
        """The words of a mark."""
        return self.payload.decode()

    @property
    def cread(self) -> tuple[int, int]:
        """fd and msg_id of a CREAD."""
        fd, msg_id = _CREAD.unpack(self.payload)
        return fd, msg_id

    @property
    def written(self) -> tuple[int, int, int]:
        """fd, offset and length (bytes) of a write through it."""
        fd, off, length = _WRITTEN.unpack(self.payload)
        return fd, off, length

    @property
    def closed(self) -> int:
        """The fd that was closed."""
        (fd,) = _CLOSED.unpack(self.payload)
        return int(fd)


def cread(fd: int, msg_id: int, result: int) -> Entry:
    """The entry of a CREAD."""
    return Entry(Kind.CREAD, result, _CREAD.pack(fd, msg_id))


def written(fd: int, off: int, length: int, result: int) -> Entry:
    """The entry of a write through an anonymous fd."""
    return Entry(Kind.WRITTEN, result, _WRITTEN.pack(fd, off, length))


def closed(fd: int) -> Entry:
    """The entry of the close of an anonymous fd."""
    return Entry(Kind.CLOSED, 0, _CLOSED.pack(fd))


def dump(release: str, entries: Iterable[Entry]) -> bytes:
    """A recording made on Linux `release`, as a file."""
    packed = (
        _HEADER.pack(entry.kind.value, entry.result, len(entry.payload)) + entry.payload
        for entry in entries
    )
    return MAGIC + release.encode() + b"\n" + b"".join(packed)


def load(data: bytes) -> tuple[str, list[Entry]]:
    """The kernel's release and the entries. Raises ValueError or struct.error for anything else."""
    first, newline, rest = data.partition(b"\n")
    if not newline or not first.startswith(MAGIC):
        raise ValueError("not a recording")
    entries, at = [], 0
    while at < len(rest):
        kind, result, length = _HEADER.unpack_from(rest, at)
        at += _HEADER.size
        if at + length > len(rest):
            raise ValueError(f"cut off at byte {len(rest)}")
        entries.append(Entry(Kind(kind), result, rest[at : at + length]))
        at += length
    return first.removeprefix(MAGIC).decode(), entries
