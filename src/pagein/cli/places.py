"""Where containers are while they run, and what is cleaned up after them, however they end.

A container has `<runtime directory>/containers/<id>/` with its bundle and its root directory, and
`<cache>/containers/<id>/` for what it writes; both 0700. It holds a lock as long as its command
lives. Whatever has no such lock any more is taken away: by a process that waits for just that
(`guard`), and if that was killed too, by the next `pagein` command (`sweep`).
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from pagein.cli.settings import Settings

log = logging.getLogger("pagein")

_PATIENCE = 60.0
"""Seconds in which a guard tries to clean up, before it leaves that to the next command."""


@dataclass(frozen=True)
class Place:
    """The directories of one container."""

    name: str
    bundle: Path
    written: Path
    """On a disk: what a container writes there may be large."""

    @property
    def rootfs(self) -> Path:
        """Where its layers are mounted."""
        return self.bundle / "rootfs"


def _of(settings: Settings, name: str) -> Place:
    bundle = Path(os.path.realpath(settings.path("containers")), name)
    return Place(name, bundle, Path(settings.cache, "containers", name))


def runc_state(settings: Settings) -> Path:
    """The directory that runc keeps."""
    return Path(settings.path("runc"))


@contextlib.contextmanager
def container(settings: Settings) -> Iterator[Place]:
    """A place for a new container; at the end nothing of it is left. Raises OSError."""
    place = _of(settings, os.urandom(6).hex())
    with _undisturbed(settings):
        place.rootfs.mkdir(parents=True, mode=0o700)
        place.bundle.chmod(0o700)
        lock = _lock(place)
    assert lock is not None
    try:
        with _guard(settings, place, lock):
            try:
                place.written.mkdir(parents=True, mode=0o700)
                yield place
            finally:
                clean(settings, place)
    finally:
        os.close(lock)


def sweep(settings: Settings) -> None:
    """Take away what is left of containers whose command was killed."""
    try:
        names = os.listdir(settings.path("containers"))
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in names:
        place = _of(settings, name)
        with _undisturbed(settings):
            lock = _lock(place)
        if lock is not None:
            try:
                clean(settings, place)
            finally:
                os.close(lock)


@contextlib.contextmanager
def _undisturbed(settings: Settings) -> Iterator[None]:
    """Nobody takes away what has just been made and is not locked yet."""
    os.makedirs(settings.state_dir, 0o700, exist_ok=True)
    fd = os.open(settings.path("containers.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _lock(place: Place) -> int | None:
    """The lock of a container, None if somebody has it."""
    try:
        fd = os.open(place.bundle / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:  # cleaned up just now
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def clean(settings: Settings, place: Place) -> None:
    """End a container, unmount it, remove its directories; what is not there is no mistake."""
    from pagein.cli.umount import unmount
    from pagein.containers import runc
    from pagein.mounts.syscalls import mount_at

    with contextlib.suppress(runc.RunError):
        runc.Runc(runc.find(), str(runc_state(settings))).delete(place.name)
    root = str(place.rootfs)
    try:
        if mount_at(root) is not None:
            unmount(settings, root, lazy=True)
    except OSError as problem:
        log.warning("%s could not be unmounted: %s", root, problem.strerror)
    if mount_at(root) is not None:
        return  # never remove what is below a mount; the next command tries again
    shutil.rmtree(place.written, ignore_errors=True)
    shutil.rmtree(place.bundle, ignore_errors=True)


# ---- the guard ----------------------------------------------------------------------------------


@contextlib.contextmanager
def _guard(settings: Settings, place: Place, lock: int) -> Iterator[None]:
    """A process that cleans up when this one is killed within the block."""
    read, write = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if not pid:
        os.close(write)
        os.close(lock)
        _stand_guard(settings, place, read)
    os.close(read)
    try:
        yield
    finally:
        with contextlib.suppress(BrokenPipeError):
            os.write(write, b"d")
        os.close(write)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def _stand_guard(settings: Settings, place: Place, pipe: int) -> NoReturn:
    """Clean up if the other end of `pipe` is closed without a word."""
    try:
        os.setsid()  # an interrupt from the terminal is not for it
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):  # whoever reads our output must see its end
            os.dup2(null, fd)
        if not os.read(pipe, 1):
            # The pipe may end before the lock does: the kernel closes files in no order.
            give_up = time.monotonic() + _PATIENCE
            while place.bundle.exists() and time.monotonic() < give_up:
                sweep(settings)
                time.sleep(0.02)
    finally:
        os._exit(0)
