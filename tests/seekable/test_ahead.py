"""Who reads on gets the next spans decoded by threads, and cannot tell."""

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.seekable.files import CONTENT, KINDS, SIZE

from pagein import seekable
from pagein.seekable.ahead import LONG, Ahead
from pagein.seekable.cursor import Cursor
from pagein.seekable.index import CHUNK

INTERVAL = 300_000
"""Bytes of content of a member: a point each."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "file.gz"
    made.write_bytes(KINDS["members"](CONTENT))
    seekable.build(made, interval=INTERVAL)
    return made


def wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_the_next_spans_are_there_before_they_are_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by: dict[int, set[int]] = {}
    cursor_next = Cursor.next

    def noted(self: Cursor, end: int) -> bytes:
        by.setdefault(threading.get_ident(), set()).add(self.chunk)
        return cursor_next(self, end)

    monkeypatch.setattr(Cursor, "next", noted)
    with seekable.open(path, threads=2) as file:
        content, index = file._content, file.index
        assert file.read(LONG * CHUNK) == CONTENT[: LONG * CHUNK]
        assert index.points > 8
        span = index.span_of(LONG * CHUNK - 1)
        last = (index.begin_of(span + 3) - 1) // CHUNK
        wait_until(lambda: last in content._chunks and not content._busy)
        assert file.read() == CONTENT[LONG * CHUNK :]
        mine = by.pop(threading.get_ident())
        assert mine, "the first ones are decoded by who reads them"
        assert 1 <= len(by) <= 2
        theirs = set.union(*by.values())
        first = -(-index.begin_of(span + 1) // CHUNK)
        assert theirs == set(range(first, -(-SIZE // CHUNK))), "each by one thread"
        assert not mine & theirs


@pytest.mark.parametrize("options", [{"threads": 0}, {"memory": INTERVAL}])
def test_not_without_threads_or_room(path: Path, options: dict[str, int]) -> None:
    with seekable.open(path, **options) as file:  # type: ignore[arg-type]
        assert file.read() == CONTENT
        assert file._content._ahead._pool is None


def test_who_jumps_does_not_read_on() -> None:
    ahead = Ahead(2)
    draw = random.Random(1)
    assert not any(ahead.reads_on(draw.randrange(0, 1 << 30, 2)) for _ in range(1000))
    assert [ahead.reads_on(number) for number in range(LONG + 2)] == [False] * (LONG - 1) + [
        True
    ] * 3


def test_several_who_read_on(path: Path) -> None:
    wrong: list[int] = []
    with seekable.open(path, threads=3, memory=40 * CHUNK) as file:

        def read(seed: int) -> None:
            step = 30_000 + seed * 1000
            starts = range(seed * 100_000, SIZE, step)
            wrong.extend(at for at in starts if file.pread(step, at) != CONTENT[at : at + step])

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_damage_ahead_is_an_error_where_it_is_read(path: Path) -> None:
    packed = bytearray(path.read_bytes())
    packed[len(packed) * 3 // 4] ^= 1
    path.write_bytes(packed)
    with seekable.open(path, threads=2) as file:
        got = 0
        with pytest.raises(seekable.SeekableError, match=str(path)):
            while data := file.read(CHUNK):
                assert data == CONTENT[got : got + len(data)]
                got += len(data)
        assert got >= SIZE // 2


def test_closing_ends_the_threads(path: Path) -> None:
    with seekable.open(path, threads=2) as file:
        file.read(2 * LONG * CHUNK)
    assert not [each for each in threading.enumerate() if each.name.startswith("pagein seekable")]
