"""`pagein device`: the kernel half by itself, for daemons of one's own."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from pagein.cli.errors import fail, one_line_errors
from pagein.cli.halves import check_prerequisites, keeper_command, running
from pagein.cli.settings import CacheDir, StateDir, settings_of


def device(
    ctx: typer.Context,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="Deadline of OPEN and CLOSE.")
    ] = 30.0,
    state_dir: StateDir = None,
    cache: CacheDir = None,
) -> None:
    """Serve the device alone, in the foreground, until stopped.

    For people who write a daemon: it opens the path that this command prints once it is there.
    """
    settings = settings_of(ctx, state_dir, cache)
    with one_line_errors():
        check_prerequisites(settings)
        if running(settings):
            fail(f"pagein runs in {settings.state_dir} already; choose another --state-dir")
        options = ["--no-daemon", "--linger", "inf", "--timeout", str(timeout)]
        options += ["--announce", settings.path("dev/cachefiles")]
        command = keeper_command(settings, options)
        os.execv(command[0], command)
