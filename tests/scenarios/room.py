"""A small file system below a cache directory, as full as a scenario wants it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.scenarios.transcript import Transcript

from pagein.mounts import syscalls

_BYTES = 64 << 20
_FILES = 1600
"""Inodes: enough for three volumes, and few enough to be used up."""
_MKFS = ("mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", "-N", str(_FILES))


def _run(*command: str) -> str:
    done = subprocess.run(command, check=True, capture_output=True, timeout=200, text=True)
    return done.stdout.strip()


class Room:
    """The file system that the cache directory is the root of."""

    def __init__(self, directory: Path, image: Path, log: Transcript, block: int) -> None:
        """Make it in the file `image` and mount it on `directory`."""
        self._directory = directory
        self._log = log
        with image.open("wb") as file:
            file.truncate(_BYTES)
        _run(*_MKFS, "-b", str(block), str(image))
        # Not `mount -o loop`: who has the device open for writing, as mount(8) then has, keeps some
        # kernels from mounting it (CONFIG_BLK_DEV_WRITE_MOUNTED).
        device = _run("losetup", "--find", "--show", str(image))
        try:
            _run("mount", device, str(directory))
        finally:
            _run("losetup", "--detach", device)  # with the mount, if there is one
        (directory / "lost+found").rmdir()
        (directory / "ballast").mkdir()
        log.say(f"the cache directory is a file system of its own, with blocks of {block}")

    def end(self) -> None:
        """Unmount it."""
        syscalls.umount(str(self._directory))

    def set_read_only(self) -> None:
        """Remount it so."""
        _run("mount", "-o", "remount,ro", str(self._directory))
        self._log.say("it is read-only now")

    @property
    def _ballast(self) -> Path:
        return self._directory / "ballast"

    def leave(self, percent: float) -> None:
        """Fill it with a file, or shorten that, until so much of its blocks is free."""
        wanted = int(os.statvfs(self._directory).f_blocks * percent / 100)
        with (self._ballast / "data").open("ab") as file:
            fd = file.fileno()
            for _ in range(4):  # a large file takes blocks for its extents too
                found = os.statvfs(self._directory)
                has = os.fstat(fd).st_size // found.f_frsize
                more = found.f_bavail - wanted
                os.ftruncate(fd, (has + min(more, 0)) * found.f_frsize)
                if more > 0:
                    os.posix_fallocate(fd, has * found.f_frsize, more * found.f_frsize)
            os.fsync(fd)
        self._log.say(f"free now: {percent} % of the blocks")

    def leave_files(self, percent: float) -> None:
        """Make files, or remove some, until so many are left to be made."""
        found = os.statvfs(self._directory)
        wanted = int(found.f_files * percent / 100)
        names = sorted(self._ballast.glob("file-*"))
        more = found.f_ffree - wanted
        for path in names[: max(0, -more)]:
            path.unlink()
        for number in range(max(0, more)):
            (self._ballast / f"file-{len(names) + number:05}").touch()
        self._log.say(f"free now: {percent} % of the files")
