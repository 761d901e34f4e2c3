"""Requests: order, ids, states and answers, row by row of facts cachefiles-kernel 4 to 10."""

import asyncio
import errno
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import pytest
from tests.cachefiles.rig import refused, settle, soon

from pagein.cachefiles.object import CachefilesObject
from pagein.cachefiles.ondemand import Ondemand, Request, describe
from pagein.protocol.messages import Close, Message, Opcode, Open, Read, decode
from pagein.protocol.states import ObjectState

PAGE = 4096
KEY = b"k"


class Half:
    """`Ondemand` with a count of wake-ups, and short words for what is done with it."""

    def __init__(self, **ids: int) -> None:
        self.wakes = 0
        self.ondemand = Ondemand(self._wake, **ids)
        self.handle = 0

    def _wake(self) -> None:
        self.wakes += 1

    def object(self, key: bytes = KEY) -> CachefilesObject:
        return CachefilesObject(b"v", key, b"path")

    def send(self, obj: CachefilesObject, opcode: Opcode, off: int = 0) -> Request:
        return self.ondemand.enqueue(obj, opcode, off, PAGE)

    def read(self, size: int = 1024) -> Message | None:
        raw = self.ondemand.read(size)
        return decode(raw) if raw else None

    def open(self, obj: CachefilesObject) -> int:
        """Open another file description of its anonymous file."""
        self.ondemand.open_handle(obj.ondemand_id, self.handle + 1)
        self.handle += 1
        return self.handle

    def opened(self, key: bytes = KEY, size: int = PAGE) -> CachefilesObject:
        """An object in OPEN with one anonymous fd, which has the handle `self.handle`."""
        obj = self.object(key)
        request = self.send(obj, Opcode.OPEN)
        assert isinstance(self.read(), Open)
        self.open(obj)
        assert self.ondemand.copen(b"%d,%d" % (request.msg_id, size)) is obj
        assert result(request) == 0
        return obj

    def close(self, obj: CachefilesObject, handle: int | None = None) -> None:
        self.ondemand.close_handle(obj.ondemand_id, self.handle if handle is None else handle)


def result(request: Request) -> int | None:
    """What the waiter of a request gets: an errno, 0, or None while it waits."""
    if not request.done.done():
        return None
    problem = request.done.exception()
    return problem.errno if isinstance(problem, OSError) else 0


def on_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """The test, run on a loop of its own."""

    def run() -> None:
        asyncio.run(soon(test()))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


# ---- ids and order ------------------------------------------------------------------------------


@on_loop
async def test_messages() -> None:
    half = Half()
    obj = half.object(b"\x00binary")
    half.send(obj, Opcode.OPEN)
    assert half.read() == Open(0, 1, b"v", b"\x00binary", 0xFFFFFFFF)
    half.open(obj)
    half.ondemand.copen(b"0,4096")
    half.send(obj, Opcode.READ, 8 * PAGE)
    half.send(obj, Opcode.CLOSE)
    assert half.read() == Read(1, 1, 8 * PAGE, PAGE)
    assert half.read() == Close(2, 1)
    assert half.read() is None


@on_loop
async def test_ids_count_up_and_are_not_used_again_at_once() -> None:
    half = Half()
    obj = half.opened()
    seen = []
    for _ in range(5):
        request = half.send(obj, Opcode.READ)
        seen.append(request.msg_id)
        half.read()
        half.ondemand.cread(obj.ondemand_id, request.msg_id)
    assert seen == [1, 2, 3, 4, 5]


@on_loop
async def test_ids_wrap_and_pass_over_the_pending() -> None:
    half = Half(first_id=0xFFFFFFFE, first_object_id=0x7FFFFFFF)
    first, second = half.opened(b"a"), half.opened(b"b")
    assert (first.ondemand_id, second.ondemand_id) == (0x7FFFFFFF, 1)
    # The two OPENs took the last id and the first one.
    assert half.send(first, Opcode.READ).msg_id == 1
    half.ondemand.requests._next_id = 1
    assert half.send(first, Opcode.READ).msg_id == 2
    assert [half.read(), half.read()] != [None, None]
    half.ondemand._next_object_id = 0x7FFFFFFF
    assert half.opened(b"c").ondemand_id == 2


@on_loop
async def test_all_ids_in_use() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pagein.cachefiles.requests.ID_LIMIT", 2)
        half = Half()
        obj = half.object()
        half.send(obj, Opcode.OPEN)
        half.send(obj, Opcode.READ)
        refused(errno.EBUSY, lambda: half.send(obj, Opcode.READ))


