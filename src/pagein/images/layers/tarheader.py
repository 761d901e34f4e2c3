"""The 512 byte header block of tar: ustar, GNU, star, V7.

Rules: POSIX.1-2017 pax "ustar Interchange Format"; GNU tar 1.34 `src/list.c` (`from_header`,
`tar_checksum`, `decode_header`) where POSIX is silent.
"""

from __future__ import annotations

import functools
import re
import struct
from typing import NamedTuple
from zlib import adler32

from pagein.images.layers.errors import LayerError

BLOCK = 512
ZERO_BLOCK = bytes(BLOCK)

_FIELDS = struct.Struct("100s24s12s12s8sc100s6s66x8s8s155s12s")
_OWNER = struct.Struct("8s8s8s")
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


def _octal(field: bytes) -> int | None:
    match = _OCTAL.match(field)
    return int(match[1] or b"0", 8) if match is not None else None


# Modes, owners and times are few.
_time = functools.lru_cache(maxsize=4096)(_octal)


@functools.lru_cache(maxsize=4096)
def _mode_and_owner(fields: bytes) -> tuple[int, int, int] | None:
    mode, uid, gid = map(_octal, _OWNER.unpack(fields))
    return None if mode is None or uid is None or gid is None else (mode, uid, gid)


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
    (name, owner, size, mtime, checksum, kind, link, magic, major, minor, prefix, end) = (
        _FIELDS.unpack(block)
    )
    _check(block, checksum, at)
    name = name.partition(b"\0")[0]
    if magic == b"ustar\0" and prefix[0]:
        # star keeps times behind a prefix of 131 bytes, and says "tar" in the last four.
        name = text(prefix[:131] if end[8:] == b"tar\0" else prefix) + b"/" + name
    mode, uid, gid = _mode_and_owner(owner) or _odd_owner(owner, at)
    stored, seconds = _octal(size), _time(mtime)
    device = kind in b"34"
    return Header(
        name,
        mode,
        uid,
        gid,
        number(size, "a size", at) if stored is None else stored,
        number(mtime, "an mtime", at) if seconds is None else seconds,
        kind,
        text(link) if link[0] else b"",
        # Only devices have numbers there: others leave anything in these fields.
        number(major, "a device number", at) if device else 0,
        number(minor, "a device number", at) if device else 0,
    )


def _odd_owner(fields: bytes, at: int) -> tuple[int, int, int]:
    mode, uid, gid = _OWNER.unpack(fields)
    return number(mode, "a mode", at), number(uid, "a uid", at), number(gid, "a gid", at)


def _check(block: bytes, stored: bytes, at: int) -> None:
    """The sum of all bytes with the field itself as blanks; some old tars summed signed chars.

    Adler-32 has the sum of up to 256 bytes, and one, modulo 65521 (RFC 1950 9): exact, in C.
    """
    found = _octal(stored)
    if found is None:
        found = number(stored, "a checksum", at)
    both = (adler32(block[:256]) & 0xFFFF) + (adler32(block[256:]) & 0xFFFF)
    total = both - (adler32(stored) & 0xFFFF) + (8 * 32 - 1)
    if found == total:
        return
    signed = total - 256 * sum(byte > 127 for byte in block[:148] + block[156:])
    if found != signed:
        raise LayerError(
            f"tar: wrong checksum of the header at offset {at}: {found}, and its bytes give {total}"
        )
