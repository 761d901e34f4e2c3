"""mount(2), mountinfo and loop devices."""

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pagein.mounts import syscalls

DEADLINE = 60.0


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_a_line_of_mountinfo_with_escapes_and_optional_fields() -> None:
    line = (
        r"36 35 98:0 /m\0401 /mnt/a\040b\134c ro,nosuid shared:1 master:2 - "
        r"erofs /img\011x ro,device=/a\040b"
    )
    found = syscalls.parse_mountinfo(line)
    assert (found.id, found.parent, found.device, found.root) == (36, 35, "98:0", "/m 1")
    assert found.target == "/mnt/a b\\c"
    assert found.options == ("ro", "nosuid")
    assert (found.fstype, found.source) == ("erofs", "/img\tx")
    assert found.super_options == ("ro", "device=/a b")


def test_a_line_without_optional_fields() -> None:
    found = syscalls.parse_mountinfo("22 1 0:21 / /proc rw - proc proc rw")
    assert (found.target, found.fstype) == ("/proc", "proc")


@pytest.mark.parametrize("line", ["", "1 2 3", "22 1 0:21 / /proc rw proc proc rw"])
def test_a_line_that_is_none(line: str) -> None:
    with pytest.raises((ValueError, IndexError)):
        syscalls.parse_mountinfo(line)


def test_the_mounts_of_this_process() -> None:
    targets = [entry.target for entry in syscalls.mounts()]
    assert "/proc" in targets
    assert syscalls.mount_at("/proc") is not None
    assert syscalls.mount_at("/proc/self") is None


def test_options_that_the_kernel_would_cut_off(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="4096 bytes") as failure:
        syscalls.mount("none", str(tmp_path), "tmpfs", 0, "x" * 4096)
    assert failure.value.errno == errno.E2BIG


def test_errno_and_path_of_a_refused_mount(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=str(tmp_path)) as failure:
        syscalls.umount(str(tmp_path))
    assert failure.value.errno in (errno.EINVAL, errno.EPERM)


@pytest.mark.root
def test_a_mount_with_a_strange_name_is_found_again(tmp_path: Path) -> None:
    target = tmp_path / "a b\tc\\d"
    target.mkdir()
    syscalls.mount("none", str(target), "tmpfs", syscalls.MS_NOSUID, "size=4k")
    try:
        found = syscalls.mount_at(str(target))
        assert found is not None
        assert found.fstype == "tmpfs"
        assert "nosuid" in found.options
    finally:
        syscalls.umount(str(target), syscalls.UMOUNT_NOFOLLOW)
    assert syscalls.mount_at(str(target)) is None


def loops_over(path: Path) -> list[str]:
    found = []
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if entry.read_text().rstrip("\n") == str(path):
                found.append(entry.parts[3])
        except OSError:  # taken apart while we looked
            continue
    return found


def attach(path: Path) -> syscalls.LoopDevice:
    if not Path("/dev/loop-control").exists():
        pytest.skip("needs loop devices (/dev/loop-control)")
    return syscalls.attach_loop(str(path))


@pytest.mark.root
def test_a_loop_device_shows_the_file_and_vanishes(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(8192))
    device = attach(file)
    try:
        assert Path(device.path).read_bytes() == file.read_bytes()
        assert loops_over(file) == [Path(device.path).name]
        assert Path(f"/sys/block/{Path(device.path).name}/ro").read_text() == "1\n"
    finally:
        device.close()
    device.close()
    until(lambda: not loops_over(file))


@pytest.mark.root
@pytest.mark.parametrize("size", [0, 511, 4097])
def test_a_file_that_a_loop_device_would_cut(tmp_path: Path, size: int) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(size))
    with pytest.raises(OSError, match="whole sectors") as failure:
        attach(file)
    assert failure.value.errno == errno.EINVAL
    assert loops_over(file) == []
