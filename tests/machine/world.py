"""What is known of a play, and what must hold of it.

* a reader gets EIO, or bytes that the daemon wrote to that page of that blob, never others;
* no request is lost: each waiter has one that is pending, and when a right daemon takes over all
  of them are answered;
* the daemon's fds are those that the kernel half knows of, and its files have as many fds as said;
* a reader that is killed is gone at once, and a mount has an end.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from pathlib import Path

from pagein.fscache import Cookie
from pagein.protocol.messages import Close, Message, Opcode, Open, Read, decode
from pagein.protocol.states import RequestState, readable
from pagein.testing import (
    AnonFd,
    Device,
    Drop,
    Kernel,
    Killed,
    Step,
    Waiting,
)

PAGE = 4096
PAGES = 6
SIZES = (PAGES * PAGE, PAGES * PAGE - 700)
KEYS = ((b"erofs,a", b"a"), (b"erofs,a", b"b"), (b"erofs,c", b"c"))
TIMEOUT = 30.0
READ_TIMEOUT = 120.0
MOST = 8
"""Mounts, and readers, at the same time."""

Key = tuple[bytes, bytes]
Page = tuple[Key, int, int]
"""Of which blob, of what size in bytes, and which."""


def byte_of(key: Key, size: int, number: int, *, wrong: bool = False) -> int:
    """What fills a page: never 0, which is a hole, and no two pages have the same."""
    blob = KEYS.index(key) * len(SIZES) + SIZES.index(size)
    return 1 + (blob * PAGES + number) * 2 + wrong


@dataclass
class Reader:
    """A read under way."""

    cookie: Cookie
    first: int
    waiting: Waiting[bytes]


@dataclass
class Mounting:
    """A lookup under way; `killed` ones give their cookie back by themselves."""

    key: Key
    waiting: Waiting[Cookie]
    killed: bool = False


@dataclass
class World:
    """A kernel half in `directory`, and what is known of it."""

    directory: Path
    messages: list[Message] = field(default_factory=list)
    """Taken by the daemon that lives now, and not answered."""
    cookies: list[Cookie] = field(default_factory=list)
    mounting: list[Mounting] = field(default_factory=list)
    leaving: list[Waiting[None]] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)
    written: dict[Page, set[int]] = field(default_factory=dict)
    """The byte values that may stand in a page of a blob, of one of its sizes."""
    sizes: dict[Key, int] = field(default_factory=dict)
    """What the last copen that counted told."""
    ids: set[int] = field(default_factory=set)
    outcomes: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.kernel = Kernel(self.directory, timeout=TIMEOUT, read_timeout=READ_TIMEOUT)
        self.device = self.bind()

    def bind(self) -> Device:
        device = self.kernel.bind()
        assert self.kernel.session is not None and self.kernel.session.cache is not None
        self.kernel.session.cache.open_files.limit = 1  # so that files are opened again, often
        self.ids.clear()
        return device

    # ---- what is to hold ---------------------------------------------------------------------

    def collect(self) -> None:
        """Take in what has ended, and check it."""
        for mounting in [m for m in self.mounting if m.waiting.done]:
            self.mounting.remove(mounting)
            self._mounted(mounting)
        for leaving in [each for each in self.leaving if each.done]:
            self.leaving.remove(leaving)
            leaving.result()
        for reader in [r for r in self.readers if r.waiting.done]:
            self.readers.remove(reader)
            self._read_ended(reader)

    def _count(self, what: str) -> None:
        self.outcomes[what] = self.outcomes.get(what, 0) + 1

    def _mounted(self, mounting: Mounting) -> None:
        if mounting.waiting.killed:
            self._count("mount killed")
            return
        try:
            cookie = mounting.waiting.result()
        except OSError as problem:
            assert problem.errno in (errno.EIO, errno.ENOBUFS), problem
            self._count(f"mount {errno.errorcode[problem.errno]}")
            return
        assert cookie.size in SIZES
        self.sizes[cookie.key] = cookie.size
        self.cookies.append(cookie)
        self._count("mount ok")

    def _read_ended(self, reader: Reader) -> None:
        if reader.waiting.killed:
            self._count("read killed")
            return
        try:
            data = reader.waiting.result()
        except OSError as problem:
            assert problem.errno == errno.EIO, problem
            self._count("read EIO")
            return
        self._count("read ok")
        assert data and len(data) % PAGE == 0
        for n in range(len(data) // PAGE):
            page = data[n * PAGE : (n + 1) * PAGE]
            which = (reader.cookie.key, reader.cookie.size, reader.first + n)
            allowed = self.written.get(which, set())
            # Faster than a set of its bytes, and as good for a page of one value.
            plain = page[0] in allowed and page.count(page[0]) == PAGE
            assert plain or set(page) <= allowed, "a reader got what the daemon did not write"

    def check(self) -> None:
        """What holds between any two steps."""
        session = self.kernel.session
        assert session is not None and session.cache is not None
        requests = session.requests.requests
        reads = [r for r in requests if r.opcode is Opcode.READ]
        assert len(reads) == len(self.readers), "not every reader has one READ"
        assert all(not request.done.done() for request in requests)
        busy = {(r.object.volume_key, r.object.cookie_key) for r in requests}
        for mounting in self.mounting:
            assert mounting.key in busy, "a mount waits for no request"
        assert busy or not self.leaving, "an unmount waits for no request"
        assert requests.readable == any(
            r.state is RequestState.NEW and readable(r.opcode, r.object.state) for r in requests
        )
        held = {(fd.object_id, fd.number) for fd in self.device.fds}
        objects = session.requests.objects
        assert held == {(n, handle) for n, obj in objects.items() for handle in obj.handles}
        files = [obj.file for obj in session.files if obj.file is not None]
        assert session.cache.open_files.opened == sum(file.fd >= 0 for file in files)

    def recover(self) -> None:
        """A right daemon takes over: then nobody waits any more, and no reader fails."""
        if self.device.alive:
            self.device.kill()
        self.messages.clear()
        self.kernel.faults.clear()
        self.device.restart()
        self.device.write(b"restore")
        # Who reads while the last user unmounts may well get EIO.
        mounted = [reader for reader in self.readers if reader.cookie.users]
        for _ in range(20 * MOST):
            if raw := self.device.read():
                self._serve(decode(raw))
            elif not self.device.poll():
                break
        assert not self.kernel.pending, "a right daemon was not asked"
        assert all(reader.waiting.done for reader in self.readers), "a reader waits for nobody"
        for reader in mounted:
            assert reader.waiting.result()
        self.collect()
        assert not self.mounting and not self.leaving and not self.readers

    def _serve(self, message: Message) -> None:
        if isinstance(message, Open):
            key = (message.volume_key, message.cookie_key)
            self.device.open_fd(message.object_id)
            self.device.write(b"copen %d,%d" % (message.msg_id, self.sizes.get(key, SIZES[0])))
        elif isinstance(message, Read):
            fd = self.fd_of(message.object_id)
            assert fd is not None
            written = self.write_pages(fd, message.off // PAGE, message.len // PAGE)
            assert written, "a right daemon cannot write"
            fd.cread(message.msg_id)
        else:
            assert isinstance(message, Close)
            for fd in [fd for fd in self.device.fds if fd.object_id == message.object_id]:
                fd.close()

    def end(self) -> None:
        """Everybody is answered or killed, everything unmounted, and all files are closed."""
        self.recover()
        for cookie in self.cookies:
            self.leaving.append(self.kernel.umount(cookie))
        self.cookies.clear()
        self.recover()
        session = self.kernel.session
        assert session is not None and session.cache is not None
        assert not session.files and not session.cache.open_files.opened
        assert not session.requests.objects
        self.close()

    def close(self) -> None:
        """Let go of everything, also of a play that failed."""
        self.kernel.close()

    # ---- what a daemon does, right or wrong ------------------------------------------------------

    def fd_of(self, object_id: int) -> AnonFd | None:
        return next((fd for fd in self.device.fds if fd.object_id == object_id), None)

    def write_pages(self, fd: AnonFd, first: int, count: int, *, wrong: bool = False) -> bool:
        """Write pages, and note what may be read of them from now on."""
        obj = fd.object
        key = (obj.volume_key, obj.cookie_key)
        size = obj.size if obj.size is not None else SIZES[0]
        numbers = range(first, min(first + count, PAGES))
        values = [byte_of(key, size, n, wrong=wrong) for n in numbers]
        data = b"".join(bytes([value]) * PAGE for value in values)
        dropped = self.kernel.faults.next(Step.PWRITE) == Drop()
        # While it is under way others may run: what it has written may be read at once.
        pages = [(key, size, n) for n in numbers]
        before = [bool(self.written.get(page)) for page in pages]
        for page, value in zip(pages, values, strict=True):
            self.written.setdefault(page, set()).add(value)
        done = 0
        try:
            done = fd.pwrite(data, first * PAGE)
        except OSError as problem:
            known = (errno.ENOBUFS, errno.ENOSPC, errno.EIO, errno.EMFILE)
            assert problem.errno in known, problem
        except Killed:
            return False
        for n, (page, was_there) in enumerate(zip(pages, before, strict=True)):
            # A page that was there may be torn; one that was not is a hole still.
            if not was_there and (dropped or (n + 1) * PAGE > done):
                del self.written[page]
        return done == len(data)
