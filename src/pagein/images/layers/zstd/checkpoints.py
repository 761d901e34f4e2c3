"""Points in the middle of frames: found while the layer comes by, and tried before they are kept.

`Frame` is told of each block and of all output. A point that was begun waits for as much output
as the frame's window has, since no later block can refer to what lies before the point; then
`make` finds out what of the window is needed, and decodes all that with nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pagein.images.layers.point import Point
from pagein.images.layers.zstd import patch, state, synthetic
from pagein.images.layers.zstd.frames import END, Block
from pagein.images.layers.zstd.library import Damaged, library
from pagein.images.layers.zstd.patch import Patches, Splicer, Tables, Unfit
from pagein.images.layers.zstd.planes import Planes
from pagein.images.layers.zstd.sections import Sections
from pagein.images.layers.zstd.state import State
from pagein.images.layers.zstd.synthetic import JUNK, Reps

_GAP = 16  # bytes between two ranges that are kept as well: less than naming both
_TRIED = 1 << 20  # bytes of blocks that are tried where none refers to any other
_ALWAYS = 16  # the last bytes of a window: stencils have something else there

Piece = tuple[int, bytes]
"""Offset in the tar, and the bytes there."""


class Checkpoint:
    """A point, and what is known of what follows it."""

    def __init__(self, out: int, at: int, window: int, checked: bool, tables: Tables) -> None:
        """Before byte `at` of the layer; `out` is its offset in the tar."""
        self.out = out
        self.at = at
        self.end = out + window
        """Up to where in the tar blocks may refer to what lies before it."""
        self.reps: Reps = synthetic.START
        self.before: Sequence[Piece] = ()
        """What the window holds, and maybe more."""
        self.patches = Patches(at, tables)
        self.collecting = True
        """Whether `end` is still ahead."""
        self.dropped = False
        self.made: State | None = None
        self._window = window
        self._checked = checked
        self._tables = tables
        self._blocks: list[tuple[Block, Sections | None]] = []

    def see(self, block: Block, parts: Sections | None) -> None:
        """A block behind it."""
        try:
            if not self.patches.settled:
                self.patches.see(block, parts)
        except Unfit:
            self.dropped = True
        if self.collecting:
            self._blocks.append((block, parts))

    @property
    def known(self) -> bool:
        """Whether it is one, or will never be."""
        return self.dropped or (self.made is not None and self.patches.settled)

    def make(self, planes: Callable[[int], Planes], after: Sequence[Piece]) -> None:
        """All blocks up to `end` have been seen; `after` is what they gave.

        If it cannot be made it is dropped.
        """
        blocks, self._blocks = self._blocks, []
        before, self.before = self.before, ()
        try:
            if not self.dropped:
                self.made = self._make(blocks, planes, before, after)
        except (Unfit, Damaged):
            self.dropped = True

    def point(self) -> Point | None:
        """What is kept of it; None if it was dropped."""
        made = self.made
        if self.dropped or made is None or len(made.splices) != len(self.patches.splices):
            return None  # a block needs a change that was not tried
        return Point(self.out, self.at * 8, state.pack(made))

    def _make(
        self,
        blocks: Sequence[tuple[Block, Sections | None]],
        planes: Callable[[int], Planes],
        before: Sequence[Piece],
        after: Sequence[Piece],
    ) -> State:
        have = min(self._window, self.out - before[0][0]) if before else 0
        size = sum(len(data) for _, data in after)
        ranges = self._ranges(blocks, planes, have, size)
        length = max(have - ranges[0][0] if ranges else 0, *self.reps)
        runs = [(start - have + length, end - have + length) for start, end in ranges]
        base = self.out - have
        kept = b"".join(_cut(before, [(base + start, base + end) for start, end in ranges]))
        splices = tuple(self.patches.splices)
        made = State(self._checked, self._window, self.reps, length, splices, runs, kept)
        if _refers(blocks):
            right = _right(made, [block for block, _ in blocks], after, size)
        else:  # to nothing: what has to be tried is what changes
            changed = self.at + (splices[-1].at if splices else 0)
            first = [block for block, _ in blocks if block.at - self.at < _TRIED]
            first += [block for block, _ in blocks[len(first) :] if block.at <= changed]
            right = _right(made, first, after, None if len(first) < len(blocks) else size)
        if not right:
            raise Unfit("it gives something else")
        return made

    def _ranges(
        self,
        blocks: Sequence[tuple[Block, Sections | None]],
        planes: Callable[[int], Planes],
        have: int,
        size: int,
    ) -> list[tuple[int, int]]:
        """What of the `have` bytes before it is needed, as ranges of them."""
        if not _refers(blocks):
            return []
        body = _stencils(blocks, self.reps, self._tables)
        labels = planes(have)
        shift = have - labels.size - JUNK  # from places to the bytes before the point
        found: list[tuple[int, int]] = []
        before = -1 - _GAP
        for start, end in labels.sources(body, JUNK, size, _GAP):
            if start <= before + _GAP and found:
                found[-1] = found[-1][0], end + shift
            elif end + shift > 0:
                found.append((start + shift, end + shift))
            before = end
        last = have - _ALWAYS
        while found and found[-1][1] + _GAP >= last:
            last = min(last, found.pop()[0])
        found.append((last, have))
        found[0] = max(0, found[0][0]), found[0][1]
        return found if have else []


def _stencils(
    blocks: Sequence[tuple[Block, Sections | None]], reps: Reps, tables: Tables
) -> Iterator[bytes]:
    yield synthetic.setting(reps)
    first = True
    for block, taken_apart in blocks:
        if taken_apart is None:
            yield synthetic.blank(block.size)
            continue
        sequences = taken_apart.sequences
        if first and taken_apart.amount:
            sequences, first = patch.with_tables(taken_apart, tables), False
        yield synthetic.stencil(taken_apart, sequences)


def _refers(blocks: Sequence[tuple[Block, Sections | None]]) -> bool:
    """Whether one of them copies anything from anywhere."""
    return any(parts is not None and parts.amount for _, parts in blocks)


def _right(made: State, blocks: Sequence[Block], after: Sequence[Piece], size: int | None) -> bool:
    """Whether entering there gives what the blocks really gave: all `size` bytes of `after`.

    None if `blocks` are only those that gave the first of it.
    """
    splicer = Splicer(made.splices)
    parts = [synthetic.header(made.window, size)]
    for block in blocks:
        head = (int.from_bytes(block.head, "little") & ~1).to_bytes(3, "little")
        parts.append(splicer.feed(head + block.payload))
    parts.append(END)
    frame = b"".join(parts)
    del parts  # as large again
    dictionary = library().dictionary(made.dictionary())
    if size is None:
        output = library().stream(dictionary).decompress(frame)
    else:
        output = library().decode(frame, dictionary)
    at = 0
    for _, data in after:
        if not output.startswith(data[: len(output) - at], at):
            return False
        at += len(data)
        if at >= len(output):
            break
    return at == len(output) if size is not None else 0 < len(output) <= at


def _cut(pieces: Sequence[Piece], ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """What `pieces` have in `ranges`, both ascending."""
    if not ranges:
        return []
    found, number = [], 0
    at, data = pieces[0]
    until = at + len(data)
    for start, end in ranges:
        while end > until or start >= until:
            if start < until:
                found.append(data[start - at :])
                start = until
            if start >= end:
                break
            number += 1
            at, data = pieces[number]
            until = at + len(data)
        else:
            found.append(data[start - at : end - at])
    return found
