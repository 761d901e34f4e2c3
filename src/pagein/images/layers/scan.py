"""Finds what a layer's programs and modules name while the layer is indexed.

Little of it is looked at: how a file begins, lines with `import` of Python's sources, and of ELF
files what their loader reads first. What cannot be found so is not in the index.
"""

from __future__ import annotations

from typing import Final

from pagein.images.foresight import elf
from pagein.images.foresight.imports import imported
from pagein.images.layers.entry import Entry
from pagein.images.layers.names import PROGRAM, SOURCE, Named

LARGE: Final = 6 << 20
"""Bytes of an ELF file of which it is noted what its loader reads: smaller ones come whole."""

_SUFFIX, _SCRIPT = b".py", b"#!"
_TESTS = (b"/tests/", b"/test/")
_SOURCE = 1 << 20  # bytes of a source that are looked at
_HEAD = 4096  # bytes of an ELF file that have its segments
_START = 4 << 20  # bytes of one that are kept: nearly always its names are there
_DYNAMIC = 4096
_LINE = 256


class Scanner:
    """Is told of each file (`file`), and of its data where it `wants` it."""

    def __init__(self) -> None:
        self.found: list[tuple[int, Named]] = []
        """Where they begin in the data blob, ascending, and what they name."""
        self._path = b""
        self._start = self._size = self._left = 0
        self._next = -1  # offset in the tar of what comes next of the file
        self._begun = False
        self._elf: _Program | None = None
        self._source = bytearray()

    def file(self, entry: Entry, start: int) -> None:
        """A file follows whose data is one piece, from `start` in the blob."""
        self._path, self._start = entry.path, start
        self._size = self._left = entry.size
        self._next = entry.segments[0].position if len(entry.segments) == 1 else -1
        self._begun = False

    def wants(self, position: int, view: memoryview) -> bool:
        """Whether the data at `position` in the tar is of use."""
        if position != self._next:
            return False
        if self._begun or len(view) < len(elf.MAGIC):
            return True
        return self._is_of_use(bytes(view[: len(elf.MAGIC)]))

    def _is_of_use(self, head: bytes) -> bool:
        if head == elf.MAGIC or head.startswith(_SCRIPT):
            return True
        return self._path.endswith(_SUFFIX) and not any(each in self._path for each in _TESTS)

    def take(self, position: int, view: memoryview) -> None:
        """Look at data of the file. What is found does not depend on how it is cut."""
        self._next = position + len(view)
        if not self._begun:
            self._begun, self._source = True, bytearray()
            is_elf = bytes(view[: len(elf.MAGIC)]) == elf.MAGIC
            if len(view) == self._size <= _START:  # as nearly all are
                self._next = -1
                if is_elf:
                    self._program(lambda offset, length: bytes(view[offset : offset + length]))
                else:
                    self._script(bytes(view[:_SOURCE]))
                return
            self._elf = _Program(self._size) if is_elf else None
        if self._elf is not None:
            self._elf.take(view)
        else:
            self._gather(view)
        self._left -= len(view)
        if self._left <= 0:
            self._end()

    def _gather(self, view: memoryview) -> None:
        known = len(self._source)
        self._source += view[: _SOURCE - known]
        if known < len(elf.MAGIC) <= len(self._source):  # now it shows what it is
            head = bytes(self._source[: len(elf.MAGIC)])
            if head == elf.MAGIC:
                self._elf = _Program(self._size)
                self._elf.take(memoryview(bytes(self._source[:known]) + view))
            elif not self._is_of_use(head):
                self._next = -1

    def _end(self) -> None:
        self._next = -1
        if self._elf is not None:
            self._program(self._elf.read)
        elif self._is_of_use(bytes(self._source[: len(elf.MAGIC)])):
            self._script(bytes(self._source))

    def _program(self, read: elf.Read) -> None:
        loader, libraries, directories, loaded = elf.names(read)
        if self._size <= LARGE:
            loaded = ()
        if loader or libraries or loaded:
            named = Named(PROGRAM, loader, libraries, directories, loaded)
            self.found.append((self._start, named))

    def _script(self, source: bytes) -> None:
        line = source[:_LINE].partition(b"\n")[0] if source.startswith(_SCRIPT) else b""
        python = self._path.endswith(_SUFFIX) or b"python" in line
        names = imported(source) if python else ()
        if line or names:
            self.found.append((self._start, Named(SOURCE if python else b"", line, names)))


class _Program:
    """What is kept of an ELF file that comes by in pieces."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._at = 0
        self._head = bytearray()
        self._dynamic = bytearray()
        self._place: int | None = None
        self._looked = False

    def take(self, view: memoryview) -> None:
        """Its next bytes."""
        begin = self._at
        self._at += len(view)
        self._head += view[: max(0, _START - len(self._head))]
        if not self._looked and self._at >= min(_HEAD, self.size):
            self._looked = True
            head = bytes(self._head[:_HEAD])
            self._place = elf.dynamic(lambda offset, length: head[offset : offset + length])
        if self._place is not None and begin <= self._place + len(self._dynamic) < self._at:
            skip = self._place + len(self._dynamic) - begin
            self._dynamic += view[skip : skip + _DYNAMIC - len(self._dynamic)]

    def read(self, offset: int, length: int) -> bytes:
        """What is known of it; less where it is not."""
        if offset + length <= len(self._head):
            return bytes(self._head[offset : offset + length])
        if self._place is not None and offset >= self._place and self._dynamic:
            return bytes(self._dynamic[offset - self._place :][:length])
        return bytes(self._head[offset : offset + length])
