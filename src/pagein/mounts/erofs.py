"""Kernel EROFS mounts: made and undone in a helper process, never blocking the loop.

What may fail, fails with a `MountError` that says why, and leaves nothing: no mount, no loop
device, no process. The one exception is a helper whose system call waits for a FUSE server that has
taken its request and does not answer: killed, it goes when the server answers or dies, not before.
This adapter decides nothing about where an image comes from.
"""

import asyncio
import contextlib
import errno
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from pagein.mounts import helpers, syscalls
from pagein.mounts.superblock import MAGIC, OFFSET, SIZE, Superblock, superblock

__all__ = [
    "MAGIC",
    "OFFSET",
    "SIZE",
    "LoopMode",
    "MountError",
    "Mounted",
    "Superblock",
    "ask_helper",
    "ask_to_mount",
    "mount_image",
    "superblock",
    "umount_image",
]

LoopMode = Literal["auto", "always", "never"]
"""Whether to go through loop devices: where EROFS cannot be mounted from a file, always, never."""

_GRACE: Final = 1.0  # seconds that a killed helper gets to be gone
_UNDO: Final = 5.0  # seconds for undoing a mount that came after its deadline


class MountError(OSError):
    """A mount that could not be made or undone; ``strerror`` is one line for the user."""


@dataclass(frozen=True, slots=True)
class Mounted:
    """A mount that was made: its directory, symbolic links resolved, and its loop devices."""

    target: str
    loop: tuple[str, ...] = ()


async def mount_image(
    primary: str | os.PathLike[str],
    devices: Sequence[str | os.PathLike[str]],
    target: str | os.PathLike[str],
    *,
    timeout: float,
    loop: LoopMode = "auto",
    options: Sequence[str] = (),
) -> Mounted:
    """Mount the EROFS image ``primary`` with its data ``devices``, read-only, nosuid and nodev.

    ``devices`` stand in the order of the image's device table, and all of them must be given.
    Raises MountError, ETIMEDOUT after ``timeout`` seconds.
    """
    job: dict[str, Any] = {
        "op": "mount",
        "primary": _absolute(primary),
        "devices": [_absolute(device) for device in devices],
        "target": await asyncio.to_thread(os.path.realpath, target),
        "options": list(options),
        "loop": loop,
    }
    answer = await ask_to_mount(job, job["primary"], timeout)
    return Mounted(job["target"], tuple(answer["loop"]))


async def ask_to_mount(job: dict[str, Any], what: str, timeout: float) -> dict[str, Any]:
    """Have a helper make a mount on the job's target, and leave none if it takes too long.

    ``what`` is being mounted, for the user. Raises MountError, ETIMEDOUT after ``timeout`` seconds.
    """
    before = syscalls.mount_at(job["target"])
    try:
        return await ask_helper(job, timeout)
    except (TimeoutError, asyncio.CancelledError) as error:
        await asyncio.shield(_undo(job["target"], before))
        if isinstance(error, asyncio.CancelledError):
            raise
        text = f"mounting {what} took more than {timeout:g} s"
        raise MountError(errno.ETIMEDOUT, text) from None


async def umount_image(
    target: str | os.PathLike[str], *, timeout: float, lazy: bool = False
) -> None:
    """Undo a mount; its loop devices vanish with it.

    ``lazy`` takes it out of sight while it is still in use (MNT_DETACH). Raises MountError: EINVAL
    where nothing is mounted, EBUSY in use, ETIMEDOUT after ``timeout`` seconds.
    """
    where = _absolute(target)
    try:
        await ask_helper({"op": "umount", "target": where, "lazy": lazy}, timeout)
    except TimeoutError:
        text = f"unmounting {where} took more than {timeout:g} s"
        raise MountError(errno.ETIMEDOUT, text) from None


def _absolute(path: str | os.PathLike[str]) -> str:
    return os.path.abspath(path)


async def _undo(target: str, before: syscalls.MountEntry | None) -> None:
    """Take down a mount that the helper made just before it was killed."""
    found = syscalls.mount_at(target)
    if found is not None and (before is None or found.id != before.id):
        with contextlib.suppress(OSError):
            await umount_image(target, timeout=_UNDO)


class _Helper(asyncio.SubprocessProtocol):
    """Collects what a helper says; ``ended`` is done when it is gone and all was read."""

    def __init__(self) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.said = {1: bytearray(), 2: bytearray()}

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.said[fd] += data

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


async def ask_helper(job: dict[str, Any], timeout: float) -> dict[str, Any]:
    """Have a helper do ``job``; TimeoutError when it had to be killed."""
    current = helpers.CURRENT.get()
    if current is not None:
        with contextlib.suppress(helpers.NotBegun):
            return _answer(await current.ask(job, timeout), b"")
    transport, helper = await asyncio.get_running_loop().subprocess_exec(
        _Helper,
        *helpers.command(),
        env=helpers.environment(),
        start_new_session=True,  # an interrupt from the terminal is for us, not for the helper
    )
    try:
        stdin = transport.get_pipe_transport(0)
        assert isinstance(stdin, asyncio.WriteTransport)
        stdin.write(json.dumps(job).encode())
        stdin.write_eof()
        await asyncio.wait({helper.ended}, timeout=timeout)
        if not helper.ended.done():
            raise TimeoutError
    finally:
        await _end(transport, helper)
    return _answer(bytes(helper.said[1]), bytes(helper.said[2]))


async def _end(transport: asyncio.SubprocessTransport, helper: _Helper) -> None:
    try:
        if not helper.ended.done():
            with contextlib.suppress(ProcessLookupError):
                transport.kill()
            await asyncio.wait({helper.ended}, timeout=_GRACE)
    finally:
        transport.close()


def _answer(out: bytes, err: bytes) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = json.loads(out)
    except ValueError:
        last = err.decode(errors="replace").strip().splitlines()[-1:] or ["no answer"]
        raise MountError(errno.EIO, f"the mount helper failed: {last[0]}") from None
    if not answer["ok"]:
        raise MountError(answer["errno"], answer["message"])
    return answer
