"""What `cold_start` measures and measures with: registry, link, containerd, pagein.

Everything runs below one directory, on free ports of loopback, and ends with its block.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import drop_caches

from pagein.cli.halves import kernel_half, running
from pagein.cli.settings import Settings
from pagein.testing.instance import mounted_below

PATIENCE = 300.0
"""Seconds for anything: a full pull over the slowest link takes about a tenth."""
_NOT_NEEDED = ("cri", "aufs", "btrfs", "devmapper", "zfs")


@dataclass(frozen=True)
class Start:
    """One start of a container: seconds, bytes and requests until its first output."""

    seconds: float
    bytes_down: int
    requests: int
    sequence: int
    """Requests in the longest chain of which each followed the one before."""


class Link:
    """A proxy in a process of its own, commanded through its standard input."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.port: int = self._answer()["port"]

    def set(self, rtt_ms: float, mbit: float) -> None:
        """Round trip in milliseconds; megabits per second, 0: no limit."""
        self._say(f"link {rtt_ms} {mbit}")

    def reset(self) -> None:
        """Count from zero."""
        self._say("reset")

    def counters(self) -> dict[str, int]:
        """What has gone through since."""
        return self._say("counters")

    def _say(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


@contextlib.contextmanager
def link_to(port: int) -> Iterator[Link]:
    """A link to a port of loopback."""
    command = [sys.executable, "-m", "pagein.testing.proxy", "--to", f"127.0.0.1:{port}"]
    with subprocess.Popen(
        [*command, "--commands"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Link(process)
        finally:
            process.terminate()


def free_port() -> int:
    """A port of loopback that nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def registry(directory: Path) -> Iterator[int]:
    """The port of a docker-registry with its content below `directory`."""
    directory.mkdir()
    port = free_port()
    config = {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(directory / "data")}},
        "http": {"addr": f"127.0.0.1:{port}", "secret": "x"},
    }
    path = directory / "registry.json"  # JSON is YAML
    path.write_text(json.dumps(config))
    with _running(["docker-registry", "serve", str(path)], directory / "log") as process:
        _wait_for(lambda: _listens(port), process, directory / "log")
        yield port


def push(layout: Path, tag: str, name: str) -> None:
    """skopeo copy of an OCI layout to HOST:PORT/REPOSITORY:TAG; layers as they are."""
    source, target = f"oci:{layout}:{tag}", f"docker://{name}"
    copy = ["skopeo", "--insecure-policy", "copy", "--dest-tls-verify=false"]
    checked([*copy, "--preserve-digests", source, target])


def checked(command: Sequence[str | Path]) -> str:
    """Run a command to its end; its output, or RuntimeError with what it says."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return done.stdout


# ---- containerd ----------------------------------------------------------------------------------


class Containerd:
    """Debian's containerd with overlayfs and runc, in directories of its own."""

    def __init__(self, directory: Path) -> None:
        self._ctr = ["ctr", "--address", str(directory / "c.sock")]
        self._count = 0

    def pull(self, name: str) -> None:
        """Fetch and unpack HOST:PORT/REPOSITORY:TAG."""
        checked([*self._ctr, "images", "pull", "--plain-http", name])

    def first_output(self, name: str, command: Sequence[str]) -> Iterator[None]:
        """Run a container; yields at its first output, then goes on to its end."""
        self._count += 1
        run = ["run", "--rm", "--snapshotter", "overlayfs", name, f"cold{self._count}"]
        return first_output([*self._ctr, *run, *command])


@contextlib.contextmanager
def containerd(directory: Path) -> Iterator[Containerd]:
    """A containerd that has nothing yet; all it had is removed at the end."""
    directory.mkdir()
    config = directory / "config.toml"
    disabled = [f'"io.containerd.snapshotter.v1.{name}"' for name in _NOT_NEEDED[1:]]
    config.write_text(
        f'version = 2\nroot = "{directory}/root"\nstate = "{directory}/state"\n'
        f'disabled_plugins = ["io.containerd.grpc.v1.{_NOT_NEEDED[0]}", {", ".join(disabled)}]\n'
        f'[grpc]\naddress = "{directory}/c.sock"\n[ttrpc]\naddress = "{directory}/t.sock"\n'
        f'[plugins."io.containerd.internal.v1.opt"]\npath = "{directory}/opt"\n'
    )
    log = directory / "log"
    with _running(["containerd", "--config", str(config)], log) as process:
        ctr = ["ctr", "--address", str(directory / "c.sock"), "version"]
        _wait_for(lambda: not subprocess.run(ctr, capture_output=True).returncode, process, log)
        yield Containerd(directory)
    _remove(directory)


# ---- pagein --------------------------------------------------------------------------------------


class Pagein:
    """pagein with a runtime directory and a cache of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        program = str(Path(sys.executable).with_name("pagein"))
        self._settings = Settings(str(directory / "state"), str(directory / "cache"))
        places = ["--state-dir", str(directory / "state"), "--cache", str(directory / "cache")]
        self._command = [program, *places]

    def first_output(self, name: str, command: Sequence[str]) -> Iterator[None]:
        """Run a container; yields at its first output, then goes on to its end."""
        return first_output([*self._command, "run", f"docker://{name}", "--", *command])

    def everything(self, name: str) -> Iterator[None]:
        """Mount with `--background idle`; yields when all of the image is here."""
        target = self._directory / "all"
        target.mkdir()
        checked([*self._command, "mount", "--background", "idle", f"docker://{name}", target])
        try:
            deadline = time.monotonic() + PATIENCE
            while not self._all_resident():
                if time.monotonic() > deadline:
                    raise RuntimeError("not all of it comes")
                time.sleep(0.05)
            yield
        finally:
            checked([*self._command, "umount", target])

    def _all_resident(self) -> bool:
        found = kernel_half(self._settings, {"op": "status"}, timeout=PATIENCE)
        return all(blob["resident"] == blob["size"] for blob in found["blobs"])

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Something else is mounted, so pagein's processes run."""
        image, target = self._directory / "other.erofs", self._directory / "other"
        target.mkdir()
        checked(["mkfs.erofs", "--quiet", image, target])
        checked([*self._command, "mount", image, target])
        try:
            yield
        finally:
            checked([*self._command, "umount", target])

    def index(self, name: str, trace: Path | None = None) -> None:
        """Index an image, and push that to its registry, with a trace if there is one."""
        more = ["--trace", str(trace)] if trace is not None else []
        checked([*self._command, "index", "--push", *more, f"docker://{name}"])

    def record(self, name: str, command: Sequence[str]) -> Path:
        """The trace of a container that runs a command."""
        trace = self._directory / "trace.jsonl"
        what = ["--output", str(trace), "--run", f"docker://{name}", "--", *command]
        checked([*self._command, "trace", "record", *what])
        return trace

    def ended(self) -> None:
        """Wait until no process of it is left."""
        deadline = time.monotonic() + PATIENCE
        while running(self._settings):
            if time.monotonic() > deadline:
                raise RuntimeError(f"pagein does not end: see {self._directory}/state/log")
            time.sleep(0.02)

    def close(self) -> None:
        """Wait until it has ended, and remove all it had."""
        self.ended()
        _remove(self._directory)


@contextlib.contextmanager
def pagein(directory: Path) -> Iterator[Pagein]:
    """A pagein that has nothing yet; all it had is removed at the end."""
    directory.mkdir()
    directory.chmod(0o755)  # the user half passes through it
    mine = Pagein(directory)
    try:
        yield mine
    finally:
        mine.close()


# ---- processes -----------------------------------------------------------------------------------


def timed(link: Link, *steps: Iterator[None]) -> Start:
    """Do steps, the last one until its first yield: from an empty page cache to that moment."""
    drop_caches()
    link.reset()
    begun = time.monotonic()
    for step in steps[:-1]:
        for _ in step:
            pass
    next(steps[-1])
    seconds = time.monotonic() - begun
    counted = link.counters()
    for _ in steps[-1]:
        pass
    return Start(seconds, counted["bytes_down"], counted["requests"], counted["sequence"])


def first_output(command: Sequence[str]) -> Iterator[None]:
    """Run a command that says something; RuntimeError if it does not, or fails."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            ready, _, _ = select.select([process.stdout], [], [], PATIENCE)
            said = os.read(process.stdout.fileno(), 1 << 16) if ready else b""
            if said:
                yield
            _, problem = process.communicate(timeout=PATIENCE)
        except BaseException:
            process.terminate()
            raise
    if process.returncode or not said:
        text = problem.decode(errors="replace").strip()
        raise RuntimeError(f"{' '.join(command)}: ended with {process.returncode}: {text}")


@contextlib.contextmanager
def _running(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE)


def _wait_for(ready: Any, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{process.args!r}: {log.read_text()}")
        time.sleep(0.02)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        return True
    return False


def _remove(directory: Path) -> None:
    if mounted := mounted_below(directory):
        raise RuntimeError(f"still mounted: {mounted}")
    shutil.rmtree(directory)
