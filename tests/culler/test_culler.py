"""Making room: the order, what stays, and who comes in between."""

import asyncio
import errno
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cachefiles.rig import PAGE, Rig, pages, soon
from tests.fds import open_fds

from pagein.cachefiles import namei
from pagein.cachefiles.cache import Cache
from pagein.cachefiles.inuse import claimed, open_cache_file
from pagein.culler.culling import Outcome, cull, until_run
from pagein.culler.evict import Leases
from pagein.culler.idle import files, graves
from pagein.protocol.space import LIMITS, Limits

VOLUME = b"erofs,test"


def everything(_: Outcome) -> bool:
    return False


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    made = Cache(os.fsencode(tmp_path))
    made.prepare_volume(VOLUME)
    yield made
    made.close()


def plant(cache: Cache, key: bytes, days_ago: float, size: int = 4) -> Path:
    """A file of so many pages that was used so many days ago."""
    file = cache.look_up(namei.object_path(VOLUME, key), size * PAGE)
    os.pwrite(file.fd, bytes(size * PAGE), 0)
    path = Path(os.fsdecode(cache.path_of(file.path)))
    file.close()
    when = time.time() - days_ago * 86400
    os.utime(path, (when, when))
    return path


def names(outcome: Outcome) -> list[str]:
    return [file.name.rpartition("/")[2] for file in outcome.culled]


def test_least_recently_used_first(cache: Cache) -> None:
    days = {b"c": 1.0, b"a": 3.0, b"b": 2.0}
    for key, ago in days.items():
        plant(cache, key, ago)
    directory = cache.directory
    enough = iter([False, False, True])
    outcome = cull(directory, Leases(directory), lambda _: next(enough))
    assert names(outcome) == ["a", "b"]
    assert outcome.freed == 2 * 4 * PAGE
    assert [file.name for file in files(directory)] == ["erofs,test/c"]


def test_a_read_and_a_write_are_uses_too(cache: Cache) -> None:
    paths = {key: plant(cache, key, 3.0) for key in (b"a", b"b", b"c")}
    long_ago, now = time.time() - 3 * 86400, time.time()
    os.utime(paths[b"a"], (now - 10, long_ago))
    os.utime(paths[b"b"], (long_ago, now - 20))
    assert [file.name[-1] for file in files(cache.directory)] == ["c", "b", "a"]


def test_a_lookup_is_a_use_whatever_the_mount_options_say(cache: Cache) -> None:
    path = plant(cache, b"a", 3.0)
    written = path.stat().st_mtime_ns
    cache.look_up(namei.object_path(VOLUME, b"a"), 4 * PAGE).close()
    (found,) = files(cache.directory)
    assert found.used > time.time() - 60
    assert path.stat().st_mtime_ns == written


def test_nothing_goes_in_a_dry_run(cache: Cache, tmp_path: Path) -> None:
    plant(cache, b"a", 1.0)
    (tmp_path / "graveyard" / "0123456789abcdef").mkdir()
    outcome = cull(cache.directory, Leases(cache.directory), everything, dry_run=True)
    assert (names(outcome), outcome.buried) == (["a"], 1)
    assert len(files(cache.directory)) == len(graves(cache.directory)) == 1


def test_what_somebody_has_open_stays(cache: Cache) -> None:
    path = plant(cache, b"a", 3.0)
    plant(cache, b"b", 2.0)
    with path.open("rb"):
        for dry_run in (True, False):
            outcome = cull(cache.directory, Leases(cache.directory), everything, dry_run=dry_run)
            assert names(outcome) == ["b"]
            assert [file.name[-1] for file in outcome.in_use] == ["a"]
    assert names(cull(cache.directory, Leases(cache.directory), everything)) == ["a"]


def test_only_files_of_objects_go(cache: Cache, tmp_path: Path) -> None:
    """Nothing is followed, nothing strange is touched, directories stay."""
    path = plant(cache, b"a", 3.0)
    (path.parent / "Dlink").symlink_to("/etc/passwd")
    os.mkfifo(path.parent / "Dfifo")
    (path.parent / "Ddirectory").mkdir()
    (tmp_path / "cache" / "Iother").symlink_to(path.parent.parent)
    (tmp_path / "cache" / "stray").mkdir()
    (tmp_path / "cache" / "stray" / "file").write_text("")
    assert names(cull(cache.directory, Leases(cache.directory), everything)) == ["a"]
    assert sorted(each.name for each in path.parent.iterdir()) == ["Ddirectory", "Dfifo", "Dlink"]
    assert (tmp_path / "cache" / "stray" / "file").exists()


def test_graves_are_emptied_and_a_volume_in_the_making_is_not(cache: Cache, tmp_path: Path) -> None:
    grave = tmp_path / "graveyard" / "0123456789abcdef"
    (grave / "Ivolume" / "@00").mkdir(parents=True)
    (grave / "Ivolume" / "@00" / "Dx").write_bytes(bytes(8 * PAGE))
    made = tmp_path / "graveyard" / "tmpab12cd34"
    made.mkdir()
    outcome = cull(cache.directory, Leases(cache.directory), everything)
    assert outcome.buried == 1
    assert outcome.freed >= 8 * PAGE
    assert not grave.exists()
    assert made.exists()


