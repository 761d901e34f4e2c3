"""The cache directory as anybody sees it: names, attributes, extents; and how to meddle with it."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.scenarios.files import DEADLINE, PAGE
from tests.scenarios.transcript import Transcript

from pagein.cachefiles import namei, xattr

_KINDS = {stat.S_IFDIR: "directory", stat.S_IFREG: "file", stat.S_IFLNK: "link", 0o010000: "fifo"}


class Disk:
    """One cache directory."""

    def __init__(self, directory: Path, log: Transcript) -> None:
        self.directory = directory
        self._log = log

    def path(self, volume: str, key: str) -> Path:
        """The file of an object, e.g. ("erofs,blob", "blob")."""
        relative = namei.object_path(volume.encode(), key.encode())
        return self.directory / os.fsdecode(relative)

    def volume(self, volume: str) -> Path:
        """The directory of a volume."""
        return self.directory / "cache" / os.fsdecode(namei.volume_name(volume.encode()))

    def names(self, directory: str = ".") -> None:
        """List a directory: kinds, modes, names; fan-out directories by their number."""
        path = self.directory / directory
        found = sorted(path.iterdir(), key=lambda entry: os.fsencode(entry.name))
        lines = [f"{describe(entry)} {entry.name}" for entry in found]
        fanout = [line for line in lines if "directory 700 @" in line]
        if fanout:
            lines = [line for line in lines if line not in fanout]
            lines.append(f"directories 700 @..: {len(fanout)}")
        self._log.say(f"names in {directory}: {', '.join(lines) or 'none'}")

    def objects(self, volume: str, count: int) -> None:
        """List the files of a volume, with their fan-out directories, once there are `count`."""
        place = self.volume(volume)
        self.until(lambda: len(list(place.glob("@*/*"))) >= count, f"{count} files of {volume!r}")
        names = sorted(f"{path.parent.name}/{path.name}" for path in place.glob("@*/*"))
        self._log.say(f"files of volume {volume!r}: {', '.join(names)}")

    def graves(self) -> None:
        """Say how many things lie in the graveyard: their names are made from the clock."""
        found = len(list((self.directory / "graveyard").iterdir()))
        self._log.say(f"in the graveyard: {found}")

    def show(self, volume: str, key: str) -> None:
        """Write an object's file: its size, its attribute, its data by pages."""
        path = self.path(volume, key)
        what = f"file of {key!r}"
        if not os.path.lexists(path):
            self._log.say(f"{what}: none")
            return
        if not path.is_file() or path.is_symlink():
            self._log.say(f"{what}: a {describe(path)}")
            return
        data = ", ".join(f"{a}-{b - 1}" for a, b in data_pages(path)) or "none"
        value = self.attribute(path)
        text = f"mode {path.stat().st_mode & 0o7777:o} size {path.stat().st_size}"
        self._log.say(f"{what}: {text} xattr {value} data pages {data}")

    def show_volume(self, volume: str) -> None:
        """Write a volume's directory and its attribute."""
        path = self.volume(volume)
        there = f"{describe(path)} xattr {self.attribute(path)}" if path.exists() else "none"
        self._log.say(f"directory of volume {volume!r}: {there}")

    @staticmethod
    def attribute(path: Path) -> str:
        """The attribute in hexadecimal."""
        try:
            return os.getxattr(path, xattr.NAME).hex()
        except OSError:
            return "none"

    def wait_for(self, volume: str, key: str) -> None:
        """Wait until an object's file is there: the kernel links it some time after the CLOSE."""
        self.until(self.path(volume, key).exists, f"a file of {key!r}")

    @staticmethod
    def until(condition: Callable[[], bool], what: str) -> None:
        """Wait for something that nobody tells."""
        give_up = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < give_up, f"still not there: {what}"
            time.sleep(0.005)

    def plant(
        self, volume: str, key: str, size: int, data: dict[int, bytes], *, quiet: bool = False
    ) -> Path:
        """Make an object's file as if it had been cached: `data` is page number -> its bytes."""
        path = self.path(volume, key)
        directory = self.volume(volume)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.setxattr(directory, xattr.NAME, xattr.volume_coherency())
        with path.open("wb") as file:
            for number, page in data.items():
                file.seek(number * PAGE)
                file.write(page)
            file.truncate((size + PAGE - 1) // PAGE * PAGE)
            os.fsync(file.fileno())
        os.setxattr(path, xattr.NAME, xattr.ObjectXattr(size).encode())
        if not quiet:
            self._log.say(f"planted: {key!r}, size {size}, pages {sorted(data)}")
        return path


def describe(path: Path) -> str:
    """Kind and mode."""
    mode = path.lstat().st_mode
    return f"{_KINDS.get(stat.S_IFMT(mode), 'thing')} {mode & 0o7777:o}"


def data_pages(path: Path) -> Iterator[tuple[int, int]]:
    """Ranges of pages that the file system calls data."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        at, end = 0, os.fstat(fd).st_size
        while at < end:
            try:
                first = os.lseek(fd, at, os.SEEK_DATA)
            except OSError:  # ENXIO: no more
                return
            at = os.lseek(fd, first, os.SEEK_HOLE)
            yield first // PAGE, (at + PAGE - 1) // PAGE
    finally:
        os.close(fd)
