"""The kernel half: one device, its cookies, their files, and the mounts made over them."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from pagein.cachefiles.devfs import DeviceFs
from pagein.cachefiles.device import CachefilesDevice
from pagein.cachefiles.inuse import no_writer
from pagein.fscache import Advice, Cookie, FsCache
from pagein.kernelhalf.readership import Readership
from pagein.kernelhalf.stacks import Stacks
from pagein.mounts.blobfs import BlobFs, Export
from pagein.mounts.erofs import LoopMode, Mounted, MountError, mount_image, umount_image
from pagein.mounts.syscalls import mounts
from pagein.protocol.numbers import Number, Numbers

log = logging.getLogger("pagein.kernelhalf")

Key = tuple[bytes, bytes]
_STEP = 4 << 20
"""Bytes of metadata asked for at once; each step has the daemon's deadline to itself."""


@dataclass(eq=False)
class Mount:
    """A mount in the table: its directory, what was asked for, what it stands on."""

    target: str
    labels: list[str]
    keys: list[Key]
    exports: list[Export] = field(default_factory=list)
    """Files it holds; none when it was made directly on complete files."""
    loop: list[str] = field(default_factory=list)
    done: bool = False


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob to mount: its keys, and what to call it."""

    volume: bytes
    cookie: bytes
    label: str


@dataclass(frozen=True, slots=True)
class Settings:
    """Deadlines in seconds, and where things are."""

    blob_dir: str
    layer_dir: str
    timeout: float
    """For OPEN, CLOSE, mount(2) and umount(2)."""
    read_timeout: float
    linger: float
    """How long to stay with nothing mounted."""


class KernelHalf:
    """Everything one kernel half process serves; owned by `kernelhalf.process`."""

    def __init__(
        self,
        device_fd: int,
        blob_fd: int,
        settings: Settings,
        *,
        epoch: int,
        changed: Callable[[], None],
        on_close: Callable[[], None],
        numbers: Numbers,
    ) -> None:
        """Serve the two FUSE connections. `epoch` counts the halves there were before."""
        self.settings = settings
        self.changed = changed
        self.device = CachefilesDevice(changed=changed, copen_timeout=settings.timeout)
        self.device.first_id = (epoch << 20) & 0xFFFFFFFE
        self.device.first_object_id = (epoch << 16) % 0x7FFF0000 + 1
        first_handle = (epoch << 40) + 1
        self.fscache = FsCache(
            self.device,
            timeout=settings.timeout,
            read_timeout=settings.read_timeout,
            changed=changed,
        )
        self.devfs = DeviceFs(
            device_fd,
            self.device,
            first_handle=first_handle,
            on_close=on_close,
            changed=changed,
            paused=True,
        )
        self.blobfs = BlobFs(
            blob_fd,
            self.fscache,
            first_handle=first_handle,
            released=self._released,
            on_close=on_close,
            changed=changed,
            paused=True,
        )
        self.readership = Readership(numbers)
        self.device.wrote = self.readership.wrote
        self.fscache.withdrawn = self.readership.withdrawn
        self.blobfs.answered = self.readership.read
        self.mounts: dict[str, Mount] = {}
        """Mounts of EROFS by their directories, layers of stacks among them."""
        self.stacks = Stacks(self, settings.layer_dir)
        self.busy = 0
        """Operations under way that must not be cut off by idleness."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Stop serving. Mounts and open files stay for a successor."""
        await self.blobfs.server.close()
        await self.devfs.server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def start(self, *, resend: bool) -> None:
        """Begin to serve; `resend` has the kernel send again what a predecessor left unanswered.

        Until then requests wait: they may concern what is still to be taken over.
        """
        for server in (self.devfs.server, self.blobfs.server):
            if resend:
                server.connection.resend()
            server.connection.start()

    @property
    def visible_mounts(self) -> list[Mount]:
        """Those that are no layer of a stack."""
        return [each for each in self.mounts.values() if not self.stacks.is_layer(each.target)]

    def count(self) -> None:
        """What is in use now, for the numbers."""
        numbers = self.readership.numbers
        numbers[Number.MOUNTS] = len(self.stacks.table) + len(self.visible_mounts)
        numbers[Number.BLOBS] = len(self.fscache.cookies)

    @property
    def idle(self) -> bool:
        """Whether nothing is mounted, open or under way."""
        mounted = self.mounts or self.stacks.table
        return not (mounted or self.blobfs.exports or self.fscache.cookies or self.busy)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something in a task that is owned until it ends."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("background task failed", exc_info=task.exception())

    # ---- mounting ----------------------------------------------------------------------------

    async def mount(
        self, target: str, blobs: list[Blob], *, loop: LoopMode = "auto", direct: bool = True
    ) -> Mount:
        """Mount the EROFS image of `blobs` (metadata first, then its devices) on `target`.

        Returns when it is usable. Raises OSError with one line for the user: a busy target, no
        cache, what the daemon or mount(2) said; nothing is left behind then.
        """
        self.busy += 1
        try:
            await self._wait_bound()
            self.refresh()
            if target in self.mounts or target in self.stacks.table:
                raise MountError(errno.EBUSY, f"{target} is already mounted by pagein")
            mount = Mount(target, [b.label for b in blobs], [(b.volume, b.cookie) for b in blobs])
            self.mounts[target] = mount
            try:
                await self._mount(mount, blobs, loop, direct)
            except BaseException:
                self.forget(mount)
                await self.gone(mount.exports)
                raise
            mount.done = True
            return mount
        finally:
            self.busy -= 1
            self.changed()

    async def _wait_bound(self) -> None:
        try:
            async with asyncio.timeout(self.settings.timeout):
                await self.device.bound.wait()
        except TimeoutError:
            pass
        session = self.device.session
        if session is None or session.cache is None or session.dead:
            problem = session.problem if session else "no daemon has opened the device"
            raise MountError(errno.ENOBUFS, problem)

    async def _mount(self, mount: Mount, blobs: list[Blob], loop: LoopMode, direct: bool) -> None:
        cookies = await self._acquire(blobs)
        try:
            if direct and loop != "always" and all(_alone_and_complete(c) for c in cookies):
                paths = [_path(cookie) for cookie in cookies]
                with _held(paths) as fds:
                    for cookie in cookies:
                        await self.fscache.relinquish(cookie)
                    cookies = []
                    if await self._mount_directly(mount, paths, fds):
                        return
                cookies = await self._acquire(blobs)
            if len(cookies) > 1:
                await self._bring(cookies[0], blobs[0])
            for cookie in cookies:
                shared = self.blobfs.find(cookie) is not None
                mount.exports.append(self.blobfs.export(cookie))
                if shared:  # a file has its cookie once, however many mounts hold it
                    await self.fscache.relinquish(cookie)
        finally:
            for cookie in cookies[len(mount.exports) :]:
                await self.fscache.relinquish(cookie)
        self.changed()
        files = [os.path.join(self.settings.blob_dir, os.fsdecode(e.name)) for e in mount.exports]
        mount.loop = list((await self._mount_files(mount, files, loop)).loop)

    async def _mount_files(self, mount: Mount, files: list[str], loop: LoopMode) -> Mounted:
        """mount(2); what is wrong with a file is said of what the user named."""
        try:
            return await mount_image(
                files[0], files[1:], mount.target, timeout=self.settings.timeout, loop=loop
            )
        except MountError as problem:
            text = problem.strerror or str(problem)
            named = zip(files, mount.labels, strict=True)
            for file, label in sorted(named, key=lambda pair: -len(pair[0])):
                text = text.replace(file, label)
            raise MountError(problem.errno, text) from None

    async def _bring(self, metadata: Cookie, blob: Blob) -> None:
        """Fetch metadata that stands apart from its data: it is small, and wanted at once."""
        try:
            for at in range(0, metadata.length, _STEP):
                await self.fscache.make_present(metadata, at, min(_STEP, metadata.length - at))
        except OSError as problem:
            text = f"{blob.label}: its metadata could not be fetched; the log says why"
            raise MountError(problem.errno or errno.EIO, text) from problem

    async def _acquire(self, blobs: list[Blob]) -> list[Cookie]:
        """One cookie a blob, or the error of the first that failed and none."""
        found = await asyncio.gather(
            *(self.fscache.acquire(b.volume, b.cookie, Advice.WANT_CACHE_SIZE) for b in blobs),
            return_exceptions=True,
        )
        for blob, cookie in zip(blobs, found, strict=True):
            if isinstance(cookie, BaseException):
                for other in found:
                    if isinstance(other, Cookie):
                        await self.fscache.relinquish(other)
                raise _explain(blob, cookie) from cookie
        return [cookie for cookie in found if isinstance(cookie, Cookie)]

    async def _mount_directly(self, mount: Mount, paths: list[str], fds: list[int]) -> bool:
        """Mount complete files as they are: no process of ours in the way (decision 7).

        Returns False when somebody writes to one of them, or EROFS cannot be mounted from a file
        there (ENOTBLK: before 6.12, or a cache on tmpfs).
        """
        try:
            if not all(no_writer(fd) for fd in fds):
                return False
            await self._mount_files(mount, paths, "never")
        except MountError as problem:
            if problem.errno == errno.ENOTBLK:
                return False
            raise
        return True

    async def umount(self, target: str, *, lazy: bool = False) -> None:
        """Unmount and wait until its blobs are given back. Raises OSError for the user."""
        self.busy += 1
        try:
            self.refresh()
            await self.gone(await self._umount(target, lazy))
        finally:
            self.busy -= 1
            self.changed()

    async def _umount(self, target: str, lazy: bool) -> list[Export]:
        """Unmount a mount or a stack; the files it held."""
        stack = self.stacks.table.get(target)
        if stack is not None and stack.done:
            return await self.stacks.umount(stack, lazy=lazy)
        mount = self.mounts.get(target)
        if mount is None or not mount.done:
            raise MountError(errno.EINVAL, f"{target} is not mounted by pagein")
        if self.stacks.is_layer(target):
            raise MountError(errno.EBUSY, f"{target} is a layer; unmount what it is part of")
        exports = list(mount.exports)
        await self.take_down(mount, lazy=lazy)
        return exports

    async def take_down(self, mount: Mount, *, lazy: bool) -> None:
        """Unmount and take it out of the table. Raises OSError for the user."""
        await umount_image(mount.target, timeout=self.settings.timeout, lazy=lazy)
        self.forget(mount)

    async def gone(self, exports: list[Export]) -> None:
        """Wait for the last close of files that only this mount had open, and for their CLOSE.

        The CLOSE takes a daemon, which may be slow or just being replaced.
        """
        await self.closed(exports)
        give_up = asyncio.get_running_loop().time() + self.settings.timeout
        while self._tasks and (left := give_up - asyncio.get_running_loop().time()) > 0:
            await asyncio.wait(set(self._tasks), timeout=left)  # of which one may begin others

    async def closed(self, exports: list[Export]) -> None:
        """Wait for the last close of files that only one mount had open.

        It comes at once, or not for long: somebody's copy of the mount namespace has the mount.
        """
        for _ in range(100):
            if not any(e.node in self.blobfs.exports and not e.holds for e in exports):
                break
            await asyncio.sleep(0.02)

    def refresh(self) -> None:
        """Forget mounts that somebody else has unmounted."""
        mounted = {entry.target: entry.fstype for entry in mounts()}  # of several the topmost
        for mount in list(self.mounts.values()):
            if mount.done and mounted.get(mount.target) != "erofs":
                self.forget(mount)
        self.stacks.refresh(mounted)

    def forget(self, mount: Mount) -> None:
        """Take a mount out of the table and let go of its files, once."""
        if self.mounts.get(mount.target) is not mount:
            return  # the mount table told us before whoever unmounts it could
        del self.mounts[mount.target]
        for export in mount.exports:
            self.blobfs.let_go(export)
        self.changed()

    def _released(self, export: Export) -> None:
        """The last user of a blob's file is gone: give its cookie back."""
        self.spawn(self.fscache.relinquish(export.cookie))


def _alone_and_complete(cookie: Cookie) -> bool:
    return cookie.users == 1 and cookie.size > 0 and cookie.file.complete


@contextmanager
def _held(paths: list[str]) -> Iterator[list[int]]:
    """Have files open for reading, so that nobody culls them before they are mounted."""
    with ExitStack() as opened:
        fds = []
        for path in paths:
            fds.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            opened.callback(os.close, fds[-1])
        yield fds


def _path(cookie: Cookie) -> str:
    return os.fsdecode(cookie.file.cache.path_of(cookie.object.path))


def _explain(blob: Blob, problem: BaseException) -> OSError:
    """What the daemon answered is kept from the netfs, but the user should see it."""
    cause = problem.__cause__ if isinstance(problem.__cause__, OSError) else problem
    number = problem.errno if isinstance(problem, OSError) else errno.EIO
    text = cause.strerror if isinstance(cause, OSError) else str(cause)
    return MountError(number or errno.EIO, f"{blob.label}: {text}")
