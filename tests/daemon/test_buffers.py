"""The buffers: none is lost, none is used by two, whatever is cancelled."""

from __future__ import annotations

import asyncio
import ctypes

from tests.daemon.helpers import run, settle

from pagein.daemon.buffers import Budget


def test_a_buffer_that_arrives_as_its_waiter_is_cancelled_is_not_lost() -> None:
    async def main() -> None:
        budget = Budget(4096, buffer_size=4096)
        buffer = await budget.take()
        waiting = asyncio.create_task(budget.take())
        patient = asyncio.create_task(budget.take())
        await settle()
        budget.drop(buffer)  # it is the first one's now
        waiting.cancel()
        await settle()
        assert waiting.cancelled()
        assert await patient is buffer
        budget.drop(buffer)
        assert await budget.take() is buffer

    run(main())


def test_waiters_get_buffers_in_their_order() -> None:
    order: list[int] = []

    async def main() -> None:
        budget = Budget(4096, buffer_size=4096)

        async def use(number: int) -> None:
            buffer = await budget.take()
            order.append(number)
            await asyncio.sleep(1.0)
            budget.drop(buffer)

        await asyncio.gather(*(use(number) for number in range(5)))

    run(main())
    assert order == [0, 1, 2, 3, 4]


def test_a_broken_buffer_is_replaced() -> None:
    async def main() -> None:
        budget = Budget(4096, buffer_size=4096)
        buffer = await budget.take()
        buffer.users += 1
        buffer.broken = True
        budget.drop(buffer)
        waiting = asyncio.create_task(budget.take())
        await settle()
        assert not waiting.done()  # one user is left
        budget.drop(buffer)
        assert await waiting is not buffer

    run(main())


def test_buffers_start_at_a_page() -> None:
    async def main() -> None:
        budget = Budget()
        view = (await budget.take()).view
        assert ctypes.addressof(ctypes.c_char.from_buffer(view)) % 4096 == 0

    run(main())
