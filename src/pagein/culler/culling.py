"""How much has to go: until the run marks are reached, or nothing is left that may go."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from pagein.culler.evict import GONE, IN_USE, Evictor
from pagein.culler.idle import CacheFile, files, graves, remove, size_of
from pagein.protocol.space import Limits, Marks


@dataclass(frozen=True, slots=True)
class Free:
    """What is free on a file system."""

    files: int
    blocks: int
    all_files: int
    all_blocks: int
    block: int
    """Bytes of a block."""

    @classmethod
    def of(cls, directory: bytes) -> Free:
        """Ask the file system. Blocks."""
        found = os.statvfs(directory)
        return cls(found.f_ffree, found.f_bavail, found.f_files, found.f_blocks, found.f_frsize)

    def with_more(self, files: int, size: int) -> Free:
        """The same with so many files and bytes more."""
        blocks = self.blocks + size // self.block
        return Free(self.files + files, blocks, self.all_files, self.all_blocks, self.block)

    def reaches_run(self, limits: Limits) -> bool:
        """Whether both run marks are reached."""
        return Marks.of(limits, self.all_files, self.all_blocks).runs(self.files, self.blocks)

    @property
    def percent(self) -> float:
        """Of the blocks."""
        return 100 * self.blocks / max(self.all_blocks, 1)

    @property
    def percent_files(self) -> float:
        """Of the files; 100 on a file system that does not count them."""
        return 100 * self.files / self.all_files if self.all_files else 100.0


@dataclass(slots=True)
class Outcome:
    """What came of culling, or would."""

    culled: list[CacheFile] = field(default_factory=list)
    in_use: list[CacheFile] = field(default_factory=list)
    """What would have gone before others that went, and was in use."""
    buried: int = 0
    """Graves removed."""
    freed: int = 0
    """Bytes that all of it had on the disk."""


def cull(
    directory: bytes,
    evictor: Evictor,
    enough: Callable[[Outcome], bool],
    *,
    dry_run: bool = False,
    tell: Callable[[CacheFile], None] = lambda _: None,
) -> Outcome:
    """Empty the graveyard, then take files away, least recently used first, until `enough`.

    `tell` hears of each file that goes. With `dry_run` nothing goes. Raises OSError: no cache
    there, or somebody else's. Blocks.
    """
    outcome = Outcome()
    for grave in graves(directory):
        outcome.freed += size_of(grave)
        outcome.buried += 1
        if not dry_run:
            remove(grave)
    take = evictor.check if dry_run else evictor.evict
    for file in files(directory):
        if enough(outcome):
            break
        try:
            take(file.path)
        except OSError as problem:
            if problem.errno in IN_USE:
                outcome.in_use.append(file)
            elif problem.errno not in GONE:
                raise
            continue
        outcome.culled.append(file)
        outcome.freed += file.held
        tell(file)
    return outcome


def until_run(directory: bytes, limits: Limits) -> Callable[[Outcome], bool]:
    """Enough is when both run marks are reached.

    By what the file system says, or by what went: some give blocks back a while later.
    """
    before = Free.of(directory)

    def enough(outcome: Outcome) -> bool:
        went = before.with_more(len(outcome.culled), outcome.freed)
        return went.reaches_run(limits) or Free.of(directory).reaches_run(limits)

    return enough
