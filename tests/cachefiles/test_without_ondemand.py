"""A device without the on-demand mode against a kernel built without CACHEFILES_ONDEMAND.

The oracle is a recording (tests/protocol/recordings). `bind` alone is the original mode.
"""

import asyncio
import os
from pathlib import Path

import pytest
from tests.protocol.recording import Entry, Kind, load

from pagein.cachefiles.device import CachefilesDevice
from pagein.protocol.space import State

RECORDING = "recordings/linux-6.12/without-ondemand.bin"


@pytest.fixture(scope="module")
def parts() -> dict[str, list[Entry]]:
    """What was called, by the marks before it."""
    path = Path(__file__).parents[1] / "protocol" / RECORDING
    found: dict[str, list[Entry]] = {}
    for entry in load(path.read_bytes())[1]:
        if entry.kind is Kind.MARK:
            found[entry.text] = []
        else:
            found[list(found)[-1]].append(entry)
    return found


async def answer(device: CachefilesDevice, entry: Entry) -> Entry:
    """The same call of ours."""
    if entry.kind is Kind.READ:
        said = await device.read_state(1024)
        return Entry(Kind.READ, len(said), said)
    assert entry.kind is Kind.COMMAND
    try:
        result = await device.write(entry.payload)
    except OSError as problem:
        result = -(problem.errno or 0)
    return Entry(Kind.COMMAND, result, entry.payload)


def ours(entries: list[Entry], *, ondemand: bool = False) -> list[Entry]:
    """What a device of ours answers to the same calls."""

    async def main() -> list[Entry]:
        device = CachefilesDevice(ondemand=ondemand)
        device.open()
        answers = [await answer(device, entry) for entry in entries]
        device.release()
        return answers

    return asyncio.run(main())


def test_until_a_cache_is_bound_every_answer_is_the_same(parts: dict[str, list[Entry]]) -> None:
    entries = parts["without a directory"] + parts["not bound"]
    commands = [entry for entry in entries if entry.kind is Kind.COMMAND]
    assert len(commands) > 30
    assert ours(entries) == entries


def test_with_the_mode_it_is_not(parts: dict[str, list[Entry]], tmp_path: Path) -> None:
    """So the comparison can fail: there `bind ondemand` would look for the directory."""
    assert ours(parts["not bound"], ondemand=True) == parts["not bound"]  # no `dir` in these
    directory = Entry(Kind.COMMAND, 0, b"dir " + os.fsencode(tmp_path / "absent"))
    calls = [directory, *parts["not bound"]]
    assert ours(calls, ondemand=True)[1:] != parts["not bound"]
    assert ours(calls)[1:] == parts["not bound"]


def test_once_bound_it_is_in_the_original_mode(
    parts: dict[str, list[Entry]], tmp_path: Path
) -> None:
    """The same answers but for the marks, which are those of another file system."""
    directory = Entry(Kind.COMMAND, 0, b"dir " + os.fsencode(tmp_path))
    same = 0
    for theirs, mine in zip(parts["bound"], ours([directory, *parts["bound"]])[1:], strict=True):
        if theirs.kind is Kind.READ:
            said, found = State.decode(theirs.payload), State.decode(mine.payload)
            assert mine.payload == found.encode()
            assert theirs.payload == said.encode()
            assert (found.freleased, found.breleased) == (said.freleased, said.breleased)
        else:
            assert mine == theirs
            same += 1
    assert same > 15
