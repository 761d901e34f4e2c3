"""Where an object lives below the cache directory, and what its file is called.

The layout is the kernel's, byte for byte (facts cachefiles-kernel 12)::

    <dir>/cache/I<volume key>/@<hh>/<object name>
    <dir>/graveyard/

so that a cache filled by one kernel half is used by the other. All names are `bytes`: a key is
binary and a directory entry is too.
"""

from __future__ import annotations

import struct

CACHE_DIR = b"cache"
GRAVEYARD_DIR = b"graveyard"
MAX_VOLUME_KEY = 254
"""Longest volume key in bytes: the directory is `I` + key and a name has at most 255 bytes."""
MAX_COOKIE_KEY = 252
"""Longest cookie key in bytes; one more is fatal to the real kernel (facts 12), an error here."""

_GOLDEN_RATIO_32 = 0x61C88647
_MASK = 0xFFFFFFFF
_ALPHABET = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_-"


def _rol32(value: int, bits: int) -> int:
    return ((value << bits) | (value >> (32 - bits))) & _MASK


def fscache_hash(salt: int, data: bytes) -> int:
    """The 32-bit hash of fscache over little-endian words, zero padded (facts 12)."""
    padded = data + bytes(-len(data) % 4)
    x, y = 0, salt
    for (word,) in struct.iter_unpack("<I", padded):
        x ^= word
        y ^= x
        x = (_rol32(x, 7) + y) & _MASK
        y = (_rol32(y, 20) * 9) & _MASK
    y ^= (x * _GOLDEN_RATIO_32) & _MASK
    return (y * _GOLDEN_RATIO_32) & _MASK


def volume_hash(volume_key: bytes) -> int:
    """Hash of a volume key: a length byte, the key and at least one NUL (facts 12)."""
    return fscache_hash(0, bytes([len(volume_key)]) + volume_key + b"\0")


def fanout(volume_key: bytes, cookie_key: bytes) -> bytes:
    """Name of the fan-out directory, ``@%02x`` of the low byte of the cookie's hash."""
    return b"@%02x" % (fscache_hash(volume_hash(volume_key), cookie_key) & 0xFF)


def _hex_words(key: bytes, byteorder: str) -> bytes:
    order = ">I" if byteorder == "big" else "<I"
    padded = key + bytes(-len(key) % 4)
    words = (word for (word,) in struct.iter_unpack(order, padded))
    return b",".join(b"%x" % word if word else b"" for word in words)


def _base64(key: bytes) -> bytes:
    pad = -len(key) % 3
    out = bytearray(b"E%d" % pad)
    padded = key + bytes(pad)
    for at in range(0, len(padded), 3):
        acc = int.from_bytes(padded[at : at + 3], "little")
        out += bytes(_ALPHABET[(acc >> shift) & 63] for shift in (0, 6, 12, 18))
    return bytes(out)


def object_name(cookie_key: bytes) -> bytes:
    """File name of a cookie: ``D`` + key when printable, else the shorter of hex and base64.

    `S` is big-endian words, `T` little-endian (facts 12). Raises ValueError for an empty key or
    one longer than `MAX_COOKIE_KEY`.
    """
    if not 0 < len(cookie_key) <= MAX_COOKIE_KEY:
        raise ValueError(
            f"cookie key of {len(cookie_key)} bytes; 1 to {MAX_COOKIE_KEY} are possible"
        )
    if all(0x21 <= byte <= 0x7F and byte != 0x2F for byte in cookie_key):
        return b"D" + cookie_key
    big, little = _hex_words(cookie_key, "big"), _hex_words(cookie_key, "little")
    words = b"S" + big if len(big) <= len(little) else b"T" + little
    base64 = _base64(cookie_key)
    return words if len(words) < len(base64) else base64


def volume_name(volume_key: bytes) -> bytes:
    """Directory name of a volume. Raises ValueError for a key that cannot be one."""
    if not 0 < len(volume_key) <= MAX_VOLUME_KEY:
        raise ValueError(
            f"volume key of {len(volume_key)} bytes; 1 to {MAX_VOLUME_KEY} are possible"
        )
    if b"/" in volume_key or b"\0" in volume_key:
        raise ValueError(f"volume key {volume_key!r} holds a '/' or a NUL")
    return b"I" + volume_key


def grave_name(seconds: int, number: int) -> bytes:
    """Name in the graveyard of the `number`th burial, at `seconds` since the epoch (facts 11)."""
    return b"%08x%08x" % (seconds & _MASK, number & _MASK)


def object_path(volume_key: bytes, cookie_key: bytes) -> bytes:
    """Path of an object's file relative to the cache directory given to `dir`."""
    parts = (
        CACHE_DIR,
        volume_name(volume_key),
        fanout(volume_key, cookie_key),
        object_name(cookie_key),
    )
    return b"/".join(parts)
