"""The table of writes under way: what the dead leave in it, and who may strike that out."""

import contextlib
import errno
import fcntl
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.fds import open_fds

from pagein.cachefiles import inflight
from pagein.cachefiles.inflight import LANES, SLOTS_PER_LANE, InflightTable, ofd_lock, punch
from pagein.cachefiles.presence import whole_pages
from pagein.rangeset import RangeSet

PAGE = 4096
NAME = b"cache/Iv/@00/Dblob"
# Enters the writes given as words `offset length`, says so, and is killed or goes on.
WRITER = """
import os, sys
from pagein.cachefiles.inflight import InflightTable
table = InflightTable(os.fsencode(sys.argv[1]))
for word in sys.argv[2:]:
    offset, length = map(int, word.split("+"))
    table.enter(b"cache/Iv/@00/Dblob", offset, length)
print("entered", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def writer(directory: Path, *writes: str) -> Iterator[Callable[[], None]]:
    """Another process in the middle of `writes`; what is yielded kills it."""
    command = [sys.executable, "-c", WRITER, str(directory), *writes]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:

        def kill() -> None:
            process.kill()
            process.wait(100)

        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"entered\n"
            yield kill
        finally:
            kill()


@contextlib.contextmanager
def table_of(directory: Path) -> Iterator[InflightTable]:
    table = InflightTable(os.fsencode(directory))
    try:
        yield table
    finally:
        table.close()


@pytest.fixture
def blob(tmp_path: Path) -> Path:
    """A cache file of eight pages of data."""
    path = tmp_path / os.fsdecode(NAME)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x" * 8 * PAGE)
    return path


def data_of(path: Path) -> RangeSet:
    with open(path, "rb") as file:
        return whole_pages(file.fileno(), 0, os.fstat(file.fileno()).st_size)


def drop(table: InflightTable, directory: Path) -> list[tuple[int, int]]:
    return sorted((e.offset, e.length) for e in table.drop_dead(os.fsencode(directory)))


# ---- what the dead leave ------------------------------------------------------------------------


def test_writes_of_the_dead_become_holes(tmp_path: Path, blob: Path) -> None:
    with writer(tmp_path, f"{PAGE}+{2 * PAGE}", f"{6 * PAGE}+{PAGE}") as kill:
        kill()
    with table_of(tmp_path) as table:
        assert table.of_path(NAME) == RangeSet([(PAGE, 3 * PAGE), (6 * PAGE, 7 * PAGE)])
        assert drop(table, tmp_path) == [(PAGE, 2 * PAGE), (6 * PAGE, PAGE)]
        assert not table.of_path(NAME)
        assert drop(table, tmp_path) == []
    assert data_of(blob) == RangeSet([(0, PAGE), (3 * PAGE, 6 * PAGE), (7 * PAGE, 8 * PAGE)])
    assert blob.stat().st_size == 8 * PAGE


def test_a_tail_that_is_no_whole_page_becomes_a_hole_too(tmp_path: Path, blob: Path) -> None:
    # Of 1024 bytes punched alone the rest of the page would stay: zeros that claim to be data.
    with writer(tmp_path, f"{7 * PAGE}+1024") as kill:
        kill()
    with table_of(tmp_path) as table:
        drop(table, tmp_path)
    assert data_of(blob) == RangeSet([(0, 7 * PAGE)])


def test_writes_of_the_living_stay(tmp_path: Path, blob: Path) -> None:
    with writer(tmp_path, f"0+{PAGE}"), table_of(tmp_path) as table:
        assert drop(table, tmp_path) == []
        assert table.of_path(NAME) == RangeSet([(0, PAGE)])
    assert data_of(blob) == RangeSet([(0, 8 * PAGE)])


def test_of_a_file_that_somebody_has_open_they_stay(tmp_path: Path, blob: Path) -> None:
    with writer(tmp_path, f"0+{PAGE}") as kill:
        kill()
    with table_of(tmp_path) as table:
        with open(blob, "rb"):
            assert drop(table, tmp_path) == []
        assert table.of_path(NAME) == RangeSet([(0, PAGE)])
        assert drop(table, tmp_path) == [(0, PAGE)]


def test_nobody_fills_a_range_before_it_is_punched(
    tmp_path: Path, blob: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who opens the file once it was found unused takes the range for missing and fills it."""
    with writer(tmp_path, f"{PAGE}+{PAGE}") as kill:
        kill()
    locked: list[bool] = []

    def opened_meanwhile(fd: int, offset: int, length: int) -> None:
        with open(blob, "r+b") as other:
            locked.append(ofd_lock(other.fileno(), fcntl.F_WRLCK, offset, length))
        punch(fd, offset, length)

    monkeypatch.setattr(inflight, "punch", opened_meanwhile)
    with table_of(tmp_path) as table:
        assert drop(table, tmp_path) == [(PAGE, PAGE)]
    assert locked == [False]


