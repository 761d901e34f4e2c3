"""An open file as fsspec's users expect one: buffered, with a size, and picklable."""

from __future__ import annotations

import io

from pagein.library import BlobFile

_BUFFER = 64 << 10


class CachedFile(io.BufferedReader):
    """A `pagein.BlobFile` for small reads too. A large read asks for what it says, no more."""

    def __init__(self, raw: BlobFile, path: str) -> None:
        """Take `raw` over; `path` is that of its file system."""
        super().__init__(raw, _BUFFER)
        self._blob = raw
        self.path = path

    @property
    def size(self) -> int:
        """Bytes."""
        return self._blob.size

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and 0 <= size < _BUFFER:
            return super().read(size)
        at = self.tell()
        data = self._blob.pread(self.size if size is None or size < 0 else size, at)
        self.seek(at + len(data))
        return data

    def __reduce__(self) -> tuple[object, ...]:
        return _reopen, (self._blob, self.path, self.tell())


def _reopen(raw: BlobFile, path: str, at: int) -> CachedFile:
    file = CachedFile(raw, path)
    file.seek(at)
    return file
