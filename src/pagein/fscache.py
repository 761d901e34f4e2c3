"""Volumes and cookies: the face of the cache that a netfs sees, as the kernel's fs/netfs.

A netfs names a blob by a volume key and a cookie key, says FSCACHE_ADV_WANT_CACHE_SIZE since it
does not know the blob's size itself, and reads. Several users of one key share one cookie: one
object, one OPEN, one size, told by the user daemon (design decision 9).
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable
from enum import Flag
from weakref import WeakValueDictionary

from pagein.cachefiles import namei
from pagein.cachefiles.backing import BackingFile
from pagein.cachefiles.device import CachefilesDevice, Session
from pagein.cachefiles.object import CachefilesObject
from pagein.cachefiles.ondemand import error
from pagein.protocol.messages import PAGE_SIZE, Opcode
from pagein.protocol.states import ObjectState

log = logging.getLogger("pagein.fscache")


class Advice(Flag):
    """`advice` of fscache_acquire_cookie."""

    NONE = 0
    WANT_CACHE_SIZE = 4


class Cookie:
    """A blob in use: a file of `length` bytes of which some is present."""

    __slots__ = ("file", "object", "session", "users")

    def __init__(self, session: Session, obj: CachefilesObject, file: BackingFile) -> None:
        self.session = session
        self.object = obj
        self.file = file
        self.users = 0

    @property
    def key(self) -> tuple[bytes, bytes]:
        """(volume key, cookie key)."""
        return self.object.volume_key, self.object.cookie_key

    @property
    def size(self) -> int:
        """Bytes, as the user daemon said."""
        return self.object.size or 0

    @property
    def length(self) -> int:
        """Bytes of the backing file: the size rounded up to pages."""
        return self.file.length

    def present(self, offset: int, length: int) -> bool:
        """Whether the pages under [offset, offset + length) can be read now."""
        start = offset & -PAGE_SIZE
        return self.file.present.covers(start, offset + length) and not self.withdrawn

    @property
    def withdrawn(self) -> bool:
        """Whether its cache is off line, after which no read succeeds (facts 7.5).

        Dead is not enough: as long as the daemon has an anonymous fd, what is there is read.
        """
        return self.session.cache is None


class FsCache:
    """The cookies of one kernel half."""

    def __init__(
        self,
        device: CachefilesDevice,
        *,
        timeout: float = 30.0,
        read_timeout: float = 120.0,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """`timeout` bounds OPEN and CLOSE in seconds, `read_timeout` each READ: a daemon that
        says nothing that long fails them EIO (the kernel waits for ever; a killable wait)."""
        self.device = device
        self.cookies: dict[tuple[bytes, bytes], Cookie] = {}
        self._timeout = timeout
        self._read_timeout = read_timeout
        self._changed = changed
        self._leaving: set[asyncio.Task[None]] = set()
        self._locks: WeakValueDictionary[tuple[bytes, bytes], asyncio.Lock] = WeakValueDictionary()

    async def acquire(self, volume_key: bytes, cookie_key: bytes, advice: Advice) -> Cookie:
        """Look a blob up, asking the user daemon by OPEN when nobody has it in use yet.

        Raises OSError: EINVAL without WANT_CACHE_SIZE or for an impossible key, ENOBUFS without
        a bound cache or when the file that is there cannot be used, EIO when the OPEN of a new
        one failed; the daemon's own errno is the cause (`__cause__`), as the kernel keeps it to
        itself (facts 6).
        """
        if Advice.WANT_CACHE_SIZE not in advice:
            raise error(errno.EINVAL)
        # Like the kernel's mount, a lookup goes on to its end whoever is killed meanwhile (facts
        # 7.2): the daemon has an fd by then, and is owed a CLOSE.
        looking_up = asyncio.get_running_loop().create_task(self._acquire((volume_key, cookie_key)))
        try:
            return await asyncio.shield(looking_up)
        except asyncio.CancelledError:
            looking_up.add_done_callback(self._give_back)
            raise

    def _give_back(self, looked_up: asyncio.Task[Cookie]) -> None:
        """Relinquish a cookie that nobody waits for any more."""
        if looked_up.cancelled() or looked_up.exception() is not None:
            return
        leaving = looked_up.get_loop().create_task(self.relinquish(looked_up.result()))
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)

    async def _acquire(self, key: tuple[bytes, bytes]) -> Cookie:
        async with self._lock(key):
            cookie = self.cookies.get(key)
            if cookie is not None and cookie.session.dead:
                raise error(errno.ENOBUFS)
            if cookie is None:
                cookie = await self._look_up(*key)
                self.cookies[key] = cookie
            cookie.users += 1
            self._changed()
            return cookie

    async def relinquish(self, cookie: Cookie) -> None:
        """Give a cookie back; the last user's return withdraws the object (CLOSE)."""
        async with self._lock(cookie.key):
            cookie.users -= 1
            if cookie.users:
                return
            self._changed()
            await cookie.session.requests.withdraw(cookie.object, self._timeout)
            cookie.session.close_object(cookie.object)
            self.cookies.pop(cookie.key, None)
            self._changed()

    def file_of(self, volume_key: bytes, cookie_key: bytes) -> BackingFile | None:
        """The open backing file of a blob in use, or None."""
        cookie = self.cookies.get((volume_key, cookie_key))
        return cookie.file if cookie is not None else None

    def _lock(self, key: tuple[bytes, bytes]) -> asyncio.Lock:
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock

    async def _look_up(self, volume_key: bytes, cookie_key: bytes) -> Cookie:
        session = self.device.session
        if session is None or session.cache is None or session.dead:
            raise error(errno.ENOBUFS)
        try:
            path = namei.object_path(volume_key, cookie_key)
        except ValueError as problem:
            raise OSError(errno.EINVAL, str(problem)) from None
        loop = asyncio.get_running_loop()
        cache = session.cache
        await loop.run_in_executor(None, cache.prepare_volume, volume_key)
        exists = await loop.run_in_executor(None, cache.exists, path)
        obj = CachefilesObject(volume_key, cookie_key, path)
        try:
            opening = session.requests.enqueue(obj, Opcode.OPEN)
            await session.requests.wait(opening, self._timeout)
            assert obj.size is not None
            obj.file = await loop.run_in_executor(None, cache.look_up, path, obj.size)
            if session.dead:
                raise error(errno.EIO)  # the device was closed meanwhile
        except OSError as problem:
            # First let the daemon go on from its copen: it has a CLOSE to read.
            obj.looked_up()
            await session.requests.withdraw(obj, self._timeout)
            session.close_object(obj)
            raise error(errno.ENOBUFS if exists else errno.EIO) from problem
        obj.looked_up()
        session.files.add(obj)
        return Cookie(session, obj, obj.file)

    async def fetch(self, cookie: Cookie, offset: int, length: int, pid: int = 0) -> None:
        """`make_present` for a reader of a file, to whom a cache that is gone is EIO as well."""
        try:
            await self.make_present(cookie, offset, length, pid)
        except OSError as problem:
            if problem.errno == errno.ENOBUFS:
                raise OSError(errno.EIO, "its cache is gone: the daemon has ended") from None
            raise

    async def make_present(self, cookie: Cookie, offset: int, length: int, pid: int = 0) -> None:
        """Return once [offset, offset + length) is present, asking the daemon for each hole.

        As the kernel (facts 9.2, 9.4): a READ covers the leading hole; after its CREAD the range
        is looked at once more, and a hole still at its start fails the read with EIO. Of a cache
        that was withdrawn nothing can be had: ENOBUFS (7.5).
        """
        if cookie.withdrawn:
            raise error(errno.ENOBUFS)
        start = offset & -PAGE_SIZE
        end = max(start, min(offset + length, cookie.length))
        requests = cookie.session.requests
        while (gap := cookie.file.present.first_gap(start, end)) is not None:
            if cookie.object.state is ObjectState.DROPPING:
                raise error(errno.EIO)
            first, last = gap[0], min((gap[1] + PAGE_SIZE - 1) & -PAGE_SIZE, cookie.length)
            request = requests.enqueue(cookie.object, Opcode.READ, first, last - first, pid)
            cookie.object.requests += 1
            await requests.wait(request, self._read_timeout)
            if not cookie.file.present.covers(first, first + PAGE_SIZE):
                raise error(errno.EIO)
        if cookie.withdrawn:
            raise error(errno.ENOBUFS)
