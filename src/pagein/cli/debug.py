"""`pagein debug [MASK]`."""

from __future__ import annotations

from typing import Annotated

import typer

from pagein.cli.errors import fail, one_line_errors
from pagein.cli.halves import kernel_half, running
from pagein.cli.settings import CacheDir, StateDir, settings_of

_TIMEOUT = 10.0


def debug(
    ctx: typer.Context,
    mask: Annotated[
        str | None,
        typer.Argument(metavar="[MASK]", help="1: calls begin, 2: they end, 4: states change."),
    ] = None,
    state_dir: StateDir = None,
    cache: CacheDir = None,
) -> None:
    """Say what the kernel half writes to its log, as the device's command `debug MASK` does.

    The bits are added up; 0 is silence. Without MASK the present one is printed.
    """
    settings = settings_of(ctx, state_dir, cache)
    with one_line_errors():
        if not running(settings):
            fail("nothing is mounted (pagein is not running)")
        wanted = None if mask is None else _number(mask)
        answer = kernel_half(settings, {"op": "debug", "mask": wanted}, timeout=_TIMEOUT)
    if mask is None:
        print(answer["mask"])


def _number(mask: str) -> int:
    try:
        return int(mask, 0)
    except ValueError:
        fail(f"debug: {mask!r} is no number; 1, 2 and 4 may be added up, 0 is silence")
