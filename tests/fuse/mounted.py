"""A mounted `tinyfs`: the test is its keeper, which holds ``/dev/fuse`` and serves nothing."""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pagein.fuse.handshake import InitInfo, handshake
from pagein.mounts import syscalls

TINYFS = Path(__file__).with_name("tinyfs.py")
SOURCE = Path(syscalls.__file__).parents[2]
DEADLINE = 60.0
"""Seconds within which anything that a test waits for must have happened."""


class Process:
    """A Python process that tells events as JSON lines and takes orders."""

    def __init__(self, arguments: list[str], *, pass_fds: tuple[int, ...] = ()) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=pass_fds,
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
        )
        self.pid = self._process.pid
        self.seen: list[dict[str, Any]] = []
        self._pending: list[dict[str, Any]] = []
        self._queue: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._pump = threading.Thread(target=self._read)
        self._pump.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._queue.put(json.loads(line))
        self._queue.put({"event": "end"})

    def wait_for(self, event: str, **values: Any) -> dict[str, Any]:
        """Take the next event of that kind with these values; others stay for later calls."""
        wanted = {"event": event, **values}
        for found in self._pending:
            if wanted.items() <= found.items():
                self._pending.remove(found)
                return found
        while True:
            found = self._queue.get(timeout=DEADLINE)
            self.seen.append(found)
            if wanted.items() <= found.items():
                return found
            self._pending.append(found)
            if found["event"] == "end":
                raise AssertionError(f"no {wanted} in {self.seen}")

    def send(self, order: str) -> None:
        """Send an order; what it leads to comes as events."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{order}\n")
        self._process.stdin.flush()

    def order(self, order: str) -> None:
        """Send an order and wait until it is carried out."""
        self.send(order)
        self.wait_for("done", order=order)

    def count(self, event: str) -> int:
        return sum(found["event"] == event for found in self.seen)

    def kill(self) -> None:
        self._process.kill()
        self.end()

    def end(self) -> int:
        """Close its stdin and wait for it; returns its status."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            status = self._process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait(DEADLINE)
        self._pump.join(DEADLINE)
        self._process.stdout.close()
        return status


class MountedFs:
    """The mount, its fd and its servers."""

    def __init__(self, directory: Path, fd: int, init: InitInfo, blob: Path) -> None:
        self.directory = directory
        self.fd = fd
        self.init = init
        self.blob = blob
        self.servers: list[Process] = []

    def serve(self, **job: Any) -> Process:
        """Start a server on the connection and wait until it is ready."""
        words = json.dumps({"fd": self.fd, "blob": str(self.blob), **job})
        server = Process([str(TINYFS), words], pass_fds=(self.fd,))
        self.servers.append(server)
        server.wait_for("ready")
        return server


@contextlib.contextmanager
def mounted_fs(tmp_path: Path, blob: Path) -> Iterator[MountedFs]:
    """Mount a FUSE file system below ``tmp_path`` whose file ``blob`` has the bytes of ``blob``."""
    directory = tmp_path / "fuse"
    directory.mkdir()
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        syscalls.mount_fuse(fd, str(directory))
        fs = MountedFs(directory, fd, handshake(fd, timeout=DEADLINE), blob)
        try:
            yield fs
        finally:
            for server in fs.servers:
                server.kill()
    finally:
        os.close(fd)  # the last holder: readers that are still there get an error
        if syscalls.mount_at(str(directory)) is not None:
            syscalls.umount(str(directory))
