"""kill -9 of each half at random moments, under readers that compare every byte.

The short form is in the suite; the long one, `scripts/test --long tests/kills`, kills the user half
500 times and the kernel half 100 times on each file system's share.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.kills.places import Image, cache_on, make_image, wrong_pages

from pagein.testing.webserver import WebServer, serve_in_thread

HERE = Path(__file__).parent
PAGEIN = [sys.executable, "-m", "pagein.cli.main"]
RATE = 30_000_000
"""Bytes per second: slow enough that a blob is not complete before its daemon is killed."""
FILE_SYSTEMS = ["disk", "xfs", "tmpfs"]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    directory = Path(f"/var/tmp/pagein-test-{os.environ['PAGEIN_TEST_RUN']}-kills")
    directory.mkdir(mode=0o755)
    try:
        yield make_image(directory, 96)
    finally:
        subprocess.run(["rm", "-rf", directory], check=True)


class Round:
    """One mount of the image on an empty cache, and what kills it."""

    def __init__(self, directory: Path, cache: Path, image: Image) -> None:
        self.state = directory / "run"
        self.mnt = directory / "mnt"
        self.mnt.mkdir(exist_ok=True)
        self.cache = cache
        self.image = image

    def pagein(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        options = ["--state-dir", self.state, "--cache", self.cache]
        command: list[str | Path] = [*PAGEIN, *options, *words]
        return subprocess.run(command, text=True, capture_output=True, timeout=120, check=False)

    def child(self, module: str) -> int | None:
        """The pid of a half, None while there is none."""
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                ours = any(w.startswith(bytes(self.state)) for w in words)
                if ours and any(w == module.encode() or w.endswith(module.encode()) for w in words):
                    return int(entry.name)
        return None

    def kill(self, module: str, times: int, draw: random.Random) -> int:
        """Kill a half `times` times at random moments; returns how often it was there to kill."""
        killed = 0
        for _ in range(times):
            time.sleep(draw.choice((0.0, 0.02, 0.1, 0.3)) * draw.random() + 0.25 * draw.random())
            pid = self.child(module)
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
        return killed

    @contextlib.contextmanager
    def readers(self, count: int, seed: int) -> Iterator[list[dict[str, int]]]:
        """Processes that read and compare; their counts are in the list afterwards."""
        counts: list[dict[str, int]] = []
        reader: list[str | Path] = [sys.executable, HERE / "reader.py"]
        reader += [self.mnt / self.image.name, self.image.source]
        processes = [
            subprocess.Popen([*reader, str(seed + i)], text=True, stdout=subprocess.PIPE)
            for i in range(count)
        ]
        try:
            yield counts
        finally:
            for process in processes:
                process.send_signal(signal.SIGTERM)
            outputs = [p.communicate(timeout=150)[0] for p in processes]
        for process, output in zip(processes, outputs, strict=True):
            assert process.returncode == 0, output
            counts.append(json.loads(output))

    def gone(self) -> None:
        """After umount nothing is left."""
        log = (self.state / "log").read_text()
        umounted = self.pagein("umount", self.mnt)
        assert umounted.returncode == 0, umounted.stderr + log
        assert str(self.state) not in Path("/proc/self/mountinfo").read_text()
        assert self.child("pagein.keeper") is None, log
        assert not list(self.state.glob("*.sock")), log


def kill_round(directory: Path, image: Image, kind: str, module: str, times: int) -> None:
    directory.mkdir()
    directory.chmod(0o755)
    files = {"/meta": image.meta, "/blob": image.blob}
    with cache_on(kind, directory) as cache, serve_in_thread(WebServer(files, rate=RATE)) as web:
        round_ = Round(directory, cache, image)
        mount = ["--timeout", "20", web.url("/meta"), "--device", web.url("/blob")]
        kill_under_readers(round_, mount, module, times)
        assert not wrong_pages(cache, [image.meta, image.blob])


def kill_under_readers(round_: Round, mount: list[str], module: str, times: int) -> None:
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    mounted = round_.pagein("mount", *mount, round_.mnt)
    assert mounted.returncode == 0, mounted.stderr
    try:
        with round_.readers(3, seed) as counts:
            killed = round_.kill(module, times, random.Random(seed))
            time.sleep(1.0)
    finally:
        log = (round_.state / "log").read_text()
        round_.gone()
    assert killed >= times * 0.6, f"killed {killed} of {times}\n{log}"
    assert all(c["right"] for c in counts), f"{counts}\n{log}"
    # Between two lives a read waits: nothing here is past a deadline, so nothing is EIO.
    assert not any(c["eio"] for c in counts), f"{counts}\n{log}"


def mapped_round(directory: Path, image: Image, kind: str, times: int) -> None:
    """The same with a daemon that writes from mapped files that are not in memory."""
    directory.mkdir()
    directory.chmod(0o755)
    with cache_on(kind, directory) as cache:
        round_ = Round(directory, cache, image)
        round_.state.mkdir()
        keeper: list[str | Path] = [sys.executable, HERE / "mmapkeeper.py"]
        keeper += ["--state-dir", round_.state, "--cache", cache, "--linger", "20"]
        read, write = os.pipe()
        with (round_.state / "log").open("wb") as log:
            process = subprocess.Popen(
                [*keeper, "--ready-fd", str(write)],
                pass_fds=[write],
                stdout=log,
                stderr=log,
            )
        os.close(write)
        try:
            with os.fdopen(read) as ready:
                assert ready.readline() == "ok\n", (round_.state / "log").read_text()
            paths = [str(path).strip("/") for path in (image.meta, image.blob)]
            keys = [f"key:mapped/{path.replace('/', '|')}" for path in paths]
            kill_under_readers(round_, [keys[0], "--device", keys[1]], "mmapdaemon.py", times)
            assert process.wait(30) == 0
        finally:
            process.terminate()
            process.wait(30)
        assert not wrong_pages(cache, [image.meta, image.blob])


@pytest.mark.root
@pytest.mark.parametrize("kind", FILE_SYSTEMS)
def test_user_half_killed(public_tmp: Path, image: Image, kind: str) -> None:
    kill_round(public_tmp / "round", image, kind, "pagein.daemon", 10)


@pytest.mark.root
@pytest.mark.parametrize("kind", FILE_SYSTEMS)
def test_kernel_half_killed(public_tmp: Path, image: Image, kind: str) -> None:
    kill_round(public_tmp / "round", image, kind, "pagein.kernelhalf", 4)


@pytest.mark.root
@pytest.mark.parametrize("kind", ["disk", "tmpfs"])
def test_mapped_writer_killed(public_tmp: Path, image: Image, kind: str) -> None:
    mapped_round(public_tmp / "round", image, kind, 6)


@pytest.mark.root
@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", FILE_SYSTEMS)
def test_mapped_writer_killed_often(public_tmp: Path, image: Image, kind: str) -> None:
    for number in range(8):
        mapped_round(public_tmp / f"round{number}", image, kind, 10)


@pytest.mark.root
@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", FILE_SYSTEMS)
def test_user_half_killed_500_times(public_tmp: Path, image: Image, kind: str) -> None:
    for number in range(12):
        kill_round(public_tmp / f"round{number}", image, kind, "pagein.daemon", 14)


@pytest.mark.root
@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", FILE_SYSTEMS)
def test_kernel_half_killed_100_times(public_tmp: Path, image: Image, kind: str) -> None:
    for number in range(5):
        kill_round(public_tmp / f"round{number}", image, kind, "pagein.kernelhalf", 7)
