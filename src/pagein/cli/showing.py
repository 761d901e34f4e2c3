"""`--metrics` and `--metrics-port`: what is asked of the keeper, which holds the sockets."""

from __future__ import annotations

import errno
import importlib.util
import os
from dataclasses import dataclass
from typing import Annotated

import typer

from pagein.cli.halves import user_half
from pagein.cli.settings import Settings
from pagein.control import ControlError

_TIMEOUT = 10.0

MetricsOption = Annotated[
    bool,
    typer.Option("--metrics", help="Serve Prometheus metrics on metrics.sock, runtime directory."),
]
MetricsPort = Annotated[
    str | None,
    typer.Option(
        "--metrics-port",
        metavar="[ADDRESS:]PORT",
        help="Serve them on this port too, of the loopback if no address is given.",
        show_default=False,
    ),
]


@dataclass(frozen=True, slots=True)
class Showing:
    """What is wanted; checked when it is made."""

    wanted: bool
    port: str | None

    @classmethod
    def of(cls, metrics: bool, port: str | None) -> Showing:
        """Raises ControlError: the library is missing, or the port is none."""
        if not metrics and port is None:
            return cls(False, None)
        if importlib.util.find_spec("prometheus_client") is None:
            text = "--metrics: prometheus_client is not installed: pip install 'pagein[metrics]'"
            raise ControlError(errno.ENOPKG, text)
        if port is not None:
            from pagein.keeper.shown import parse_address

            parse_address(port)
        return cls(True, port)

    @property
    def options(self) -> list[str]:
        """The keeper's."""
        port = [] if self.port is None else ["--metrics-port", self.port]
        return ["--metrics", *port] if self.wanted else []

    def check(self, settings: Settings) -> None:
        """Refuse what a keeper that was there already does not do. Raises ControlError."""
        if not self.wanted:
            return
        served = user_half(settings, {"op": "status"}, timeout=_TIMEOUT)["metrics"]
        text = f"pagein runs in {settings.state_dir} without; unmount everything first, or choose"
        text += " another --state-dir"
        if not served:
            raise ControlError(errno.EBUSY, f"--metrics: {text}")
        if self.port is not None and not _serves(served, self.port):
            raise ControlError(errno.EBUSY, f"--metrics-port {self.port}: {text}")


def _serves(served: list[str], port: str) -> bool:
    from pagein.keeper.shown import parse_address

    wanted = parse_address(port)
    found = [parse_address(each) for each in served if each != "unix"]
    return wanted in found or (not wanted[1] and bool(found))


def sockets(settings: Settings, showing: Showing) -> list[int]:
    """Listening ones for a daemon that has no keeper; it takes them over. Raises OSError."""
    if not showing.wanted:
        return []
    import contextlib

    from pagein.keeper.shown import SOCKET, Shown

    os.makedirs(settings.state_dir, 0o700, exist_ok=True)
    with contextlib.ExitStack() as stack:
        shown = Shown(stack, settings.path(SOCKET), showing.port, page=False)
        return [os.dup(fd) for fd in shown.sockets]
