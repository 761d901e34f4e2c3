"""`pagein exec-daemon -- COMMAND...`: a daemon written for the real /dev/cachefiles."""

from __future__ import annotations

import errno
import os
from typing import Annotated

import typer

from pagein.cli.errors import fail, one_line_errors
from pagein.cli.halves import FUSE_DEVICE, keeper_command, running
from pagein.cli.settings import StateDir, settings_of
from pagein.control import ControlError


def exec_daemon(
    ctx: typer.Context,
    command: Annotated[
        list[str], typer.Argument(metavar="-- COMMAND ...", help="The daemon and its arguments.")
    ],
    mount: Annotated[
        list[str] | None,
        typer.Option(
            "--mount",
            metavar="fsid=NAME[,domain_id=NAME][,device=NAME...],DIR",
            help="Mount EROFS by fsid, once the daemon has bound its cache.",
        ),
    ] = None,
    every_read: Annotated[
        bool,
        typer.Option(
            "--every-read",
            help="Look at each read of the daemon: for one that passes the device on by dup2 or"
            " a socket. Slower.",
        ),
    ] = False,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="Deadline of OPEN and CLOSE.")
    ] = 30.0,
    state_dir: StateDir = None,
) -> None:
    """Run a daemon for the kernel's /dev/cachefiles, unmodified, with pagein as its kernel.

    What the daemon and its children open as /dev/cachefiles is the device of this kernel half. It
    is there as long as one of them runs; its mounts go with it.
    """
    settings = settings_of(ctx, state_dir, None)
    with one_line_errors():
        from pagein.execdaemon.fsid import parse_mount
        from pagein.execdaemon.run import Job, run

        _check()
        if running(settings):
            fail(f"pagein runs in {settings.state_dir} already; choose another --state-dir")
        mounts = [parse_mount(each) for each in mount or ()]
        for _, directory in mounts:
            if not os.path.isdir(directory):
                raise ControlError(errno.ENOENT, f"--mount {directory}: no such directory")
        options = ["--no-daemon", "--linger", "inf", "--timeout", str(timeout)]
        job = Job(
            command=command,
            keeper=keeper_command(settings, options),
            state_dir=settings.state_dir,
            mounts=[(options, os.path.realpath(directory)) for options, directory in mounts],
            timeout=timeout,
            every_read=every_read,
        )
        code = run(job)
    raise typer.Exit(code)


def _check() -> None:
    if os.geteuid() != 0:
        raise ControlError(errno.EPERM, "exec-daemon needs root, as /dev/cachefiles does")
    if not os.path.exists(FUSE_DEVICE):
        raise ControlError(errno.ENODEV, f"{FUSE_DEVICE} does not exist: this kernel has no FUSE")
