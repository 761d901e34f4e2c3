"""Processes of a test that end with it, also when it fails before it would have waited for them."""

import contextlib
import subprocess
from collections.abc import Iterator
from typing import Any

_GOING = 100.0
"""Seconds that a killed process may take."""


@contextlib.contextmanager
def killed(*processes: subprocess.Popen[Any]) -> Iterator[None]:
    """At the end of the block kill those that still run, and close what they were read through."""
    try:
        yield
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait(_GOING)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