def test_no_cache_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        cull(os.fsencode(tmp_path), Leases(os.fsencode(tmp_path)), everything)


def test_somebody_elses_error_is_told(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(cache, b"a", 1.0)

    def broken(_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "unlink", broken)
    with pytest.raises(OSError, match="Input/output"):
        cull(cache.directory, Leases(cache.directory), everything)


def test_enough_is_by_what_went_where_the_file_system_is_late(cache: Cache) -> None:
    """Files that went count, whatever statvfs says meanwhile."""
    found = os.statvfs(cache.directory)
    # The run marks that are reached with one per cent more than is free.
    run = 100 * found.f_bavail // found.f_blocks + 1
    enough = until_run(cache.directory, Limits({**LIMITS, "brun": run, "frun": 1}))
    assert not enough(Outcome())
    assert enough(Outcome(freed=found.f_blocks * found.f_frsize // 50))


# ---- who comes in between -----------------------------------------------------------------------


def test_who_looks_up_while_a_file_goes_waits_and_makes_it_anew(cache: Cache) -> None:
    path = plant(cache, b"a", 1.0)
    whole = os.fsencode(path)
    opened: list[int | None] = []

    def look_up() -> None:
        opened.append(cache.find(namei.object_path(VOLUME, b"a")))

    with claimed(whole, os.O_RDONLY):
        thread = threading.Thread(target=look_up)
        thread.start()
        time.sleep(0.01)  # it may be late; then it finds nothing at once
        os.unlink(whole)
    thread.join(100)
    assert opened == [None]


def test_a_file_that_goes_while_it_is_opened_is_none(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its name was found, before the lease of who culls it would have been met."""
    path = plant(cache, b"a", 1.0)
    real, before = os.open, open_fds()

    def opens_what_goes(name: bytes, flags: int) -> int:
        fd = real(name, flags)
        os.unlink(name)
        return fd

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", opens_what_goes)
        assert cache.find(namei.object_path(VOLUME, b"a")) is None
    assert not path.exists()
    assert open_fds() <= before


def test_lookups_and_culling_at_the_same_time(cache: Cache) -> None:
    """Every file that is open keeps its name and has its data, or was made anew."""
    relative = namei.object_path(VOLUME, b"a")
    over = threading.Event()
    evictions = 0

    def culler() -> None:
        nonlocal evictions
        while not over.is_set():
            outcome = cull(cache.directory, Leases(cache.directory), everything)
            evictions += len(outcome.culled)

    thread = threading.Thread(target=culler)
    thread.start()
    try:
        found, give_up = 0, time.monotonic() + 60
        while (found < 50 or evictions < 20) and time.monotonic() < give_up:
            file = cache.look_up(relative, 2 * PAGE)
            if file.present:
                assert os.pread(file.fd, 2 * PAGE, 0) == b"x" * 2 * PAGE
            else:
                os.pwrite(file.fd, b"x" * 2 * PAGE, 0)
            time.sleep(0)
            assert os.fstat(file.fd).st_nlink == 1
            found += 1
            file.close()
            time.sleep(0.001)
    finally:
        over.set()
        thread.join(60)
    assert found >= 50
    assert evictions >= 20


def test_an_object_in_use_stays_and_an_idle_one_is_fetched_anew(tmp_path: Path) -> None:
    """With our kernel half at work on the same cache."""

    async def main() -> None:
        async with Rig(tmp_path) as rig:
            directory = os.fsencode(tmp_path)
            cookie, file = await rig.acquire(4 * PAGE)
            await file.pwrite(pages(1, 2, 3, 4), 0)
            assert cull(directory, Leases(directory), everything).culled == []
            assert await rig.read_bytes(cookie, 0, PAGE) == bytes([1]) * PAGE
            await rig.give_back(cookie)
            assert len(cull(directory, Leases(directory), everything).culled) == 1
            cookie, file = await rig.acquire(4 * PAGE)
            assert not cookie.present(0, PAGE)
            await file.pwrite(pages(5), 0)
            assert await soon(rig.reading(cookie, 0, PAGE)) == bytes([5]) * PAGE
            await rig.give_back(cookie)

    asyncio.run(main())


@pytest.mark.root
def test_what_is_mounted_directly_stays(cache: Cache, tmp_path: Path) -> None:
    path = plant(cache, b"a", 3.0, size=256)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(path)], check=True, capture_output=True)
    os.utime(path, (0, 0))
    target = tmp_path / "mnt"
    target.mkdir()
    subprocess.run(["mount", "-o", "loop,ro", str(path), str(target)], check=True)
    try:
        outcome = cull(cache.directory, Leases(cache.directory), everything)
        assert (outcome.culled, len(outcome.in_use)) == ([], 1)
    finally:
        subprocess.run(["umount", str(target)], check=True)
    assert names(cull(cache.directory, Leases(cache.directory), everything)) == ["a"]


def test_a_lease_is_gone_with_its_claim(cache: Cache) -> None:
    path = os.fsencode(plant(cache, b"a", 1.0))
    with claimed(path, os.O_RDONLY), pytest.raises(BlockingIOError):
        os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.close(open_cache_file(path))
