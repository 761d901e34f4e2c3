"""EROFS images mounted through the helper: from files, over FUSE, through loop devices."""

import asyncio
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from tests.fuse.mounted import MountedFs, mounted_fs
from tests.pagecache import in_memory

from pagein.mounts import syscalls
from pagein.mounts.erofs import Mounted, MountError, mount_image, umount_image

pytestmark = pytest.mark.root

DEADLINE = 60.0
FILES = {"small": 10, "page": 4096, "large": (1 << 20) + 4097, "deep/down/file": 70_000}


class Images:
    """One tree as one image, and as metadata and blob."""

    def __init__(self, directory: Path) -> None:
        self.tree = directory / "tree"
        for name, size in FILES.items():
            file = self.tree / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(os.urandom(size))
        self.plain = directory / "plain.erofs"
        self.meta = directory / "meta.erofs"
        self.blob = directory / "blob"
        self._make(self.plain)
        self._make(self.meta, "--chunksize=1048576", f"--blobdev={self.blob}")

    def _make(self, image: Path, *options: str) -> None:
        command = ["mkfs.erofs", *options, str(image), str(self.tree)]
        subprocess.run(command, check=True, timeout=200, capture_output=True)

    def assert_equal(self, mounted: Path) -> None:
        for name in FILES:
            assert digest(mounted / name) == digest(self.tree / name), name
        assert {path.relative_to(mounted) for path in mounted.rglob("*")} == {
            path.relative_to(self.tree) for path in self.tree.rglob("*")
        }


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    if shutil.which("mkfs.erofs") is None:
        pytest.skip("needs mkfs.erofs (erofs-utils)")
    return Images(tmp_path_factory.mktemp("images"))


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "mnt"
    directory.mkdir()
    yield directory
    left = syscalls.mount_at(str(directory))
    if left is not None:
        syscalls.umount(str(directory), syscalls.UMOUNT_NOFOLLOW)


Loop = Literal["auto", "always", "never"]


def mount(image: Path, devices: list[Path], target: Path, loop: Loop = "auto") -> Mounted:
    return asyncio.run(mount_image(image, devices, target, timeout=DEADLINE, loop=loop))


def umount(target: Path) -> None:
    asyncio.run(umount_image(target, timeout=DEADLINE))


def backing(device: str) -> str | None:
    try:
        return Path(f"/sys/block/{Path(device).name}/loop/backing_file").read_text().rstrip("\n")
    except OSError:
        return None


def assert_no_loop_device(files: list[Path]) -> None:
    """As soon as the kernel has taken it apart, none is left over these files."""
    names = {str(file.resolve()) for file in files}
    deadline = time.monotonic() + DEADLINE
    while names & {backing(path.name) for path in Path("/sys/block").glob("loop*")}:
        assert time.monotonic() < deadline, "a loop device is left"
        time.sleep(0.01)


def refused(
    number: int, text: str, image: Path, devices: list[Path], target: Path, loop: Loop = "auto"
) -> None:
    """Mounting fails with this errno and text, and leaves no mount and no loop device."""
    before = syscalls.mount_at(str(target))
    with pytest.raises(MountError) as failure:
        mount(image, devices, target, loop)
    assert failure.value.errno == number, failure.value
    assert text in str(failure.value.strerror)
    assert "\n" not in str(failure.value.strerror)
    assert syscalls.mount_at(str(target)) == before
    if before is None:
        assert_no_loop_device([image, *devices])


@pytest.mark.parametrize("loop", ["auto", "always"])
def test_one_file(images: Images, target: Path, loop: Loop) -> None:
    mounted = mount(images.plain, [], target, loop)
    images.assert_equal(target)
    entry = syscalls.mount_at(str(target))
    assert entry is not None
    assert {"ro", "nosuid", "nodev"} <= set(entry.options)
    if loop == "always":
        assert [backing(device) for device in mounted.loop] == [str(images.plain)]
    umount(target)
    assert_no_loop_device([images.plain])


