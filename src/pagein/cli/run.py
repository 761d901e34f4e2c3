"""`pagein run [OPTIONS] IMAGE [COMMAND ...]`."""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pagein.cli.halves import Ask, kept_running
from pagein.cli.imagemount import Wanted, mount_image
from pagein.cli.settings import (
    BackgroundOption,
    CacheDir,
    DaemonUser,
    FailAfter,
    HostsDir,
    PlatformOption,
    PrefetchOption,
    Settings,
    StateDir,
    TraceOption,
    check_background,
    check_user,
    dead_after,
    default_user,
    settings_of,
)
from pagein.cli.showing import MetricsOption, MetricsPort, Showing
from pagein.cli.sources import is_image
from pagein.cli.stacks import Writable
from pagein.control import ControlError, message_of

if TYPE_CHECKING:
    from pagein.containers.spec import Volume

CONTEXT = {"allow_interspersed_args": False}
"""Of the command line: what stands after the image is the container's, with or without `--`."""

FAILED = 125
"""Exit status when it is pagein that failed, as docker has it."""


class Network(enum.StrEnum):
    """What of the network a container sees."""

    NONE = "none"
    HOST = "host"


@dataclass(frozen=True, slots=True)
class MountRequest:
    """An image to be mounted on `target`, with set-uid programs that work."""

    ask: Ask
    wanted: Wanted
    settings: Settings
    target: str
    writable: Writable
    timeout: float


def _mounter(image: str) -> Callable[[MountRequest], dict[str, Any]]:
    """Who mounts such an image, and returns its config. Raises ControlError."""
    if image.startswith("stack:"):
        from pagein.cli.stackfile import mount

        return mount
    if is_image(image):
        return _mount_image
    raise ControlError(errno.EINVAL, f"{image}: use docker://HOST/NAME:TAG, or oci:DIR:TAG")


def _mount_image(request: MountRequest) -> dict[str, Any]:
    return mount_image(
        request.ask,
        request.wanted,
        request.target,
        writable=request.writable,
        suid=True,
        timeout=request.timeout,
    )


def run(
    ctx: typer.Context,
    image: Annotated[
        str, typer.Argument(help="The image: docker://HOST/NAME:TAG, or oci:DIR:TAG.")
    ],
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="[COMMAND ...]", help="Instead of the image's own command."),
    ] = None,
    volume: Annotated[
        list[str] | None,
        typer.Option("--volume", "-v", metavar="SRC:DST[:ro]", help="A directory or file of ours."),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", "-e", metavar="K=V", help="A variable; K alone passes ours on."),
    ] = None,
    user: Annotated[
        str | None, typer.Option("--user", "-u", metavar="USER[:GROUP]", help="Names or numbers.")
    ] = None,
    workdir: Annotated[
        str | None, typer.Option("--workdir", "-w", metavar="DIR", help="Working directory.")
    ] = None,
    entrypoint: Annotated[
        str | None, typer.Option("--entrypoint", metavar="PROGRAM", help='"" for none.')
    ] = None,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="The root directory cannot be written to.")
    ] = False,
    rw: Annotated[
        str | None,
        typer.Option("--rw", metavar="DIR", help="Keep what is written below DIR."),
    ] = None,
    platform: PlatformOption = "",
    trace: TraceOption = None,
    prefetch: PrefetchOption = True,
    background: BackgroundOption = None,
    net: Annotated[Network, typer.Option("--net", help="What network it has.")] = Network.NONE,
    tty: Annotated[
        bool | None,
        typer.Option("--tty/--no-tty", "-t/-T", help="A terminal of its own.", show_default=False),
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=0.1, help="After which a read fails with EIO."),
    ] = 30.0,
    fail_after: FailAfter = None,
    daemon_user: DaemonUser = None,
    metrics: MetricsOption = False,
    metrics_port: MetricsPort = None,
    state_dir: StateDir = None,
    cache: CacheDir = None,
    hosts_dir: HostsDir = None,
) -> None:
    """Run a container from an image that need not be here yet.

    Its exit status is that of its command; 125 if pagein failed, 126 or 127 if the command could
    not be executed or found, 128 + n if signal n ended it. Nothing of it is left at the end.
    """
    from pagein.cli.places import container, runc_state, sweep
    from pagein.containers.program import RunError, find

    settings = settings_of(ctx, state_dir, cache, hosts_dir)
    command = command or []
    command = command[command[:1] == ["--"] :]
    try:
        find()
        mount = _mounter(image)
        if tty and not os.isatty(0):
            raise ControlError(errno.ENOTTY, "--tty: standard input is not a terminal")
        volumes = [_volume(text) for text in volume or ()]
        sweep(settings)
        who = check_user(daemon_user or default_user())
        showing = Showing.of(metrics, metrics_port)
        more = [*showing.options, *dead_after(fail_after, timeout)]
        said = {"command": command, "entrypoint": entrypoint, "workdir": workdir}
        wish = check_background(background)
        wanted = Wanted(settings, image, platform, trace, prefetch, said, wish)

        def begin() -> None:
            if is_image(image):
                wanted.begin()
            import pagein.containers.run  # noqa: F401  wanted soon, and now there is time

        with (
            container(settings) as place,
            contextlib.closing(wanted),
            kept_running(settings, timeout, who, "fuse", begin, more) as ask,
        ):
            showing.check(settings)
            writable = Writable(rw) if rw else Writable(str(place.written), volatile=True)
            target = str(place.rootfs)
            from pagein.containers.run import RunOptions, run_container
            from pagein.containers.streams import terminal_size

            config = mount(MountRequest(ask, wanted, settings, target, writable, timeout))
            terminal = os.isatty(0) and os.isatty(1) if tty is None else tty
            options = RunOptions(
                name=place.name,
                command=command,
                entrypoint=entrypoint,
                env=_variables(env or ()),
                user=user,
                workdir=workdir,
                volumes=volumes,
                host_network=net is Network.HOST,
                tty=terminal,
                tty_size=terminal_size(0) if terminal else (0, 0),
                read_only=read_only,
            )
            state = runc_state(settings)
            status = run_container(place.rootfs, config, options, place=place.bundle, state=state)
    except RunError as problem:
        if not problem.said:
            print(f"pagein: {message_of(problem)}", file=sys.stderr)
        status = problem.status
    except OSError as problem:
        print(f"pagein: {message_of(problem)}", file=sys.stderr)
        status = FAILED
    raise typer.Exit(status)


def _volume(text: str) -> Volume:
    """What `--volume` names, from the root directory. Raises OSError."""
    from pagein.containers.spec import Volume

    found = Volume.parse(text)
    return Volume(os.path.abspath(found.source), found.target, found.read_only)


def _variables(given: Sequence[str]) -> list[str]:
    """K=V as it is, K with the value it has here, if it has one."""
    found = []
    for word in given:
        if word.startswith("=") or not word:
            raise ControlError(errno.EINVAL, f"--env {word}: expected K=V")
        if "=" in word:
            found.append(word)
        elif word in os.environ:
            found.append(f"{word}={os.environ[word]}")
    return found
