"""Readers in processes of their own, for reads that hang."""

import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.e2e.harness import DEADLINE, Pagein, wait_for


class Reader:
    """`sha256sum FILE`; killed at the end."""

    def __init__(self, path: Path) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            ["sha256sum", str(path)], stdout=pipe, stderr=pipe, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.communicate(timeout=DEADLINE)

    def wait_blocked(self, pagein: Pagein) -> dict[str, Any]:
        """Wait until pagein says that this process is waiting; what it says."""

        def waiting() -> dict[str, Any] | None:
            oldest: dict[str, Any] | None = pagein.status()["oldest_read"]
            return oldest if oldest and oldest["pid"] == self.process.pid else None

        found: dict[str, Any] = wait_for(waiting)
        return found

    def digest(self) -> str:
        """The sum of what it read; it must have worked."""
        out, err = self.process.communicate(timeout=DEADLINE)
        assert self.process.returncode == 0, err
        return out.split()[0]
