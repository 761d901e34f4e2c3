"""How much room a cache leaves on its file system: limits, marks, and the line that tells of them.

Three limits for free files and three for free blocks, in per cent of the whole file system: below
`stop` nothing is added, below `cull` the daemon is asked to make room, from `run` on of both it
may rest. What is free is looked at when somebody writes or creates, never by a clock (facts
cachefiles-kernel 2.1, 3.1, 11).
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Final

from pagein.protocol.commands import CommandError

LIMITS: Final[Mapping[str, int]] = MappingProxyType(
    {"brun": 7, "bcull": 5, "bstop": 1, "frun": 7, "fcull": 5, "fstop": 1}
)
"""The commands that set a limit, and what it is before: per cent of blocks (b) or files (f)."""

_LINE: Final = re.compile(
    rb"cull=([01]) frun=([0-9a-f]+) fcull=([0-9a-f]+) fstop=([0-9a-f]+) brun=([0-9a-f]+)"
    rb" bcull=([0-9a-f]+) bstop=([0-9a-f]+) freleased=([0-9a-f]+) breleased=([0-9a-f]+)"
)


class Limits:
    """The six limits of one open device, which `bind` makes marks of."""

    def __init__(self, percent: Mapping[str, int] = LIMITS) -> None:
        """Begin with those; the kernel's own unless told."""
        self.percent = dict(percent)

    def set(self, verb: str, percent: int) -> None:
        """Set one of them, as long as 0 <= stop < cull < run < 100 holds with the others.

        Raises CommandError (EINVAL) otherwise: to raise all, begin with run; to lower, with stop.
        """
        kind = verb[0]
        run, cull, stop = (self.percent[kind + name] for name in ("run", "cull", "stop"))
        allowed = {
            "run": cull < percent < 100,
            "cull": stop < percent < run,
            "stop": 0 <= percent < cull,
        }
        if not allowed[verb[1:]]:
            raise CommandError(
                errno.EINVAL,
                f"{verb} {percent}%: 0 <= {kind}stop < {kind}cull < {kind}run < 100 must hold,"
                f" and they are {stop}, {cull} and {run}",
            )
        self.percent[verb] = percent


@dataclass(frozen=True, slots=True)
class Marks:
    """The limits as numbers of free files and of free blocks of the file system."""

    frun: int
    fcull: int
    fstop: int
    brun: int
    bcull: int
    bstop: int

    @classmethod
    def of(cls, limits: Limits, files: int, blocks: int) -> Marks:
        """The marks on a file system of so many files and blocks: whole per cents of it."""
        whole = {"f": files // 100, "b": blocks // 100}
        names = (field.name for field in fields(cls))
        return cls(**{name: whole[name[0]] * limits.percent[name] for name in names})

    def stops(self, files: int, blocks: int) -> bool:
        """Whether with so much free nothing may be added."""
        return files < self.fstop or blocks < self.bstop

    def culls(self, files: int, blocks: int, *, culling: bool) -> bool:
        """Whether with so much free the daemon should make room; `culling` is what it was."""
        if files < self.fcull or blocks < self.bcull:
            return True
        return culling and not self.runs(files, blocks)

    def runs(self, files: int, blocks: int) -> bool:
        """Whether so much is free that making room may end."""
        return files >= self.frun and blocks >= self.brun


@dataclass(frozen=True, slots=True)
class State:
    """What a read() of the device says in the original mode."""

    culling: bool
    marks: Marks
    freleased: int
    """Objects given back since the last read()."""
    breleased: int
    """Blocks of 512 bytes that those have on the disk."""

    def encode(self) -> bytes:
        """The line: hexadecimal numbers, no newline."""
        marks = " ".join(f"{f.name}={getattr(self.marks, f.name):x}" for f in fields(Marks))
        released = f"freleased={self.freleased:x} breleased={self.breleased:x}"
        return f"cull={int(self.culling)} {marks} {released}".encode()

    @classmethod
    def decode(cls, line: bytes) -> State:
        """What a line says. Raises ValueError if it is none."""
        found = _LINE.fullmatch(line)
        if found is None:
            raise ValueError(f"not the state of a cache: {line[:100]!r}")
        culling, *marks, files, blocks = (int(number, 16) for number in found.groups())
        return cls(bool(culling), Marks(*marks), files, blocks)
