"""Files of known size that are read at random: what `io` asks of each of them."""

from __future__ import annotations

import errno
import io
import os
from typing import Any


class SizedRawFile(io.RawIOBase):
    """Read-only and seekable; who derives from it says how large it is and reads a range.

    The position is for one thread at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self._at = 0

    @property
    def size(self) -> int:
        """Bytes."""
        raise NotImplementedError

    def _read_at(self, view: memoryview, offset: int) -> int:
        """Fill `view` from `offset` on; fewer bytes than that at the end of the file only."""
        raise NotImplementedError

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._check_open()
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}.get(whence)
        if base is None:
            raise ValueError(f"invalid whence ({whence}, should be 0, 1 or 2)")
        if base + offset < 0:
            raise OSError(errno.EINVAL, "negative seek position")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        self._check_open()
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`, short at the end of the file only. Raises OSError."""
        self._check_open()
        with memoryview(buffer) as whole, whole.cast("B") as view:
            got = self._read_at(view, self._at)
        self._at += got
        return got

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")


def check_range(length: int, offset: int) -> None:
    """Raise EINVAL for what no `pread` can mean."""
    if offset < 0 or length < 0:
        raise OSError(errno.EINVAL, "negative offset or length")
