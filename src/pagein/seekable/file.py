"""The content of a compressed file as a Python file."""

from __future__ import annotations

import io
from typing import Any

from pagein.rawfile import SizedRawFile, check_range
from pagein.seekable.content import Content
from pagein.seekable.index import CHUNK, FileIndex


class _Raw(SizedRawFile):
    def __init__(self, content: Content) -> None:
        super().__init__()
        self.content = content

    @property
    def name(self) -> str:
        return self.content.source.name

    @property
    def size(self) -> int:
        return self.content.size

    def _read_at(self, view: memoryview, offset: int) -> int:
        return self.content.read_into(view, offset)

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
        check_range(length, offset)
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
