"""EROFS over the kernel's own fscache: `python -m tests.scenarios.netfs_linux DIRECTORY`.

Each order is done by a process of its own, since it may wait as long as a daemon likes, and be
killed. Mount points are in DIRECTORY.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.scenarios.files import DEADLINE
from tests.scenarios.reading import summary
from tests.scenarios.transcript import errno_name

from pagein.mounts import syscalls

ROOT = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()


def mount(order: dict[str, Any]) -> str:
    """mount(2)."""
    target = ROOT / order["name"]
    target.mkdir(exist_ok=True)
    options = [f"fsid={order['fsid']}"]
    if order["domain"] is not None:
        options.append(f"domain_id={order['domain']}")
    options += [f"device={device}" for device in order["devices"]]
    syscalls.mount("none", str(target), "erofs", syscalls.MS_RDONLY, ",".join(options))
    return "ok"


def mount_9p(order: dict[str, Any]) -> str:
    """mount(2) of a server of our own, a process that ends with the mount."""
    target = ROOT / order["name"]
    target.mkdir(exist_ok=True)
    here, there = socket.socketpair()
    with here, there:
        numbers = (str(there.fileno()), str(_log()), str(order["version"]), str(order["size"]))
        server = [sys.executable, "-P", "-m", "tests.scenarios.ninep", *numbers]
        subprocess.Popen(server, pass_fds=[there.fileno()], start_new_session=True)
        fd = here.fileno()
        options = f"trans=fd,rfdno={fd},wfdno={fd},version=9p2000.L,cache=fscache,cachetag=tag"
        # Not read-only: what was read is written to the cache as if it were dirty.
        syscalls.mount("server", str(target), "9p", 0, options)
    return "ok"


def _log() -> Path:
    return ROOT.with_name("9p.log")


def served(_: dict[str, Any]) -> str:
    """What the servers were asked for since the last time."""
    lines = _log().read_text().split() if _log().exists() else []
    _log().write_text("")
    return ", ".join(lines) or "nothing"


def umount(order: dict[str, Any]) -> str:
    """umount(2)."""
    syscalls.umount(str(ROOT / order["name"]))
    return "ok"


def read(order: dict[str, Any]) -> str:
    """pread(2) of a file without readahead, which then asks for just these pages."""
    fd = os.open(ROOT / order["name"] / order["file"], os.O_RDONLY | os.O_CLOEXEC)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    return summary(os.pread(fd, order["length"], order["offset"]))


def drop_caches(_: dict[str, Any]) -> str:
    """What can be, of all caches of the kernel."""
    Path("/proc/sys/vm/drop_caches").write_text("3")
    return "ok"


def inject(order: dict[str, Any]) -> str:
    """Have the backing file system fail, or work again, as the cache sees it."""
    Path("/proc/sys/cachefiles/error_injection").write_text("2" if order["errors"] else "0")
    return "ok"


def reset(_: dict[str, Any]) -> str:
    """Unmount everything."""
    for target in ROOT.iterdir():
        if syscalls.mount_at(str(target)) is not None:
            syscalls.umount(str(target))
    return "ok"


OPS: dict[str, Callable[[dict[str, Any]], str]] = {
    "mount": mount,
    "umount": umount,
    "mount-9p": mount_9p,
    "served": served,
    "read": read,
    "drop-caches": drop_caches,
    "inject": inject,
    "reset": reset,
}


def tell(number: int, said: str) -> None:
    """Answer an order: one write, so that answers of several processes do not mix."""
    os.write(1, json.dumps({"id": number, "said": said}).encode() + b"\n")


def in_child(order: dict[str, Any]) -> None:
    """Do an order and tell what came of it."""
    try:
        said = OPS[order["op"]](order)
    except OSError as problem:
        said = errno_name(problem.errno)
    tell(order["id"], said)


def fall_asleep(pid: int) -> None:
    """Wait until a process waits for something, and goes on doing so."""
    give_up = time.monotonic() + DEADLINE
    seen = 0
    while seen < 10 and time.monotonic() < give_up:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "Z":
            return
        seen = seen + 1 if state == "D" else 0
        time.sleep(0.01)


class Children:
    """The processes at work."""

    def __init__(self) -> None:
        self._orders: dict[int, int] = {}

    def start(self, order: dict[str, Any]) -> None:
        """Do an order in a new process."""
        pid = os.fork()
        if not pid:
            status = 1
            try:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                signal.signal(signal.SIGUSR1, lambda *_: None)
                in_child(order)
                status = 0
            finally:
                os._exit(status)
        self._orders[pid] = order["id"]

    def signal(self, order: dict[str, Any]) -> None:
        """Send a signal to the process of another order."""
        for pid, number in self._orders.items():
            if number == order["to"]:
                os.kill(pid, order["signal"])

    def asleep(self, order: dict[str, Any]) -> None:
        """Wait until the process of another order waits for long, or has ended."""
        for pid, number in self._orders.items():
            if number == order["to"]:
                fall_asleep(pid)

    def reap(self) -> None:
        """Tell of those that were killed."""
        while self._orders:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            number = self._orders.pop(pid)
            if status:
                tell(number, "killed" if os.WIFSIGNALED(status) else "failed")


def main() -> None:
    """Take orders until there are no more."""
    wake, woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(woken)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    children = Children()
    tell(0, "ready")
    rest = b""
    while True:
        ready, _, _ = select.select([0, wake], [], [])
        if wake in ready:
            os.read(wake, 4096)
            children.reap()
        if 0 not in ready:
            continue
        got = os.read(0, 65536)
        if not got:
            return
        *lines, rest = (rest + got).split(b"\n")
        for line in lines:
            order = json.loads(line)
            if order["op"] in ("signal", "asleep"):
                getattr(children, order["op"])(order)
                tell(order["id"], "ok")
            else:
                children.start(order)


if __name__ == "__main__":
    main()
