"""Objects whose fd went: reopening, restore, withdrawal, death (facts cachefiles-kernel 7, 10)."""

import asyncio
import errno

import pytest
from tests.cachefiles.rig import refused, settle
from tests.cachefiles.test_ondemand import Half, on_loop, result

from pagein.cachefiles.object import CachefilesObject
from pagein.protocol.messages import Close, Opcode, Open, Read
from pagein.protocol.states import ObjectState


async def reopen(half: Half) -> Open:
    """Meet a READ of a closed object, and take the OPEN that follows."""
    assert half.ondemand.poll_in()  # of a CLOSE object: it invites the read() that kicks
    assert half.read() is None
    await settle()
    message = half.read()
    assert isinstance(message, Open)
    return message


@on_loop
async def test_a_read_of_a_closed_object_reopens_it() -> None:
    half = Half()
    obj = half.opened()
    half.close(obj)
    assert obj.state is ObjectState.CLOSE
    reading = half.send(obj, Opcode.READ)
    message = await reopen(half)
    assert message.object_id == 2  # a new id for the same object
    # READs of a reopening object neither come nor wake (5).
    half.send(obj, Opcode.READ)
    assert not half.ondemand.poll_in()
    assert half.read() is None
    half.open(obj)
    half.ondemand.copen(b"%d,4096" % message.msg_id)
    await settle()
    assert obj.worker is None
    assert half.ondemand.poll_in()
    again = [half.read(), half.read()]
    assert [m.msg_id for m in again if isinstance(m, Read)] == [3, 1]  # on from the OPEN's 2
    assert [m.object_id for m in again if m] == [2, 2]
    half.ondemand.cread(2, reading.msg_id)
    assert result(reading) == 0


@on_loop
async def test_a_refused_reopening_waits_for_the_close_of_the_fd() -> None:
    half = Half()
    obj = half.opened()
    half.close(obj)
    reading = half.send(obj, Opcode.READ)
    message = await reopen(half)
    handle = half.open(obj)
    half.ondemand.copen(b"%d,-2" % message.msg_id)
    await settle()
    assert obj.state is ObjectState.REOPENING
    assert half.read() is None
    assert not half.ondemand.poll_in()
    assert result(reading) is None
    half.close(obj, handle)
    assert (await reopen(half)).object_id == 3  # at once, and as often as it is refused


@on_loop
async def test_a_refused_reopening_whose_fd_was_never_opened() -> None:
    half = Half()
    obj = half.opened()
    half.close(obj)
    half.send(obj, Opcode.READ)
    message = await reopen(half)
    half.ondemand.copen(b"%d,-2" % message.msg_id)
    await settle()
    assert obj.state is ObjectState.CLOSE
    await reopen(half)


@on_loop
async def test_a_reopening_answered_before_it_was_read() -> None:
    half = Half()
    obj = half.opened()
    half.close(obj)
    half.send(obj, Opcode.READ)
    assert half.read() is None
    await settle()
    assert half.ondemand.copen(b"2,4096") is None  # a guessed id, of an object that had an fd
    await settle()
    assert obj.state is ObjectState.CLOSE
    assert half.ondemand.poll_in()  # the READ is still there
    assert obj.worker is None


@on_loop
async def test_the_fd_closed_while_it_reopens() -> None:
    half = Half()
    obj = half.opened()
    half.close(obj)
    half.send(obj, Opcode.READ)
    message = await reopen(half)
    half.close(obj, half.open(obj))
    assert obj.state is ObjectState.CLOSE
    assert half.ondemand.copen(b"%d,4096" % message.msg_id) is None
    await settle()
    assert obj.state is ObjectState.CLOSE


@on_loop
async def test_one_open_at_a_time() -> None:
    # The fd goes before the answer, a READ comes, and the daemon answers after all.
    half = Half()
    obj = half.opened()
    half.close(obj)
    half.send(obj, Opcode.READ)
    message = await reopen(half)
    half.close(obj, half.open(obj))
    assert half.read() is None  # met the READ again
    await settle()
    assert half.read() is None
    assert half.ondemand.copen(b"%d,4096" % message.msg_id) is None
    await settle()
    assert (await reopen(half)).object_id == 3