def test_of_a_range_that_somebody_fills_they_stay(tmp_path: Path, blob: Path) -> None:
    with writer(tmp_path, f"{PAGE}+{PAGE}") as kill:
        kill()
    with open(blob, "r+b") as other, table_of(tmp_path) as table:
        assert ofd_lock(other.fileno(), fcntl.F_WRLCK, 0, 4 * PAGE)
        assert drop(table, tmp_path) == []


def test_of_a_file_that_is_gone_they_are_struck_out(tmp_path: Path) -> None:
    with writer(tmp_path, f"0+{PAGE}") as kill:
        kill()
    with table_of(tmp_path) as table:
        assert drop(table, tmp_path) == [(0, PAGE)]


def test_an_error_on_the_way_is_told(tmp_path: Path, blob: Path) -> None:
    blob.unlink()
    os.mknod(blob, 0o600 | 0o140000)  # a socket: ENXIO
    with writer(tmp_path, f"0+{PAGE}") as kill:
        kill()
    with table_of(tmp_path) as table, pytest.raises(OSError) as caught:
        drop(table, tmp_path)
    assert caught.value.errno == errno.ENXIO


def test_a_killed_process_does_not_keep_its_lane(tmp_path: Path) -> None:
    with writer(tmp_path, "0+4096") as kill, table_of(tmp_path) as second:
        kill()
        with table_of(tmp_path) as third:
            lanes = [table.enter(NAME, 0, PAGE) // SLOTS_PER_LANE for table in (second, third)]
            # Lane 0 has no owner, but holds what its owner left.
            assert lanes == [1, 2]
            second.strike(lanes[0] * SLOTS_PER_LANE + SLOTS_PER_LANE - 1)
            third.strike(lanes[1] * SLOTS_PER_LANE + SLOTS_PER_LANE - 1)


def test_lanes_run_out(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(LANES):
            stack.enter_context(table_of(tmp_path))
        before = open_fds()
        with pytest.raises(OSError, match="more than 128 processes") as caught:
            InflightTable(os.fsencode(tmp_path))
        assert caught.value.errno == errno.EBUSY
        assert open_fds() <= before


# ---- clear_dead: after the range was written again ----------------------------------------------


def test_clear_dead_strikes_what_lies_inside_and_is_not_ours(tmp_path: Path) -> None:
    with writer(tmp_path, f"0+{PAGE}", f"{PAGE}+{PAGE}") as kill:
        kill()
    with table_of(tmp_path) as table:
        ours = table.enter(NAME, 0, PAGE)
        other = table.enter(b"cache/Iv/@00/Dother", 0, PAGE)
        table.clear_dead(NAME, 0, PAGE)
        kept = {(e.path, e.slot) for e in table.entries() if e.offset == 0}
        assert kept == {(NAME, ours), (b"cache/Iv/@00/Dother", other)}
        assert table.of_path(NAME) == RangeSet([(0, 2 * PAGE)])
        table.strike(ours)
        assert table.of_path(NAME) == RangeSet([(PAGE, 2 * PAGE)])
        table.strike(other)


# ---- slots --------------------------------------------------------------------------------------


def test_slots_run_out_and_come_back(tmp_path: Path) -> None:
    with table_of(tmp_path) as table:
        slots = [table.enter(NAME, n * PAGE, PAGE) for n in range(SLOTS_PER_LANE)]
        assert table.slots_free == 0
        with pytest.raises(OSError) as caught:
            table.enter(NAME, 0, PAGE)
        assert caught.value.errno == errno.EBUSY
        for slot in slots:
            table.strike(slot)
        assert table.slots_free == SLOTS_PER_LANE
        assert list(table.entries()) == []


def test_a_path_that_does_not_fit(tmp_path: Path) -> None:
    with table_of(tmp_path) as table:
        with pytest.raises(OSError) as caught:
            table.enter(b"x" * 1024, 0, PAGE)
        assert caught.value.errno == errno.ENAMETOOLONG
        assert table.slots_free == SLOTS_PER_LANE
        longest = b"cache/" + b"v" * 255 + b"/@00/" + b"D" * 253
        slot = table.enter(longest, 0, PAGE)
        assert [e.path for e in table.entries()] == [longest]
        table.strike(slot)


def test_close_waits_for_the_last_write(tmp_path: Path) -> None:
    table = InflightTable(os.fsencode(tmp_path))
    slot = table.enter(NAME, 0, PAGE)
    table.close()
    for refused in (lambda: table.enter(NAME, 0, PAGE), lambda: table.of_path(NAME)):
        with pytest.raises(OSError) as caught:
            refused()
        assert caught.value.errno == errno.ENOBUFS
    with table_of(tmp_path) as other:
        # The lane is still owned: what stands in it is a write under way.
        assert other.drop_dead(os.fsencode(tmp_path)) == []
        assert other.of_path(NAME) == RangeSet([(0, PAGE)])
        table.strike(slot)
        assert not other.of_path(NAME)
    with table_of(tmp_path) as again:
        assert again.enter(NAME, 0, PAGE) < SLOTS_PER_LANE  # the first lane is free again
        again.strike(SLOTS_PER_LANE - 1)


def test_threads_share_the_slots(tmp_path: Path) -> None:
    with table_of(tmp_path) as table:
        taken: list[int] = []
        start = threading.Barrier(SLOTS_PER_LANE)

        def work() -> None:
            start.wait(100)
            for _ in range(50):
                slot = table.enter(NAME, 0, PAGE)
                taken.append(slot)
                table.strike(slot)

        threads = [threading.Thread(target=work) for _ in range(SLOTS_PER_LANE)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(200)
        assert len(taken) == 50 * SLOTS_PER_LANE
        assert table.slots_free == SLOTS_PER_LANE


FORK = """
import os, sys
from pagein.cachefiles.cache import Cache
cache = Cache(os.fsencode(sys.argv[1]), shared=True)
file = cache.look_up(b"cache/Iv/@00/Dblob", 4096)
held = [os.readlink(f"/proc/self/fd/{fd}") for fd in (file.fd, cache._fd, cache.inflight._fd)]
if not os.fork():
    file.abandon()
    cache.abandon()
    left = []
    for fd in range(3, 100):
        try:
            left.append(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            pass
    os._exit(any(name in held for name in left))
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_a_forked_child_lets_go_of_everything(tmp_path: Path) -> None:
    # Else its parent's lane and range locks would outlive the parent.
    command = [sys.executable, "-c", FORK, str(tmp_path)]
    assert subprocess.run(command, timeout=200).returncode == 0


# ---- a damaged table ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "offset", "length"),
    [
        (b"/etc/passwd", 0, PAGE),
        (b"cache/../../file", 0, PAGE),
        (b"cache/a\0b", 0, PAGE),
        (NAME, 0, 0),
        (NAME, 1 << 63, PAGE),
        (NAME, 0, (1 << 64) - 1),
    ],
)
def test_what_no_writer_entered_is_not_believed(
    tmp_path: Path, blob: Path, path: bytes, offset: int, length: int
) -> None:
    with table_of(tmp_path):
        pass
    with open(tmp_path / os.fsdecode(inflight.FILE_NAME), "r+b") as file:
        file.write(struct.pack("<QQH", offset, length, len(path)) + path)
    with table_of(tmp_path) as table:
        assert list(table.entries()) == []
        assert drop(table, tmp_path) == []
    assert data_of(blob) == RangeSet([(0, 8 * PAGE)])


def test_a_table_that_is_a_directory(tmp_path: Path) -> None:
    (tmp_path / "pagein.inflight").mkdir()
    with pytest.raises(IsADirectoryError):
        InflightTable(os.fsencode(tmp_path))


def test_a_table_that_cannot_be_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_fds()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "ftruncate", full)
    with pytest.raises(OSError, match="No space left"):
        InflightTable(os.fsencode(tmp_path))
    assert open_fds() <= before


def test_every_page_of_the_table_has_its_block(tmp_path: Path) -> None:
    """A store into a hole of a mapped file is SIGBUS when the disk is full."""
    with table_of(tmp_path):
        found = os.stat(tmp_path / os.fsdecode(inflight.FILE_NAME))
        assert found.st_blocks * 512 >= found.st_size == LANES * SLOTS_PER_LANE * 1024


# ---- locks and punching -------------------------------------------------------------------------


def test_ofd_locks_are_by_open_file_description(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    with open(path, "r+b") as one, open(path, "r+b") as two:
        assert ofd_lock(one.fileno(), fcntl.F_WRLCK, 0, 10)
        assert not ofd_lock(two.fileno(), fcntl.F_WRLCK, 5, 10)
        assert ofd_lock(two.fileno(), fcntl.F_WRLCK, 10, 10)
        assert ofd_lock(one.fileno(), fcntl.F_UNLCK, 0, 10)
        assert ofd_lock(two.fileno(), fcntl.F_WRLCK, 5, 5)


def test_errors_of_locking_and_punching_are_told() -> None:
    for work in (lambda: ofd_lock(1 << 20, fcntl.F_WRLCK, 0, 1), lambda: punch(1 << 20, 0, 1)):
        with pytest.raises(OSError) as caught:
            work()
        assert caught.value.errno == errno.EBADF
