"""`pagein daemon --device PATH`: the user half by itself."""

from __future__ import annotations

import os
import stat
from typing import Annotated

import typer

from pagein.cli.errors import fail, one_line_errors
from pagein.cli.halves import check_prerequisites, keeper_command, running
from pagein.cli.settings import (
    BackgroundOption,
    CacheDir,
    DaemonUser,
    FailAfter,
    Settings,
    StateDir,
    check_background,
    check_user,
    default_user,
    fail_after_of,
    settings_of,
)
from pagein.cli.showing import MetricsOption, MetricsPort, Showing, sockets


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
    fail_after: FailAfter = None,
    daemon_user: DaemonUser = None,
    background: BackgroundOption = None,
    metrics: MetricsOption = False,
    metrics_port: MetricsPort = None,
    state_dir: StateDir = None,
    cache: CacheDir = None,
) -> None:
    """Serve a device until stopped: fetch what its readers miss.

    The cache directory is bound by this command, if it is not bound yet. On /dev/cachefiles the
    device is held by a process of its own, which replaces the one that fetches when that dies, and
    unmounts what it can when it is stopped; `pagein mount --front-end kernel` uses it.
    """
    settings = settings_of(ctx, state_dir, cache)
    path = device or settings.path("dev/cachefiles")
    dead = fail_after_of(fail_after, timeout)
    with one_line_errors():
        user = check_user(daemon_user or default_user())
        wish = check_background(background) or "off"
        showing = Showing.of(metrics, metrics_port)
        if os.path.exists(path) and stat.S_ISCHR(os.stat(path).st_mode):
            more = ["--fail-after", str(dead), "--background", wish, *showing.options]
            _keep(settings, os.path.realpath(path), timeout, user, more)
        from pagein.daemon.process import serve

        serve(
            path,
            control=settings.path("daemon.sock"),
            cache=settings.cache,
            timeout=timeout,
            fail_after=dead,
            user=user,
            metrics=sockets(settings, showing),
            background=wish,
        )


def _keep(settings: Settings, device: str, timeout: float, user: str, more: list[str]) -> None:
    """Become the keeper of the kernel's device."""
    check_prerequisites(settings, device)
    if running(settings):
        fail(f"pagein runs in {settings.state_dir} already; choose another --state-dir")
    options = ["--front-end", "kernel", "--device", device, "--linger", "inf"]
    options += ["--timeout", str(timeout), "--daemon-user", user, *more]
    command = keeper_command(settings, options)
    os.execv(command[0], command)