@pytest.mark.parametrize("loop", ["auto", "always"])
def test_metadata_and_blob(images: Images, target: Path, loop: Loop) -> None:
    mounted = mount(images.meta, [images.blob], target, loop)
    images.assert_equal(target)
    if loop == "always":
        files = [backing(device) for device in mounted.loop]
        assert files == [str(images.meta), str(images.blob)]
    umount(target)
    assert_no_loop_device([images.meta, images.blob])


@pytest.fixture
def served(tmp_path: Path, images: Images) -> Iterator[MountedFs]:
    with mounted_fs(tmp_path, images.blob) as fs:
        fs.serve()
        yield fs


@pytest.mark.parametrize("loop", ["auto", "always"])
def test_the_blob_over_fuse(images: Images, served: MountedFs, target: Path, loop: Loop) -> None:
    blob = served.directory / "blob"
    mount(images.meta, [blob], target, loop)
    try:
        with in_memory(target / name for name in FILES):
            images.assert_equal(target)
            served.servers[0].order("go")
            reads = served.servers[0].count("read")
            assert reads > 0
            images.assert_equal(target)  # from page cache
            served.servers[0].order("go")
            assert served.servers[0].count("read") == reads
    finally:
        umount(target)
    assert_no_loop_device([images.meta, blob])
    served.servers[0].wait_for("release")


def test_a_fuse_server_that_does_not_answer_is_a_deadline(
    images: Images, served: MountedFs, target: Path
) -> None:
    server = served.servers[0]
    server.order("hold")
    blob = served.directory / "blob"

    async def main() -> None:
        with pytest.raises(MountError, match=r"took more than 1 s") as failure:
            await mount_image(blob, [], target, timeout=1)
        assert failure.value.errno == errno.ETIMEDOUT
        # The kernel lets the killed helper go when its request is answered.
        server.order("go")
        if server.count("open"):
            server.wait_for("release")
        await helper_reaped()

    asyncio.run(main())
    assert syscalls.mount_at(str(target)) is None


def test_a_cancelled_mount_leaves_nothing(images: Images, served: MountedFs, target: Path) -> None:
    served.servers[0].order("hold")

    async def main() -> None:
        blob = served.directory / "blob"
        task = asyncio.create_task(mount_image(blob, [], target, timeout=DEADLINE))
        await asyncio.to_thread(served.servers[0].wait_for, "read")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        served.servers[0].order("go")
        served.servers[0].wait_for("release")
        await helper_reaped()

    asyncio.run(main())
    assert syscalls.mount_at(str(target)) is None


def test_a_mount_that_waits_when_its_helper_is_killed_never_comes(
    images: Images, target: Path, tmp_path: Path
) -> None:
    with mounted_fs(tmp_path, images.plain) as fs:
        # One read is the helper's own check; the kernel's first one is not answered.
        server = fs.serve(hold_after=1)

        async def main() -> None:
            blob = fs.directory / "blob"
            task = asyncio.create_task(mount_image(blob, [], target, timeout=DEADLINE))
            for _ in range(2):
                await asyncio.to_thread(server.wait_for, "read")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            server.order("go")
            for _ in range(server.count("open")):
                server.wait_for("release")
            await helper_reaped()

        asyncio.run(main())
    assert syscalls.mount_at(str(target)) is None


async def helper_reaped() -> None:
    """Until asyncio has seen the end of a killed helper: else it complains of the closed loop."""
    for thread in threading.enumerate():
        if thread.name.startswith("asyncio-waitpid"):
            await asyncio.to_thread(thread.join, DEADLINE)


def test_the_loop_runs_while_a_mount_waits(images: Images, served: MountedFs, target: Path) -> None:
    server = served.servers[0]
    server.order("hold")

    async def main() -> None:
        blob = served.directory / "blob"
        task = asyncio.create_task(mount_image(blob, [], target, timeout=DEADLINE))
        # With a mount on this thread nobody would come to answer.
        await asyncio.to_thread(server.wait_for, "read")
        server.order("go")
        with pytest.raises(MountError, match="not an EROFS image"):
            await task

    asyncio.run(main())


@pytest.mark.parametrize("loop", ["auto", "always", "never"])
def test_not_an_image(images: Images, target: Path, loop: Loop) -> None:
    text = f"{images.blob} is not an EROFS image"
    refused(errno.EINVAL, text, images.blob, [], target, loop)