@on_loop
async def test_delivery_is_round_robin_by_msg_id() -> None:
    half = Half()
    obj = half.opened()
    requests = [half.send(obj, Opcode.READ, n * PAGE) for n in range(4)]
    order = [half.read(), half.read()]
    half.ondemand.restore()
    # The scan goes on behind the last one delivered, and then wraps.
    order += [half.read() for _ in range(4)]
    assert half.read() is None
    ids = [message.msg_id for message in order if message is not None]
    first = requests[0].msg_id
    assert [number - first for number in ids] == [0, 1, 2, 3, 0, 1]


@on_loop
async def test_emsgsize_keeps_the_request_at_the_head() -> None:
    half = Half()
    long, short = half.object(b"k" * 200), half.object(b"s")
    half.send(long, Opcode.OPEN)
    half.send(short, Opcode.OPEN)
    length = 32 + 2 + 200
    for _ in range(2):
        refused(errno.EMSGSIZE, lambda: half.read(length - 1))
    assert long.ondemand_id == 0  # no id was used up
    assert half.ondemand.poll_in()
    message = half.read(length)
    assert isinstance(message, Open) and message.cookie_key == b"k" * 200
    assert isinstance(half.read(), Open)


@on_loop
async def test_emsgsize_of_a_read_and_of_a_close() -> None:
    half = Half()
    obj = half.opened()
    half.send(obj, Opcode.READ)
    refused(errno.EMSGSIZE, lambda: half.read(31))
    assert isinstance(half.read(32), Read)
    half.send(obj, Opcode.CLOSE)
    refused(errno.EMSGSIZE, lambda: half.read(15))
    assert isinstance(half.read(16), Close)


@on_loop
async def test_wake_ups() -> None:
    # A request, restore and a successful copen wake; a failing one and a last close do not (5).
    half = Half()
    obj = half.object()
    request = half.send(obj, Opcode.OPEN)
    assert half.wakes == 1
    half.read()
    half.open(obj)
    half.ondemand.copen(b"%d,-2" % request.msg_id)
    half.close(obj)
    assert half.wakes == 1
    half.ondemand.restore()
    assert half.wakes == 2
    half.opened()
    assert half.wakes == 4


@on_loop
async def test_a_second_open_of_a_living_fd_is_eexist() -> None:
    half = Half()
    obj = half.object()
    request = half.send(obj, Opcode.OPEN)
    half.read()
    half.open(obj)
    half.ondemand.restore()
    refused(errno.EEXIST, half.read)
    assert result(request) == errno.EEXIST
    assert not half.ondemand.pending
    refused(errno.EINVAL, lambda: half.ondemand.copen(b"%d,4096" % request.msg_id))


# ---- copen: facts 6 -----------------------------------------------------------------------------


@on_loop
async def test_copen_of_what_cannot_be_opened() -> None:
    half = Half()
    obj = half.opened()
    unread = half.send(half.object(b"unread"), Opcode.OPEN)
    read = half.send(obj, Opcode.READ)
    close = half.send(obj, Opcode.CLOSE)
    for request in (unread, read, close):
        refused(errno.EINVAL, partial(half.ondemand.copen, b"%d,1" % request.msg_id))
        assert result(request) is None
    refused(errno.EINVAL, lambda: half.ondemand.copen(b"77,1"))
    refused(errno.EINVAL, lambda: half.ondemand.copen(b"0,4096"))  # twice


@pytest.mark.parametrize(
    ("size", "number"),
    [
        (b" 5", errno.EINVAL),
        (b"5 ", errno.EINVAL),
        (b"", errno.EINVAL),
        (b"abc", errno.EINVAL),
        (b"5,6", errno.EINVAL),
        (b"-4096", errno.EINVAL),
        (b"9223372036854775808", errno.ERANGE),
    ],
)
def test_copen_with_a_bad_size_fails_the_open_too(size: bytes, number: int) -> None:
    async def main() -> None:
        half = Half()
        obj = half.object()
        request = half.send(obj, Opcode.OPEN)
        half.read()
        handle = half.open(obj)
        refused(number, lambda: half.ondemand.copen(b"0," + size))
        assert result(request) == number
        assert obj.state is ObjectState.CLOSE
        half.close(obj, handle)
        assert not half.ondemand.objects

    asyncio.run(main())


