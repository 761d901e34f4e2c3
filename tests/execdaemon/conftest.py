"""A C daemon, compiled once, what it serves, and `pagein exec-daemon` to run it under."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.harness import Image, make_image
from tests.execdaemon.rig import ExecDaemon, compiled


@pytest.fixture(scope="session")
def c_daemon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """daemon.c as a static program."""
    return compiled(tmp_path_factory.mktemp("execdaemon"))


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """A tree of some 4 MiB, and its images."""
    directory = tmp_path_factory.mktemp("image")
    tree = directory / "tree"
    tree.mkdir()
    for size in (0, 1, 4096, 70_001, 3_000_000):
        (tree / f"{size}").write_bytes(b"".join(b"%08d" % at for at in range(0, size, 8))[:size])
    return make_image(directory, tree)


@pytest.fixture(scope="session")
def files(image: Image) -> Iterator[Path]:
    """Where the daemon finds its blobs: `meta` with `blob`, and `single`."""
    directory = image.tree.parent / "files"
    directory.mkdir()
    for name in ("meta", "blob", "single"):
        shutil.copyfile(getattr(image, name), directory / name)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[ExecDaemon]:
    """`pagein exec-daemon` with a runtime directory of its own; nothing of it is left."""
    with ExecDaemon(tmp_path) as mine:
        yield mine


@pytest.fixture(scope="session")
def sums(image: Image) -> dict[str, str]:
    """What a mount of the image must read like."""
    done = subprocess.run(
        ["sh", "-c", "sha256sum *"], cwd=image.tree, capture_output=True, text=True, check=True
    )
    lines = (line.split("  ") for line in done.stdout.splitlines())
    return {name: digest for digest, name in lines}