@pytest.mark.parametrize("loop", ["auto", "always"])
def test_wrong_number_of_devices(images: Images, target: Path, loop: Loop) -> None:
    blob = images.blob
    text = "wants 1 data device(s), 0 given"
    refused(errno.EINVAL, text, images.meta, [], target, loop)
    text = "wants 1 data device(s), 2 given"
    refused(errno.EINVAL, text, images.meta, [blob, blob], target, loop)
    text = "wants 0 data device(s), 1 given"
    refused(errno.EINVAL, text, images.plain, [blob], target, loop)


def test_an_image_that_was_cut_off(images: Images, target: Path, tmp_path: Path) -> None:
    short = tmp_path / "short"
    short.write_bytes(images.plain.read_bytes()[:-4096])
    refused(errno.EINVAL, f"{short} has", short, [], target)


def test_missing_files(images: Images, target: Path, tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    refused(errno.ENOENT, f"{absent}: No such file", absent, [], target)
    refused(errno.ENOENT, f"{absent}: No such file", images.meta, [absent], target)
    refused(errno.EINVAL, "neither a file", target, [], target)


def test_a_mount_point_that_cannot_be_one(images: Images, target: Path, tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    text = f"mount point {absent} does not exist"
    refused(errno.ENOENT, text, images.plain, [], absent)
    text = f"mount point {images.plain} is not a directory"
    refused(errno.ENOTDIR, text, images.plain, [], images.plain)
    mount(images.plain, [], target)
    text = f"mount point {target} is busy: {images.plain} (erofs) is mounted there"
    refused(errno.EBUSY, text, images.plain, [], target)
    umount(target)


def test_paths_that_are_hard_to_say(images: Images, target: Path, tmp_path: Path) -> None:
    blob = tmp_path / "a,b" / ("long" * 60)
    blob.parent.mkdir()
    blob.symlink_to(images.blob)
    mount(images.meta, [blob], target)
    images.assert_equal(target)
    umount(target)
    primary = tmp_path / ("long" * 60)
    primary.symlink_to(images.plain)
    refused(errno.ENAMETOOLONG, "more than 255 bytes", primary, [], target)
    mount(primary, [], target, "always")
    images.assert_equal(target)
    umount(target)
    assert_no_loop_device([images.plain])


def test_a_mount_in_use_and_none_at_all(images: Images, target: Path) -> None:
    mount(images.plain, [], target)
    fd = os.open(target / "small", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with pytest.raises(MountError, match=f"{target} is in use") as failure:
            umount(target)
        assert failure.value.errno == errno.EBUSY
        asyncio.run(umount_image(target, timeout=DEADLINE, lazy=True))
        assert os.pread(fd, 10, 0) == (images.tree / "small").read_bytes()
    finally:
        os.close(fd)
    with pytest.raises(MountError, match=f"{target} is not a mount point") as failure:
        umount(target)
    assert failure.value.errno == errno.EINVAL


def test_a_helper_that_fails_is_one_line(
    images: Images, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    refused(errno.EIO, "the mount helper failed", images.plain, [], target)


def test_a_helper_whose_owner_is_gone_undoes_its_mount(images: Images, target: Path) -> None:
    job = {"op": "mount", "primary": str(images.plain), "devices": [], "target": str(target)}
    helper = subprocess.Popen(
        [sys.executable, "-P", "-m", "pagein.mounts.helper"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(syscalls.__file__).parents[2])},
    )
    assert helper.stdin is not None
    assert helper.stdout is not None
    helper.stdout.close()
    json.dump({**job, "loop": "auto"}, helper.stdin)
    helper.stdin.close()
    assert helper.wait(DEADLINE) == 1
    assert syscalls.mount_at(str(target)) is None


def test_the_helper_imports_nothing_heavy(tmp_path: Path) -> None:
    script = (
        "import sys, pagein.mounts.helper\n"
        "print(sorted({'asyncio', 'aiohttp', 'msgspec'} & set(sys.modules)))"
    )
    source = str(Path(syscalls.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        env={**os.environ, "PYTHONPATH": source},
        cwd=tmp_path,
        check=True,
        timeout=DEADLINE,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "[]\n"
