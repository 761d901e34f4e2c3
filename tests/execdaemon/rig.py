"""`pagein exec-daemon` as a user runs it."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.e2e.harness import COMMAND, DEADLINE, wait_for

from pagein.mounts.syscalls import MNT_DETACH, mounts, umount

HERE = Path(__file__).parent
DRIVER = (sys.executable, str(HERE / "driver.py"))
PYTHON_DAEMON = (sys.executable, str(HERE / "daemon.py"))
PROGRAM = (sys.executable, "-m", "tests.execdaemon.program")
SEEN = {
    "open by nobody": "EACCES",
    "open of nothing": "ENOENT",
    "open relative": True,
    "can be selected": True,
    "close on exec": True,
    "second open": "EBUSY",
    "nothing there": True,
    "ioctl of the device": "ENOTTY",
    "small buffer": "EMSGSIZE",
    "no fd left": "EMFILE",
    "its mount fails": True,
    "bad address": "EFAULT",
    "that mount fails": True,
    "readv": "EMSGSIZE",
    "the fd of an OPEN is write-only": True,
    "and not close-on-exec": True,
    "write before copen": "ENOBUFS",
    "CREAD by pointer": "EINVAL",
    "CREAD of nothing": "EINVAL",
    "mounted": True,
    "whole": True,
}
"""What `program.py` says, on either kernel."""


def compiled(directory: Path) -> Path:
    """daemon.c as a static program in `directory`."""
    program = directory / "daemon"
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-static", "-pthread"]
    subprocess.run(["gcc", *flags, "-o", program, HERE / "daemon.c"], check=True, timeout=DEADLINE)
    return program


class ExecDaemon:
    """Runs of it in one directory, with a mount point and a cache directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.state = directory / "run"
        self.cache = directory / "cache"
        self.target = directory / "mnt"
        self.process: subprocess.Popen[str] | None = None
        for each in (self.cache, self.target):
            each.mkdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self.process is not None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.communicate(timeout=DEADLINE)
        left = self.left()
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        for target in self.mounted():
            umount(target, MNT_DETACH)
        assert kind is not None or not left, left

    def argv(self, *words: str | Path, options: tuple[str, ...] = ()) -> list[str]:
        """The command line that runs `words`."""
        places = ("--state-dir", self.state)
        return list(map(str, (*COMMAND, *places, "exec-daemon", *options, "--", *words)))

    def start(self, *words: str | Path, options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        """Run it in the background."""
        pipe = subprocess.PIPE
        argv = self.argv(*words, options=options)
        self.process = subprocess.Popen(argv, text=True, stdout=pipe, stderr=pipe)
        return self.process

    def run(
        self, *words: str | Path, options: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        process = self.start(*words, options=options)
        out, err = process.communicate(timeout=DEADLINE)
        self.process = None
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def pagein(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Another command, with the same runtime directory."""
        argv = list(map(str, (*COMMAND, "--state-dir", self.state, *words)))
        return subprocess.run(argv, capture_output=True, text=True, timeout=DEADLINE)

    def pids(self, word: str = "") -> list[int]:
        """Living processes whose command line names this directory and `word`."""
        return [pid for pid, line in _processes() if str(self.directory) in line and word in line]

    def mounted(self) -> list[str]:
        """Mount points below the directory."""
        return [e.target for e in mounts() if e.target.startswith(f"{self.directory}/")]

    def wait_mounted(self) -> None:
        """Until the mount point is one."""
        wait_for(lambda: str(self.target) in self.mounted())

    def left(self) -> list[str]:
        """What of it is still there; waits a while for nothing."""
        give_up = time.monotonic() + 60
        while (found := [*map(str, self.pids()), *self.mounted()]) and time.monotonic() < give_up:
            time.sleep(0.02)
        return found


def _processes() -> Iterator[tuple[int, str]]:
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if int(entry.name) != os.getpid():
                yield int(entry.name), line
