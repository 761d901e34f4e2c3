"""Volumes and cookies: the face of the cache that a netfs sees, as the kernel's fs/netfs.

A netfs names a blob by a volume key and a cookie key, says FSCACHE_ADV_WANT_CACHE_SIZE since it
does not know the blob's size itself, and reads. Several users of one key share one cookie: one
object, one OPEN, one size, told by the user daemon (design decision 9).
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Flag
from weakref import WeakValueDictionary

from pagein.cachefiles import namei, tracepoints
from pagein.cachefiles.backing import BackingFile
from pagein.cachefiles.cache import Cache
from pagein.cachefiles.debug import debug
from pagein.cachefiles.device import CachefilesDevice, Session
from pagein.cachefiles.object import CachefilesObject
from pagein.cachefiles.ondemand import Request, error
from pagein.cachefiles.tracepoints import trace
from pagein.protocol.messages import PAGE_SIZE, Opcode
from pagein.protocol.states import ObjectState

log = logging.getLogger("pagein.fscache")


class Advice(Flag):
    """`advice` of fscache_acquire_cookie."""

    NONE = 0
    WANT_CACHE_SIZE = 4


@dataclass(frozen=True, slots=True)
class Known:
    """What a netfs knows of its file, and by what it would know it again (facts 7.3)."""

    size: int = 0
    """Bytes; of no account in on-demand mode, where the daemon says it."""
    aux: bytes = b""
    """Of the file: another version, and what is cached of it is dropped."""
    coherency: bytes = b""
    """Of the volume: if it differs, the whole volume is."""


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
        self.withdrawn: Callable[[Cookie], None] | None = None
        """Told of each cookie that nobody uses any more."""
        self._leaving: set[asyncio.Task[None]] = set()
        self._locks: WeakValueDictionary[tuple[bytes, bytes], asyncio.Lock] = WeakValueDictionary()

    async def acquire(
        self,
        volume_key: bytes,
        cookie_key: bytes,
        advice: Advice,
        known: Known = Known(),
    ) -> Cookie:
        """Look a blob up, asking the user daemon by OPEN when nobody has it in use yet.

        In the original mode nobody is asked: the netfs knows the size. Raises OSError: EINVAL
        without WANT_CACHE_SIZE in on-demand mode or for an impossible key; ENOBUFS without a bound
        cache or room in it, or when the file that is there cannot be used; EIO when the OPEN of a
        new one failed; the daemon's own errno is the cause (`__cause__`), as the kernel keeps it
        to itself (facts 6).
        """
        session = self.device.session
        if session is None or session.cache is None:
            raise error(errno.ENOBUFS)
        if Advice.WANT_CACHE_SIZE not in advice and not session.original:
            raise error(errno.EINVAL)
        # Like the kernel's mount, a lookup goes on to its end whoever is killed meanwhile (facts
        # 7.2): the daemon has an fd by then, and is owed a CLOSE.
        looking_up = asyncio.get_running_loop().create_task(
            self._acquire((volume_key, cookie_key), known)
        )
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

    async def _acquire(self, key: tuple[bytes, bytes], known: Known) -> Cookie:
        async with self._lock(key):
            cookie = self.cookies.get(key)
            if cookie is not None and cookie.session.dead:
                raise error(errno.ENOBUFS)
            if cookie is None:
                cookie = await self._look_up(*key, known)
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
            _trace_ref(cookie.object, 1, "SEE withdraw_cookie")
            if debug.mask:
                debug.enter("cachefiles_withdraw_cookie", cookie.object.cookie_key)
            await cookie.session.requests.withdraw(cookie.object, self._timeout)
            cookie.session.close_object(cookie.object)
            _trace_ref(cookie.object, 0, "PUT detach")
            if debug.mask:
                debug.leave("cachefiles_withdraw_cookie")
            self.cookies.pop(cookie.key, None)
            if self.withdrawn is not None:
                self.withdrawn(cookie)
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

    async def _look_up(self, volume_key: bytes, cookie_key: bytes, known: Known) -> Cookie:
        session = self.device.session
        if session is None or session.cache is None or session.dead:
            raise error(errno.ENOBUFS)
        path = _path(volume_key, cookie_key)
        obj = CachefilesObject(volume_key, cookie_key, path)
        _trace_ref(obj, 1, "NEW obj")
        if debug.mask:
            debug.enter("cachefiles_lookup_cookie", volume_key, cookie_key)
        async with session.names:  # who culls it has ended
            session.looking_up.add(obj)
        try:
            exists = await self._prepare(session.cache, obj, known)
        except BaseException as problem:
            session.close_object(obj)
            if isinstance(problem, OSError):
                raise error(errno.ENOBUFS) from problem
            raise
        try:
            obj.file = await self._open(session, session.cache, obj, known)
        except OSError as problem:
            # First let the daemon go on from its copen: it has a CLOSE to read.
            obj.looked_up()
            _trace_ref(obj, 1, "SEE lookup_failed")
            if debug.mask:
                debug.leave("cachefiles_lookup_cookie", problem)
            await session.requests.withdraw(obj, self._timeout)
            session.close_object(obj)
            raise error(errno.ENOBUFS if exists else errno.EIO) from problem
        obj.looked_up()
        session.files.add(obj)
        session.looking_up.discard(obj)
        if debug.mask:
            debug.leave("cachefiles_lookup_cookie", f"{obj.size} bytes")
        return Cookie(session, obj, obj.file)

    async def _prepare(self, cache: Cache, obj: CachefilesObject, known: Known) -> bool:
        """Make the volume's directory; whether there is a file, else there is room for one."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, cache.prepare_volume, obj.volume_key, known.coherency)
        exists = await loop.run_in_executor(None, cache.exists, obj.path)
        if not exists:
            await loop.run_in_executor(None, cache.check_room)
        return exists

    async def _open(
        self, session: Session, cache: Cache, obj: CachefilesObject, known: Known
    ) -> BackingFile:
        """The object's file, once its size is known."""
        if session.original:
            obj.size = known.size
        else:
            opening = session.requests.enqueue(obj, Opcode.OPEN)
            await session.requests.wait(opening, self._timeout)
        assert obj.size is not None
        loop = asyncio.get_running_loop()
        file = await loop.run_in_executor(None, cache.look_up, obj.path, obj.size, known.aux)
        if session.dead:
            file.close()
            raise error(errno.EIO)  # the device was closed meanwhile
        return file

    async def fetch(self, cookie: Cookie, offset: int, length: int, pid: int = 0) -> None:
        """`make_present` for a reader of a file, to whom a cache that is gone is EIO as well."""
        with _eio_of_a_cache_that_is_gone():
            await self.make_present(cookie, offset, length, pid)

    async def make_present(self, cookie: Cookie, offset: int, length: int, pid: int = 0) -> None:
        """Return once [offset, offset + length) is present, asking the daemon for each hole.

        As the kernel (facts 9.2, 9.4): a READ covers the leading hole; after its CREAD the range
        is looked at once more, and a hole still at its start fails the read with EIO. Of a cache
        that was withdrawn nothing can be had: ENOBUFS (7.5).
        """
        await self._answered(cookie, offset, length, self._ask_first(cookie, offset, length, pid))

    def ask(self, cookie: Cookie, offset: int, length: int, pid: int) -> Request | None:
        """The beginning of `fetch`, which goes on with `answered`; None if nothing is missing."""
        with _eio_of_a_cache_that_is_gone():
            return self._ask_first(cookie, offset, length, pid)

    async def answered(
        self, cookie: Cookie, offset: int, length: int, asked: Request | None
    ) -> None:
        """The rest of `fetch`."""
        with _eio_of_a_cache_that_is_gone():
            await self._answered(cookie, offset, length, asked)

    def _ask_first(self, cookie: Cookie, offset: int, length: int, pid: int) -> Request | None:
        if cookie.withdrawn:
            raise error(errno.ENOBUFS)
        if trace.on:
            why = "have-data" if cookie.present(offset, length) else "found-hole"
            key = cookie.object.cookie_key
            trace.event(tracepoints.PREP_READ, key, why, offset, length)
        return self._ask(cookie, offset, length, pid)

    def _ask(self, cookie: Cookie, offset: int, length: int, pid: int) -> Request | None:
        """A READ of the leading hole; None if there is none."""
        start = offset & -PAGE_SIZE
        end = max(start, min(offset + length, cookie.length))
        if (gap := cookie.file.present.first_gap(start, end)) is None:
            return None
        if cookie.object.state is ObjectState.DROPPING:
            raise error(errno.EIO)
        if cookie.session.original:
            raise error(errno.EIO)  # there is nobody to ask
        first, last = gap[0], min((gap[1] + PAGE_SIZE - 1) & -PAGE_SIZE, cookie.length)
        request = cookie.session.requests.enqueue(
            cookie.object, Opcode.READ, first, last - first, pid
        )
        cookie.object.requests += 1
        return request

    async def _answered(
        self, cookie: Cookie, offset: int, length: int, asked: Request | None
    ) -> None:
        while asked is not None:
            await cookie.session.requests.wait(asked, self._read_timeout)
            if not cookie.file.present.covers(asked.off, asked.off + PAGE_SIZE):
                raise error(errno.EIO)
            asked = self._ask(cookie, offset, length, asked.pid)
        if cookie.withdrawn:
            raise error(errno.ENOBUFS)


@contextmanager
def _eio_of_a_cache_that_is_gone() -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        if problem.errno == errno.ENOBUFS:
            raise OSError(errno.EIO, "its cache is gone: the daemon has ended") from None
        raise


def _path(volume_key: bytes, cookie_key: bytes) -> bytes:
    """Where an object is. ENOBUFS for what is no volume, as in the kernel; EINVAL for no key."""
    try:
        namei.volume_name(volume_key)
    except ValueError as problem:
        raise OSError(errno.ENOBUFS, str(problem)) from None
    try:
        return namei.object_path(volume_key, cookie_key)
    except ValueError as problem:
        raise OSError(errno.EINVAL, str(problem)) from None


def _trace_ref(obj: CachefilesObject, users: int, why: str) -> None:
    if trace.on:
        trace.event(tracepoints.REF, obj.cookie_key, users, why)