@on_loop
async def test_closed_and_met_again_before_the_worker_looks() -> None:
    half = Half()
    obj = half.opened()
    half.close(obj)
    half.send(obj, Opcode.READ)
    message = await reopen(half)
    half.open(obj)
    half.ondemand.copen(b"%d,4096" % message.msg_id)
    half.close(obj)
    assert (await reopen(half)).object_id == 3


@on_loop
async def test_a_daemon_that_dies_while_it_reopens() -> None:
    half = Half()
    obj = half.opened()
    half.close(obj)
    half.send(obj, Opcode.READ)
    lost = await reopen(half)
    half.close(obj, half.open(obj))
    half.ondemand.restore()
    message = half.read()
    await settle()
    assert isinstance(message, Open)
    assert (message.msg_id, message.object_id) == (lost.msg_id, 3)
    assert half.read() is None
    half.open(obj)
    assert half.ondemand.copen(b"%d,4096" % message.msg_id) is obj
    await settle()
    assert isinstance(half.read(), Read)
    assert half.read() is None and not half.ondemand.poll_in()


# ---- last close: facts 8.4 ----------------------------------------------------------------------


@on_loop
async def test_only_the_last_close_counts() -> None:
    half = Half()
    obj = half.opened()
    second = half.open(obj)
    half.close(obj, second - 1)
    assert obj.state is ObjectState.OPEN
    half.close(obj, 77)  # not one of its fds
    half.ondemand.close_handle(77, second)  # not one of its ids
    assert obj.state is ObjectState.OPEN
    half.close(obj, second)
    assert (obj.state, obj.ondemand_id) == (ObjectState.CLOSE, -1)


@on_loop
async def test_the_last_close_completes_nothing() -> None:
    """Not even a CLOSE that nobody has read: it comes with an id of nobody."""
    half = Half()
    obj = half.opened(b"a")
    closing, reading = half.send(obj, Opcode.CLOSE), half.send(obj, Opcode.READ)
    half.close(obj)
    assert (result(closing), result(reading)) == (None, None)
    assert half.read() == Close(closing.msg_id, 0xFFFFFFFF)
    assert result(closing) == 0


@on_loop
async def test_reads_delivered_wait_for_restore_after_the_last_close() -> None:
    half = Half()
    obj = half.opened()
    reading = half.send(obj, Opcode.READ)
    assert isinstance(half.read(), Read)
    half.close(obj)
    assert half.read() is None
    half.ondemand.restore()
    message = await reopen(half)
    half.open(obj)
    half.ondemand.copen(b"%d,4096" % message.msg_id)
    await settle()
    assert half.read() == Read(reading.msg_id, message.object_id, 0, 4096)


# ---- restore: facts 10 --------------------------------------------------------------------------


@on_loop
async def test_restore_delivers_an_unanswered_open_under_a_new_object_id() -> None:
    half = Half()
    obj = half.object()
    half.send(obj, Opcode.OPEN)
    first = half.read()
    half.close(obj, half.open(obj))  # who took it has died
    half.ondemand.restore()
    second = half.read()
    assert isinstance(first, Open) and isinstance(second, Open)
    assert (first.msg_id, first.object_id) == (0, 1)
    assert (second.msg_id, second.object_id) == (0, 2)


@on_loop
async def test_restore_of_an_open_whose_fd_was_never_opened() -> None:
    half = Half()
    half.send(half.object(), Opcode.OPEN)
    half.read()
    half.ondemand.restore()
    second = half.read()
    assert isinstance(second, Open)
    assert (second.msg_id, second.object_id) == (0, 2)
    assert list(half.ondemand.objects) == [2]


@on_loop
async def test_restore_with_the_old_fds_open_delivers_reads_again() -> None:
    half = Half()
    obj = half.opened()
    reading = half.send(obj, Opcode.READ)
    first = half.read()
    half.ondemand.restore()
    assert half.read() == first
    half.ondemand.cread(obj.ondemand_id, reading.msg_id)  # the first CREAD wins
    refused(errno.EINVAL, lambda: half.ondemand.cread(obj.ondemand_id, reading.msg_id))


@on_loop
async def test_restore_leaves_an_unread_close_where_it_is() -> None:
    half = Half()
    obj = half.opened()
    closing = half.send(obj, Opcode.CLOSE)
    half.ondemand.restore()
    assert half.read() == Close(closing.msg_id, obj.ondemand_id)
    assert result(closing) == 0


