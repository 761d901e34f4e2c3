"""Images made once, a web server and a pagein for each test."""

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.harness import Image, Pagein, make_image, pagein_in

from pagein.testing.webserver import WebServer, serve_in_thread

KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture(scope="session")
def image_dir() -> Iterator[Path]:
    """For images: on a disk, readable to everybody, gone at the end."""
    run = os.environ["PAGEIN_TEST_RUN"]
    directory = Path("/var/tmp") / f"pagein-test-{run}-images"
    directory.mkdir()
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def _fill(tree: Path, sizes: dict[str, int], seed: int) -> None:
    source = random.Random(seed)
    for name, size in sizes.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = source.randbytes(size)
        if name.endswith(".txt"):
            # Compresses well, also in pieces of 4 KiB.
            data = (data[:500].hex().encode() * (size // 1000 + 1))[:size]
        path.write_bytes(data)


@pytest.fixture(scope="session")
def small(image_dir: Path) -> Image:
    """Some 17 MiB: four files of 4 MiB and a few dozen of all kinds of small sizes."""
    directory = image_dir / "small"
    sizes = {f"large/{name}": 4 * MIB + 13 for name in ("0", "1", "2.txt", "3.txt")}
    sizes |= {f"dir-{n % 4}/{n}": (0, 1, 4095, 4096, 4097, 70_000)[n % 6] for n in range(48)}
    _fill(directory / "tree", sizes, 1)
    return make_image(directory, directory / "tree")


@pytest.fixture(scope="session")
def large(image_dir: Path) -> Image:
    """A tree of more than 5,000 files and 300 MB."""
    directory = image_dir / "large"
    source = random.Random(2)
    sizes = {f"lib/{n % 83}/{n % 7}/{n}.py": source.randrange(24 * KIB) for n in range(5100)}
    sizes |= {f"data/{n}": 10 * MIB + n * 511 for n in range(24)}
    assert len(sizes) >= 5000
    assert sum(sizes.values()) >= 300_000_000
    _fill(directory / "tree", sizes, 3)
    return make_image(directory, directory / "tree")


@pytest.fixture
def server() -> Iterator[WebServer]:
    """A web server without files: tests say what it serves."""
    with serve_in_thread(WebServer({})) as running:
        yield running


@pytest.fixture
def pagein(public_tmp: Path) -> Iterator[Pagein]:
    """A pagein of its own, ended at the end."""
    with pagein_in(public_tmp) as mine:
        yield mine
