"""What the kernel sends: each request's body as a value.

``XxxIn.parse(body)`` raises `AbiError` for a body that is too short. The kernel never sends one, so
meeting it means that the reader lost its place.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

from pagein.fuse import layout as wire
from pagein.fuse.constants import GETATTR_FH, UNIQUE_RESEND, Init
from pagein.fuse.layout import AbiError, Buffer


def name(body: Buffer) -> bytes:
    """Return the one name that LOOKUP, UNLINK and their like carry, without its NUL."""
    text, nul, _ = bytes(body).partition(b"\0")
    if not nul:
        raise AbiError("a name without its NUL")
    return text


def _payload(what: str, body: memoryview, start: int, size: int) -> memoryview:
    data = body[start : start + size]
    if len(data) != size:
        raise AbiError(f"{what} announces {size} bytes, {len(data)} came")
    return data


def forgets(body: Buffer) -> Iterator[tuple[int, int]]:
    """Yield (nodeid, lookups to take back) of each entry of a BATCH_FORGET."""
    (count,) = wire.BATCH_FORGET_IN.unpack(body)
    rest = memoryview(body)[wire.BATCH_FORGET_IN.size :]
    for index in range(count):
        nodeid, lookups = wire.FORGET_ONE.unpack(rest[index * wire.FORGET_ONE.size :])
        yield nodeid, lookups


def forget(body: Buffer) -> int:
    """Return how many lookups a FORGET takes back."""
    lookups: int = wire.FORGET_IN.unpack(body)[0]
    return lookups


@dataclass(slots=True)
class Request:
    """One message of the kernel; ``body`` is what follows the header, and is borrowed.

    ``unique`` names the request in its reply, bit `UNIQUE_RESEND` included. ``resent`` tells that
    an earlier server may already have acted on it.
    """

    opcode: int
    unique: int
    nodeid: int
    uid: int
    gid: int
    pid: int
    body: memoryview
    resent: bool

    @classmethod
    def parse(cls, message: memoryview) -> Self:
        """Take a whole message apart; `AbiError` when its length is not what was read."""
        length, opcode, unique, nodeid, uid, gid, pid, extensions = wire.IN.unpack(message)
        end = length - 8 * extensions  # extensions (security contexts, groups) are not asked for
        if length != len(message) or end < wire.IN_HEADER_SIZE:
            raise AbiError(f"a FUSE message of {len(message)} bytes says it has {length}")
        body = message[wire.IN_HEADER_SIZE : end]
        return cls(opcode, unique, nodeid, uid, gid, pid, body, bool(unique & UNIQUE_RESEND))


class InitIn(NamedTuple):
    """INIT: what the kernel offers; ``max_readahead`` in bytes."""

    major: int
    minor: int
    max_readahead: int
    flags: int

    @classmethod
    def parse(cls, body: Buffer) -> Self:
        if len(body) < wire.INIT_IN_SHORT.size:
            raise AbiError(
                f"fuse_init_in is at least {wire.INIT_IN_SHORT.size} bytes, got {len(body)}"
            )
        major, minor, max_readahead, flags = wire.INIT_IN_SHORT.unpack_from(body)
        if flags & Init.INIT_EXT and len(body) >= wire.INIT_IN.size:
            flags |= wire.INIT_IN.unpack(body)[4] << 32
        return cls(major, minor, max_readahead, flags)


class GetattrIn(NamedTuple):
    """GETATTR; ``fh`` is None when the kernel asks by inode only."""

    fh: int | None

    @classmethod
    def parse(cls, body: Buffer) -> Self:
        flags, fh = wire.GETATTR_IN.unpack(body)
        return cls(fh if flags & GETATTR_FH else None)


class SetattrIn(NamedTuple):
    """SETATTR; only the fields named by ``valid`` (see `Fattr`) mean anything."""

    valid: int
    fh: int
    size: int
    mode: int
    uid: int
    gid: int

    @classmethod
    def parse(cls, body: Buffer) -> Self:
        return cls._make(wire.SETATTR_IN.unpack(body))


class OpenIn(NamedTuple):
    """OPEN and OPENDIR: ``flags`` are those of open(2)."""

    flags: int
    open_flags: int

    @classmethod
    def parse(cls, body: Buffer) -> Self:
        return cls._make(wire.OPEN_IN.unpack(body))


class ReleaseIn(NamedTuple):
    """RELEASE and RELEASEDIR: the last close of an open file, all dups included."""

    fh: int
    flags: int
    release_flags: int
    lock_owner: int

    @classmethod
    def parse(cls, body: Buffer) -> Self:
        return cls._make(wire.RELEASE_IN.unpack(body))


class FlushIn(NamedTuple):
    """FLUSH: one close(2), not necessarily the last."""

    fh: int
    lock_owner: int

    @classmethod
    def parse(cls, body: Buffer) -> Self:
        return cls._make(wire.FLUSH_IN.unpack(body))


class ReadIn(NamedTuple):
    """READ and READDIR; ``offset`` and ``size`` in bytes."""

    fh: int
    offset: int
    size: int
    read_flags: int
    lock_owner: int
    flags: int

    @classmethod
    def parse(cls, body: Buffer) -> Self:
        return cls._make(wire.READ_IN.unpack(body))


class WriteIn(NamedTuple):
    """WRITE; ``data`` is borrowed from the request's buffer."""

    fh: int
    offset: int
    size: int
    write_flags: int
    lock_owner: int
    flags: int
    data: memoryview

    @classmethod
    def parse(cls, body: memoryview) -> Self:
        values = wire.WRITE_IN.unpack(body)
        return cls._make((*values, _payload("WRITE", body, wire.WRITE_IN.size, values[2])))


