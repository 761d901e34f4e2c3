"""The document that a trace is: JSON lines, a header and then one touch each (docs/traces.md)."""

from __future__ import annotations

import base64
import re
import zlib
from typing import Final
from urllib.parse import unquote_to_bytes

import msgspec

TRACE_TYPE: Final = "application/vnd.pagein.image.trace.v1+jsonl"
"""Media type: of a blob in the artifact that holds an image's indexes."""
VERSION: Final = 1
MAX_TRACE: Final = 8 << 20
"""Bytes of a document."""
MAX_TOUCHES: Final = 1 << 16

_MAX_LAYERS = 1 << 10
_HEADER = b'{"pagein_trace":'
_DIFF_ID = re.compile(r"[a-z0-9]+:[0-9a-f]{32,128}")
_HIGH = 1 << 62
_PATH_MAX = 3 << 12  # PATH_MAX of the kernel, each byte as %XX


class TraceError(ValueError):
    """A trace that cannot be used, and why: one line."""


class Touch(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """`length` bytes at `offset` of a file were asked for first, `ms` milliseconds after the start.

    `layer` is the place of the layer's diff_id in the header; `path` is from the layer's root on,
    with what is not UTF-8, and ``%``, as ``%XX``.
    """

    layer: int
    path: str
    offset: int
    length: int
    ms: int


class _Header(msgspec.Struct, frozen=True):
    pagein_trace: int
    image: str = ""
    layers: tuple[str, ...] = ()


class Trace(msgspec.Struct, frozen=True):
    """A trace: `layers` are diff_ids, `touches` in the order of time."""

    image: str
    layers: tuple[str, ...]
    touches: tuple[Touch, ...]

    def dump(self) -> bytes:
        """The document."""
        encode = msgspec.json.encode
        lines = [encode(_Header(VERSION, self.image, self.layers)), *map(encode, self.touches)]
        return b"\n".join([*lines, b""])


def parse_trace(name: str, data: bytes) -> Trace:
    """The trace in `data`; TraceError, which names `name` and the line, if it is none."""
    if len(data) > MAX_TRACE:
        raise TraceError(f"{name}: {len(data)} bytes, and a trace has at most {MAX_TRACE}")
    first, *rest = data.split(b"\n")
    if not first.startswith(_HEADER):
        raise TraceError(f"{name}: not a trace: those begin with {_HEADER.decode()}")
    if len(rest) > MAX_TOUCHES:
        raise TraceError(f"{name}: more than {MAX_TOUCHES} lines")
    number = 1
    try:
        header = _parse_header(first)
        touches = []
        for line in rest:
            number += 1
            if line:
                touches.append(_parse_touch(line, len(header.layers)))
    except (ValueError, RecursionError) as problem:  # msgspec's errors are ValueErrors
        raise TraceError(f"{name}, line {number}: {problem}") from None
    touches.sort(key=lambda each: each.ms)
    return Trace(header.image, header.layers, tuple(touches))


def _parse_header(line: bytes) -> _Header:
    header = msgspec.json.decode(line, type=_Header)
    if header.pagein_trace != VERSION:
        raise ValueError(f"a trace of version {header.pagein_trace}: {VERSION} is known")
    if len(header.layers) > _MAX_LAYERS or not all(map(_DIFF_ID.fullmatch, header.layers)):
        raise ValueError("layers that are not digests, or too many")
    return header


def _parse_touch(line: bytes, layers: int) -> Touch:
    touch = msgspec.json.decode(line, type=Touch)
    if not 0 <= touch.layer < layers:
        raise ValueError(f"there is no layer {touch.layer} in the header")
    if not (0 <= touch.offset < _HIGH and 0 < touch.length < _HIGH and 0 <= touch.ms < _HIGH):
        raise ValueError("an offset, a length or a time that cannot be")
    if len(touch.path) > _PATH_MAX:
        raise ValueError(f"a path of {len(touch.path)} characters")
    return touch


def pack(data: bytes) -> str:
    """A document as text, for a line of JSON."""
    return base64.b64encode(zlib.compress(data)).decode()


def unpack(packed: str) -> bytes:
    """What `pack` made; TraceError for anything else."""
    try:
        data = zlib.decompressobj().decompress(base64.b64decode(packed), MAX_TRACE + 1)
    except (ValueError, zlib.error) as problem:
        raise TraceError(f"not a packed trace: {problem}") from None
    return data


def quote(path: bytes) -> str:
    """A path as a trace has it."""
    text = path.replace(b"%", b"%25").decode("utf-8", "surrogateescape")
    return "".join(f"%{ord(c) - 0xDC00:02X}" if 0xDC80 <= ord(c) <= 0xDCFF else c for c in text)


def unquote(path: str) -> bytes:
    """The bytes that `quote` made it of."""
    return unquote_to_bytes(path)
