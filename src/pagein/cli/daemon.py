"""`pagein daemon --device PATH`: the user half by itself."""

from __future__ import annotations

from typing import Annotated

import typer

from pagein.cli.errors import one_line_errors
from pagein.cli.settings import CacheDir, DaemonUser, StateDir, default_user, settings_of


def daemon(
    ctx: typer.Context,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="The device: /dev/cachefiles, or `cachefiles` of a kernel half of pagein.",
            show_default="cachefiles of the runtime directory",
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="Deadline of a read.")
    ] = 30.0,
    daemon_user: DaemonUser = None,
    state_dir: StateDir = None,
    cache: CacheDir = None,
) -> None:
    """Serve a device until stopped: fetch what its readers miss.

    The cache directory is bound by this command, if it is not bound yet.
    """
    settings = settings_of(ctx, state_dir, cache)
    with one_line_errors():
        from pagein.daemon.process import serve

        serve(
            device or settings.path("dev/cachefiles"),
            control=settings.path("daemon.sock"),
            cache=settings.cache,
            timeout=timeout,
            user=daemon_user or default_user(),
        )
