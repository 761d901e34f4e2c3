"""Parts of pagein are killed, at any moment, under readers of the kernel's device."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.e2e.harness import (
    DEADLINE,
    Image,
    listing,
    serve,
    sums,
    wait_for,
)
from tests.realkernel import dying
from tests.realkernel.rig import (
    DEPUTY,
    KEEPER,
    USER_HALF,
    Served,
    checksums,
    drop_caches,
    fds_of,
    reader,
)

from pagein.testing.webserver import WebServer

pytestmark = pytest.mark.realkernel

KILLS = 20
ROUNDS = 10
"""Of `KILLS` each in the long form."""


def anonymous_fds(pid: int) -> int:
    """How many objects a process has open."""
    return sum("[cachefiles]" in target for target in fds_of(pid).values())


def all_fds(pid: int) -> int:
    """How many files a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_a_daemon_with_nothing_to_do_is_replaced(
    small: Image, place: Served, server: WebServer
) -> None:
    place.mount(*serve(server, single=small.single))
    killed = place.kill()
    assert sums(place.target) == sums(small.tree)
    assert place.pid(USER_HALF) != killed
    assert anonymous_fds(place.pid(USER_HALF)) == 1
    place.umount()
    place.end()


def test_a_mount_that_waits_for_its_daemon_is_answered_by_the_next(
    small: Image, place: Served, server: WebServer
) -> None:
    """OPEN is there and not yet delivered: the daemon sleeps from the moment it is asked of it."""
    single, packed = serve(server, single=small.single, meta=small.meta)
    place.mount(single)
    cookie = place.ask({"op": "resolve", "source": packed})["cookie"]
    os.kill(place.pid(USER_HALF), signal.SIGSTOP)
    target = place.dir("second")
    options = f"fsid={cookie},domain_id=pagein"
    mounting = subprocess.Popen(["mount", "-t", "erofs", "-o", options, "pagein", target])
    try:
        wait_for(lambda: " D " in Path(f"/proc/{mounting.pid}/stat").read_text())
        place.kill()
    finally:
        # Without its data file this image is not mounted; that says the daemon.
        assert mounting.wait(DEADLINE) != 0
    assert sums(place.target) == sums(small.tree)
    place.umount()
    place.end()


def test_a_close_that_nobody_took_is_done_with_the_next_daemon(
    small: Image, place: Served, server: WebServer
) -> None:
    (source,) = serve(server, single=small.single)
    place.mount(source)
    assert sums(place.target) == sums(small.tree)
    os.kill(place.pid(USER_HALF), signal.SIGSTOP)
    umount = subprocess.Popen(place.argv("umount", place.target))
    wait_for(lambda: not os.path.ismount(place.target))
    time.sleep(0.2)
    assert umount.poll() is None
    place.kill()
    assert umount.wait(DEADLINE) == 0
    place.end()
    assert place.assert_cached_right(small.single) > 0
    place.mount(source)
    assert sums(place.target) == sums(small.tree)
    assert place.fetched() == 0
    place.umount()
    place.end()


def test_killed_in_each_state(
    small: Image, place: Served, server: WebServer, public_tmp: Path
) -> None:
    points = public_tmp / "points"
    points.mkdir()
    points.chmod(0o777)
    read, write = os.pipe()
    place.state.mkdir()
    argv: list[str | Path] = [sys.executable, dying.__file__, points, "--ready-fd", str(write)]
    argv += ["--front-end", "kernel", "--device", "/dev/cachefiles", "--linger", "100"]
    argv += ["--state-dir", place.state, "--cache", place.cache]
    with (place.state / "log").open("wb") as log:
        keeper = subprocess.Popen(argv, pass_fds=[write], stdout=log, stderr=log)
    os.close(write)
    try:
        with os.fdopen(read) as ready:
            assert ready.read() == "listening\nok\n", place.log()
        place.mount(*serve(server, single=small.single))
        assert sums(place.target) == sums(small.tree)
        place.umount()
        assert keeper.wait(DEADLINE) == 0, place.log()
    finally:
        keeper.terminate()
        keeper.wait(DEADLINE)
    assert {path.name for path in points.iterdir()} == set(dying.POINTS)
    place.end()
    assert place.assert_cached_right(small.single) > 0


def test_the_deputy_is_replaced_and_knows_what_was_mounted(
    small: Image, place: Served, server: WebServer
) -> None:
    meta, blob = serve(server, meta=small.meta, blob=small.blob)
    place.mount(meta, blob)
    before = place.status()
    killed = place.kill(DEPUTY)
    assert place.pid(DEPUTY) != killed
    after = place.status()
    assert after.pop("pid") != before.pop("pid")
    assert after == before
    assert after["mounts"][0]["sources"] == [meta, blob]
    assert sums(place.target) == sums(small.tree)
    place.umount()
    place.end()


