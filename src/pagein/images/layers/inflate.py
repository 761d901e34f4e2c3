"""zlib's inflate(), stopping at a deflate block where that is asked for.

Python's zlib module cannot stop there, the library can (Z_BLOCK). A stop is dear though: zlib
copies its window, and the GIL, which a call drops, has to be had back from the thread that parses.
So blocks are passed over where no point is wanted. zlib-ng is nearly twice as fast and is taken
where it is: as a library of the system, or in the wheel of that name.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util

from pagein.images.layers.errors import LayerError

WINDOW = 32 << 10

_Z_NO_FLUSH, _Z_BLOCK = 0, 5
_Z_OK, _Z_STREAM_END, _Z_BUF_ERROR = 0, 1, -5
_GZIP_ONLY = 31  # windowBits: 15, plus 16 for gzip


_HEAD = (
    ("next_in", ctypes.c_void_p),
    ("avail_in", ctypes.c_uint),
    ("total_in", ctypes.c_size_t),
    ("next_out", ctypes.c_void_p),
    ("avail_out", ctypes.c_uint),
    ("total_out", ctypes.c_size_t),
    ("msg", ctypes.c_char_p),
    ("state", ctypes.c_void_p),
    ("zalloc", ctypes.c_void_p),
    ("zfree", ctypes.c_void_p),
    ("opaque", ctypes.c_void_p),
    ("data_type", ctypes.c_int),
)


class _Stream(ctypes.Structure):
    """z_stream of zlib.h."""

    _fields_ = (*_HEAD, ("adler", ctypes.c_ulong), ("reserved", ctypes.c_ulong))


class _StreamNg(ctypes.Structure):
    """zng_stream of zlib-ng.h."""

    _fields_ = (*_HEAD, ("adler", ctypes.c_uint32), ("reserved", ctypes.c_ulong))


class Library:
    """zlib, or zlib-ng, loaded from `path`. OSError or AttributeError if it is not there."""

    def __init__(self, path: str, *, ng: bool) -> None:
        self.ng = ng
        library, prefix = ctypes.CDLL(path), "zng_" if ng else ""
        self.stream: type[_Stream | _StreamNg] = _StreamNg if ng else _Stream
        self.version = library.zlibng_version if ng else library.zlibVersion
        self.init = library[f"{prefix}inflateInit2_"]
        self.inflate = library[f"{prefix}inflate"]
        self.reset = library[f"{prefix}inflateReset"]
        self.end = library[f"{prefix}inflateEnd"]
        self.version.restype = ctypes.c_char_p
        for function, more in ((self.inflate, [ctypes.c_int]), (self.reset, []), (self.end, [])):
            function.argtypes = [ctypes.c_void_p, *more]
            function.restype = ctypes.c_int


@functools.cache
def library() -> Library:
    """The best one here; LayerError if there is none."""
    for path in (_in_wheel(), "libz-ng.so.2"):
        if path is not None:
            with contextlib.suppress(OSError, AttributeError):
                return Library(path, ng=True)
    try:
        return Library("libz.so.1", ng=False)
    except OSError:
        raise LayerError("libz.so.1 is missing: install zlib1g (Debian) or zlib") from None


def _in_wheel() -> str | None:
    """The extension module of the zlib-ng wheel; whatever it exports, it is zlib-ng."""
    spec = importlib.util.find_spec("zlib_ng")
    found = importlib.util.find_spec("zlib_ng.zlib_ng") if spec is not None else None
    return found.origin if found is not None else None


class Inflate:
    """One inflate state for gzip members. `take` gives it input, `step` runs it into `output`."""

    def __init__(self) -> None:
        self.member_ended = False
        """Whether the last step reached the end of a member, its CRC and size verified."""
        self.free_bits: int | None = None
        """At a block's end: how many bits of the last byte used belong to the next block."""
        self._libz = library()
        self._stream = self._libz.stream()
        self._input: bytes = b""
        self._output: ctypes.Array[ctypes.c_char] | None = None
        self._closed = False
        status = self._libz.init(
            ctypes.byref(self._stream),
            ctypes.c_int(_GZIP_ONLY),
            ctypes.c_char_p(self._libz.version()),
            ctypes.c_int(ctypes.sizeof(self._stream)),
        )
        if status != _Z_OK:
            raise MemoryError(f"inflateInit2: {status}")

    def take(self, data: bytes, start: int) -> None:
        """Use `data` from `start` on as the next input."""
        self._input = data
        address = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0
        self._stream.next_in = address + start
        self._stream.avail_in = len(data) - start

    @property
    def unused(self) -> int:
        """Bytes of the input that were not used yet."""
        return int(self._stream.avail_in)

    def into(self, output: bytearray, start: int) -> None:
        """Write to `output` from `start` on; it cannot be resized until the next `into`."""
        self._output = (ctypes.c_char * len(output)).from_buffer(output)
        self._stream.next_out = ctypes.addressof(self._output) + start
        self._stream.avail_out = len(output) - start

    @property
    def room(self) -> int:
        """Bytes that still fit into the output."""
        return int(self._stream.avail_out)

    def step(self) -> bool:
        """Run to the end of a block, of the output or of the input; False for no progress.

        LayerError if the data is damaged.
        """
        return self._inflate(_Z_BLOCK)

    def run(self, unpacked: int, packed: int) -> bool:
        """As `step`, past blocks, for at most so many bytes of output and of input."""
        stream = self._stream
        room, unused = stream.avail_out, stream.avail_in
        stream.avail_out, stream.avail_in = min(room, unpacked), min(unused, packed)
        kept_out, kept_in = room - stream.avail_out, unused - stream.avail_in
        try:
            return self._inflate(_Z_NO_FLUSH)
        finally:
            stream.avail_out += kept_out
            stream.avail_in += kept_in

    def _inflate(self, flush: int) -> bool:
        stream = self._stream
        before = stream.avail_in, stream.avail_out
        status = self._libz.inflate(ctypes.byref(stream), flush)
        if status not in (_Z_OK, _Z_STREAM_END, _Z_BUF_ERROR):
            raise LayerError((stream.msg or b"damaged").decode("ascii", "replace"))
        self.member_ended = status == _Z_STREAM_END
        # zlib.h: 128 after a block (and after the header), 64 in the last one, 0..7 unused bits.
        kind = stream.data_type
        self.free_bits = kind & 7 if kind & 128 and not kind & 64 else None
        return bool(status == _Z_STREAM_END or before != (stream.avail_in, stream.avail_out))

    def next_member(self) -> None:
        """Go on with the header of another member."""
        self._libz.reset(ctypes.byref(self._stream))

    def close(self) -> None:
        """Give the state's memory back; twice is fine."""
        if not self._closed:
            self._closed = True
            self._libz.end(ctypes.byref(self._stream))
            self._output = None

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self.close()
