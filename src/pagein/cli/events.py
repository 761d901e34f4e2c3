"""`pagein events on|off|show`: trace events, named as the kernel's tracepoints."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from typing import Annotated, Any

import typer

from pagein.cli.errors import fail, one_line_errors
from pagein.cli.halves import kernel_half, running
from pagein.cli.settings import CacheDir, Settings, StateDir, settings_of

_TIMEOUT = 10.0


class Do(StrEnum):
    """What to do with them."""

    on = "on"
    off = "off"
    show = "show"


def events(
    ctx: typer.Context,
    do: Annotated[Do, typer.Argument(metavar="on|off|show")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    state_dir: StateDir = None,
    cache: CacheDir = None,
) -> None:
    """Switch the kernel half's trace events on or off, or show those that are kept.

    The last 16,384 since they were switched on; a kernel half that is replaced begins with them
    off.
    """
    settings = settings_of(ctx, state_dir, cache)
    with one_line_errors():
        if not running(settings):
            fail("nothing is mounted (pagein is not running)")
        if do is Do.show:
            _show(settings, as_json)
        else:
            _ask(settings, {"do": do.value})


def _ask(settings: Settings, what: dict[str, Any]) -> dict[str, Any]:
    return kernel_half(settings, {"op": "events", **what}, timeout=_TIMEOUT)


def _show(settings: Settings, as_json: bool) -> None:
    from pagein.cachefiles.tracepoints import line_of

    answer = _ask(settings, {"do": "show"})
    if answer["lost"]:
        print(f"{answer['lost']} older events were forgotten", file=sys.stderr)
    end = answer["count"]
    while answer["events"]:
        for record in answer["events"]:
            print(json.dumps(record) if as_json else line_of(record))
        if answer["next"] >= end:  # what came meanwhile is for another time
            break
        answer = _ask(settings, {"do": "show", "from": answer["next"]})
    if not end and not answer["on"]:
        print("events are off: pagein events on", file=sys.stderr)
