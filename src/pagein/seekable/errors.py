"""What goes wrong with a compressed file or its index."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from pagein.images.layers.errors import LayerError
from pagein.images.layers.format import Compression


class SeekableError(OSError):
    """A file cannot be read at random, or what it gave is wrong; `strerror` is one line."""

    def __init__(self, text: str, number: int = errno.EIO) -> None:
        super().__init__(number, text)

    def __reduce__(self) -> tuple[type[SeekableError], tuple[str | None, int | None]]:
        return type(self), (self.strerror, self.errno)


class BadIndex(SeekableError):
    """An index is damaged, or that of another file: `rebuild=True` makes a new one."""


class NoIndex(SeekableError):
    """There is no index, and none was to be built."""


def check_library(name: str, compression: Compression) -> None:
    """SeekableError if what decodes the file called `name` is not installed."""
    if compression is Compression.ZSTD:
        from pagein.images.layers.zstd.library import library

        with told_of(name):
            library()


@contextmanager
def told_of(name: str, kind: type[SeekableError] = SeekableError) -> Iterator[None]:
    """LayerErrors become errors that name the file."""
    try:
        yield
    except LayerError as problem:
        text = str(problem)
        raise kind(text if text.startswith(name) else f"{name}: {text}") from None
