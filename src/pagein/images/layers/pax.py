"""PAX extended headers: records "LENGTH KEY=VALUE\\n", and what they say of a member.

Rules: POSIX.1-2017 pax "pax Extended Header"; names of attributes: GNU tar's `src/xheader.c`
(SCHILY.xattr, GNU.sparse), libarchive's `archive_read_support_format_tar.c` (LIBARCHIVE.xattr).
"""

from __future__ import annotations

import base64
import binascii
import re
import urllib.parse

from pagein.images.layers.errors import LayerError, show

Records = list[tuple[bytes, bytes]]

_LENGTH = re.compile(rb"([0-9]{1,10}) ")
_TIME = re.compile(rb"(-?)([0-9]{1,19})(?:\.([0-9]*))?")
_TINY = re.compile(rb"[0-9](?:\.[0-9]+)?e-[0-9]{1,3}")  # how Python's tarfile writes 0.00001
_NUMBER = re.compile(rb"-?[0-9]{1,19}")
_SCHILY, _LIBARCHIVE = b"SCHILY.xattr.", b"LIBARCHIVE.xattr."


def records(data: bytes, at: int) -> Records:
    """The records of an extended header whose header block lies `at`; in order, keys may repeat."""
    found: Records = []
    start = 0
    while start < len(data):
        match = _LENGTH.match(data, start)
        end = start + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(data) or data[end - 1] != 0x0A:
            if not any(data[start:]):
                break  # padding inside the size: some writers count it
            raise LayerError(f"tar: bad record in the extended header at offset {at}")
        key, equals, value = data[match.end() : end - 1].partition(b"=")
        if not equals:
            raise LayerError(f"tar: a record without '=' in the extended header at offset {at}")
        found.append((key, value))
        start = end
    return found


def seconds(value: bytes, at: int) -> int:
    """A time "[-]SECONDS[.FRACTION]" in nanoseconds; finer digits are cut off."""
    match = _TIME.fullmatch(value)
    if match is None and _TINY.fullmatch(value):
        return int(float(value) * 10**9)
    if match is None:
        raise LayerError(f"tar: not a time in the extended header at offset {at}: {show(value)}")
    nanoseconds = int(match[2]) * 10**9 + int(((match[3] or b"") + b"0" * 9)[:9])
    return -nanoseconds if match[1] else nanoseconds


def number(value: bytes, key: bytes, at: int) -> int:
    """A decimal number."""
    if not _NUMBER.fullmatch(value):
        where = f"{show(key)} in the extended header at offset {at}"
        raise LayerError(f"tar: not a number for {where}: {show(value)}")
    return int(value)


def xattr(key: bytes, value: bytes, at: int) -> tuple[bytes, bytes] | None:
    """The extended attribute that a record sets, if it does: name and value."""
    if key.startswith(_SCHILY):
        # GNU tar hides the two characters that a key cannot have.
        name = key[len(_SCHILY) :].replace(b"%3D", b"=").replace(b"%25", b"%")
        return name, value
    if key.startswith(_LIBARCHIVE):
        name = urllib.parse.unquote_to_bytes(key[len(_LIBARCHIVE) :])
        try:
            return name, base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
        except binascii.Error:
            where = f"{show(name)} in the extended header at offset {at}"
            raise LayerError(f"tar: the value of {where} is not base64") from None
    return None
