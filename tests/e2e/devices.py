"""`pagein device` and daemons of one's own on it."""

import contextlib
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.harness import Pagein

SCRIPT = Path(__file__).with_name("owndaemon.py")
_PATIENCE = 60.0


@contextlib.contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """End a process by SIGTERM, which must be enough."""
    with process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(timeout=_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


class OwnDaemon:
    """A running `owndaemon.py`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.seen: list[str] = []
        """What it has said so far, as far as anybody has waited for it."""
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.strip())

    def expect(self, wanted: str) -> None:
        """Wait until it says this line."""
        while True:
            try:
                line = self._lines.get(timeout=_PATIENCE)
            except queue.Empty:
                raise AssertionError(f"not said: {wanted}; but {self.seen}") from None
            self.seen.append(line)
            if line == wanted:
                return

    def write(self, cookie: str, offset: int) -> int:
        """Have it write a page through an anonymous fd; the errno of that."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"write {cookie} {offset}\n")
        self._process.stdin.flush()
        while not (self.seen and self.seen[-1].startswith("wrote ")):
            self.seen.append(self._lines.get(timeout=_PATIENCE))
        return int(self.seen.pop().split()[1])

    def count(self, line: str) -> int:
        """How often it has said a line, now."""
        with contextlib.suppress(queue.Empty):
            while True:
                self.seen.append(self._lines.get_nowait())
        return self.seen.count(line)

    def join(self) -> None:
        """Wait for the end of what it says."""
        self._thread.join(timeout=_PATIENCE)


@contextlib.contextmanager
def device_of(pagein: Pagein, *options: str) -> Iterator[str]:
    """`pagein device` in the foreground; yields the path it prints."""
    argv = pagein.argv("device", *options)
    started = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    with ended(started) as process:
        assert process.stdout is not None
        path = process.stdout.readline().strip()
        assert path == str(pagein.state / "dev/cachefiles")
        yield path


@contextlib.contextmanager
def daemon_on(pagein: Pagein, path: str, **files: str | Path) -> Iterator[OwnDaemon]:
    """A daemon of our own that serves files as `key:VOLUME/NAME`."""
    words = [f"{name}={file}" for name, file in files.items()]
    argv = [sys.executable, str(SCRIPT), path, str(pagein.cache), *words]
    pipe = subprocess.PIPE
    with contextlib.ExitStack() as stack:
        process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True)
        daemon = OwnDaemon(process)
        stack.callback(daemon.join)
        with ended(process):
            yield daemon
