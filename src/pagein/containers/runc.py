"""runc: started, and asked to take away what it started.

`runc run --detach` makes the container and leaves; its first process becomes a child of whoever is
the subreaper, which is this process, so that its exit status comes here whole.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import resource
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from pagein.containers.program import FAILED, NOT_EXECUTABLE, NOT_FOUND, RunError, find
from pagein.containers.spec import Machine, Volume

__all__ = [
    "FAILED",
    "NOT_EXECUTABLE",
    "NOT_FOUND",
    "RunError",
    "Runc",
    "become_subreaper",
    "find",
    "machine",
]

_START: Final = 60.0  # seconds; runc reads the command from the root directory, which is fetched
_DELETE: Final = 20.0
_PR_SET_CHILD_SUBREAPER: Final = 36
_CAPABILITY_NAMES: Final = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE"
    " NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO"
    " SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME"
    " SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP"
)
"""By number from 0 (linux/capability.h); those that docker gives on are among them."""


def machine(binds: Sequence[Volume]) -> Machine:
    """What this machine can give a container."""
    status = Path("/proc/self/status").read_text()
    bounding = re.search(r"^CapBnd:\s*([0-9a-f]+)$", status, re.MULTILINE)
    bits = int(bounding[1], 16) if bounding else 0
    names = _CAPABILITY_NAMES.split()
    return Machine(
        capabilities=frozenset(f"CAP_{name}" for n, name in enumerate(names) if bits >> n & 1),
        cgroups=_cgroups(),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        hostname=os.uname().nodename,
        binds=binds,
    )


def _cgroups() -> bool:
    """Whether cgroups are mounted where runc looks, and can be made: in a container often not."""
    top = Path("/sys/fs/cgroup")
    kind = _mounted_type(top)
    if kind == "cgroup2":
        return os.access(top, os.W_OK)
    return any(os.access(path, os.W_OK) for path in top.glob("*/cgroup.procs"))


def _mounted_type(path: Path) -> str:
    """The type of the file system mounted on `path`, or ""."""
    from pagein.mounts.syscalls import mount_at

    entry = mount_at(str(path))
    return entry.fstype if entry else ""


def become_subreaper() -> None:
    """Have orphaned descendants become children of this process."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Runc:
    """runc with a directory for its state."""

    def __init__(self, program: str, state: str) -> None:
        self.program = program
        self.state = state

    def start(
        self, name: str, bundle: str, *, cgroups: bool, console: socket.socket | None = None
    ) -> int:
        """Start the container of a bundle, its streams those of this process; its pid.

        `console` listens for the terminal's master, if there is one. Raises RunError.
        """
        log, pid_file = os.path.join(bundle, "log"), os.path.join(bundle, "pid")
        command = [self.program, "--root", self.state, "--log", log, "--log-format", "json"]
        # Without cgroups of its own a container lives in ours.
        command += [] if cgroups else ["--rootless", "true"]
        command += ["run", "--detach", "--bundle", bundle, "--pid-file", pid_file]
        if console is not None:
            command += ["--console-socket", console.getsockname()]
        try:
            # An interrupt from the terminal is forwarded to the container, and nothing for runc.
            done = subprocess.run(
                [*command, name], start_new_session=True, timeout=_START, check=False
            )
        except subprocess.TimeoutExpired:
            text = f"runc has not started the container within {_START:g} s"
            raise RunError(FAILED, text) from None
        if done.returncode:
            raise _why(log)
        return int(Path(pid_file).read_text())

    def delete(self, name: str) -> None:
        """Kill a container if it lives, and forget it; nothing if there is none.

        Asks more than once: a container that is being started does not let itself be deleted.
        """
        give_up = time.monotonic() + _DELETE
        while os.path.isdir(os.path.join(self.state, name)):
            with contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run(
                    [self.program, "--root", self.state, "delete", "--force", name],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                    timeout=_DELETE,
                    check=False,
                )
            if time.monotonic() > give_up:
                return
            time.sleep(0.02)


def _why(log: str) -> RunError:
    """What runc said last, and the exit status for it."""
    text = "runc failed without a word"
    with contextlib.suppress(OSError, ValueError):
        for line in Path(log).read_text().splitlines():
            entry: dict[str, Any] = json.loads(line)
            if entry.get("level") in ("error", "fatal"):
                text = str(entry["msg"])
    if 'exec: "' not in text and "exec /" not in text:
        return RunError(FAILED, text, said=True)
    if "not found" in text or "no such file" in text:
        return RunError(NOT_FOUND, text, said=True)
    return RunError(NOT_EXECUTABLE, text, said=True)
