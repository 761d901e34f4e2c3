"""A trace for people: a picture of its layers over time, and its files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pagein.cli.units import human
from pagein.images.traces.document import Touch, Trace

_WIDTH = 60  # columns of the picture
_BARS = " ▁▂▃▄▅▆▇█"


@dataclass(slots=True)
class _File:
    """What a trace says of one file."""

    layer: int
    path: str
    ms: int
    reads: int = 0
    size: int = 0


def draw(trace: Trace) -> None:
    """Print it on standard output."""
    console = Console()
    size = sum(touch.length for touch in trace.touches)
    last = trace.touches[-1].ms if trace.touches else 0
    text = f"{len(trace.touches)} reads, {human(size)}, in {last / 1000:.2f} s"
    console.print(Text(f"{trace.image or 'a trace'}: {text}"))
    console.print(_picture(trace, last))
    console.print(_files(trace))


def _picture(trace: Trace, last: int) -> Table:
    """A row a layer: how much is first read when."""
    table = Table("layer", "read", f"0 to {last / 1000:.2f} s", box=None)
    rows = [[0] * _WIDTH for _ in trace.layers]
    for touch in trace.touches:
        rows[touch.layer][touch.ms * (_WIDTH - 1) // max(last, 1)] += touch.length
    most = max((max(row) for row in rows), default=0)
    for diff_id, row in zip(trace.layers, rows, strict=True):
        table.add_row(_short(diff_id), human(sum(row)), Text(_bars(row, most), no_wrap=True))
    return table


def _bars(row: Sequence[int], most: int) -> str:
    """Heights; whatever is more than nothing shows."""
    steps = len(_BARS) - 1
    return "".join(_BARS[-(-count * steps // max(most, 1))] for count in row)


def _files(trace: Trace) -> Table:
    """The files in the order of their first reads."""
    files: dict[tuple[int, str], _File] = {}
    for touch in trace.touches:
        file = files.setdefault((touch.layer, touch.path), _file(touch))
        file.reads += 1
        file.size += touch.length
    table = Table("ms", "layer", "reads", "read", "file", box=None)
    for file in files.values():
        layer = _short(trace.layers[file.layer])
        row = (str(file.ms), layer, str(file.reads), human(file.size))
        table.add_row(*row, Text(file.path, overflow="fold"))
    return table


def _file(touch: Touch) -> _File:
    return _File(touch.layer, touch.path, touch.ms)


def _short(diff_id: str) -> str:
    return diff_id.partition(":")[2][:12]
