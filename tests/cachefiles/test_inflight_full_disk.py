"""The table of writes under way on a disk that takes nothing more."""

import errno
import os
from pathlib import Path

import pytest
from tests.cachefiles.test_inflight import NAME, PAGE, drop, table_of, writer

from pagein.cachefiles.inflight import SLOTS_PER_LANE
from pagein.rangeset import RangeSet


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """A disk that takes nothing as long as the list holds something."""
    real = os.pwrite
    reasons: list[None] = [None]

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        if reasons:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    return reasons


def test_nothing_can_be_entered_on_a_full_disk(tmp_path: Path, full: list[None]) -> None:
    with table_of(tmp_path) as table:
        for _ in range(2 * SLOTS_PER_LANE):
            with pytest.raises(OSError, match="No space left"):
                table.enter(NAME, 0, PAGE)
        full.clear()
        slots = [table.enter(NAME, n * PAGE, PAGE) for n in range(SLOTS_PER_LANE)]
        for slot in slots:
            table.strike(slot)
        assert not table.of_path(NAME)


def test_an_entry_that_cannot_be_struck_out_stays_for_a_while(
    tmp_path: Path, full: list[None]
) -> None:
    with table_of(tmp_path) as table:
        full.clear()
        slot = table.enter(NAME, 0, PAGE)
        full.append(None)
        table.strike(slot)
        assert table.of_path(NAME) == RangeSet([(0, PAGE)])
        full.clear()
        table.strike(table.enter(NAME, PAGE, PAGE))
        assert not table.of_path(NAME)
        assert table.slots_free == SLOTS_PER_LANE


def test_the_writes_of_the_dead_stay_on_a_full_disk(tmp_path: Path, full: list[None]) -> None:
    blob = tmp_path / os.fsdecode(NAME)
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"x" * PAGE)
    with writer(tmp_path, f"0+{PAGE}") as kill:
        kill()
    with table_of(tmp_path) as table:
        assert drop(table, tmp_path) == []
        assert table.of_path(NAME) == RangeSet([(0, PAGE)])
        table.clear_dead(NAME, 0, PAGE)
        assert table.of_path(NAME) == RangeSet([(0, PAGE)])
        full.clear()
        assert drop(table, tmp_path) == [(0, PAGE)]
