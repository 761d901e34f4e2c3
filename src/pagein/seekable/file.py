"""The content of a compressed file as a Python file."""

from __future__ import annotations

import errno
import io
import os
from typing import Any

from pagein.seekable.content import Content
from pagein.seekable.index import CHUNK, FileIndex


class _Raw(io.RawIOBase):
    def __init__(self, content: Content) -> None:
        super().__init__()
        self.content = content
        self._at = 0

    @property
    def name(self) -> str:
        return self.content.source.name

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._check_open()
        size = self.content.size
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: size}.get(whence)
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
        self._check_open()
        with memoryview(buffer) as whole, whole.cast("B") as view:
            got = self.content.read_into(view, self._at)
        self._at += got
        return got

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")

    def close(self) -> None:
        if not self.closed:
            super().close()
            self.content.close()


class SeekableFile(io.BufferedReader):
    """The content of a compressed file: read-only, seekable, buffered, of known size.

    All that `io.BufferedReader` has, lines included; its position may be used by one thread at a
    time. `pread` has none and is for any number of them. Survives fork, and pickling to processes
    that can open the same file.
    """

    def __init__(self, content: Content, options: dict[str, Any]) -> None:
        """`options` are those of `open`, for a process that gets it pickled."""
        super().__init__(_Raw(content), CHUNK)
        self._content = content
        self._options = options

    @property
    def size(self) -> int:
        """Bytes of content."""
        return self._content.size

    @property
    def index(self) -> FileIndex:
        """What its index says: points, sizes, the file's digest, and where it is."""
        return self._content.index

    def read(self, size: int | None = -1, /) -> bytes:
        """As io.BufferedReader; a large read is one, so that of a URL it is one request."""
        if size is not None and 0 <= size < CHUNK:
            return super().read(size)
        at = self.tell()
        data = self.pread(self.size if size is None or size < 0 else size, at)
        self.seek(at + len(data))
        return data

    def pread(self, length: int, offset: int) -> bytes:
        """Up to `length` bytes at `offset`, fewer at the end only; leaves the position alone.

        Raises OSError: SeekableError when they are not what they were when the index was built.
        """
        if self.closed:
            raise ValueError("I/O operation on closed file")
        if offset < 0 or length < 0:
            raise OSError(errno.EINVAL, "negative offset or length")
        return b"".join(self._content.parts(offset, length))

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self._content.source.identity.source, self._options, self.tell())

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return self.__reduce__()

    def __repr__(self) -> str:
        return f"<pagein.seekable.SeekableFile {self.name!r} of {self.size} bytes>"


def _reopen(source: str, options: dict[str, Any], at: int) -> SeekableFile:
    from pagein.seekable import open as open_file

    file = open_file(source, **options)
    file.seek(at)
    return file
