"""What `fill` measures and measures with: one tree of files, and those who mount it over a link.

nginx serves the files as they are, and an EROFS image of them. Each contender mounts with nothing
in its cache, and is taken down again with all it had.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from common import MB, console

from pagein.mounts.syscalls import mounts
from pagein.testing.instance import Instance

BIG = 320 * MB
SMALL, DIRECTORIES = 2000, 20
"""Small files: of 2 to 30 KB, 16 on average, spread over so many directories."""
_OTHER = 48 * MB
_PATIENCE = 30.0


@dataclass(frozen=True)
class Tree:
    """The served directory; `small` are paths below `files`, in directory order."""

    root: Path
    small: list[str]

    @property
    def files(self) -> Path:
        """What the rivals mount: the files as they are."""
        return self.root / "files"

    def warm(self) -> None:
        """Have the server's files in memory, as they are when they were read just now.

        A new mount has nothing in the page cache.
        """
        for directory, _, names in os.walk(self.root):
            for name in names:
                with open(os.path.join(directory, name), "rb") as file:
                    while file.read(1 << 20):
                        pass


def make_tree(root: Path) -> Tree:
    """`big`, `other` and `small/`, of random bytes, and the image `tree.meta` and `tree.blob`."""
    files, numbers = root / "files", random.Random(6)
    small = []
    with console.status("making the files"):
        (files / "small").mkdir(parents=True)
        for name, size in (("big", BIG), ("other", _OTHER)):
            with (files / name).open("wb") as file:
                for _ in range(0, size, MB):
                    file.write(os.urandom(MB))
        for number in range(SMALL):
            directory = f"small/{number * DIRECTORIES // SMALL:02}"
            (files / directory).mkdir(exist_ok=True)
            path = f"{directory}/{number:04}"
            (files / path).write_bytes(os.urandom(numbers.randrange(2000, 30_000)))
            small.append(path)
        command = ["mkfs.erofs", "--quiet", "--chunksize=1048576", f"--blobdev={root}/tree.blob"]
        subprocess.run([*command, root / "tree.meta", files], check=True, capture_output=True)
    return Tree(root, small)


@dataclass(eq=False)
class Mounted:
    """A mount that stands; `kill` ends it under its readers, who then get errors."""

    top: Path
    kill: Callable[[], None]
    pagein: Instance | None = None


Contender = Callable[[str, Path], contextlib.AbstractContextManager[Mounted]]
"""(URL of the served directory, an empty directory for all it needs) -> its mount."""


def pagein_with(*options: str) -> Contender:
    """pagein, with these options of `pagein mount`."""

    @contextlib.contextmanager
    def mounted(url: str, work: Path) -> Iterator[Mounted]:
        top = work / "mnt"
        top.mkdir()
        with Instance(work) as pagein:
            pagein.mount([url + "tree.meta", url + "tree.blob"], top, *options)
            yield Mounted(top, pagein.stop, pagein)

    return mounted


def rclone(url: str, work: Path) -> contextlib.AbstractContextManager[Mounted]:
    """rclone's mount, with a cache on disk."""
    command = ["rclone", "mount", ":http:", str(work / "mnt"), "--http-url", url + "files/"]
    command += ["--vfs-cache-mode", "full", "--cache-dir", str(work / "cache"), "--read-only"]
    return _foreground([*command, "--config", "/dev/null"], work)


def httpdirfs(url: str, work: Path) -> contextlib.AbstractContextManager[Mounted]:
    """httpdirfs, with a cache on disk."""
    (work / "cache").mkdir()
    command = ["httpdirfs", "-f", "--cache", "--cache-location", str(work / "cache")]
    return _foreground([*command, url + "files/", str(work / "mnt")], work)


@contextlib.contextmanager
def _foreground(command: list[str], work: Path) -> Iterator[Mounted]:
    """A program that mounts `work`/mnt for as long as it runs. RuntimeError if it does not."""
    top, log = work / "mnt", work / "log"
    top.mkdir()
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
    try:
        give_up = time.monotonic() + _PATIENCE
        while not _is_mounted(top):
            if process.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError(f"{command[0]} does not mount: {_last_line(log)}")
            time.sleep(0.02)
        yield Mounted(top, process.kill)
        if process.poll() is not None:
            raise RuntimeError(f"{command[0]} ended: {_last_line(log)}")
    finally:
        if _is_mounted(top):
            subprocess.run(["umount", "--lazy", top], check=False, capture_output=True)
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _is_mounted(path: Path) -> bool:
    return os.path.realpath(path) in {entry.target for entry in mounts()}


def _last_line(log: Path) -> str:
    return (log.read_text(errors="replace").strip().splitlines() or ["it says nothing"])[-1]


@contextlib.contextmanager
def fresh(directory: Path) -> Iterator[Path]:
    """An empty directory, which everybody can enter, and which is gone afterwards."""
    work = directory / "work"
    work.mkdir(mode=0o755)
    try:
        yield work
    finally:
        if _is_mounted(work / "mnt"):
            raise RuntimeError(f"still mounted: {work}/mnt")
        shutil.rmtree(work)
