"""zlib's inflate(), stopping at each deflate block.

Python's zlib module cannot stop there, the library can (Z_BLOCK). It is the same library; a call
through ctypes for each block of some 40 KB of output costs nothing, and it drops the GIL.
"""

from __future__ import annotations

import ctypes
import functools

from pagein.images.layers.errors import LayerError

WINDOW = 32 << 10

_Z_BLOCK = 5
_Z_OK, _Z_STREAM_END, _Z_BUF_ERROR = 0, 1, -5
_GZIP_ONLY = 31  # windowBits: 15, plus 16 for gzip


class _Stream(ctypes.Structure):
    """z_stream of zlib.h."""

    _fields_ = (
        ("next_in", ctypes.c_void_p),
        ("avail_in", ctypes.c_uint),
        ("total_in", ctypes.c_ulong),
        ("next_out", ctypes.c_void_p),
        ("avail_out", ctypes.c_uint),
        ("total_out", ctypes.c_ulong),
        ("msg", ctypes.c_char_p),
        ("state", ctypes.c_void_p),
        ("zalloc", ctypes.c_void_p),
        ("zfree", ctypes.c_void_p),
        ("opaque", ctypes.c_void_p),
        ("data_type", ctypes.c_int),
        ("adler", ctypes.c_ulong),
        ("reserved", ctypes.c_ulong),
    )


@functools.cache
def _libz() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libz.so.1")
    except OSError:
        raise LayerError("libz.so.1 is missing: install zlib1g (Debian) or zlib") from None
    library.zlibVersion.restype = ctypes.c_char_p
    for name, more in (("inflate", [ctypes.c_int]), ("inflateReset", []), ("inflateEnd", [])):
        function = getattr(library, name)
        function.argtypes = [ctypes.POINTER(_Stream), *more]
        function.restype = ctypes.c_int
    return library


class Inflate:
    """One inflate state for gzip members. `take` gives it input, `step` runs it into `output`."""

    def __init__(self) -> None:
        self.member_ended = False
        """Whether the last step reached the end of a member, its CRC and size verified."""
        self.free_bits: int | None = None
        """At a block's end: how many bits of the last byte used belong to the next block."""
        self._libz = _libz()
        self._stream = _Stream()
        self._input: bytes = b""
        self._output: ctypes.Array[ctypes.c_char] | None = None
        self._closed = False
        status = self._libz.inflateInit2_(
            ctypes.byref(self._stream),
            _GZIP_ONLY,
            self._libz.zlibVersion(),
            ctypes.c_int(ctypes.sizeof(_Stream)),
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
        stream = self._stream
        before = stream.avail_in, stream.avail_out
        status = self._libz.inflate(ctypes.byref(stream), _Z_BLOCK)
        if status not in (_Z_OK, _Z_STREAM_END, _Z_BUF_ERROR):
            raise LayerError((stream.msg or b"damaged").decode("ascii", "replace"))
        self.member_ended = status == _Z_STREAM_END
        # zlib.h: 128 after a block (and after the header), 64 in the last one, 0..7 unused bits.
        kind = stream.data_type
        self.free_bits = kind & 7 if kind & 128 and not kind & 64 else None
        return bool(status == _Z_STREAM_END or before != (stream.avail_in, stream.avail_out))

    def next_member(self) -> None:
        """Go on with the header of another member."""
        self._libz.inflateReset(ctypes.byref(self._stream))

    def close(self) -> None:
        """Give the state's memory back; twice is fine."""
        if not self._closed:
            self._closed = True
            self._libz.inflateEnd(ctypes.byref(self._stream))
            self._output = None

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self.close()
