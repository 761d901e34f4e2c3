"""`pagein top [--once] [--json]`."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from pagein.cli.errors import one_line_errors
from pagein.cli.settings import CacheDir, Settings, StateDir, settings_of
from pagein.cli.status import collect
from pagein.cli.topdata import Look, summary
from pagein.control import ControlError

_TIMEOUT = 5.0
"""Seconds that a half gets to answer."""

_UNLIMITED = 400
"""Columns of output that no terminal shows."""


def top(
    ctx: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="Print it once, and end.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print it once, as one JSON object.")
    ] = False,
    interval: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="Between two looks.")
    ] = 1.0,
    state_dir: StateDir = None,
    cache: CacheDir = None,
) -> None:
    """What is fetched, why and from where, and which reads wait. `q` ends it.

    Looks at the mounts only from outside. When its output is no terminal it prints once.
    """
    settings = settings_of(ctx, state_dir, cache)
    with one_line_errors():
        if as_json or once or not (sys.stdin.isatty() and sys.stdout.isatty()):
            _print(_one(settings, interval), as_json=as_json, title=_title(settings))
        else:
            _live(settings, interval)


def _title(settings: Settings) -> str:
    return f"pagein in {settings.state_dir}"


def _one(settings: Settings, interval: float) -> dict[str, Any]:
    """A summary of two looks; raises ControlError."""
    before = Look.now(collect(settings, timeout=_TIMEOUT))
    if before.found["running"]:
        time.sleep(interval)
        return summary(before, Look.now(collect(settings, timeout=_TIMEOUT)))
    return summary(None, before)


def _print(what: dict[str, Any], *, as_json: bool, title: str) -> None:
    if as_json:
        print(json.dumps(what, indent=2))
        return
    from rich.console import Console

    from pagein.cli.topview import screen

    console = Console(highlight=False, width=None if sys.stdout.isatty() else _UNLIMITED)
    lines = console.render_lines(screen(what, title=title, width=console.width), pad=False)
    for line in lines:
        console.print("".join(piece.text for piece in line).rstrip(), markup=False, soft_wrap=True)


def _live(settings: Settings, interval: float) -> None:
    from rich.console import Console
    from rich.live import Live

    from pagein.cli.topview import screen

    console = Console(highlight=False)
    before: Look | None = None
    with (
        contextlib.suppress(KeyboardInterrupt),
        _interrupted_by_sigterm(),
        _keys(),
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        while True:
            try:
                after = Look.now(collect(settings, timeout=_TIMEOUT))
                what = summary(before, after)
                before, note = after, ""
            except ControlError as problem:  # a half is being replaced
                note = f"  {problem.strerror}"
                what = summary(None, before) if before is not None else {"running": False}
            title = f"{_title(settings)}  {time.strftime('%H:%M:%S')}  q: quit{note}"
            width, height = console.size
            live.update(screen(what, title=title, width=width, height=height), refresh=True)
            if _quit_within(interval):
                return


@contextlib.contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """So that the terminal is put right then, too."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _keys() -> Iterator[None]:
    """Keys are read as they are pressed, and not shown."""
    import termios
    import tty

    before = termios.tcgetattr(0)
    try:
        tty.setcbreak(0)
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def _quit_within(seconds: float) -> bool:
    """Whether `q` is pressed, or there is nobody any more who could."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if select.select([0], [], [], left)[0]:
            pressed = os.read(0, 64)
            if not pressed or b"q" in pressed.lower():
                return True
    return False
