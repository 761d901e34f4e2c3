"""Other processes that have to do with the device: who holds it, and who has no privileges."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.scenarios.files import DEADLINE
from tests.scenarios.transcript import Transcript, errno_name

# Not by subprocess's `user`: nobody may be unable to run this interpreter, which lies anywhere.
_AS_NOBODY = """\
import mmap, os, sys
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
def aligned(data):
    memory = mmap.mmap(-1, len(data))
    memory.write(data)
    return memory
try:
    print(eval(sys.argv[1]))
except OSError as problem:
    print("errno", problem.errno)
"""


def as_nobody(log: Transcript, what: str, expression: str, *fds: int) -> None:
    """Evaluate a Python expression without privileges, with these fds open."""
    argv = [sys.executable, "-I", "-c", _AS_NOBODY, expression]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, pass_fds=fds, timeout=DEADLINE)
    assert done.returncode == 0, expression
    said = done.stdout.strip()
    if said.startswith("errno "):
        said = errno_name(int(said.split()[1]))
    log.say(f"{what}, as nobody: {said}")


def open_as_nobody(log: Transcript, device: Path) -> None:
    """Open the device without privileges, where nothing but privileges is in the way."""
    mode = device.stat().st_mode & 0o7777
    directory = os.open(device.parent, os.O_PATH | os.O_CLOEXEC)
    device.chmod(0o666)
    try:
        expression = f"os.open({device.name!r}, os.O_RDWR, dir_fd={directory})"
        as_nobody(log, "open the device", expression, directory)
    finally:
        device.chmod(mode)
        os.close(directory)


@contextlib.contextmanager
def holding(log: Transcript, fd: int) -> Iterator[None]:
    """Another process has a copy of an fd meanwhile."""
    log.say("another process has a copy ...")
    argv = [sys.executable, "-I", "-c", "import sys; print(flush=True); sys.stdin.read()"]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[fd]
    ) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield
        finally:
            process.communicate(timeout=DEADLINE)
    log.say("... and is gone")
