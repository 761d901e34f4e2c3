"""The three repeat offsets behind some blocks, asked of the decoder.

They are nowhere in the frame: each sequence of each block before may have moved them. So these
blocks are decoded, as stencils, with a window of labels; what follows them is labels again, and a
block with one sequence that copies from a repeat offset. The copied byte tells the place which it
was copied from, and so the distance.

Or it comes from the blocks' own output, which has no labels of its own. Then it does so only with
a certain number of labels between: asked twice, with more labels by at least that output, one of
the answers is in labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pagein.images.layers.zstd import patch, synthetic
from pagein.images.layers.zstd.frames import MAX_BLOCK
from pagein.images.layers.zstd.library import Damaged
from pagein.images.layers.zstd.patch import Tables, Unfit
from pagein.images.layers.zstd.planes import STREAM, Planes
from pagein.images.layers.zstd.sections import Sections
from pagein.images.layers.zstd.synthetic import JUNK, START, Reps

Record = tuple[Sections, Tables]
"""A block with sequences, and the tables before it."""

_GROUP = 16  # blocks that are decoded at once
_LITTLE = 64
_HELD = 64  # blocks of which the last offsets known are before the first

assert _GROUP * MAX_BLOCK + 4 * _LITTLE <= STREAM


class RepeatOffsets:
    """Those of one frame. `see` each of its blocks with sequences, in order."""

    def __init__(self, window: int, planes: Callable[[int], Planes]) -> None:
        self._planes = planes  # made when the first question is asked
        self._most = max(_HELD, window // MAX_BLOCK)
        self._known: Reps | None = START
        self._since: list[Record] = []

    def see(self, block: Sections, tables: Tables, have: int) -> None:
        """The next block; `tables` are those before it, `have` as for `get`."""
        if block.amount:
            self._since.append((block, tables))
            if len(self._since) >= self._most:
                try:
                    self.get(have)
                except (Unfit, Damaged):
                    self._known = None
                    del self._since[:-_GROUP]

    def get(self, have: int) -> Reps:
        """What they are now, when the window holds `have` bytes, or a block less.

        `Unfit` if that cannot be found out.
        """
        if self._since:
            self._known = self._ask(self._planes(have))
            self._since.clear()
        if self._known is None:
            raise Unfit("repeat offsets of unknown blocks")
        return self._known

    def _ask(self, planes: Planes) -> Reps:
        count = 1
        while count <= _GROUP and count < len(self._since):
            records = self._since[-count:]
            found = _behind(planes, records, (planes.size, planes.size - 1, planes.size - 2))
            # What is not known is the largest there can be; each sequence may make one of them less
            # by one. What may have come of them is not known either.
            sequences = sum(block.amount for block, _ in records)
            if max(found) < planes.size - 2 - sequences:
                return found
            count *= 2
        if self._known is None:
            raise Unfit("repeat offsets of unknown blocks")
        found = self._known
        for at in range(0, len(self._since), _GROUP):
            found = _behind(planes, self._since[at : at + _GROUP], found)
        return found


def _behind(planes: Planes, records: Sequence[Record], before: Reps) -> Reps:
    """The offsets behind `records`, with those before them."""
    parts = [synthetic.setting(before)]
    first = True
    for block, tables in records:
        sequences = patch.with_tables(block, tables) if first else block.sequences
        parts.append(synthetic.stencil(block, sequences))
        first = False
    head = b"".join(parts)
    near = planes.ask([_question(planes, head, _LITTLE, number) for number in (1, 2, 3)])
    own = len(near[0][0]) - JUNK - _LITTLE - _ANSWER
    many = _LITTLE + own + _LITTLE
    if many > STREAM:
        raise Unfit("too much output of few blocks")
    far = planes.ask([_question(planes, head, many, number) for number in (1, 2, 3)])
    found = [_distance(planes, one, other, own, many) for one, other in zip(near, far, strict=True)]
    return found[0], found[1], found[2]


def _question(planes: Planes, head: bytes, labels: int, number: int) -> list[bytes]:
    """`head`, so many labels, and a byte from repeat offset `number`."""
    end = synthetic.copying(number)
    return [
        head
        + b"".join(synthetic.raw(planes.labels(plane, planes.size, planes.size + labels)))
        + end
        for plane in range(planes.count)
    ]


def _distance(
    planes: Planes, near: Sequence[bytes], far: Sequence[bytes], own: int, many: int
) -> int:
    """Of two answers; `own` is the output of the blocks, `many` are the labels of the second."""
    place = planes.place(far, JUNK + own + many + 1)
    if place >= planes.size:
        return planes.size + many + 1 - place
    place = planes.place(near, JUNK + own + _LITTLE + 1)
    if place >= 0:
        return planes.size + JUNK + own + _LITTLE + 1 - place
    return 1  # a blank, both times: the one in front


_ANSWER = 4  # bytes that `copying` gives
