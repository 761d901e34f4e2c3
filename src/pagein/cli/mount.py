"""`pagein mount SOURCE [--device BLOB ...] DIR`; SOURCE may be an image of layers."""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import signal
from typing import Annotated

import typer

from pagein.cli.errors import fail, one_line_errors
from pagein.cli.halves import Ask, kept_running, nothing
from pagein.cli.imagemount import Wanted, mount_image
from pagein.cli.settings import (
    DEFAULT_CACHE,
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
from pagein.cli.sources import Source, blob_of, is_image, with_mirrors
from pagein.cli.stacks import Writable
from pagein.control import Answer, ControlError


class FrontEnd(enum.StrEnum):
    """Who asks the daemon for what readers miss."""

    FUSE = "fuse"
    KERNEL = "kernel"


def mount(
    ctx: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            help="EROFS image, or its metadata: an http(s) URL or a path. Or a container image:"
            " docker://HOST/NAME:TAG, oci:DIR:TAG."
        ),
    ],
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Where to mount it.")],
    device: Annotated[
        list[str] | None,
        typer.Option(
            "--device", metavar="BLOB", help="A data file of the image, in the image's order."
        ),
    ] = None,
    mirror: Annotated[
        list[str] | None,
        typer.Option(
            "--mirror",
            metavar="URL",
            help="Asked first: a directory (.../) with the same files, or the URL of SOURCE there.",
        ),
    ] = None,
    rw: Annotated[
        str | None,
        typer.Option("--rw", metavar="DIR", help="Writable; what is written goes below DIR."),
    ] = None,
    platform: PlatformOption = "",
    trace: TraceOption = None,
    prefetch: PrefetchOption = True,
    background: BackgroundOption = None,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay, show progress, unmount at Ctrl-C.")
    ] = False,
    timeout: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=0.1, help="After which a read fails with EIO."),
    ] = 30.0,
    fail_after: FailAfter = None,
    daemon_user: DaemonUser = None,
    front_end: Annotated[
        FrontEnd,
        typer.Option(
            "--front-end",
            help="`fuse`: pagein is the kernel half. `kernel`: Linux is, with /dev/cachefiles.",
        ),
    ] = FrontEnd.FUSE,
    options: Annotated[
        str | None,
        typer.Option(
            "-o",
            metavar="fsid=NAME,...",
            help="As `mount -t erofs -o fsid=...`, for a daemon of one's own; SOURCE is ignored.",
        ),
    ] = None,
    kind: Annotated[str, typer.Option("-t", metavar="erofs", hidden=True)] = "erofs",
    loop: Annotated[
        bool, typer.Option("--loop", help="Go through loop devices, as older kernels must.")
    ] = False,
    metrics: MetricsOption = False,
    metrics_port: MetricsPort = None,
    state_dir: StateDir = None,
    cache: CacheDir = None,
    hosts_dir: HostsDir = None,
) -> None:
    """Mount a remote EROFS image; what is read is fetched, and stays."""
    settings = settings_of(ctx, state_dir, cache, hosts_dir)
    with one_line_errors():
        target = _check_target(directory)
        if options is not None:
            from pagein.cli.fsidmount import mount_by_fsid

            mount_by_fsid(settings, kind, options, target, timeout)
            return
        image = is_image(source)
        for_images = {"--rw": rw, "--platform": platform, "--trace": trace}
        _check_options(image, front_end, device, for_images)
        sources = [] if image else with_mirrors([source, *(device or ())], mirror or ())
        if image and mirror:
            text = "for EROFS images; for registries see --hosts-dir"
            raise ControlError(errno.EINVAL, f"--mirror: {text}")
        if loop and front_end is FrontEnd.KERNEL:
            raise ControlError(errno.EINVAL, "--loop is for the front end `fuse`")
        user = check_user(daemon_user or default_user())
        showing = Showing.of(metrics, metrics_port)
        more = [*showing.options, *dead_after(fail_after, timeout)]
        wish = check_background(background)
        wanted = Wanted(settings, source, platform, trace, prefetch, None, wish)
        begin = wanted.begin if image else nothing
        with (
            contextlib.closing(wanted),
            kept_running(settings, timeout, user, front_end, begin, more) as ask,
        ):
            showing.check(settings)
            found = ask({"op": "status"}, 10.0)
            _check_front_end(settings, found, front_end)
            _check_cache(settings, found["cache"])
            if image:
                writable = Writable(rw) if rw else None
                mount_image(
                    ask,
                    wanted,
                    target,
                    writable=writable,
                    loop="always" if loop else "auto",
                    timeout=timeout,
                )
            else:
                _mount_blobs(settings, ask, sources, target, loop, timeout, background)
        if foreground:
            _stay(settings, target)


def _mount_blobs(
    settings: Settings,
    ask: Ask,
    sources: list[Source],
    target: str,
    loop: bool,
    timeout: float,
    background: str | None,
) -> None:
    question = {
        "op": "mount",
        "target": target,
        "blobs": [
            blob_of(settings, *each, timeout=timeout + 10, background=background)
            for each in sources
        ],
        "loop": "always" if loop else "auto",
    }
    ask(question, 4 * timeout + 30)


def _check_options(
    image: bool,
    front_end: FrontEnd,
    device: list[str] | None,
    for_images: dict[str, str | None],
) -> None:
    """Refuse what does not go together; `for_images`: what an EROFS image has no use for."""
    if image and front_end is FrontEnd.KERNEL:
        raise ControlError(errno.EINVAL, "--front-end kernel: not for container images yet")
    if image and device:
        raise ControlError(errno.EINVAL, "--device: a container image has its data with it")
    option = next((name for name, given in for_images.items() if given), None)
    if not image and option is not None:
        raise ControlError(errno.EINVAL, f"{option}: for docker:// and oci: images only")


def _check_target(directory: str) -> str:
    if not os.path.exists(directory):
        raise ControlError(errno.ENOENT, f"{directory}: no such directory; create it first")
    if not os.path.isdir(directory):
        raise ControlError(errno.ENOTDIR, f"{directory}: not a directory")
    return os.path.realpath(directory)


def _check_front_end(settings: Settings, found: Answer, wanted: FrontEnd) -> None:
    """Refuse what the keeper that runs in this runtime directory is not for."""
    if found["front_end"] != wanted:
        text = f"pagein runs in {settings.state_dir} with the front end `{found['front_end']}`"
        text += "; use that one, or another --state-dir and --cache"
        raise ControlError(errno.EBUSY, f"--front-end {wanted}: {text}")


def _check_cache(settings: Settings, bound: str | None) -> None:
    """Refuse to put into one cache what the user wants in another."""
    wanted = settings.cache
    if bound is None or wanted == DEFAULT_CACHE or os.path.realpath(wanted) == bound:
        return
    text = f"pagein runs in {settings.state_dir} with the cache {bound}; use another --state-dir"
    raise ControlError(errno.EBUSY, f"--cache {wanted}: {text}")


def _stay(settings: Settings, target: str) -> None:
    from pagein.cli.progress import show_until

    stop = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)
    try:
        show_until(settings, target, stop)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, stop)
    from pagein.cli.umount import unmount

    try:
        unmount(settings, target, lazy=False)
    except OSError as problem:
        if problem.errno != errno.EINVAL:  # somebody else was faster
            fail(str(problem.strerror))