def test_a_killed_keeper_gives_readers_an_error_and_a_new_one_works(
    image: Image, place: Served, server: WebServer
) -> None:
    (source,) = serve(server, single=image.single)
    place.mount(source)
    listing(place.target)
    server.rate = 1.0
    before = len(server.requests)
    reading = reader(place.target)
    wait_for(lambda: len(server.requests) > before)
    place.kill(KEEPER)
    reading.communicate(timeout=DEADLINE)
    assert reading.returncode != 0
    wait_for(lambda: not place.processes())
    server.rate = None

    second = place.dir("second")
    refused = place.run("mount", "--front-end", "kernel", source, second)
    assert refused.returncode == 1
    text = "mounts of a pagein that was killed are in the way of new ones"
    assert refused.stderr == f"pagein: {text}: `pagein umount {place.target}` first\n"
    place.umount()
    place.mount(source, target=second)
    assert sums(second) == sums(image.tree)
    place.umount(second)
    place.end()


def test_a_dead_mount_that_is_only_in_use_is_in_the_way_too(
    small: Image, place: Served, server: WebServer
) -> None:
    (source,) = serve(server, single=small.single)
    place.mount(source)
    with (place.target / small.files[-1]).open("rb"):
        place.kill(KEEPER)
        wait_for(lambda: not place.processes())
        place.ok("umount", "--lazy", place.target)
        refused = place.run("mount", "--front-end", "kernel", source, place.target)
        assert refused.returncode == 1
        assert "end the processes (or containers) that still use it" in refused.stderr
        assert refused.stderr.count("\n") == 1
    place.mount(source)
    assert sums(place.target) == sums(small.tree)
    place.umount()
    place.end()


def serves(place: Served, readers: list[subprocess.Popen[str]]) -> bool:
    """Whether the daemon has taken up what is read; or runs, if all has been read."""
    if anonymous_fds(place.pid(USER_HALF)):
        return True
    if any(each.poll() is None for each in readers):
        return False
    try:
        return bool(place.ask({"op": "status"})["ok"])
    except OSError:
        return False


def kill_under_readers(
    place: Served, server: WebServer, image: Image, readable: Path, draw: random.Random, name: str
) -> int:
    """Two new mounts, four readers, `KILLS` kills; returns how many met a reader."""
    files = {"meta": image.meta, "blob": image.blob, "readable": readable}
    sources = serve(server, **{f"{name}-{key}": path for key, path in files.items()})
    targets = [place.dir("a"), place.dir("b")]
    server.rate = None
    place.mount(*sources[:2], target=targets[0])
    place.mount(sources[2], target=targets[1])
    keeper = place.pid(KEEPER)
    fds = all_fds(keeper)
    server.rate = sum(path.stat().st_size for path in files.values()) / 60
    readers = [reader(target) for target in targets * 2]
    busy, early = 0, False
    for number in range(KILLS):
        # Now and then it has hardly begun; but one that never comes to serve is given up.
        early = not early and draw.random() < 0.25
        if not early:
            wait_for(lambda: serves(place, readers))
        time.sleep(draw.uniform(0.0, 0.4))
        reading = any(each.poll() is None for each in readers)
        assert wait_for(place.kill), place.log()
        busy += reading
        if number % 5 == 0:
            drop_caches()
    server.rate = None
    right = sums(image.tree)
    assert [checksums(each) for each in readers] == [right] * 4
    drop_caches()
    assert [sums(target) for target in targets] == [right] * 2
    assert anonymous_fds(place.pid(USER_HALF)) <= len(files)
    assert all_fds(keeper) == fds
    print(f"{name}: {busy} of {KILLS} kills under readers, {fds} fds in the keeper")
    place.umount(targets[0])
    wait_for(lambda: anonymous_fds(place.pid(USER_HALF)) <= 1)
    place.umount(targets[1])
    place.end()
    place.assert_cached_right(*files.values())
    return busy


def test_kills_at_random_moments_cost_no_byte_and_no_reader(
    image: Image, readable: Path, place: Served, server: WebServer
) -> None:
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    busy = kill_under_readers(place, server, image, readable, random.Random(seed), "once")
    assert busy >= KILLS // 2


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_many_kills_at_random_moments_cost_no_byte_and_no_reader(
    image: Image, readable: Path, place: Served, server: WebServer
) -> None:
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    draw, busy = random.Random(seed), 0
    for number in range(ROUNDS):
        busy += kill_under_readers(place, server, image, readable, draw, f"round-{number}")
    assert busy >= ROUNDS * KILLS // 2
