"""The device as an open file: what /dev/cachefiles does, without the file (facts 1 to 5).

`devfs` puts this behind a real path, the library calls it directly. Commands are serialised like
the kernel's under its daemon mutex; what blocks is done in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import select
from collections.abc import Callable
from functools import partial

from pagein.cachefiles import culling
from pagein.cachefiles.cache import UNLIMITED, Cache
from pagein.cachefiles.debug import debug
from pagein.cachefiles.object import CachefilesObject
from pagein.cachefiles.ondemand import Ondemand, error
from pagein.protocol import commands
from pagein.protocol.space import LIMITS, Limits

log = logging.getLogger("pagein.cachefiles")

DEFAULT_TAG = b"CacheFiles"


class Session:
    """One open of the device: its settings, its cache once bound, its pending requests."""

    def __init__(self, wake: Callable[[], None], first_id: int, first_object_id: int) -> None:
        self.dir: bytes | None = None
        self.cwd = b"."
        """Working directory of who writes commands: a relative `dir` is resolved there, at bind."""
        self.tag: bytes | None = None
        self.limits = Limits()
        self.ondemand_mode = False
        self.cache: Cache | None = None
        self.problem = "no daemon has bound a cache directory"
        """Why there is no cache, in words, for whoever asks to mount."""
        self.requests = Ondemand(wake, first_id=first_id, first_object_id=first_object_id)
        self.files: set[CachefilesObject] = set()
        """Objects with an open backing file."""
        self.looking_up: set[CachefilesObject] = set()
        """Objects whose lookup has begun: their names are in use already."""
        self.names = asyncio.Lock()
        """Held by who culls, and by a lookup while it begins: one of them comes first."""

    @property
    def dead(self) -> bool:
        return self.requests.dead

    @property
    def original(self) -> bool:
        """Whether a cache is bound in the original mode, where netfs fetch by themselves."""
        return self.cache is not None and not self.ondemand_mode

    def uses(self, path: bytes) -> bool:
        """Whether a path, relative to the cache directory, belongs to what is in use (facts 11).

        An object in use has its volume in use, with all directories of that.
        """
        for obj in self.files | self.looking_up:
            volume = os.path.dirname(os.path.dirname(obj.path))
            if path in (obj.path, volume) or os.path.dirname(path) == volume:
                return True
        return False

    def close_object(self, obj: CachefilesObject) -> None:
        """Let go of an object's backing file; writes through surviving fds are then ENOBUFS."""
        self.files.discard(obj)
        self.looking_up.discard(obj)
        if obj.file is not None:
            if self.cache is not None:
                self.cache.space.released(obj.file.blocks)
            obj.file.close()
            obj.file = None

    def withdraw(self) -> None:
        """Close every backing file and give the directory back."""
        for obj in list(self.files):
            self.close_object(obj)
        if self.cache is not None:
            self.cache.close()
            self.cache = None

    def abandon(self) -> None:
        """In a forked child: close the parent's files, whatever its threads were doing."""
        for obj in self.files:
            if obj.file is not None:
                obj.file.abandon()
        if self.cache is not None:
            self.cache.abandon()