class FsyncIn(NamedTuple):
    """FSYNC and FSYNCDIR."""

    fh: int
    fsync_flags: int

    @classmethod
    def parse(cls, body: Buffer) -> Self:
        return cls._make(wire.FSYNC_IN.unpack(body))


class GetxattrIn(NamedTuple):
    """GETXATTR; a ``size`` of 0 asks how long the value is."""

    size: int
    name: bytes

    @classmethod
    def parse(cls, body: Buffer) -> Self:
        (size,) = wire.GETXATTR_IN.unpack(body)
        return cls(size, name(memoryview(body)[wire.GETXATTR_IN.size :]))


class AccessIn(NamedTuple):
    """ACCESS: ``mask`` is that of access(2)."""

    mask: int

    @classmethod
    def parse(cls, body: Buffer) -> Self:
        return cls._make(wire.ACCESS_IN.unpack(body))


class InterruptIn(NamedTuple):
    """INTERRUPT: the caller of request ``unique`` got a signal."""

    unique: int

    @classmethod
    def parse(cls, body: Buffer) -> Self:
        return cls._make(wire.INTERRUPT_IN.unpack(body))


class IoctlIn(NamedTuple):
    """IOCTL: ``data`` is what the caller's ``arg`` points to, ``out_size`` bytes go back there."""

    fh: int
    flags: int
    cmd: int
    arg: int
    in_size: int
    out_size: int
    data: memoryview

    @classmethod
    def parse(cls, body: memoryview) -> Self:
        values = wire.IOCTL_IN.unpack(body)
        return cls._make((*values, _payload("IOCTL", body, wire.IOCTL_IN.size, values[4])))


class PollIn(NamedTuple):
    """POLL; POLL_SCHEDULE_NOTIFY in ``flags``: the kernel wants one Notify.POLL for ``kh``."""

    fh: int
    kh: int
    flags: int
    events: int

    @classmethod
    def parse(cls, body: Buffer) -> Self:
        return cls._make(wire.POLL_IN.unpack(body))


class FallocateIn(NamedTuple):
    """FALLOCATE, punching included."""

    fh: int
    offset: int
    length: int
    mode: int

    @classmethod
    def parse(cls, body: Buffer) -> Self:
        return cls._make(wire.FALLOCATE_IN.unpack(body))


class LseekIn(NamedTuple):
    """LSEEK: sent for SEEK_DATA and SEEK_HOLE only."""

    fh: int
    offset: int
    whence: int

    @classmethod
    def parse(cls, body: Buffer) -> Self:
        return cls._make(wire.LSEEK_IN.unpack(body))
