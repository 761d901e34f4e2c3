"""What a command line says will be read, and whose turn it is to be fetched."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagein.images.foresight.command import Command, command_of
from pagein.images.layers.turns import Turns


@pytest.mark.parametrize(
    ("config", "default", "entrypoint", "given_", "wanted"),
    [
        (["e"], ["c"], None, [], (b"e", b"c")),
        (["e"], ["c"], None, ["x"], (b"e", b"x")),
        (["e"], ["c"], "f", [], (b"f",)),
        (["e"], ["c"], "f", ["x"], (b"f", b"x")),
        (["e"], ["c"], "", ["x"], (b"x",)),
        ([], [], None, [], ()),
    ],
)
def test_entrypoint_and_command(
    config: list[str],
    default: list[str],
    entrypoint: str | None,
    given_: list[str],
    wanted: tuple[bytes, ...],
) -> None:
    assert command_of(config, default, entrypoint, given_) == wanted


def test_programs_are_looked_for_as_execvp_does() -> None:
    assert list(Command((b"p",), b"/a:b", b"/w").programs()) == [b"/a/p", b"/w/b/p"]
    assert list(Command((b"./p",), b"/a", b"/w").programs()) == [b"/w/p"]
    assert list(Command((b"/x/p",)).programs()) == [b"/x/p"]
    assert list(Command(()).programs()) == []


def test_arguments_that_may_be_files_or_follow_an_option() -> None:
    command = Command((b"python3", b"-I", b"app.py", b"-m", b"mod", b"/a/../b"), directory=b"/w")
    assert list(command.files()) == [b"/w/app.py", b"/w/mod", b"/b"]
    assert command.after(b"-m") == b"mod"
    assert command.after(b"-c") == b""


@pytest.mark.parametrize(
    ("head", "wanted"),
    [
        (b"#!/bin/sh -e\nx", (b"/bin/sh", b"-e", b"/s", b"1")),
        (b"#! /usr/bin/env python3\n", (b"python3", b"/s", b"1")),
        (b"#!/usr/bin/env\n", None),
        (b"#!\n", None),
        (b"\x7fELF", None),
    ],
)
def test_a_script_stands_for_another_command(head: bytes, wanted: tuple[bytes, ...] | None) -> None:
    found = Command((b"s", b"1")).script(b"/s", head)
    assert (found and found.words) == wanted


@given(
    st.lists(st.tuples(st.integers(1, 150), st.integers(0, 2), st.booleans()), max_size=20),
)
def test_turns_are_taken_by_rank_within_the_limit(steps: list[tuple[int, int, bool]]) -> None:
    """Some of those who wait give up; the others all have their turn."""

    async def main() -> None:
        turns, running, order = Turns(100), [0], list[tuple[int, int]]()

        async def one(number: int, size: int, rank: int) -> None:
            async with turns.take(size, rank):
                running[0] += min(size, 100)
                assert running[0] <= 100
                order.append((rank, number))
                await asyncio.sleep(0)
                running[0] -= min(size, 100)

        async with turns.take(100, 0):
            each = enumerate(steps)
            tasks = [asyncio.create_task(one(n, size, rank)) for n, (size, rank, _) in each]
            await asyncio.sleep(0)
            for task, (_, _, ends) in zip(tasks, steps, strict=True):
                if ends:
                    task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == sorted(order)
        assert len(order) == sum(not ends for _, _, ends in steps)
        async with turns.take(100, 0):  # all of it was given back
            pass

    asyncio.run(main())


def test_what_has_come_of_a_turn_is_room_for_others() -> None:
    async def main() -> None:
        turns, order = Turns(100), list[str]()

        async def other(size: int) -> None:
            async with turns.take(size, 0):
                order.append("other")

        async with turns.take(150, 0) as came:
            task = asyncio.create_task(other(40))
            await asyncio.sleep(0)
            came(50)  # what is beyond the limit had no room
            came(30)
            await asyncio.sleep(0)
            assert not order
            came(20)
            await task
            came(1000)  # more than was asked for
            task = asyncio.create_task(other(100))
            await task
        assert order == ["other", "other"]
        async with turns.take(100, 0), turns.take(0, 0):
            task = asyncio.create_task(other(1))
            await asyncio.sleep(0)
            assert len(order) == 2
        await task

    asyncio.run(main())
