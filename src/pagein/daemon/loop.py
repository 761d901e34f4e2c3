"""The daemon: a device on one side, origins on the other.

Each request gets a task of its own, so that OPEN and CLOSE never wait behind a READ that waits for
the network (facts cachefiles-kernel 15.4). Every READ is completed, also when it failed: the
protocol has no other way to say so, and its reader would hang for ever (8.3, 9.4). The one
exception is a daemon that is told to stop: what it leaves is asked again of the next one, which
says `restore` (10).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import resource
import signal
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final

from pagein.daemon import presence, stats
from pagein.daemon.athand import AtHand
from pagein.daemon.buffers import Budget
from pagein.daemon.device import AnonFd, Device
from pagein.daemon.fetch import Claim, Then
from pagein.daemon.filedevice import FileDevice
from pagein.daemon.fill import Fill
from pagein.daemon.objects import Blob, Key, ObjectTable, name_of
from pagein.daemon.opening import Opener, OriginOf, errno_of
from pagein.daemon.tally import Tally
from pagein.origins.base import Origin
from pagein.protocol import commands
from pagein.protocol.messages import Close, Message, Open, Read

log = logging.getLogger("pagein.daemon")

TIMEOUT: Final = 30.0
"""Seconds until an OPEN or a READ is answered, by default."""

TAG: Final = "pagein"
"""Name of the cache. One constant name: with another one, mounts would stick to a dead cache."""

_SEED_WAIT = 0.25  # seconds that a READ waits to learn what is in the cache already
_ENDING = 10.0  # seconds for running work when the daemon stops


class Daemon:
    """Serves a device. A daemon of your own is an `origin` callable and `asyncio.run(run())`."""

    def __init__(
        self,
        device: Device | str | None,
        origin: OriginOf,
        *,
        cache: str | None,
        tag: str = TAG,
        timeout: float = TIMEOUT,
        claims: Callable[[bytes, bytes], Claim] | None = None,
        opened: Callable[[Blob], None] | None = None,
        tally: Tally | None = None,
        closed: Callable[[Blob], None] | None = None,
        budget: Budget | None = None,
    ) -> None:
        """Nothing is opened before `run`.

        Args:
            device: a path, a device, or None: PAGEIN_DEVICE (a path) or PAGEIN_DEVICE_FD and
                PAGEIN_DEVICE_DIRFD (inherited) in the environment. It is closed with the daemon.
            origin: (volume key, cookie key) -> origin, which the daemon closes when the blob is
                closed; KeyError or FileNotFoundError for what it does not know.
            cache: directory to bind the cache on; None if somebody else does that.
            tag: name of the cache.
            timeout: seconds until an OPEN or a READ is answered.
            claims: (volume key, cookie key) -> how its fill holds a range against other processes
                that fill the same cache; None where the cache is one kernel half's alone.
            opened: told of each OPEN that was answered, with the blob it is of.
            tally: what is counted over all blobs; it outlives the daemon.
            closed: told of each blob that no object has open any more.
            budget: limits of memory and of what is fetched ahead, shared with others.
        """
        self._opened = opened
        self._closed = closed
        self._tally = Tally() if tally is None else tally
        self._claims = claims
        self._given = device
        self._cache = cache
        self._tag = tag
        self._timeout = timeout
        self._opener = Opener(origin, timeout)
        self._objects = ObjectTable()
        self._at_hand = AtHand(self._objects)
        self._budget = Budget() if budget is None else budget
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Bind the cache, or take a bound one over, and serve until `stop` or SIGTERM.

        SIGTERM is handled only when the device is not an object of the caller's, that is in a
        process of its own.

        Raises:
            DeviceDead: the device is gone, or its cache is dead.
            OSError: the device cannot be opened (EBUSY: somebody holds it) or bound.
        """
        with contextlib.nullcontext() if isinstance(self._given, Device) else self._signals():
            device = await self._device()
            try:
                await self._bind(device)
                await self._serve(device)
            finally:
                await self._end(device)

    def stop(self) -> None:
        """Make `run` return. Reads that wait are left to the next daemon (`restore`)."""
        self._stop.set()

    @property
    def objects(self) -> ObjectTable:
        """The open objects: `objects.dup(object_id)` makes an fd for a worker."""
        return self._objects

    def blobs(self) -> list[Blob]:
        """The open ones, when they know what was served without the event loop."""
        self._at_hand.report()
        return list(self._objects.blobs())

    def stats(self) -> list[dict[str, Any]]:
        """What became of each open blob: sizes in bytes, counts, text of the last error."""
        return stats.of_blobs(self.blobs())

    # ---- beginning and end

    async def _device(self) -> Device:
        if isinstance(self._given, Device):
            return self._given
        raise_fd_limit()
        if self._given is not None:
            return await FileDevice.open(self._given, timeout=self._timeout)
        if (path := os.environ.get("PAGEIN_DEVICE")) is not None:
            return await FileDevice.open(path, timeout=self._timeout)
        fd, dirfd = _number("PAGEIN_DEVICE_FD"), _number("PAGEIN_DEVICE_DIRFD")
        if fd is None:
            raise OSError(errno.ENODEV, "no device: set PAGEIN_DEVICE or PAGEIN_DEVICE_FD")
        return FileDevice.from_fd(fd, dirfd, timeout=self._timeout)

    async def _bind(self, device: Device) -> None:
        """Bind; a cache that an earlier daemon bound is taken over instead."""
        if self._cache is not None and await bind(device, self._cache, self._tag):
            return
        try:
            await device.command(commands.restore())
        except OSError as exc:
            if exc.errno != errno.EOPNOTSUPP:  # before Linux 6.8 and 6.1.95
                raise
            log.warning("this kernel cannot restore: reads of an earlier daemon stay unanswered")

    async def _serve(self, device: Device) -> None:
        reading = asyncio.create_task(self._read_requests(device))
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({reading, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reading.result()
        finally:
            for task in (reading, stopping):
                task.cancel()
            await asyncio.gather(reading, stopping, return_exceptions=True)

    async def _end(self, device: Device) -> None:
        """Cancel what runs, close every fd, then the device."""
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_ENDING)
        try:
            await asyncio.gather(*(self._withdraw(each) for each in self._objects.ids()))
        finally:
            await device.close()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        try:
            loop.add_signal_handler(signal.SIGTERM, self.stop)
        except (RuntimeError, ValueError):  # not the main thread
            yield
            return
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGTERM)

    # ---- requests

    async def _read_requests(self, device: Device) -> None:
        device.shortcut = self._at_hand
        while True:
            message = await device.read()
            self._spawn(self._handle(device, message))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _handle(self, device: Device, message: Message) -> None:
        try:
            match message:
                case Open():
                    await self._open(device, message)
                case Read():
                    await self._read(message)
                case Close():
                    await self._withdraw(message.object_id)
        except Exception:
            log.exception("%s of object %d", message.opcode.name, message.object_id)

    async def _open(self, device: Device, message: Open) -> None:
        try:
            anon = await device.open_anon(message)
        except OSError as exc:
            log.error("no anonymous fd for object %d: %s", message.object_id, exc)
            await self._copen(device, message, -errno_of(exc))
            return
        key = (message.volume_key, message.cookie_key)
        try:
            blob = await self._blob(key)
            # Before copen: the first READ may come before copen has returned here.
            self._objects.attach(message.object_id, blob, anon)
        except Exception as exc:
            _log_refusal(key, exc)
            await self._copen(device, message, -errno_of(exc))
            # After the answer; while it is open, a re-opened object would hang (7.1).
            await anon.close()
            return
        except BaseException:
            await anon.close()
            raise
        if await self._copen(device, message, blob.size):
            blob.seeding = self._spawn(self._seed(blob, anon))
            blob.origin.prepare()
            if self._opened is not None:
                self._opened(blob)
        else:
            await self._withdraw(message.object_id)

    async def _blob(self, key: Key) -> Blob:
        """The blob of `key`: the one that is open, which then may have lost data, or a new one."""
        blob = self._objects.find(key)
        if blob is None:
            origin, size = await self._opener.open(key)
            blob = self._objects.find(key)
            if blob is None:
                return self._new_blob(key, origin, size)
            await origin.close()  # two OPENs at once
        blob.fill.forget(0, blob.size)  # its extents are read anew
        return blob

    def _new_blob(self, key: Key, origin: Origin, size: int) -> Blob:
        async def write(data: memoryview, offset: int, then: Then | None) -> None:
            await self._objects.writer(blob).pwrite(data, offset, then)

        name = name_of(key)
        fill = Fill(
            origin,
            size,
            write,
            timeout=self._timeout,
            claim=None if self._claims is None else self._claims(*key),
            budget=self._budget,
            tally=self._tally,
            name=name,
        )
        blob = Blob(key, origin, size, fill)
        return blob

    async def _copen(self, device: Device, message: Open, size: int) -> bool:
        """Answer an OPEN with a size in bytes, or a negative errno; whether that was taken."""
        try:
            await device.command(commands.copen(message.msg_id, size))
        except OSError as exc:
            # EINVAL: nobody waits for it any more.
            log.info("copen of request %d: %s", message.msg_id, exc)
            return False
        return True

    async def _read(self, message: Read) -> None:
        blob = self._objects.blob(message.object_id)
        if blob is None:
            log.warning("READ of unknown object %d", message.object_id)
            return
        completed = False

        def complete() -> None:
            """In the thread that wrote the last byte: its reader need not wait for the loop."""
            nonlocal completed
            with contextlib.suppress(OSError):
                self._objects.fd(message.object_id).complete(message.msg_id)
                completed = True

        try:
            await self._learn(blob, message)
            await blob.fill.read(message.off, message.len, complete)
        except OSError:
            self._tally.failed_reads += 1  # the fill has logged it; the hole says it to the kernel
        except Exception:
            log.exception("%s: READ of %d bytes at %d", blob.name, message.len, message.off)
        if completed:
            return
        try:
            await self._objects.fd(message.object_id).cread(message.msg_id)
        except OSError as exc:
            # EINVAL is normal: the reader was killed, or the object is closed (8.3).
            level = logging.DEBUG if exc.errno in (errno.EINVAL, errno.EBADF) else logging.WARNING
            log.log(level, "%s: CREAD of request %d: %s", blob.name, message.msg_id, exc)

    async def _learn(self, blob: Blob, message: Read) -> None:
        """Let the cache file say what is present, where our own knowledge may be wrong."""
        if blob.seeding is not None and not blob.seeding.done():
            await asyncio.wait({blob.seeding}, timeout=_SEED_WAIT)
        if blob.fill.covers(message.off, message.len):
            anon = self._objects.fd(message.object_id)
            with contextlib.suppress(OSError):
                await presence.recheck(blob.fill, anon, message.off, message.len)

    async def _seed(self, blob: Blob, anon: AnonFd) -> None:
        try:
            await presence.seed(blob.fill, anon)
        except OSError as exc:
            log.debug("%s: what is in the cache is not known: %s", blob.name, exc)

    async def _withdraw(self, object_id: int) -> None:
        """CLOSE: close all fds of an object; with the last object of a blob its fetches end."""
        fds, blob = self._objects.detach(object_id)
        if blob is not None:
            if self._closed is not None:
                self._closed(blob)
            if blob.seeding is not None:
                blob.seeding.cancel()
            await blob.fill.close()
        for anon in fds:
            with contextlib.suppress(OSError):
                await anon.close()
        if blob is not None:
            await blob.origin.close()


