"""What a daemon must hold to on the kernel's device, and our daemon does.

The numbers are those of "Daemon rules", facts cachefiles-kernel 15.
"""

import errno
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e import harness
from tests.e2e.harness import DEADLINE, Image, listing, once_it_works, serve, sums, wait_for
from tests.realkernel.rig import (
    DEVICE,
    INJECTION,
    LINUX_6_1,
    USER_HALF,
    Daemon,
    device_is_free,
    drop_caches,
    fds_of,
)

from pagein.testing.answers import Fault
from pagein.testing.webserver import WebServer

pytestmark = pytest.mark.realkernel


def read_errno(path: Path, offset: int = 0, length: int = 4096) -> int:
    """The errno of opening and reading a piece of a file, or 0: its name is read as well."""
    try:
        return harness.read_errno(path, offset, length)
    except OSError as problem:
        return problem.errno or -1


def largest(image: Image) -> Path:
    """The name of its largest file."""
    return max(image.files, key=lambda name: (image.tree / name).stat().st_size)


def test_each_fd_is_closed_at_exec_and_there_may_be_many(image: Image, served: Daemon) -> None:
    """Rule 1."""
    served.mount(str(image.meta), str(image.blob))
    pid = served.pid(USER_HALF)
    fds = fds_of(pid)
    assert sorted("anon_inode" in target for target in fds.values()) == [False, True, True]
    for fd in fds:
        said = Path(f"/proc/{pid}/fdinfo/{fd}").read_text()
        flags = re.search(r"^flags:\s*0(\d+)$", said, re.MULTILINE)
        assert flags is not None
        assert int(flags[1], 8) & os.O_CLOEXEC
    limits = Path(f"/proc/{pid}/limits").read_text()
    limit = re.search(r"^Max open files\s+(\d+)\s+(\d+)", limits, re.MULTILINE)
    assert limit is not None
    assert limit[1] == limit[2]
    served.umount()


def test_a_daemon_without_privileges_serves(image: Image, served: Daemon) -> None:
    status = Path(f"/proc/{served.pid(USER_HALF)}/status").read_text()
    assert re.search(r"^Uid:\s+65534\s+65534", status, re.MULTILINE)
    served.mount(str(image.single))
    assert sums(served.target) == sums(image.tree)
    served.umount()


def test_a_second_daemon_is_told_who_has_the_device(served: Daemon, public_tmp: Path) -> None:
    done = served.run("daemon", "--device", DEVICE)
    assert done.returncode == 1
    text = f"pagein runs in {served.state} already; choose another --state-dir"
    assert done.stderr == f"pagein: {text}\n"
    (public_tmp / "other").mkdir()
    other = Daemon(public_tmp / "other")
    done = other.run("daemon", "--device", DEVICE)
    assert done.returncode == 1
    assert f"{DEVICE}: in use by process " in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_refused_open_fails_its_mount_and_leaves_no_fd(image: Image, served: Daemon) -> None:
    """Rule 4."""
    options = f"fsid={'0' * 64},domain_id=pagein"
    command = ["mount", "-t", "erofs", "-o", options, "none", str(served.target)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode != 0
    pid = served.pid(USER_HALF)
    wait_for(lambda: list(fds_of(pid).values()) == [str(DEVICE)])
    served.mount(str(image.single))
    served.umount()


@pytest.fixture
def full_disk() -> Iterator[list[Path]]:
    """Files to be removed again."""
    files: list[Path] = []
    yield files
    for path in files:
        path.unlink(missing_ok=True)


def test_lack_of_space_is_an_error_of_that_read_only(
    image: Image, served: Daemon, full_disk: list[Path]
) -> None:
    """Rule 6: ENOBUFS."""
    served.mount(str(image.single))
    listing(served.target)
    ballast = Path("/run/disk/ballast")
    full_disk.append(ballast)
    free = os.statvfs("/run/disk")
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - (4 << 20))
    victim = largest(image)
    assert read_errno(served.target / victim, 512 << 10) == errno.EIO
    assert "no space left in the cache" in served.log()
    ballast.unlink()
    os.sync()
    assert once_it_works(lambda: sums(served.target)) == sums(image.tree)
    served.umount()


