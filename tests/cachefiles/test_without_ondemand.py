"""A device without the on-demand mode against a kernel built without CACHEFILES_ONDEMAND.

The oracle is a recording (tests/protocol/recordings). `bind` alone is the original mode there, and
refused here: from then on what depends on a bound cache differs, and only that.
"""

import asyncio
import errno
import os
from pathlib import Path

import pytest
from tests.protocol.recording import Entry, Kind, load

from pagein.cachefiles.device import CachefilesDevice

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
        said = device.read(1024)
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


def test_once_bound_only_what_bind_answers_differs(parts: dict[str, list[Entry]]) -> None:
    setting = [entry for entry in parts["without a directory"] if entry.payload[:3] == b"dir"]
    differing = {}
    for theirs, mine in zip(parts["bound"], ours(setting + parts["bound"])[1:], strict=True):
        if theirs != mine:
            differing[theirs.payload] = theirs.result, mine.result
    line = next(entry.payload for entry in parts["bound"] if entry.kind is Kind.READ)
    assert line.startswith(b"cull=0 frun=")
    assert differing == {
        b"bind": (-errno.EBUSY, -errno.EOPNOTSUPP),
        line: (len(line), 0),
        b"bind ondemand": (-errno.EBUSY, -errno.EINVAL),
        b"bind  ondemand": (-errno.EBUSY, -errno.EINVAL),
        b"bind ondemand ": (-errno.EBUSY, -errno.EINVAL),
        b"bind x": (-errno.EBUSY, -errno.EINVAL),
    }