# ---- withdrawal: facts 7.4 ----------------------------------------------------------------------


async def withdraw(half: Half, obj: CachefilesObject) -> asyncio.Task[None]:
    task = asyncio.create_task(half.ondemand.withdraw(obj, 30))
    await settle()
    return task


@on_loop
async def test_withdrawal_waits_for_the_close_to_be_read() -> None:
    half = Half()
    obj = half.opened()
    reading = half.send(obj, Opcode.READ)
    leaving = await withdraw(half, obj)
    assert not leaving.done()
    assert isinstance(half.read(), Read)
    assert half.read() == Close(2, 1)
    await leaving
    assert obj.state is ObjectState.DROPPING
    assert result(reading) == errno.EIO
    refused(errno.EIO, lambda: half.send(obj, Opcode.READ))
    refused(errno.ENOENT, lambda: half.open(obj))
    # A dup may outlive it.
    assert half.ondemand.anonymous_open
    half.close(obj)
    assert obj.state is ObjectState.DROPPING
    assert not half.ondemand.objects


@on_loop
async def test_withdrawal_goes_on_without_the_fds() -> None:
    half = Half()
    obj = half.opened()
    leaving = await withdraw(half, obj)
    half.close(obj)
    assert isinstance(half.read(), Close)
    await leaving
    assert not half.ondemand.objects and not half.ondemand.pending


@on_loop
async def test_withdrawal_does_not_wait_for_ever() -> None:
    half = Half()
    obj = half.opened()
    await half.ondemand.withdraw(obj, 0.01)
    assert obj.state is ObjectState.DROPPING
    assert half.read() is None
    half.ondemand.drop(obj)  # once more is once


@pytest.mark.parametrize("reopening", [False, True])
def test_no_close_of_an_object_that_is_not_open(reopening: bool) -> None:
    async def main() -> None:
        half = Half()
        obj = half.opened()
        half.close(obj)
        reading = half.send(obj, Opcode.READ)
        if reopening:
            message = await reopen(half)
            half.open(obj)
        await half.ondemand.withdraw(obj, 30)
        assert half.read() is None
        assert result(reading) == errno.EIO
        await settle()
        assert obj.worker is None
        if reopening:
            refused(errno.EINVAL, lambda: half.ondemand.copen(b"%d,1" % message.msg_id))
            half.close(obj)
        assert not half.ondemand.objects

    asyncio.run(main())


@on_loop
async def test_withdrawn_between_the_kick_and_its_open() -> None:
    half = Half()
    obj = half.opened()
    half.close(obj)
    half.send(obj, Opcode.READ)
    assert half.read() is None
    half.ondemand.drop(obj)
    await settle()
    assert obj.worker is None
    assert not half.ondemand.pending


@on_loop
async def test_an_open_object_nobody_ever_opened_is_forgotten() -> None:
    half = Half()
    obj = half.object()
    half.send(obj, Opcode.OPEN)
    half.read()
    half.ondemand.copen(b"0,4096")
    leaving = await withdraw(half, obj)
    assert half.read() == Close(1, 1)
    await leaving
    assert not half.ondemand.objects


# ---- death: facts 7.5 ---------------------------------------------------------------------------


@on_loop
async def test_a_dead_cache_fails_what_waits_and_takes_nothing_new() -> None:
    half = Half()
    obj = half.opened()
    requests = [
        half.send(obj, Opcode.READ),
        half.send(half.object(b"b"), Opcode.OPEN),
        half.send(obj, Opcode.CLOSE),
    ]
    half.read()
    half.ondemand.die()
    assert [result(request) for request in requests] == [errno.EIO] * 3
    assert half.read() is None and not half.ondemand.poll_in()
    refused(errno.EIO, lambda: half.send(obj, Opcode.READ))
    refused(errno.EINVAL, lambda: half.ondemand.cread(obj.ondemand_id, requests[0].msg_id))
    await half.ondemand.withdraw(obj, 30)  # without a CLOSE
    half.close(obj)
    assert not half.ondemand.objects


@on_loop
async def test_death_while_it_reopens() -> None:
    half = Half()
    obj = half.opened()
    half.close(obj)
    half.send(obj, Opcode.READ)
    await reopen(half)
    half.open(obj)
    half.ondemand.die()
    await settle()
    assert obj.worker is None
    assert half.ondemand.anonymous_open
