"""What scripts/demo looks like: lines that stay, and one below them that moves."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, Task, TextColumn
from rich.progress_bar import ProgressBar
from rich.text import Text

_WIDTH = 80
_NAME = 45
_REMOTE_FONTS = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


class DemoError(Exception):
    """Something is not as it should be; the message is for the user."""


class _Bar(BarColumn):
    """A bar only where it is known how far there is to go."""

    def render(self, task: Task) -> ProgressBar:
        bar = super().render(task)
        bar.width = 0 if task.total is None else bar.width
        return bar


class Step:
    """One line while it is not finished."""

    def __init__(self, name: str, update: Callable[[float, float], object]) -> None:
        self.name = name
        self._update = update

    def at(self, done: float, total: float) -> None:
        """Move the bar."""
        self._update(done, total)


class Show:
    """Prints to the terminal, and keeps the same for a picture."""

    def __init__(self) -> None:
        self.fetched: Callable[[], tuple[int, int]] | None = None
        """Tells the bytes that the server has sent, and those of the image; None: no server."""
        self._console = Console(highlight=False)
        self._picture = Console(
            record=True, file=io.StringIO(), width=_WIDTH, force_terminal=True, highlight=False
        )
        utf8 = self._console.encoding.startswith("utf")
        self._good, self._bad = ("✔", "✘") if utf8 else ("+", "x")

    def say(self, text: str | Text = "") -> None:
        """Print a line; `text` may have rich's markup."""
        for console in (self._console, self._picture):
            console.print(text, soft_wrap=True)

    def heading(self) -> None:
        """Print the names of the columns."""
        self.say(Text(f"{'':{_NAME + 4}}{'seconds':>8}{'fetched':>11}{'of image':>11}", "dim"))

    @contextmanager
    def step(self, name: str, *, line: bool = True) -> Iterator[Step]:
        """Show that `name` goes on, then one line about it (the step's name may change)."""
        columns = (
            TextColumn(" "),
            SpinnerColumn(),
            TextColumn("{task.description}"),
            _Bar(24),
        )
        begun = time.monotonic()
        hidden = not self._console.is_terminal
        with Progress(*columns, console=self._console, transient=True, disable=hidden) as progress:
            task = progress.add_task(name, total=None)
            step = Step(
                name, lambda done, total: progress.update(task, completed=done, total=total)
            )
            try:
                yield step
            except BaseException:
                progress.stop()
                self.say(Text(f"  {self._bad} {step.name}", "red"))
                raise
        if line:
            self._line(step.name, time.monotonic() - begun)

    def _line(self, name: str, seconds: float) -> None:
        line = Text.assemble("  ", (self._good, "green"), f" {name:{_NAME}}{seconds:8.1f}")
        if self.fetched is None:
            line.append(f"{'no server':>22}", "dim")
        else:
            sent, size = self.fetched()
            line.append(f"{sent / 1e6:8.1f} MB")
            line.append(f"{100 * sent / size:9.1f} %", "bold cyan")
        self.say(line)

    def save(self, path: Path, title: str) -> None:
        """Write everything that was printed as an SVG picture."""
        picture = self._picture.export_svg(title=title, unique_id="demo")
        # The picture of a README loads nothing from elsewhere.
        path.write_text(_REMOTE_FONTS.sub("", picture))
