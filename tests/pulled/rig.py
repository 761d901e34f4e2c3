"""What tests of images from registries share: commands, credentials, a link that counts."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.e2e.harness import COMMAND, DEADLINE
from tests.images.processes import PASSWORD, USER


class Layers(NamedTuple):
    """The image: a layout, and its layers as tar+gzip with their diff_ids."""

    layout: Path
    layers: list[tuple[bytes, str]]

    @property
    def name(self) -> str:
        return f"oci:{self.layout}:v1"


def log_in(directory: Path, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `docker login` leaves, for `host` alone."""
    directory.mkdir(exist_ok=True)
    entry = {"username": USER, "password": PASSWORD}
    (directory / "config.json").write_text(json.dumps({"auths": {host: entry}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(directory))


def user(*words: object, text: bool = True) -> subprocess.CompletedProcess[Any]:
    """A command without directories of its own: those of the user. `text`: what it prints is."""
    argv = [*COMMAND, *map(str, words)]
    return subprocess.run(argv, capture_output=True, text=text, timeout=DEADLINE, check=False)


def good(done: subprocess.CompletedProcess[str]) -> str:
    """The output of a command that worked."""
    assert done.returncode == 0, done
    return done.stdout


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a command that failed."""
    assert done.returncode == 1, done
    lines = done.stderr.splitlines()
    assert lines, done
    assert "Traceback" not in done.stderr, done
    assert lines[-1].startswith("pagein: "), done
    return lines[-1]


class Link:
    """A proxy before a registry, in a process of its own."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        assert process.stdout is not None
        self.port = json.loads(process.stdout.readline())["port"]

    def ask(self, command: str) -> dict[str, Any]:
        """`counters`, `reset` or `link RTT_MS MBIT`; the counters."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        return found


@contextlib.contextmanager
def link_to(host: str) -> Iterator[Link]:
    """A link of 20 ms to a registry."""
    argv = [sys.executable, "-m", "pagein.testing.proxy", "--to", host, "--rtt-ms", "20"]
    process = subprocess.Popen(
        [*argv, "--commands"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield Link(process)
    finally:
        process.communicate(timeout=DEADLINE)
