"""What the two sides do, one step at a time, and what is known of the outcome.

A `Play` is a kernel half (`pagein.testing.Kernel`), a daemon that is right, lazy, wrong, dying or
restored as the numbers say, and a netfs that mounts, reads, unmounts and kills its readers. `act`
takes one step; whoever calls it draws the numbers. `check` and `recover` hold what follows:

* a reader gets EIO, or bytes that the daemon wrote to that page of that blob, never others;
* no request is lost: each waiter has one that is pending, and when a right daemon takes over all
  of them are answered;
* the daemon's fds are those that the kernel half knows of, and its files have as many fds as said;
* a reader that is killed is gone at once, and a mount has an end.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pagein.fscache import Cookie
from pagein.protocol.messages import Close, Message, Opcode, Open, Read, decode
from pagein.protocol.states import RequestState, readable
from pagein.testing import (
    AnonFd,
    Delay,
    Device,
    Drop,
    Fail,
    Fault,
    Kernel,
    Kill,
    Killed,
    Short,
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

STEPS = tuple(Step)
FAULTS: dict[Step, tuple[Fault, ...]] = {
    Step.READ: (Drop(), Kill(), Kill(after=True), Delay(1), Fail(errno.EMFILE), Fail(errno.EINTR)),
    Step.COMMAND: (Drop(), Kill(), Kill(after=True), Delay(TIMEOUT), Fail(errno.ENOMEM)),
    Step.OPEN_FD: (Kill(), Kill(after=True), Delay(1), Fail(errno.EMFILE)),
    Step.PWRITE: (Drop(), Kill(), Kill(after=True), Delay(1), Short(PAGE), Fail(errno.EIO)),
    Step.CREAD: (Drop(), Kill(), Kill(after=True), Delay(READ_TIMEOUT), Fail(errno.EIO)),
    Step.CLOSE_FD: (Kill(), Kill(after=True), Delay(1)),
    Step.LOOK_UP: (Fail(errno.EIO), Fail(errno.ENOSPC), Fail(errno.EMFILE)),
    Step.STORE: (Short(1000), Short(PAGE), Fail(errno.ENOSPC), Fail(errno.EIO)),
}
COMMANDS = (
    b"bind ondemand",
    b"restore",
    b"restore now",
    b"copen",
    b"copen 1",
    b"copen x,5",
    b"copen 0,-99999",
    b"tag again",
    b"dir /",
    b"nonsense",
    b"\n",
    b"copen 4294967296,1",
)


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
class Play:
    """One play, from a kernel half in `directory` on."""

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
        self.device = self._bind()

    def _bind(self) -> Device:
        device = self.kernel.bind()
        assert self.kernel.session is not None and self.kernel.session.cache is not None
        self.kernel.session.cache.open_files.limit = 1  # so that files are opened again, often
        self.ids.clear()
        return device

    @cached_property
    def actions(self) -> tuple[Callable[[int, int], bool], ...]:
        """What may happen; each says whether it could. The likely ones stand there more often."""
        return (
            *[self.mount] * 4,
            self.umount,
            *[self.read] * 16,
            self.kill_reader,
            self.kill_mount,
            *[self.take] * 28,
            *[self.answer] * 24,
            self.forget,
            self.prefetch,
            self.guess_cread,
            self.guess_copen,
            self.command,
            self.another_fd,
            self.close_fd,
            self.die,
            *[self.restart] * 6,
            self.restore_early,
            *[self.go_wrong] * 3,
            self.wait,
            self.close_device,
        )

    def act(self, which: int, a: int, b: int) -> None:
        """One step: the action of that number, or the next one that is possible."""
        actions = self.actions
        for n in range(len(actions)):
            try:
                if actions[(which + n) % len(actions)](a, b):
                    break
            except Killed:
                self.messages.clear()
                break
        self.collect()

    # ---- the netfs ---------------------------------------------------------------------------

    def mount(self, a: int, b: int) -> bool:
        if len(self.mounting) + len(self.cookies) >= MOST:
            return False
        key = KEYS[a % len(KEYS)]
        self.mounting.append(Mounting(key, self.kernel.mount(*key)))
        return True

    def umount(self, a: int, b: int) -> bool:
        if not self.cookies:
            return False
        cookie = self.cookies.pop(a % len(self.cookies))
        self.leaving.append(self.kernel.umount(cookie))
        return True

    def read(self, a: int, b: int) -> bool:
        if not self.cookies or len(self.readers) >= MOST:
            return False
        cookie = self.cookies[a % len(self.cookies)]
        first, count = b % PAGES, 1 + b // PAGES % 3
        count = min(count, PAGES - first)
        waiting = self.kernel.read(cookie, first * PAGE, count * PAGE)
        self.readers.append(Reader(cookie, first, waiting))
        return True

    def kill_reader(self, a: int, b: int) -> bool:
        if not self.readers:
            return False
        reader = self.readers[a % len(self.readers)]
        reader.waiting.kill()
        assert reader.waiting.killed, "a reader could not be killed"
        return True

    def kill_mount(self, a: int, b: int) -> bool:
        alive = [mounting for mounting in self.mounting if not mounting.killed]
        if not alive or b % 4:
            return False
        alive[a % len(alive)].killed = True
        alive[a % len(alive)].waiting.kill()
        return True

    # ---- the daemon --------------------------------------------------------------------------

    def take(self, a: int, b: int) -> bool:
        """Read the device."""
        if not self.device.alive:
            return False
        polled = self.device.poll()
        try:
            raw = self.device.read()
        except OSError as problem:
            assert problem.errno in (errno.EEXIST, errno.EMFILE, errno.EINTR), problem
            return True
        if not raw:
            return True
        assert polled, "a message without POLLIN"
        message = decode(raw)
        self.messages.append(message)
        if isinstance(message, Open):
            assert message.object_id not in self.ids, "an object_id was used again"
            self.ids.add(message.object_id)
        return True

    def answer(self, a: int, b: int) -> bool:
        """Answer a message; of 16 answers 11 are right."""
        if not self.messages or not self.device.alive:
            return False
        message = self.messages.pop(a % len(self.messages))
        if isinstance(message, Open):
            self._answer_open(message, b)
        elif isinstance(message, Read):
            self._answer_read(message, b)
        else:
            for fd in [fd for fd in self.device.fds if fd.object_id == message.object_id]:
                fd.close()
        return True

    def forget(self, a: int, b: int) -> bool:
        """A lazy daemon: it has the message and never answers."""
        if not self.messages or not self.device.alive:
            return False
        self.messages.pop(a % len(self.messages))
        return True

    def _answer_open(self, message: Open, b: int) -> None:
        try:
            fd = self.device.open_fd(message.object_id)
        except OSError as problem:
            assert problem.errno in (errno.ENOENT, errno.EMFILE), problem
            self._copen(message.msg_id, -(problem.errno or errno.EIO))
            return
        if b % 16 < 2:
            size = -1 - b
        elif b % 16 == 2:
            size = SIZES[1]
        else:
            size = self.sizes.get((message.volume_key, message.cookie_key), SIZES[0])
        if not self._copen(message.msg_id, size) and b < 200 and self.device.alive:
            fd.close()

    def _copen(self, msg_id: int, size: int) -> bool:
        try:
            self.device.write(b"copen %d,%d" % (msg_id, size))
        except OSError as problem:
            assert problem.errno in (errno.EINVAL, errno.ENOMEM, errno.EIO), problem
            return False
        return size >= 0

    def _answer_read(self, message: Read, b: int) -> None:
        fd = self._fd(message.object_id)
        if fd is None:
            return
        first, count = message.off // PAGE, message.len // PAGE
        if b % 16 == 0:
            count = 1  # only the beginning
        if b % 16 != 1:  # else: nothing was had, an error
            self._write(fd, first, count, wrong=b % 16 == 2)
        try:
            fd.cread(message.msg_id)
        except OSError as problem:
            assert problem.errno in (errno.EINVAL, errno.EIO), problem

    def _fd(self, object_id: int) -> AnonFd | None:
        return next((fd for fd in self.device.fds if fd.object_id == object_id), None)

    def _write(self, fd: AnonFd, first: int, count: int, *, wrong: bool = False) -> bool:
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

    def prefetch(self, a: int, b: int) -> bool:
        if not self.device.fds or not self.device.alive:
            return False
        fd = self.device.fds[a % len(self.device.fds)]
        self._write(fd, b % PAGES, 1 + b // PAGES % 4)
        return True

    def guess_cread(self, a: int, b: int) -> bool:
        """CREAD of any id: it counts if it is that of a READ of this object."""
        if not self.device.fds or not self.device.alive:
            return False
        fd = self.device.fds[a % len(self.device.fds)]
        pending = self.kernel.session.requests.pending if self.kernel.session else {}
        msg_id = [*pending, b][b % (len(pending) + 1)]
        request = pending.get(msg_id)
        right = (
            request is not None
            and request.opcode is Opcode.READ
            and request.object is fd.object
            and fd.object.live_id == fd.object_id
        )
        undisturbed = self.kernel.faults.next(Step.CREAD) is None
        try:
            fd.cread(msg_id)
        except OSError as problem:
            assert problem.errno in (errno.EINVAL, errno.EIO), problem
            assert not (right and undisturbed)
        else:
            assert right or not undisturbed
        return True

    def guess_copen(self, a: int, b: int) -> bool:
        if not self.device.alive:
            return False
        pending = [*self.kernel.session.requests.pending] if self.kernel.session else []
        self._copen([*pending, a][a % (len(pending) + 1)], -5 if b % 2 else SIZES[0])
        return True

    def command(self, a: int, b: int) -> bool:
        if not self.device.alive:
            return False
        try:
            self.device.write(COMMANDS[a % len(COMMANDS)])
        except OSError as problem:
            known = ["EINVAL", "EOPNOTSUPP", "EBUSY", "EEXIST", "EIO", "ENOMEM", "ERANGE"]
            assert errno.errorcode[problem.errno or 0] in [*known, "ENOTSUP"], problem
        return True

    def another_fd(self, a: int, b: int) -> bool:
        if not 0 < len(self.device.fds) < MOST or not self.device.alive:
            return False
        object_id = self.device.fds[a % len(self.device.fds)].object_id
        try:
            self.device.open_fd(object_id)
        except OSError as problem:
            assert problem.errno in (errno.ENOENT, errno.EMFILE), problem
        return True

    def close_fd(self, a: int, b: int) -> bool:
        if not self.device.fds or not self.device.alive:
            return False
        self.device.fds[a % len(self.device.fds)].close()
        return True

    def die(self, a: int, b: int) -> bool:
        if not self.device.alive:
            return False
        self.device.kill()
        self.messages.clear()
        return True

    def restart(self, a: int, b: int) -> bool:
        """Another daemon: it says restore, as it should, but for one in eight."""
        if self.device.alive:
            return False
        self.device.restart()
        if a % 8:
            self._restore()
        return True

    def restore_early(self, a: int, b: int) -> bool:
        """While the old fds are open: it fails an OPEN that was not answered, and no READ."""
        if not self.device.alive:
            return False
        self._restore()
        return True

    def _restore(self) -> None:
        try:
            self.device.write(b"restore")
        except OSError as problem:
            assert problem.errno == errno.ENOMEM, problem

    # ---- the world ---------------------------------------------------------------------------

    def go_wrong(self, a: int, b: int) -> bool:
        step = STEPS[a % len(STEPS)]
        faults = FAULTS[step]
        if self.kernel.faults.next(step) is not None:
            return False
        self.kernel.faults.add(step, faults[b % len(faults)])
        return True

    def wait(self, a: int, b: int) -> bool:
        """Time passes; after the longest deadline nothing waits that was not asked again."""
        self.kernel.advance(TIMEOUT + 1 if a % 8 == 0 else 1)
        if a % 32 == 0:
            self.kernel.advance(2 * READ_TIMEOUT)
            assert all(r.waiting.done for r in self.readers), "a reader waits beyond its deadline"
            assert all(m.waiting.done for m in self.mounting), "a mount waits beyond its deadline"
        return True

    def close_device(self, a: int, b: int) -> bool:
        """The last close: everything that waits fails. Then it is opened and bound anew."""
        if b % 8:
            return False
        self.device.close()
        self.messages.clear()
        assert all(reader.waiting.done for reader in self.readers), "a reader of a dead cache waits"
        self.collect()
        for cookie in self.cookies:
            self.leaving.append(self.kernel.umount(cookie))
        self.cookies.clear()
        self.kernel.run()
        self.collect()
        assert not self.leaving and not self.mounting, "a dead cache is not let go of"
        self.kernel.faults.clear()
        self.device = self._bind()
        return True

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
            fd = self._fd(message.object_id)
            assert fd is not None
            written = self._write(fd, message.off // PAGE, message.len // PAGE)
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
