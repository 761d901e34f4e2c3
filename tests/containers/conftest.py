"""A root directory made of busybox, as a stack of two layers, and a pagein to run it."""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.harness import DEADLINE, Pagein, mkfs, pagein_in

BUSYBOX = "/bin/busybox"
PROGRAMS = "cat chmod cp dd env false hostname id ip kill ls mount ps pwd sh sleep stty true tty wc"


@pytest.fixture(scope="session")
def layers() -> Iterator[list[dict[str, Any]]]:
    """Two layers: programs, and users with some files."""
    directory = Path(f"/var/tmp/pagein-test-{os.environ['PAGEIN_TEST_RUN']}-rootfs")
    low, high = directory / "low", directory / "high"
    for path in (low / "bin", low / "etc", low / "tmp", high / "etc", high / "srv"):
        path.mkdir(parents=True)
    for path in (directory, low, high):
        path.chmod(0o755)
    (low / "tmp").chmod(0o1777)
    shutil.copy(BUSYBOX, low / "bin/busybox")
    for name in PROGRAMS.split():
        (low / "bin" / name).symlink_to("busybox")
    shutil.copy(BUSYBOX, high / "srv/suid")
    (high / "srv/suid").rename(high / "srv/busybox")
    (high / "srv/busybox").chmod(0o4755)  # busybox runs as its own set-uid program if told so
    (high / "srv/id").symlink_to("busybox")
    (high / "etc/passwd").write_text(
        "root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n"
    )
    (high / "etc/group").write_text("root:x:0:\napp:x:1001:\nextra:x:2000:app\n")
    (high / "srv/text").write_text("text\n")
    (high / "srv/wrong-format").write_bytes(b"\x7fELF, but not really")
    (high / "srv/wrong-format").chmod(0o755)
    images = [mkfs(directory / f"{name}.erofs", directory / name) for name in ("low", "high")]
    yield [{"name": image.stem, "blobs": [str(image)]} for image in images]
    shutil.rmtree(directory)


class Runner:
    """Runs containers of one pagein."""

    def __init__(self, pagein: Pagein, layers: list[dict[str, Any]]) -> None:
        self.pagein = pagein
        self.layers = layers
        self._started: list[subprocess.Popen[Any]] = []

    def image(self, **config: Any) -> str:
        """An image of the layers, with a config."""
        path = self.pagein.directory / f"image-{os.urandom(3).hex()}.json"
        path.write_text(json.dumps({"layers": self.layers, "config": config}))
        return f"stack:{path}"

    def __call__(
        self, *words: object, options: tuple[object, ...] = (), **config: Any
    ) -> subprocess.CompletedProcess[str]:
        """`pagein run OPTIONS IMAGE -- WORDS`; nothing may be left of it."""
        done = self.pagein.run("run", *options, self.image(**config), "--", *words)
        assert not self.leftovers(), (done, self.pagein.log())
        return done

    def start(
        self, *words: object, options: tuple[object, ...] = (), **config: Any
    ) -> "subprocess.Popen[str]":
        """The same, in the background, its streams pipes."""
        argv = self.pagein.argv("run", *options, self.image(**config), "--", *words)
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def close(self) -> None:
        """End what a failed test left running: its guard, then the next command, cleans up."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
                process.wait(DEADLINE)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        if self.leftovers():
            self.pagein.run("status")

    def leftovers(self) -> list[str]:
        """What is left of containers: mounts, directories, runc's state, cgroups."""
        places = [self.pagein.state / "containers", self.pagein.cache / "containers"]
        places.append(self.pagein.state / "runc")
        found = [str(path) for place in places if place.exists() for path in place.iterdir()]
        below = f"{self.pagein.state}/containers"
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return found + [line for line in lines if line.split()[4].startswith(below)]


@pytest.fixture
def runner(public_tmp: Path, layers: list[dict[str, Any]]) -> Iterator[Runner]:
    with pagein_in(public_tmp) as pagein, contextlib.closing(Runner(pagein, layers)) as runner:
        yield runner