@pytest.mark.parametrize(
    ("size", "value"), [(b"5\n", 5), (b"+5", 5), (b"-0", 0), (b"0x1000", 4096), (b"010", 8)]
)
def test_copen_with_a_good_size(size: bytes, value: int) -> None:
    async def main() -> None:
        half = Half()
        obj = half.object()
        request = half.send(obj, Opcode.OPEN)
        half.read()
        half.open(obj)
        assert half.ondemand.copen(b"0x0," + size) is obj
        assert (result(request), obj.size, obj.state) == (0, value, ObjectState.OPEN)

    asyncio.run(main())


@pytest.mark.parametrize("number", [errno.ENOENT, 4095])
def test_copen_with_an_errno_fails_the_open_and_succeeds(number: int) -> None:
    async def main() -> None:
        half = Half()
        obj = half.object()
        request = half.send(obj, Opcode.OPEN)
        half.read()
        half.open(obj)
        assert half.ondemand.copen(b"0,-%d" % number) is None
        assert (result(request), obj.state) == (number, ObjectState.CLOSE)
        # The daemon still owns the fd, and must close it.
        assert half.ondemand.anonymous_open
        half.close(obj)
        assert not half.ondemand.objects

    asyncio.run(main())


@on_loop
async def test_a_refused_open_whose_fd_was_never_opened_leaves_nothing() -> None:
    half = Half()
    obj = half.object()
    half.send(obj, Opcode.OPEN)
    half.read()
    half.ondemand.copen(b"0,-2")
    assert not half.ondemand.objects
    refused(errno.ENOENT, lambda: half.ondemand.open_handle(1, 1))


@on_loop
async def test_copen_after_the_fd_was_closed() -> None:
    half = Half()
    obj = half.object()
    request = half.send(obj, Opcode.OPEN)
    half.read()
    half.close(obj, half.open(obj))
    assert half.ondemand.copen(b"0,4096") is None  # and no error
    assert (result(request), obj.state) == (errno.EBADFD, ObjectState.CLOSE)


@on_loop
async def test_the_size_told_first_is_the_size() -> None:
    half = Half()
    obj = half.opened(size=PAGE)
    obj.file = object()  # type: ignore[assignment]  # it has a file by now, of that length
    half.close(obj)
    half.send(obj, Opcode.READ)
    assert half.read() is None
    await settle()
    again = half.read()
    assert isinstance(again, Open)
    half.open(obj)
    half.ondemand.copen(b"%d,9" % again.msg_id)
    assert (obj.size, obj.state) == (PAGE, ObjectState.OPEN)


# ---- CREAD: facts 8.3 ---------------------------------------------------------------------------


@on_loop
async def test_cread() -> None:
    half = Half()
    obj, other = half.opened(b"a"), half.opened(b"b")
    unread, read = half.send(obj, Opcode.READ), half.send(obj, Opcode.READ)
    opening = half.send(half.object(b"c"), Opcode.OPEN)
    closing = half.send(obj, Opcode.CLOSE)
    cread = half.ondemand.cread
    for object_id, msg_id in (
        (obj.ondemand_id, 77),
        (obj.ondemand_id, opening.msg_id),
        (obj.ondemand_id, closing.msg_id),
        (other.ondemand_id, read.msg_id),
        (77, read.msg_id),
    ):
        refused(errno.EINVAL, partial(cread, object_id, msg_id))
    assert (result(read), result(opening), result(closing)) == (None, None, None)
    cread(obj.ondemand_id, read.msg_id)
    cread(obj.ondemand_id, unread.msg_id)  # also one that was never fetched
    assert (result(read), result(unread)) == (0, 0)
    refused(errno.EINVAL, lambda: cread(obj.ondemand_id, read.msg_id))  # twice


@on_loop
async def test_cread_after_the_reader_was_killed() -> None:
    half = Half()
    obj = half.opened()
    request = half.send(obj, Opcode.READ)
    waiting = asyncio.create_task(half.ondemand.wait(request, 30))
    await settle()
    half.read()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    refused(errno.EINVAL, lambda: half.ondemand.cread(obj.ondemand_id, request.msg_id))


@on_loop
async def test_a_wait_has_an_end() -> None:
    half = Half()
    request = half.send(half.object(), Opcode.OPEN)
    with pytest.raises(OSError) as caught:
        await half.ondemand.wait(request, 0.01)
    assert caught.value.errno == errno.EIO
    assert not half.ondemand.pending
    assert half.read() is None


def test_a_line_for_the_log() -> None:
    async def main() -> None:
        half = Half()
        obj = half.object()
        assert describe(half.send(obj, Opcode.OPEN)) == "OPEN 0 of b'k'"
        assert describe(half.send(obj, Opcode.READ, PAGE)) == "READ 1 of b'k' [4096, +4096]"

    asyncio.run(main())