class CachefilesDevice:
    """The device node: at most one open at a time, and its operations."""

    def __init__(
        self,
        *,
        shared: bool = False,
        ondemand: bool = True,
        changed: Callable[[], None] = lambda: None,
        copen_timeout: float = 30.0,
        make_cache: Callable[..., Cache] = Cache,
    ) -> None:
        """`changed` is called after each change that a successor would have to know.

        `shared` binds cache directories together with other processes (the library). Without
        `ondemand` the device answers as that of a kernel built without CACHEFILES_ONDEMAND.
        `make_cache` may be a `Cache` whose file system fails (`pagein.testing`).
        """
        self.session: Session | None = None
        self.first_id = 0
        self.first_object_id = 1
        self.shared = shared
        self.ondemand = ondemand
        self.wrote: Callable[[CachefilesObject, int, int], None] | None = None
        """Told of each write to an anonymous file: offset and length in bytes."""
        self.pollers: list[Callable[[], None]] = []
        self.bound = asyncio.Event()
        """Set while a cache is bound, or once the last try failed (see `Session.problem`)."""
        self._changed = changed
        self._copen_timeout = copen_timeout
        self._make_cache = make_cache
        self._mutex = asyncio.Lock()

    # ---- file operations ---------------------------------------------------------------------

    def open(self) -> Session:
        """Open the device. Raises EBUSY while an earlier open or any of its fds lives."""
        if self.session is not None:
            raise error(errno.EBUSY)
        self.session = Session(self._wake, self.first_id, self.first_object_id)
        self.bound.clear()
        self._changed()
        return self.session

    def release(self) -> None:
        """The last close: the cache is dead, every pending request fails EIO (facts 7.5)."""
        session = self._session()
        session.requests.die()
        self.release_anonymous(session)
        self._changed()

    def release_anonymous(self, session: Session) -> None:
        """Called after an anonymous fd went: a dead cache ends with its last one."""
        if session.dead and not session.requests.anonymous_open:
            session.withdraw()
            if self.session is session:
                self.session = None
                self.bound.clear()

    def _session(self) -> Session:
        if self.session is None:
            raise error(errno.EBADF)
        return self.session

    def _wake(self) -> None:
        for wake in self.pollers:
            wake()

    def poll(self) -> int:
        """The poll mask: POLLIN when a request waits, POLLOUT when room is short (facts 5).

        In the original mode POLLIN is news of the state.
        """
        session = self.session
        if session is None or session.dead or session.cache is None:
            return 0
        space = session.cache.space
        ready = space.news if session.original else session.requests.poll_in()
        return (select.POLLIN if ready else 0) | (select.POLLOUT if space.culling else 0)

    def read(self, size: int) -> bytes:
        """One request, or b"" at once when there is none; 0 is not the end (facts 3).

        Not for the original mode: `read_state`.
        """
        session = self._session()
        if session.cache is None or session.dead or session.original:
            return b""
        before = len(session.requests.objects)
        message = session.requests.read(size)
        if len(session.requests.objects) != before:
            self._changed()
        return message

    async def read_state(self, size: int) -> bytes:
        """What a read() says in the original mode (facts 3.1). Raises EMSGSIZE."""
        session = self._session()
        if session.cache is None or session.dead or not session.original:
            return b""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, session.cache.state, size)

    async def write(self, data: bytes, cwd: bytes = b".") -> int:
        """One command, of somebody whose working directory is `cwd`; returns its length.

        Order of checks and errno: facts 2.
        """
        if self._session().dead:
            raise error(errno.EIO)
        verb, args = commands.split(data)
        async with self._mutex:
            session = self._session()
            if session.dead:
                raise error(errno.EIO)
            session.cwd = cwd
            if debug.mask:
                debug.enter("cachefiles_daemon_" + verb, args)
            try:
                if verb in LIMITS:
                    session.limits.set(verb, commands.parse_percent(args))
                    self._changed()
                else:
                    await getattr(self, "_cmd_" + verb)(session, args)
            except OSError as problem:
                debug.leave("cachefiles_daemon_" + verb, problem)
                raise
            debug.leave("cachefiles_daemon_" + verb, len(data))
        return len(data)

    # ---- commands ----------------------------------------------------------------------------

    async def _cmd_dir(self, session: Session, args: bytes) -> None:
        path = commands.parse_dir(args)
        if session.dir is not None:
            raise error(errno.EEXIST)
        session.dir = path

    async def _cmd_tag(self, session: Session, args: bytes) -> None:
        name = commands.parse_tag(args)
        if session.tag is not None:
            raise error(errno.EEXIST)
        session.tag = name

    async def _cmd_bind(self, session: Session, args: bytes) -> None:
        if session.dir is None:
            raise error(errno.EINVAL)
        if session.cache is not None:
            raise error(errno.EBUSY)
        if args and not self.ondemand:
            raise error(errno.EINVAL)
        if commands.parse_bind(args):
            session.ondemand_mode = True  # sticky, as the kernel's (facts 2.1)
        if session.tag is None:
            session.tag = DEFAULT_TAG
        await self.bind(session)

    async def bind(self, session: Session) -> None:
        """Take the session's directory. Raises what `Cache` raises."""
        assert session.dir is not None
        directory = os.path.join(session.cwd, session.dir)
        loop = asyncio.get_running_loop()
        make = partial(
            self._make_cache,
            directory,
            shared=self.shared,
            limits=UNLIMITED if self.shared else session.limits,  # nobody culls a shared one
            space_changed=partial(_from_thread, loop, self._wake),
        )
        try:
            cache = await loop.run_in_executor(None, make)
        except OSError as problem:
            session.problem = f"cache {os.fsdecode(session.dir)}: {problem.strerror}"
            log.error("bind: %s", session.problem)
            self.bound.set()
            raise
        if session.dead:  # the device was closed meanwhile
            cache.close()
            raise error(errno.EIO)
        session.cache = cache
        if cache.space.culling:
            self._wake()
        if directory != session.dir:  # a successor has another working directory
            session.dir = cache.directory
        self.bound.set()
        self._changed()

    async def _cmd_copen(self, session: Session, args: bytes) -> None:
        self._need_ondemand(session)
        obj = session.requests.copen(args)
        self._changed()
        if obj is not None and (looking_up := obj.looking_up) is not None:
            # The daemon may write as soon as its copen returns: the file is there by then.
            async with asyncio.timeout(self._copen_timeout):
                await looking_up.wait()

    async def _cmd_cull(self, session: Session, args: bytes) -> None:
        await self._with_name(session, args, culling.cull)

    async def _cmd_inuse(self, session: Session, args: bytes) -> None:
        await self._with_name(session, args, lambda _cache, _path: None)

    async def _with_name(
        self, session: Session, args: bytes, then: Callable[[Cache, bytes], None]
    ) -> None:
        name = commands.parse_name(args)
        cache = session.cache
        if cache is None:
            raise error(errno.EIO)

        def work() -> None:
            then(cache, culling.check_name(cache, session.cwd, name, session.uses))

        async with session.names:
            await asyncio.get_running_loop().run_in_executor(None, work)

    async def _cmd_debug(self, _: Session, args: bytes) -> None:
        debug.set(commands.parse_debug(args))

    async def _cmd_secctx(self, _: Session, args: bytes) -> None:
        commands.parse_secctx(args)
        raise error(errno.EOPNOTSUPP)  # as a kernel without a security module says

    async def _cmd_restore(self, session: Session, args: bytes) -> None:
        self._need_ondemand(session)
        commands.parse_restore(args)
        session.requests.restore()
        self._changed()

    def _need_ondemand(self, session: Session) -> None:
        if not session.ondemand_mode:
            raise error(errno.EOPNOTSUPP)


def _from_thread(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(call)