def test_a_reader_that_is_killed_does_not_disturb(
    image: Image, served: Daemon, server: WebServer
) -> None:
    """Rule 7: EINVAL of CREAD."""
    served.mount(*serve(server, single=image.single))
    victim = served.target / largest(image)
    listing(served.target)
    server.rate = 1.0
    before = len(server.requests)
    with subprocess.Popen(["cat", victim], stdout=subprocess.DEVNULL) as reading:
        wait_for(lambda: len(server.requests) > before)
        reading.kill()
    server.rate = None
    assert sums(served.target) == sums(image.tree)
    served.umount()


def test_an_image_that_is_cut_off_fails_where_it_ends(
    image: Image, served: Daemon, public_tmp: Path
) -> None:
    """Rule 7: a READ beyond the size."""
    short = public_tmp / "short.erofs"
    short.write_bytes(image.single.read_bytes()[: 256 << 10])
    served.mount(str(short))
    errors = {read_errno(served.target / name, 0, 1) for name in image.files}
    assert errors == {0, errno.EIO}
    served.umount()


def test_what_the_server_refuses_is_an_error_that_is_not_kept(
    image: Image, served: Daemon, server: WebServer
) -> None:
    """Rule 7: CREAD after a failure."""
    served.mount(*serve(server, single=image.single))
    listing(served.target)
    server.faults = lambda number, path, start, end: Fault("status", 403)
    victim = largest(image)
    assert read_errno(served.target / victim, 512 << 10) == errno.EIO
    server.faults = None
    drop_caches()
    wait_for(lambda: read_errno(served.target / victim, 512 << 10) == 0)
    assert once_it_works(lambda: sums(served.target)) == sums(image.tree)
    served.umount()


def test_a_dead_cache_ends_the_daemon(image: Image, served: Daemon) -> None:
    """Rule 9: nothing but EIO of a command says so."""
    served.mount(str(image.meta), str(image.blob))  # so that the volume is in use
    second = served.dir("second")
    cookie = served.ask({"op": "resolve", "source": str(image.single)})["cookie"]
    INJECTION.write_text("2")  # EIO of everything that changes the cache directory
    try:
        options = f"fsid={cookie},domain_id=pagein"
        command = ["mount", "-t", "erofs", "-o", options, "none", str(second)]
        assert subprocess.run(command, capture_output=True, timeout=DEADLINE).returncode != 0
    finally:
        INJECTION.write_text("0")
    assert re.search(r" E pagein$", Path("/proc/fs/fscache/caches").read_text(), re.MULTILINE)
    assert served.keeper is not None
    assert served.keeper.wait(DEADLINE) == 1
    served.keeper = None
    assert "the device is gone" in served.log()
    assert not os.path.ismount(served.target)  # nobody used it, and a new cache begins without it
    wait_for(device_is_free)
    served.start()
    served.mount(str(image.meta), str(image.blob))
    assert sums(served.target) == sums(image.tree)
    served.umount()


def test_unmounting_and_stopping_at_once_loses_nothing(image: Image, served: Daemon) -> None:
    """Rule 11: what was fetched first is in a file without a name until CLOSE, or the end."""
    served.mount(str(image.single))
    assert sums(served.target) == sums(image.tree)
    served.umount()
    served.stop()
    served.start()
    served.mount(str(image.single))
    assert sums(served.target) == sums(image.tree)
    assert served.fetched() == 0
    served.umount()


def test_a_cache_where_the_kernel_keeps_none_is_refused_in_one_line(served: Daemon) -> None:
    if LINUX_6_1:
        pytest.skip("tmpfs of Linux 6.1 keeps no user extended attributes, which is said first")
    served.stop()
    done = served.run("daemon", "--device", DEVICE, "--cache", "/tmp/no-cache")
    assert done.returncode == 1
    text = "the kernel keeps no cache on this file system; use ext4, xfs or btrfs"
    assert done.stderr == f"pagein: /tmp/no-cache: {text}\n"
    os.rmdir("/tmp/no-cache")


def test_mounts_that_cannot_be_say_why(image: Image, served: Daemon, public_tmp: Path) -> None:
    """Rule 12, and facts 13."""
    no_image = public_tmp / "no-image"
    no_image.write_bytes(bytes(8192))
    served.mount(str(image.single))
    second = served.dir("second")
    for source, text in (
        (image.single, "mounted already"),
        (no_image, "not an EROFS image"),
        (public_tmp / "absent", "no such file"),
    ):
        done = served.run("mount", "--front-end", "kernel", source, second)
        assert done.returncode == 1
        assert text in done.stderr
        assert len(done.stderr.splitlines()) == 1
    served.umount()