async def bind(device: Device, cache: str, tag: str = TAG) -> bool:
    """Bind the directory `cache`; False if it was bound before. Raises OSError.

    The kernel goes to the cache as who says `bind`, whoever serves it later (facts
    cachefiles-kernel 1): root binds, before it becomes somebody else.
    """
    bound_before = await _set_up(device, commands.dir_(cache))
    await _set_up(device, commands.tag(tag))
    try:
        await device.command(commands.bind(ondemand=True))
    except OSError as exc:
        # EBUSY has other causes too, such as a tag that a live cache has (2.1, 2.2).
        if exc.errno != errno.EBUSY or not bound_before:
            raise
        return False
    return True


async def _set_up(device: Device, command: bytes) -> bool:
    """Say `dir` or `tag`; returns whether somebody did so before."""
    try:
        await device.command(command)
    except OSError as exc:
        if exc.errno != errno.EEXIST:
            raise
        return True
    return False


def raise_fd_limit() -> None:
    """Each object needs a file descriptor, and an OPEN that gets none fails its mount (4.4)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _log_refusal(key: Key, exc: Exception) -> None:
    expected = isinstance(exc, OSError | KeyError)
    cause = f"unknown ({exc})" if isinstance(exc, KeyError) else exc
    log.error("%s: cannot be opened: %s", name_of(key), cause, exc_info=None if expected else exc)


def _number(variable: str) -> int | None:
    text = os.environ.get(variable)
    return None if text is None else int(text)
