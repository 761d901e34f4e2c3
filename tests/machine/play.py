"""What the two sides do, one step at a time.

A `Play` is a kernel half (`pagein.testing.Kernel`), a daemon that is right, lazy, wrong, dying or
restored as the numbers say, and a netfs that mounts, reads, unmounts and kills its readers. `act`
takes one step; whoever calls it draws the numbers. What follows is in `world`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import cached_property

from tests.machine.world import (
    KEYS,
    MOST,
    PAGE,
    PAGES,
    READ_TIMEOUT,
    SIZES,
    TIMEOUT,
    Mounting,
    Reader,
    World,
)

from pagein.protocol.messages import Opcode, Open, Read, decode
from pagein.testing import Delay, Drop, Fail, Fault, Kill, Killed, Short, Step

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


class Play(World):
    """One play."""

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
        fd = self.fd_of(message.object_id)
        if fd is None:
            return
        first, count = message.off // PAGE, message.len // PAGE
        if b % 16 == 0:
            count = 1  # only the beginning
        if b % 16 != 1:  # else: nothing was had, an error
            self.write_pages(fd, first, count, wrong=b % 16 == 2)
        try:
            fd.cread(message.msg_id)
        except OSError as problem:
            assert problem.errno in (errno.EINVAL, errno.EIO), problem

    def prefetch(self, a: int, b: int) -> bool:
        if not self.device.fds or not self.device.alive:
            return False
        fd = self.device.fds[a % len(self.device.fds)]
        self.write_pages(fd, b % PAGES, 1 + b // PAGES % 4)
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
        self.device = self.bind()
        return True
