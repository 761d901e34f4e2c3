"""Both halves on a loop of their own, in a thread of this process: one for each cache directory.

A fork leaves the thread behind, so a child forgets the runtimes of its parent and makes its own
when it needs one; the range locks are those of open file descriptions, which a child must not keep
alive. Blobs are named by their identity, so that files opened before the fork go on working.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import errno
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from pagein.cachefiles.device import CachefilesDevice
from pagein.daemon.loop import Daemon
from pagein.daemon.records import Records
from pagein.fscache import Advice, Cookie, FsCache
from pagein.local import LocalDevice
from pagein.origins import Identity, Origin, OriginError, open_origin, resolve
from pagein.origins.identity import is_url

log = logging.getLogger("pagein.library")

T = TypeVar("T")

Opener = Callable[[Identity, float], Origin]
"""Makes the origin of an identity, on the runtime's loop; given the deadline of a request."""

VOLUME = b"erofs,pagein"
_START_TIMEOUT = 30.0
_CLOSE_TIMEOUT = 5.0
_LINGER = 1.0
"""Seconds that a runtime without files waits for the next one before it ends."""


class Runtime:
    """One cache directory's halves, serving this process."""

    def __init__(self, cache: str, timeout: float) -> None:
        """Start the thread. Raises OSError when the cache directory cannot be used."""
        self.cache = cache
        self.timeout = timeout
        self.users = 0
        """Files open, and calls to open one; guarded by the lock of `_Process`."""
        self.loop = asyncio.new_event_loop()
        self._ready: Future[None] = Future()
        self._stop = asyncio.Event()
        self._openers: dict[bytes, list[tuple[Opener, Identity]]] = {}
        """Of blobs that are being opened, by cookie key."""
        self._releases: set[asyncio.Task[None]] = set()
        self._session: Any = None
        self.device = CachefilesDevice(shared=True, copen_timeout=timeout)
        self._directory: tuple[int, int] | None = None
        self._thread = threading.Thread(target=self._run, name="pagein", daemon=True)
        _process.living.add(self)
        self._thread.start()
        try:
            self._ready.result(_START_TIMEOUT)
        except BaseException:
            self.close()
            raise

    # ---- called from any thread --------------------------------------------------------------

    def serves(self, directory: tuple[int, int] | None) -> bool:
        """Whether files can be opened through it, if their cache directory is this one now.

        Not when its thread ended, nor when the directory was removed or replaced: what is open
        goes on working, but its locks would not meet those of other processes any more.
        """
        return self._thread.is_alive() and self._directory == directory

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine on the runtime's loop. Raises OSError once that has ended."""
        if not self._thread.is_alive():
            work.close()
            raise OSError(errno.ESHUTDOWN, "the process is ending")
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def call(self, work: Coroutine[Any, Any, T], timeout: float) -> T:
        """Run a coroutine on the runtime's loop and wait for it, `timeout` seconds at most."""
        future = self.submit(work)
        try:
            return future.result(timeout)
        except TimeoutError:
            future.cancel()
            raise OSError(errno.ETIMEDOUT, f"no answer within {timeout:g} s") from None
        except BaseException:  # KeyboardInterrupt: nobody waits for it any more
            future.cancel()
            raise

    def release(self, cookie: Cookie | None) -> None:
        """Give a cookie back, and the runtime; a finaliser may call this, on any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it the cookie
            self.loop.call_soon_threadsafe(self._release, cookie)

    def close(self) -> None:
        """Stop the thread and close every file. Twice is fine."""
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(_CLOSE_TIMEOUT)

    # ---- on the loop -------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_until_complete(self._main())
        except BaseException as problem:
            if not self._ready.done():
                self._ready.set_exception(problem)
            else:
                log.exception("the library's thread ended")
        finally:
            self.loop.close()
            _process.living.discard(self)

    async def _main(self) -> None:
        os.makedirs(self.cache, 0o700, exist_ok=True)
        self._records = Records(os.path.join(self.cache, "origins"), Identity.load)
        self._fscache = FsCache(
            self.device, timeout=self.timeout + 5, read_timeout=2 * self.timeout + 5
        )
        local = LocalDevice(self.device)
        daemon = self._daemon = Daemon(
            local, self._origin, cache=self.cache, timeout=self.timeout, claims=self._claims
        )
        serving = self.loop.create_task(daemon.run())
        bound = self.loop.create_task(self.device.bound.wait())
        stop = self.loop.create_task(self._stop.wait())
        try:
            await asyncio.wait({serving, bound}, return_when=asyncio.FIRST_COMPLETED)
            session = self.device.session
            if session is None or session.cache is None:
                await serving  # which says why there is no cache
            self._directory = directory_of(self.cache)
            self._ready.set_result(None)
            await asyncio.wait({serving, stop}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await asyncio.gather(*self._releases, return_exceptions=True)
            daemon.stop()
            for task in (bound, stop):
                task.cancel()
            await asyncio.gather(serving, bound, stop, return_exceptions=True)
            await self._cancel_rest()
            if self._session is not None:
                await self._session.close()
            await self.loop.shutdown_default_executor()

    async def _cancel_rest(self) -> None:
        """End what callers still wait for, so that each of them hears of it."""
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        if rest:
            await asyncio.wait(rest, timeout=_CLOSE_TIMEOUT)

    def _session_for(self, source: str) -> Any:
        if self._session is None and is_url(source):
            from pagein.origins.health import FAIL_AFTER
            from pagein.origins.session import Session

            # No read ends before its own deadline.
            self._session = Session(fail_after=max(FAIL_AFTER, self.timeout))
        return self._session

    async def _origin(self, volume: bytes, cookie: bytes) -> Origin:
        if openers := self._openers.get(cookie):
            opener, identity = openers[-1]
            return opener(identity, self.timeout)
        identity = await self.loop.run_in_executor(None, self._records.find, cookie)
        session = self._session_for(identity.source)
        return open_origin(identity, timeout=self.timeout, session=session)

    def _claims(
        self, volume: bytes, cookie: bytes
    ) -> Callable[[int, int], contextlib.AbstractAsyncContextManager[list[tuple[int, int]]]]:
        """How the fill of a blob holds a range against the other processes."""

        @contextlib.asynccontextmanager
        async def claim(start: int, end: int) -> AsyncIterator[list[tuple[int, int]]]:
            found = self._fscache.file_of(volume, cookie)
            if found is None:
                raise OSError(errno.EIO, "the blob was closed")
            async with found.claim(start, end, timeout=self.timeout) as missing:
                yield missing

        return claim

    async def identify(self, source: str) -> Identity:
        """What a source is now, or what it was when it cannot be reached. Raises OriginError."""
        session = self._session_for(source)
        try:
            identity = await resolve(source, timeout=self.timeout, session=session)
        except OriginError as problem:
            known = None
            if problem.temporary:
                known = await self.loop.run_in_executor(None, self._records.latest, source)
            if known is None:
                raise
            log.warning("%s; going on with what is known of it", problem.strerror)
            return known
        await self.loop.run_in_executor(None, self._records.keep, identity)
        return identity

    async def acquire(self, identity: Identity, opener: Opener | None) -> Cookie:
        """The cookie of a blob; its origin comes from `opener`, if it has one. Raises OSError."""
        key = identity.key()
        if opener is not None:
            self._openers.setdefault(key, []).append((opener, identity))
        try:
            return await self._fscache.acquire(VOLUME, key, Advice.WANT_CACHE_SIZE)
        except OSError as problem:
            if isinstance(problem.__cause__, OSError):
                raise problem.__cause__ from None
            raise
        finally:
            if opener is not None:
                self._openers[key].pop()
                if not self._openers[key]:
                    del self._openers[key]

    def _release(self, cookie: Cookie | None) -> None:
        if cookie is not None:
            task = self.loop.create_task(self._fscache.relinquish(cookie))
            self._releases.add(task)
            task.add_done_callback(self._releases.discard)
        with _process.lock:
            self.users -= 1
            unused = not self.users
        if unused:
            self.loop.call_later(_LINGER, _process.end_unused, self)

    def stop_soon(self) -> None:
        """End the thread; to be called on the loop."""
        self._stop.set()

    def announce(self, cookie: Cookie, offset: int, length: int) -> None:
        """Have the daemon fetch exactly what is missing of a range; on any thread.

        READs that follow find it on its way, so that its policy has nothing to guess from them.
        """
        with contextlib.suppress(RuntimeError):  # the loop has ended: whoever reads will hear of it
            self.loop.call_soon_threadsafe(self._announce, cookie, offset, length)

    def _announce(self, cookie: Cookie, offset: int, length: int) -> None:
        blob = self._daemon.objects.find(cookie.key)
        if blob is None or cookie.withdrawn:
            return
        for low, high in cookie.file.present.gaps(offset, offset + length):
            with contextlib.suppress(OSError):  # it is being closed
                blob.fill.prefetch(low, high - low)

    async def make_present(self, cookie: Cookie, offset: int, length: int) -> tuple[int, int]:
        """Fetch what is missing of a range; returns the present extent from there on.

        What is in that extent stays, so the caller may read it without asking again.
        """
        await self._fscache.fetch(cookie, offset, length)
        return offset, cookie.file.present_from(offset)


class _Process:
    """What this process has; a forked child begins anew."""

    def __init__(self) -> None:
        self.runtimes: dict[tuple[str, float], Runtime] = {}
        """Those that serve new files."""
        self.living: set[Runtime] = set()
        """Those that have a thread."""
        self.inherited: list[Runtime] = []
        """Runtimes of the parent: never used here, and never finalised either."""
        self.lock = threading.Lock()
        """Held for moments only: the runtimes' loops take it too."""
        self.starting = threading.Lock()
        self.generation = 0
        """Counts the forks between the first process and this one."""

    def forked(self) -> None:
        """In a child: forget the parent's runtimes, and let go of their locks."""
        self.lock, self.starting = threading.Lock(), threading.Lock()
        self.generation += 1
        for runtime in self.living:
            self.inherited.append(runtime)
            session = runtime.device.session
            if session is not None:
                # Else a range that the parent has locked would stay locked when it dies.
                session.abandon()
        self.living.clear()
        self.runtimes.clear()

    def use(self, key: tuple[str, float]) -> Runtime | None:
        """A runtime that can serve another file, which then counts as its user."""
        directory = directory_of(key[0])
        with self.lock:
            found = self.runtimes.get(key)
            if found is None or not found.serves(directory):
                return None
            found.users += 1
            return found

    def start(self, key: tuple[str, float]) -> Runtime:
        """A new runtime, for its first user."""
        made = Runtime(*key)
        with self.lock:
            made.users = 1
            self.runtimes[key] = made
        return made

    def end_unused(self, runtime: Runtime) -> None:
        """End a runtime, on its loop, unless somebody has begun to use it again."""
        with self.lock:
            if runtime.users:
                return
            self.runtimes = {k: v for k, v in self.runtimes.items() if v is not runtime}
        runtime.stop_soon()

    def end(self) -> None:
        """At exit: close what is open."""
        for runtime in list(self.living):
            runtime.close()
        self.runtimes.clear()


_process = _Process()
os.register_at_fork(after_in_child=_process.forked)
atexit.register(_process.end)


def generation() -> int:
    """Another number in each process of a line of forks."""
    return _process.generation


def directory_of(path: str) -> tuple[int, int] | None:
    """Which directory a path names now; None when there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def runtime_for(cache: str, timeout: float) -> Runtime:
    """This process's runtime for a cache directory; `release` gives it back.

    Raises OSError when the directory cannot be used.
    """
    key = (os.path.abspath(cache), timeout)
    found = _process.use(key)
    if found is None:
        with _process.starting:
            found = _process.use(key) or _process.start(key)
    return found
