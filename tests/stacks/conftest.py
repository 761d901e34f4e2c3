"""Layers made by mkfs.erofs, and a pagein to stack them."""

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.e2e.harness import Pagein, mkfs, pagein_in

from pagein.cli.halves import kept_running
from pagein.cli.settings import Settings
from pagein.cli.sources import blob_of
from pagein.cli.stacks import Layer, Writable, mount_stack

TIMEOUT = 60.0


@dataclass
class Stacker:
    """Makes layers below a directory, and stacks of them by one pagein."""

    pagein: Pagein
    directory: Path

    @property
    def settings(self) -> Settings:
        return Settings(str(self.pagein.state), str(self.pagein.cache))

    def layer(self, name: str, fill: Callable[[Path], None]) -> Path:
        """An image of what `fill` puts into a directory."""
        tree = self.directory / f"{name}.tree"
        tree.mkdir()
        tree.chmod(0o755)
        fill(tree)
        return mkfs(self.directory / f"{name}.erofs", tree)

    def files(self, name: str, **contents: str) -> Path:
        """An image of some files."""

        def fill(tree: Path) -> None:
            for file, text in contents.items():
                (tree / file).write_text(text)

        return self.layer(name, fill)

    def mount(
        self,
        *layers: str | Path,
        target: Path | None = None,
        names: list[str] | None = None,
        rw: Path | None = None,
        suid: bool = False,
        timeout: float = TIMEOUT,
    ) -> Path:
        """Mount sources as a stack, lowest first; the layers are called after their files."""
        where = target or self.pagein.target
        names = names or [str(layer).rpartition("/")[2] for layer in layers]
        with kept_running(self.settings, timeout, "nobody", "fuse") as ask:
            found = {
                source: blob_of(self.settings, str(source), timeout=TIMEOUT)
                for source in dict.fromkeys(layers)
            }
            mount_stack(
                ask,
                str(where),
                [Layer(n, [found[s]]) for n, s in zip(names, layers, strict=True)],
                label="the stack",
                writable=Writable(str(rw)) if rw else None,
                suid=suid,
                timeout=TIMEOUT,
            )
        return where

    def layer_mounts(self) -> list[str]:
        """Where layers are mounted."""
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        below = f"{self.pagein.state}/layers/"
        return [line.split()[4] for line in lines if line.split()[4].startswith(below)]


def _reap() -> None:
    """Keepers that `Stacker.mount` started are children of this process."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


@pytest.fixture
def stacker(public_tmp: Path) -> Iterator[Stacker]:
    images = public_tmp / "images"
    images.mkdir()
    images.chmod(0o755)
    with contextlib.ExitStack() as stack:
        stack.callback(_reap)
        pagein = stack.enter_context(pagein_in(public_tmp))
        yield Stacker(pagein, images)


def options_of(target: Path) -> tuple[set[str], set[str]]:
    """The options of a mount, and of its file system."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[4] == str(target):
            return set(fields[5].split(",")), set(fields[-1].split(","))
    raise AssertionError(f"{target} is not mounted")


def whiteout(path: Path) -> None:
    """What deletes the same name of lower layers."""
    os.mknod(path, 0o020000, os.makedev(0, 0))


def tree_of(target: Path) -> list[str]:
    """`NAME:LINE` of every file, by find(1) in a process of its own."""
    found = subprocess.run(
        ["find", ".", "-type", "f", "-exec", "grep", "-H", "", "{}", ";"],
        cwd=target,
        capture_output=True,
        text=True,
        check=True,
    )
    return sorted(found.stdout.replace("./", "", 1).replace("\n./", "\n").splitlines())
