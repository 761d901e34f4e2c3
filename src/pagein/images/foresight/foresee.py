"""Follows what is written in programs and modules to what will be read next.

A program and its libraries are wanted whole: nearly all of them is touched. What a module imports
is looked into at once where it is in memory, since nobody hears of reads of that; what is not is
asked for, and looked into when it is read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol, TypeVar

from pagein.images.foresight import elf, python
from pagein.images.foresight.command import Command
from pagein.images.foresight.modules import FIRST, Modules
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

log = logging.getLogger("pagein.daemon")

_FIRST, _MODULES, _LAST = 0, LARGEST + 1, LARGEST + 2
"""Ranks: what says what else is wanted; then programs, by their size; then modules that are looked
into, and those that are not. They come in the order in which they are read, more or less: a link
that is always busy is late with what comes too soon."""
_DEPTH = 2
"""How far what a command names is followed before it is read."""
_LEAST = 64  # bytes of a file that is looked into
_MODULE = 256 << 10  # bytes of a module that are looked at
_MOST = 4096  # files that are looked at

T = TypeVar("T")


class Source(Protocol):
    """The data blob of a layer; offsets and lengths in bytes."""

    async def read(self, start: int, length: int) -> bytes:
        """Bytes of it, or OSError."""

    async def expect(self, start: int, end: int, rank: int, *, whole: bool) -> None:
        """They will be read; the lowest `rank` first. Returns when they are here.

        `whole`: nearly all of them, so they can go into the cache at once.
        """

    def file_at(self, start: int, most: int) -> int:
        """Bytes of the file whose data begins there, at most `most`; may wait for the disk."""


class Foresight:
    """One image's; `sources` by the numbers of layers. Belongs to a loop; `close` it."""

    def __init__(self, make: Callable[[], Tree], sources: Mapping[int, Source]) -> None:
        self._make = make
        self._sources = sources
        self._tree: Tree | None = None
        self._modules: Modules | None = None
        self._interpreter = b""
        self._seen: set[tuple[int, int]] = set()
        self._wanted: set[tuple[Place, bool]] = set()
        self._programs: set[Place] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._one = asyncio.Lock()

    def begin(self, command: Command) -> None:
        """Look into what a command names."""
        self._own(self._command(command))

    def known(self, program: bytes, seen: set[tuple[int, int]]) -> None:
        """All of that is known: what `seen` names, layers and where files begin, and this program.

        What is left is what somebody reads that is not among that.
        """
        self._interpreter = program
        self._seen |= seen

    def touched(self, layer: int, start: int, end: int) -> None:
        """Somebody waits for that range of a layer's data blob."""
        if (layer, start) not in self._seen and len(self._seen) < _MOST:
            self._seen.add((layer, start))
            self._own(self._look(layer, start, 1))

    async def close(self) -> None:
        """End what runs."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- programs

    async def _command(self, command: Command, scripts: int = 0) -> None:
        for path in command.programs():
            place, real = await self._file(path)
            if place is not None:
                break
        else:
            return
        for also in (*ACCOUNTS, CACHE, *command.files()):
            await self._also(also)
        for loader in LOADERS:
            await self._library([loader], _FIRST)
        script = command.script(path, await self._read(place, 0, 256))
        if script is None:
            self._own(self._program(place, _FIRST, LARGEST))
            await self._python(command, real)
        elif scripts < SCRIPTS:
            await self._want(place, _FIRST)
            await self._command(script, scripts + 1)

    async def _program(self, place: Place, rank: int, whole: int) -> None:
        """A program or library, whole if it has at most `whole` bytes, and what it names."""
        source = self._sources.get(place.layer)
        if place in self._programs or source is None:
            return
        self._programs.add(place)
        self._seen.add((place.layer, place.start))
        if place.length <= whole:
            # The small ones first: a loader looks at all of them before the program runs.
            self._own(self._want(place, rank + place.length, whole=True))
        found = await self._parsed(place, rank)
        if found.loader:
            await self._library([found.loader], rank)
        for name in found.libraries:
            beside = [directory + b"/" + name for directory in LIBRARIES]
            await self._library([name] if b"/" in name else beside, rank)

    async def _library(self, paths: list[bytes], rank: int) -> None:
        for path in paths:
            place, _ = await self._file(path)
            if place is not None:
                self._own(self._program(place, rank, LIBRARY))
                return

    async def _parsed(self, place: Place, rank: int) -> elf.Names:
        """`elf.names` of a file of which only that is fetched for it which it looks at."""
        known: dict[tuple[int, int], bytes] = {}
        missing: list[tuple[int, int]] = []

        def read(offset: int, length: int) -> bytes:
            length = max(0, min(length, place.length - offset))
            if (offset, length) not in known:
                missing.append((offset, length))
                raise _MissingError
            return known[offset, length]

        while True:
            try:
                return elf.names(read)
            except _MissingError:
                offset, length = missing.pop()
                known[offset, length] = await self._read(place, offset, length, rank)

    # ---- modules of Python

    async def _python(self, command: Command, program: bytes) -> None:
        try:
            self._modules = await self._ask(lambda tree: Modules(tree, program))
        except ValueError:
            return
        for path in LOCALE:
            await self._also(path)
        names = (*FIRST, command.after(b"-m"), *python.of_script(command.after(b"-c")))
        await self._imports(b"", tuple(filter(None, names)), _DEPTH)
        for path in command.files():
            place, real = await self._file(path)
            if place is not None:
                await self._want(place, _FIRST)
                data = await self._read(place, 0, _MODULE)
                await self._imports(real.rpartition(b"/")[0], python.of_script(data), _DEPTH)

    async def _imports(self, directory: bytes, names: tuple[bytes, ...], depth: int) -> None:
        modules = self._modules
        if modules is None or directory.endswith(b"/encodings"):  # a list of all there are
            return
        found = await self._ask(
            lambda _: [each for name in names for each in modules.find(name, directory)]
        )
        for place, native in dict.fromkeys((each.place, each.native) for each in found):
            if native:
                self._own(self._program(place, _LAST, LIBRARY))
            elif (place, False) not in self._wanted:
                self._own(self._follow(place, depth))

    async def _follow(self, place: Place, depth: int) -> None:
        await self._want(place, _MODULES if depth else _LAST)
        if depth and len(self._seen) < _MOST and (place.layer, place.start) not in self._seen:
            self._seen.add((place.layer, place.start))
            await self._look(place.layer, place.start, depth - 1)

    # ---- what is read

    async def _look(self, layer: int, start: int, depth: int) -> None:
        """Look into the file that begins there, and into those that it names, so deep."""
        source = self._sources.get(layer)
        if source is None:
            return
        size = await asyncio.to_thread(source.file_at, start, LARGEST)
        if size < _LEAST:
            return
        place = Place(layer, start, size)
        head = await self._read(place, 0, len(elf.MAGIC))
        if head == elf.MAGIC:
            await self._program(place, _FIRST, LIBRARY)
            return
        if self._modules is None and self._interpreter:
            program, self._interpreter = self._interpreter, b""
            self._modules = await self._ask(lambda tree: Modules(tree, program))
        if python.is_compiled(head) and self._modules is not None:
            data = await self._read(place, 0, _MODULE)
            await self._imports(*await asyncio.to_thread(python.of_compiled, data), depth)

    async def _also(self, path: bytes) -> None:
        """A file that is read beside."""
        place, _ = await self._file(path)
        if place is not None:
            self._own(self._want(place, _FIRST))

    async def _want(self, place: Place, rank: int, *, whole: bool = False) -> None:
        source = self._sources.get(place.layer)
        if (place, whole) in self._wanted or source is None:
            return
        self._wanted.add((place, whole))
        await source.expect(place.start, place.start + place.length, rank, whole=whole)

    async def _read(self, place: Place, offset: int, length: int, rank: int = _FIRST) -> bytes:
        """Some of a file, in its turn."""
        source = self._sources.get(place.layer)
        start, length = place.start + offset, min(length, place.length - offset)
        if source is None or length <= 0:
            return b""
        await source.expect(start, start + length, rank, whole=False)
        return await source.read(start, length)

    # ---- odds and ends

    async def _file(self, path: bytes) -> tuple[Place | None, bytes]:
        return await self._ask(lambda tree: tree.file(path))

    async def _ask(self, question: Callable[[Tree], T]) -> T:
        """An answer of the tree, which is one thread's at a time."""

        def ask() -> T:
            if self._tree is None:
                self._tree = self._make()
            return question(self._tree)

        async with self._one:
            return await asyncio.to_thread(ask)

    def _own(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        problem = None if task.cancelled() else task.exception()
        if isinstance(problem, OSError | ValueError):  # whoever reads it will meet it
            log.debug("foresight: %s", problem)
        elif problem is not None:
            log.error("foresight", exc_info=problem)


class _MissingError(Exception):
    """Something has to be fetched first."""
