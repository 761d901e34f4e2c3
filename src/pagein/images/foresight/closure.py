"""All that a command names, and what that names in turn, out of the indexes alone.

In the order in which it is used, as far as that is known: a loader reads a program and its
libraries, breadth first; Python reads a module, then what that imports, then goes on.
"""

from __future__ import annotations

import posixpath
from collections import deque
from collections.abc import Iterator
from typing import Final

from pagein.images.foresight import python
from pagein.images.foresight.command import Command
from pagein.images.foresight.modules import FIRST, Found, Modules
from pagein.images.foresight.places import (
    ACCOUNTS,
    CACHE,
    LARGEST,
    LIBRARIES,
    LIBRARY,
    LOADERS,
    LOCALE,
    SCRIPTS,
)
from pagein.images.foresight.tree import Place, Tree
from pagein.images.layers.names import SOURCE, Named

MOST: Final = 4096
"""Files, and names that are looked up."""
BYTES: Final = 64 << 20
"""Of the files: more than a start reads."""

_PART = 1 << 20  # bytes of a segment that a loader reads
_AROUND = 128 << 10  # what the kernel reads around a fault begins and ends at multiples of it
_ORIGIN = (b"$ORIGIN", b"${ORIGIN}")


class Closure:
    """Of one image's tree; used in one thread at a time. ErofsError, LayerError if it is damaged.

    What was given out once is not given out again.
    """

    def __init__(self, tree: Tree) -> None:
        self.program = b""
        """The interpreter's path, if it is one of Python."""
        self.seen: set[tuple[int, int]] = set()
        """Layers and where in their data blobs those files begin that were given out."""
        self._tree = tree
        self._modules: Modules | None = None
        self._near = b""
        self._run: tuple[Command, bytes] | None = None
        self._sought: set[tuple[bytes, bytes]] = set()
        self._left = BYTES

    def of(self, command: Command) -> Iterator[Place]:
        """What the command will read."""
        yield from self.programs(command)
        yield from self.modules()

    def programs(self, command: Command) -> Iterator[Place]:
        """What it will read before anything of it runs: that is found soonest."""
        place, path = self._program(command)
        for _ in range(SCRIPTS):
            named = None if place is None else self._tree.named(place)
            script = None if named is None else command.script(path, named.loader)
            if place is None or script is None:
                break
            yield from self._take(place)
            command = script
            place, path = self._program(command)
        else:
            place = None
        if place is None:
            return
        for loader in LOADERS:
            yield from self._file(loader)
        yield from self._linked(place, path, LARGEST)
        for also in (CACHE, *ACCOUNTS):
            yield from self._file(also)
        self._run = command, path

    def _program(self, command: Command) -> tuple[Place | None, bytes]:
        for path in command.programs():
            place, real = self._tree.file(path)
            if place is not None:
                return place, real
        return None, b""

    def _file(self, path: bytes) -> Iterator[Place]:
        place, _ = self._tree.file(path)
        if place is not None:
            yield from self._take(place)

    def _take(self, place: Place) -> Iterator[Place]:
        key = place.layer, place.start
        if key in self.seen or len(self.seen) >= MOST or place.length > self._left:
            return
        self.seen.add(key)
        self._left -= place.length
        yield place

    # ---- programs

    def _linked(self, place: Place, path: bytes, whole: int) -> Iterator[Place]:
        """A program or library, and its libraries, breadth first."""
        todo = deque([(place, path)])
        while todo:
            place, path = todo.popleft()
            if (place.layer, place.start) in self.seen:
                continue
            named = self._tree.named(place)
            if place.length <= whole:
                yield from self._take(place)
            else:
                yield from self._parts(place, named)
            whole = LIBRARY
            if named is None:
                continue
            if named.loader.startswith(b"/"):
                yield from self._file(named.loader)
            todo += self._libraries(named, posixpath.dirname(path))

    def _parts(self, place: Place, named: Named | None) -> Iterator[Place]:
        """What its loader reads of a file that is too large to be wanted whole."""
        self.seen.add((place.layer, place.start))
        for offset, length in () if named is None else named.loaded:
            start = offset // _AROUND * _AROUND
            end = min(-(-(offset + min(length, _PART)) // _AROUND) * _AROUND, place.length)
            if start < end:
                yield Place(place.layer, place.start + start, end - start)

    def _libraries(self, named: Named, origin: bytes) -> Iterator[tuple[Place, bytes]]:
        for name in named.names:
            if (name, origin) in self._sought or len(self._sought) >= MOST:
                continue
            self._sought.add((name, origin))
            place, path = self._library(name, named.directories, origin)
            if place is not None:
                yield place, path

    def _library(
        self, name: bytes, directories: tuple[bytes, ...], origin: bytes
    ) -> tuple[Place | None, bytes]:
        if b"/" in name:
            return self._tree.file(name)
        for directory in (*directories, *LIBRARIES):
            for word in _ORIGIN:
                directory = directory.replace(word, origin)
            if name in self._tree.names(directory):
                place, real = self._tree.file(directory + b"/" + name)
                if place is not None:
                    return place, real
        return None, b""

    # ---- modules of Python

    def modules(self) -> Iterator[Place]:
        """After `programs`: what it will read then."""
        if self._run is None:
            return
        command, program = self._run
        yield from self._python(command, program)
        for also in command.files():
            yield from self._file(also)

    def _python(self, command: Command, program: bytes) -> Iterator[Place]:
        try:
            self._modules = Modules(self._tree, program)
        except ValueError:
            return
        self.program = program
        for path in LOCALE:
            yield from self._file(path)
        for path in self._modules.settings():
            yield from self._file(path)
        yield from self._imports(FIRST, b"")
        for path in command.files():
            place, real = self._tree.file(path)
            named = None if place is None else self._tree.named(place)
            if place is not None and named is not None and named.kind == SOURCE:
                yield from self._take(place)
                self._near = posixpath.dirname(real)
                yield from self._imports(named.names, self._near)
        names = (command.after(b"-m"), *python.of_script(command.after(b"-c")))
        yield from self._imports(tuple(filter(None, names)), b"")

    def _imports(self, names: tuple[bytes, ...], package: bytes) -> Iterator[Place]:
        todo: list[Found | tuple[bytes, bytes]] = [(name, package) for name in reversed(names)]
        while todo:
            each = todo.pop()
            if not isinstance(each, Found):
                todo.extend(reversed(self._find(*each)))
            elif (each.place.layer, each.place.start) in self.seen:
                continue
            elif each.native:
                yield from self._linked(each.place, each.path, LIBRARY)
            else:
                yield from self._take(each.place)
                named = None if each.source is None else self._tree.named(each.source)
                directory = posixpath.dirname(each.path)
                if named is not None:
                    todo.extend((name, directory) for name in reversed(named.names))

    def _find(self, name: bytes, package: bytes) -> list[Found]:
        package = package if name.startswith(b".") else b""
        if self._modules is None or (name, package) in self._sought or len(self._sought) >= MOST:
            return []
        self._sought.add((name, package))
        if package:
            return self._modules.beside(name, package)
        return self._modules.find(name, self._near)
