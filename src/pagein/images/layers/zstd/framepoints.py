"""The points of one frame, from its first block to its last."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from pagein.images.layers.zstd.checkpoints import Checkpoint, Piece
from pagein.images.layers.zstd.frames import Block
from pagein.images.layers.zstd.library import Damaged
from pagein.images.layers.zstd.patch import Tables, Unfit
from pagein.images.layers.zstd.planes import Planes
from pagein.images.layers.zstd.reps import RepeatOffsets
from pagein.images.layers.zstd.sections import Sections

Submit = Callable[[Checkpoint, Callable[[int], Planes], Sequence[Piece]], None]
"""Has a checkpoint made, all that it needs being known."""

_PENDING = 2 << 20  # bytes that blocks may have given of which we were not told yet


class FramePoints:
    """Tell it of each block and of all output; `begin` points between blocks."""

    def __init__(
        self, window: int, checked: bool, out: int, planes: Callable[[int], Planes], submit: Submit
    ) -> None:
        """Of a frame with a window of `window` bytes, whose output begins at `out` in the tar."""
        self._window = window
        self._checked = checked
        self._start = self._out = out
        self._planes = planes
        self._submit = submit
        self._tables = Tables()
        self._reps = RepeatOffsets(window, planes)
        self._history: deque[Piece] = deque()
        self._open: deque[Checkpoint] = deque()
        self._watching: list[Checkpoint] = []

    def begin(self, out: int, at: int) -> Checkpoint | None:
        """A point before the next block, if that can be: at `out` in the tar, `at` in the layer."""
        checkpoint = Checkpoint(out, at, self._window, self._checked, self._tables)
        try:
            checkpoint.reps = self._reps.get(self._have())
        except (Unfit, Damaged):
            return None
        checkpoint.before = self._output(max(self._start, out - self._window), out)
        self._open.append(checkpoint)
        self._watching.append(checkpoint)
        return checkpoint

    def block(self, block: Block, parts: Sections | None) -> None:
        """The next block; `parts` of it if it is a compressed one."""
        done = False
        for checkpoint in self._watching:
            checkpoint.see(block, parts)
            done = done or not checkpoint.collecting
        if done:
            self._watching = [
                each for each in self._watching if each.collecting or not each.patches.settled
            ]
        if parts is not None:
            self._reps.see(parts, self._tables, self._have())
            self._tables = self._tables.after(block.payload, parts)

    def output(self, out: int, data: bytes) -> None:
        """What the blocks so far have given, from `out` on."""
        self._history.append((out, data))
        self._out = out = out + len(data)
        while self._open and self._open[0].end <= out:
            self._make(out)
        needed = min([out - self._window, *(each.out for each in self._open)])
        while self._history[0][0] + len(self._history[0][1]) <= needed:
            self._history.popleft()

    def end(self, out: int) -> None:
        """The frame is over, at `out` in the tar."""
        for checkpoint in self._watching:
            checkpoint.patches.end()
        while self._open:
            self._make(out)

    def _have(self) -> int:
        """Bytes that blocks may look back, at most."""
        return min(self._window, self._out - self._start + _PENDING)

    def _make(self, out: int) -> None:
        checkpoint = self._open.popleft()
        checkpoint.collecting = False
        self._submit(checkpoint, self._planes, self._output(checkpoint.out, out))

    def _output(self, start: int, end: int) -> list[Piece]:
        """The pieces that have something of [start, end)."""
        return [(at, data) for at, data in self._history if at < end and start < at + len(data)]
