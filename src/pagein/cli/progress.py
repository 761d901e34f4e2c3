"""`pagein mount --foreground`: what is here, as it grows."""

from __future__ import annotations

import signal
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from pagein.cli.settings import Settings
from pagein.cli.status import collect
from pagein.cli.units import human
from pagein.control import ControlError

_INTERVAL = 0.5


def show_until(settings: Settings, target: str, stop: set[signal.Signals]) -> None:
    """Show progress of the mount on `target` until one of the (blocked) signals comes, or it goes.

    Reads only the status of both halves, never the mount.
    """
    console = Console()
    with Live(console=console, refresh_per_second=4) as live:
        while True:
            try:
                found = collect(settings)
            except ControlError:
                found = None  # a half is being replaced
            if found is not None:
                mine = [m for m in found["mounts"] if m["target"] == target]
                if not mine:
                    return
                live.update(Text(_line(target, mine[0], found["blobs"])))
            if signal.sigtimedwait(stop, _INTERVAL) is not None:
                return


def _line(target: str, mount: dict[str, Any], blobs: list[dict[str, Any]]) -> str:
    if mount["direct"]:
        return f"{target}: complete, no longer needs the server. Ctrl-C unmounts."
    keys = {tuple(key) for key in mount["blobs"]}
    mine = [b for b in blobs if (b["volume"], b["cookie"]) in keys]
    size = sum(b["size"] for b in mine)
    resident = sum(b["resident"] or 0 for b in mine)
    fetched = sum(b["fetched"] for b in mine)
    return (
        f"{target}: {human(resident)} of {human(size)} here, {human(fetched)} fetched."
        " Ctrl-C unmounts."
    )
