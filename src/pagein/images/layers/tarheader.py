"""The 512 byte header block of tar: ustar, GNU, star, V7.

Rules: POSIX.1-2017 pax "ustar Interchange Format"; GNU tar 1.34 `src/list.c` (`from_header`,
`tar_checksum`, `decode_header`) where POSIX is silent.
"""

from __future__ import annotations

import functools
import re
import struct
import zlib
from typing import NamedTuple

from pagein.images.layers.errors import LayerError

BLOCK = 512
ZERO_BLOCK = bytes(BLOCK)

_FIELDS = struct.Struct("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12s")
_OCTAL = re.compile(rb" *([0-7]*)(?:[ \0]|\Z)")
_MAX = (1 << 63) - 1


class Header(NamedTuple):
    """The fields of a header block; `kind` is the typeflag. `mtime` is in seconds."""

    name: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    kind: bytes
    linkname: bytes
    major: int
    minor: int


def text(field: bytes) -> bytes:
    """A field up to its NUL; it may fill the field and have none."""
    return field.partition(b"\0")[0]


@functools.lru_cache(maxsize=4096)  # owners, modes and times are few
def _octal(field: bytes) -> int | None:
    match = _OCTAL.match(field)
    return int(match[1] or b"0", 8) if match is not None else None


def number(field: bytes, what: str, at: int) -> int:
    """A numeric field: octal, or base-256 with sign (GNU, star). A blank one is 0."""
    value = _octal(field)
    if value is not None:
        return value
    if field[0] in (0x80, 0xFF):
        # Two's complement in all but the first byte, which only says the sign.
        value = int.from_bytes(field[1:], "big") - ((field[0] == 0xFF) << 8 * (len(field) - 1))
        if -_MAX <= value <= _MAX:
            return value
        raise LayerError(f"tar: {what} of {value} at offset {at} is beyond 64 bits")
    raise LayerError(f"tar: {what} at offset {at} is not a number: {field!r}")


def parse(block: bytes, at: int) -> Header:
    """The header in `block`, which lies `at` this offset; LayerError if its checksum is wrong."""
    fields = _FIELDS.unpack(block)
    name, mode, uid, gid, size, mtime, checksum, kind, link, magic = fields[:10]
    major, minor, prefix = fields[13:16]
    _check(block, checksum, at)
    name = text(name)
    if magic == b"ustar\0":
        # star keeps times behind a prefix of 131 bytes, and says "tar" in the last four.
        prefix = text(prefix[:131] if block[508:] == b"tar\0" else prefix)
        if prefix:
            name = prefix + b"/" + name
    device = kind in (b"3", b"4")
    return Header(
        name,
        number(mode, "a mode", at),
        number(uid, "a uid", at),
        number(gid, "a gid", at),
        number(size, "a size", at),
        number(mtime, "an mtime", at),
        kind,
        text(link),
        # Only devices have numbers there: others leave anything in these fields.
        number(major, "a device number", at) if device else 0,
        number(minor, "a device number", at) if device else 0,
    )


def _sum(data: bytes) -> int:
    """Of at most 256 bytes: Adler-32 holds it, and one, modulo 65521 (RFC 1950 9). Exact, in C."""
    return (zlib.adler32(data) & 0xFFFF) - 1


def _check(block: bytes, stored: bytes, at: int) -> None:
    """The sum of all bytes with the field itself as blanks; some old tars summed signed chars."""
    found = number(stored, "a checksum", at)
    total = _sum(block[:256]) + _sum(block[256:]) - _sum(stored) + 8 * 32
    if found == total:
        return
    signed = total - 256 * sum(byte > 127 for byte in block[:148] + block[156:])
    if found != signed:
        raise LayerError(
            f"tar: wrong checksum of the header at offset {at}: {found}, and its bytes give {total}"
        )
