"""`pagein umount DIR`."""

from __future__ import annotations

import errno
import os
from typing import Annotated

import typer

from pagein.cli.errors import one_line_errors
from pagein.cli.halves import kernel_half, running, wait_stopped
from pagein.cli.settings import CacheDir, Settings, StateDir, settings_of
from pagein.control import ControlError, NotListening
from pagein.mounts.syscalls import MountEntry

_TIMEOUT = 60.0
_MNT_DETACH = 2


def umount(
    ctx: typer.Context,
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Where it is mounted.")],
    lazy: Annotated[
        bool, typer.Option("--lazy", help="Take it out of sight now, end it when unused.")
    ] = False,
    state_dir: StateDir = None,
    cache: CacheDir = None,
) -> None:
    """Unmount; with the last mount everything of pagein ends."""
    with one_line_errors():
        unmount(settings_of(ctx, state_dir, cache), os.path.realpath(directory), lazy=lazy)


def unmount(settings: Settings, target: str, *, lazy: bool) -> None:
    """Unmount `target` and, if that was the last, wait for the processes to end.

    Raises ControlError in one line; EINVAL when pagein has not mounted it.
    """
    question = {"op": "umount", "target": target, "lazy": lazy}
    try:
        answer = kernel_half(settings, question, timeout=_TIMEOUT)
    except ControlError as problem:
        if problem.errno == errno.EBUSY:
            text = f"{problem.strerror}: end what uses it, or take it out of sight with --lazy"
            raise ControlError(errno.EBUSY, text) from None
        if running(settings) or not isinstance(problem, NotListening):
            raise
        _umount_other(settings, target, lazy=lazy)
        return
    if answer.get("last"):
        wait_stopped(settings)


def _umount_other(settings: Settings, target: str, *, lazy: bool) -> None:
    """Unmount what no keeper has: one of the front end `kernel`, or of a keeper that is gone.

    Reads of the latter fail, but it can be taken away.
    """
    from pagein.mounts.kernel import is_ours
    from pagein.mounts.syscalls import mount_at, umount

    entry = mount_at(target)
    if entry is not None and is_ours(entry):
        umount(target, _MNT_DETACH if lazy else 0)
        return
    if entry is not None and entry.fstype == "overlay":
        _umount_stack(settings, entry)
        return
    ours = (os.path.realpath(settings.path("blobs")), os.path.realpath(settings.cache))
    if entry is None or entry.fstype != "erofs" or not entry.source.startswith(ours):
        raise ControlError(errno.EINVAL, f"{target} is not mounted by pagein")
    umount(target, _MNT_DETACH)


def _umount_stack(settings: Settings, stack: MountEntry) -> None:
    """Unmount a stack that no keeper has, and layers that no other such stack stands on."""
    from pagein.mounts.syscalls import mounts, umount

    layers = os.path.join(os.path.realpath(settings.state_dir), "layers")
    mine = _layers_of(stack, layers)
    if not mine:
        raise ControlError(errno.EINVAL, f"{stack.target} is not mounted by pagein")
    umount(stack.target, _MNT_DETACH)
    left = mounts()
    for entry in left:
        mine -= _layers_of(entry, layers)
    for entry in left:
        if entry.target in mine:
            umount(entry.target, _MNT_DETACH)


def _layers_of(entry: MountEntry, directory: str) -> set[str]:
    """The mounted layers below `directory` that an overlay stands on."""
    if entry.fstype != "overlay":
        return set()
    values = (option.partition("=")[2] for option in entry.super_options)
    return {value for value in values if os.path.dirname(value) == directory}
