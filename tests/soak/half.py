"""What a user half holds, and how long reads wait: looked at from outside while it works."""

import contextlib
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.e2e.harness import Pagein

from pagein.control import ControlError, ask

_LOOK = 0.2  # seconds


@dataclass(frozen=True)
class Held:
    """By the user half, with nobody reading."""

    pid: int
    tasks: int
    files: int
    """Open fds that are no sockets."""
    sockets: int
    memory: int
    """Resident bytes of its own: without what it shares."""

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in asdict(self).items())


def held(pagein: Pagein) -> Held:
    """What it holds now."""
    status = ask(str(pagein.state / "daemon.sock"), {"op": "status"}, timeout=10.0)
    pid = status["pid"]
    kinds = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            kinds.append(os.readlink(f"/proc/{pid}/fd/{fd}").startswith("socket:"))
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    own = sum(int(each) for each in re.findall(r"^Private_\w+: +(\d+) kB$", rollup, re.MULTILINE))
    return Held(pid, status["tasks"], kinds.count(False), kinds.count(True), own << 10)


class Watch:
    """Looks for the oldest waiting read all the time."""

    def __init__(self, pagein: Pagein) -> None:
        self.oldest = 0.0
        """Seconds that a read waited, at most, as far as was seen."""
        self.looks = 0
        self._path = str(pagein.state / "control.sock")
        self._over = threading.Event()

    @contextlib.contextmanager
    def running(self) -> Iterator["Watch"]:
        """Look until the end of the block."""
        thread = threading.Thread(target=self._look)
        thread.start()
        try:
            yield self
        finally:
            self._over.set()
            thread.join()

    def _look(self) -> None:
        while not self._over.wait(_LOOK):
            with contextlib.suppress(ControlError):
                found: dict[str, Any] = ask(self._path, {"op": "status"}, timeout=10.0)
                self.looks += 1
                if (oldest := found["oldest_read"]) is not None:
                    self.oldest = max(self.oldest, oldest["age"])
