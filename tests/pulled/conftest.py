"""A registry with an image in it, a pagein that mounts from there, and a link that counts."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.e2e.harness import COMMAND, DEADLINE, Pagein, pagein_in
from tests.images.processes import PASSWORD, USER, docker_registry, htpasswd, skopeo_copy
from tests.pulled.rootfs import rootfs_layers, write_image

CONFIG: dict[str, Any] = {
    "Cmd": ["/bin/sh", "-c", "echo hello; exit 3"],
    "Env": ["PATH=/bin"],
    "User": "app",
}


class Layers(NamedTuple):
    """The image: a layout, and its layers as tar+gzip with their diff_ids."""

    layout: Path
    layers: list[tuple[bytes, str]]

    @property
    def name(self) -> str:
        return f"oci:{self.layout}:v1"


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Layers:
    layers = rootfs_layers()
    directory = tmp_path_factory.mktemp("image")
    return Layers(write_image(directory / "layout", layers, **CONFIG), layers)


@dataclass
class Rig:
    """A registry of one test's own, which wants credentials, and docker's configuration of them."""

    directory: Path
    host: str
    stack: contextlib.ExitStack

    @property
    def name(self) -> str:
        return f"docker://{self.host}/app:v1"

    def stop(self) -> None:
        """End the registry; its port answers no more."""
        self.stack.close()

    def blob(self, digest: str) -> Path:
        """The file that the registry has of a blob."""
        kind, _, digits = digest.partition(":")
        blobs = self.directory / "data/docker/registry/v2/blobs"
        return blobs / kind / digits[:2] / digits / "data"


@pytest.fixture
def rig(image: Layers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    with contextlib.ExitStack() as stack:
        host = stack.enter_context(docker_registry(tmp_path, htpasswd(tmp_path)))
        skopeo_copy(image.name, f"docker://{host}/app:v1")
        log_in(tmp_path / "docker", host, monkeypatch)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
        yield Rig(tmp_path, host, stack)


def log_in(directory: Path, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `docker login` leaves, for `host` alone."""
    directory.mkdir(exist_ok=True)
    entry = {"username": USER, "password": PASSWORD}
    (directory / "config.json").write_text(json.dumps({"auths": {host: entry}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(directory))


@pytest.fixture
def pagein(public_tmp: Path) -> Iterator[Pagein]:
    with pagein_in(public_tmp) as running:
        yield running


def user(*words: object) -> subprocess.CompletedProcess[str]:
    """A command without directories of its own: those of the user."""
    argv = [*COMMAND, *map(str, words)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=DEADLINE, check=False)


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
