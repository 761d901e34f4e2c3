"""Random netfs reads against a random daemon: right, lazy, wrong, dying and restored.

Whatever the daemon does and in whatever order, a reader gets only bytes that the daemon wrote, or
EIO, or waits; and what the kernel half holds is what its readers and the daemon's fds need.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.cachefiles.rig import PAGE, Rig, pages, settle, soon

from pagein.cachefiles.anonymous import AnonymousFile
from pagein.fscache import Cookie
from pagein.protocol.messages import Close, Message, Opcode, Open, Read
from pagein.protocol.states import ObjectState, RequestState, readable

PAGES = 6
SIZE = PAGES * PAGE - 700
KEYS = (b"a", b"b")
PAGE_NUMBERS = st.integers(0, PAGES - 1)
KEY = st.sampled_from(KEYS)


def page_of(key: bytes, number: int) -> int:
    """The byte that fills a page of a blob; never 0, which is a hole."""
    return 1 + KEYS.index(key) * PAGES + number


class Reader:
    """A read under way: what it wants, and its outcome."""

    def __init__(self, key: bytes, first: int, count: int, task: asyncio.Task[bytes]) -> None:
        self.task = task
        self.wanted = b"".join(bytes([page_of(key, first + n)]) * PAGE for n in range(count))

    def check(self) -> None:
        if self.task.done() and not self.task.cancelled():
            problem = self.task.exception()
            if problem is None:
                assert self.task.result() == self.wanted
            else:
                assert isinstance(problem, OSError), problem


class Halves(RuleBasedStateMachine):
    """One step is one thing that a netfs or a daemon does."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner()
        self.messages: list[Message] = []
        """Taken and not answered by the daemon that lives now."""
        self.cookies: dict[bytes, Cookie] = {}
        self.asking: dict[bytes, asyncio.Task[Cookie]] = {}
        self.leaving: list[asyncio.Task[None]] = []
        self.readers: list[Reader] = []
        self.ids: set[int] = set()

    def do(self, work: Any) -> Any:
        async def main() -> Any:
            result = await soon(work)
            await settle()
            return result

        return self.runner.run(main())

    @initialize()
    def begin(self) -> None:
        async def main() -> Rig:
            return await Rig(Path(self.directory.name)).__aenter__()

        self.rig: Rig = self.do(main())

    # ---- the netfs ---------------------------------------------------------------------------

    @rule(key=KEY)
    def mount(self, key: bytes) -> None:
        if key in self.cookies or key in self.asking:
            return

        async def main() -> None:
            self.asking[key] = self.rig.acquiring(key)

        self.do(main())

    @rule(key=KEY)
    def umount(self, key: bytes) -> None:
        cookie = self.cookies.pop(key, None)
        if cookie is None:
            return

        async def main() -> None:
            self.leaving.append(self.rig.start(self.rig.fscache.relinquish(cookie)))

        self.do(main())

    @rule(key=KEY, first=PAGE_NUMBERS, count=st.integers(1, 3))
    def read(self, key: bytes, first: int, count: int) -> None:
        cookie = self.cookies.get(key)
        if cookie is None:
            return
        count = min(count, PAGES - first)

        async def main() -> None:
            task = self.rig.reading(cookie, first * PAGE, count * PAGE)
            self.readers.append(Reader(key, first, count, task))

        self.do(main())

    @rule(choice=st.integers(0, 7))
    def kill_a_reader(self, choice: int) -> None:
        waiting = [reader for reader in self.readers if not reader.task.done()]
        if waiting:
            waiting[choice % len(waiting)].task.cancel()
            self.do(settle())

    # ---- the daemon --------------------------------------------------------------------------

    @rule()
    def take(self) -> None:
        async def main() -> Message | None:
            with contextlib.suppress(FileExistsError):  # restored while its old fd is open
                return self.rig.read()
            return None

        message = self.do(main())
        if message is not None:
            self.messages.append(message)
            if isinstance(message, Open):
                assert message.object_id not in self.ids, "an object id was used again"
                self.ids.add(message.object_id)

    def _file(self, object_id: int) -> AnonymousFile | None:
        return next((f for f in self.rig.anonymous if f.object_id == object_id), None)

    def _write(self, file: AnonymousFile, first: int, count: int) -> None:
        key = file.object.cookie_key
        numbers = [page_of(key, n) for n in range(first, min(first + count, PAGES))]

        async def main() -> None:
            try:
                await file.pwrite(pages(*numbers), first * PAGE)
            except OSError:
                assert file.object.file is None  # before copen or after withdrawal, else it works

        self.do(main())

    @rule(choice=st.integers(0, 7), how=st.sampled_from(["well", "well", "part", "lazy"]))
    def answer(self, choice: int, how: str) -> None:
        """Answer one of the requests: as one should, in part, or not at all."""
        if not self.messages:
            return
        message = self.messages.pop(choice % len(self.messages))
        if isinstance(message, Open):
            self._answer_open(message, how)
        elif isinstance(message, Read):
            self._answer_read(message, how)
        else:
            self._close_all(message.object_id)

    def _answer_open(self, message: Open, how: str) -> None:
        async def main() -> None:
            try:
                self.rig.open(message.object_id)
            except OSError:
                return  # withdrawn meanwhile
            size = SIZE if how in ("well", "part") else -5
            try:
                await self.rig.write(b"copen %d,%d" % (message.msg_id, size))
            except OSError:
                size = -5
            if size < 0:
                self._close_all_now(message.object_id)

        self.do(main())

    def _answer_read(self, message: Read, how: str) -> None:
        file = self._file(message.object_id)
        if file is None:
            return
        first, count = message.off // PAGE, message.len // PAGE
        if how != "lazy":
            self._write(file, first, 1 if how == "part" else count)

        async def main() -> None:
            try:
                file.cread(message.msg_id)
            except OSError:
                assert message.msg_id not in self.rig.session.requests.pending

        self.do(main())

    @rule(choice=st.integers(0, 7), first=PAGE_NUMBERS, count=st.integers(1, 4))
    def prefetch(self, choice: int, first: int, count: int) -> None:
        if self.rig.anonymous:
            self._write(self.rig.anonymous[choice % len(self.rig.anonymous)], first, count)

    @rule(choice=st.integers(0, 7), msg_id=st.integers(0, 30))
    def wrong_cread(self, choice: int, msg_id: int) -> None:
        """CREAD of a guessed id: it may hit a read of this object, which then looks again."""
        if not self.rig.anonymous:
            return
        file = self.rig.anonymous[choice % len(self.rig.anonymous)]
        request = self.rig.session.requests.pending.get(msg_id)
        right = (
            request is not None
            and request.opcode is Opcode.READ
            and request.object is file.object
            and file.object.live_id == file.object_id
        )

        async def main() -> bool:
            try:
                file.cread(msg_id)
            except OSError:
                return False
            return True

        assert self.do(main()) == right

    @rule(msg_id=st.integers(0, 30), size=st.sampled_from([-5, SIZE]))
    def wrong_copen(self, msg_id: int, size: int) -> None:
        async def main() -> None:
            with contextlib.suppress(OSError):
                await self.rig.write(b"copen %d,%d" % (msg_id, size))

        self.do(main())

    @rule(choice=st.integers(0, 7))
    def another_fd(self, choice: int) -> None:
        async def main() -> None:
            for file in self.rig.anonymous[choice:][:1]:
                if file.object.state is not ObjectState.DROPPING:
                    self.rig.open(file.object_id)

        self.do(main())

    def _close_all_now(self, object_id: int) -> None:
        for file in [f for f in self.rig.anonymous if f.object_id == object_id]:
            self.rig.close(file)

    def _close_all(self, object_id: int) -> None:
        async def main() -> None:
            self._close_all_now(object_id)

        self.do(main())

    @rule(choice=st.integers(0, 7))
    def close_an_fd(self, choice: int) -> None:
        async def main() -> None:
            for file in self.rig.anonymous[choice:][:1]:
                self.rig.close(file)

        self.do(main())

    @rule()
    def die_and_restore(self) -> None:
        async def main() -> None:
            for file in list(self.rig.anonymous):
                self.rig.close(file)
            await self.rig.write(b"restore")

        self.messages.clear()
        self.do(main())

    @rule()
    def restore_too_early(self) -> None:
        """While the old fds are open: harmless for READs, but it fails an unanswered OPEN."""
        self.do(self.rig.write(b"restore"))

    # ---- what always holds -------------------------------------------------------------------

    @invariant()
    def readers_get_what_was_written(self) -> None:
        for reader in self.readers:
            reader.check()
        for key, task in list(self.asking.items()):
            if task.done():
                del self.asking[key]
                if task.exception() is None:
                    self.cookies[key] = task.result()
                else:
                    assert isinstance(task.exception(), OSError)

    @invariant()
    def who_is_not_answered_is_pending(self) -> None:
        if not hasattr(self, "rig"):
            return
        requests = self.rig.session.requests
        reads = [r for r in requests.pending.values() if r.opcode is Opcode.READ]
        assert len(reads) == sum(not reader.task.done() for reader in self.readers)
        assert all(not request.done.done() for request in requests.pending.values())
        queue = requests.requests
        assert queue._ready == sorted(
            request.msg_id
            for request in queue
            if request.state is RequestState.NEW and readable(request.opcode, request.object.state)
        )
        assert sum(len(queue.of(obj)) for obj in list(queue._of)) == len(requests.pending)

    @invariant()
    def fds_are_what_the_daemon_holds(self) -> None:
        if not hasattr(self, "rig"):
            return
        requests = self.rig.session.requests
        held = {(f.object_id, f.handle) for f in self.rig.anonymous}
        known = {(number, h) for number, obj in requests.objects.items() for h in obj.handles}
        assert known == held
        unread = {m.object_id for m in self.messages if isinstance(m, Open | Close)}
        for number, obj in requests.objects.items():
            # Without an fd an object has an id only between its OPEN and what follows from it.
            assert obj.handles or number in unread or obj.state is ObjectState.OPEN, obj

    def teardown(self) -> None:
        async def main() -> None:
            for cookie in self.cookies.values():
                self.leaving.append(self.rig.start(self.rig.fscache.relinquish(cookie)))
            await self.rig.__aexit__(None, None, None)
            assert not self.rig.fscache.cookies or self.asking

        if hasattr(self, "rig"):
            self.do(main())
            for reader in self.readers:
                assert reader.task.done()
                reader.check()
        self.runner.close()
        self.directory.cleanup()


Halves.TestCase.settings = settings(max_examples=40, stateful_step_count=40)
TestHalves = Halves.TestCase


class HalvesForLonger(Halves):
    """The same, by command only."""


HalvesForLonger.TestCase.settings = settings(max_examples=1500, stateful_step_count=80)
TestHalvesForLonger = pytest.mark.long(pytest.mark.timeout(1800)(HalvesForLonger.TestCase))
