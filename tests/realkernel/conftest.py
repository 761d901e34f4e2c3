"""Tests in the guest of scripts/real-kernel, with a kernel that has the on-demand mode."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.harness import Image, make_image, mkfs
from tests.realkernel.rig import LINUX_6_1, Daemon, Served, daemon_in, device_is_free

from pagein.testing.webserver import WebServer, serve_in_thread


@pytest.fixture(scope="session")
def image_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """For images: on the guest's disk, readable to everybody, gone at the end."""
    directory = Path("/var/tmp/images")
    directory.mkdir(mode=0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def image(image_dir: Path) -> Image:
    """Some 5 MiB in 30 files of all kinds of sizes, half of it text."""
    source, tree = random.Random(1), image_dir / "tree"
    sizes = [0, 1, 4095, 4096, 4097, 70_000, 300_001] * 4 + [1 << 20, (1 << 20) + 13]
    for number, size in enumerate(sizes):
        path = tree / f"dir-{number % 3}" / str(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        data = source.randbytes(size)
        if number % 2:
            data = (data[:500].hex().encode() * (size // 1000 + 1))[:size]
        path.write_bytes(data)
    return make_image(image_dir, tree)


@pytest.fixture(scope="session")
def small(image_dir: Path) -> Image:
    """Some 100 KiB in 5 files, for tests that mount it often."""
    directory = image_dir / "small"
    (directory / "tree").mkdir(parents=True)
    source = random.Random(2)
    for size in (0, 1, 4096, 40_000, 70_001):
        (directory / "tree" / f"{size}").write_bytes(source.randbytes(size))
    return make_image(directory, directory / "tree")


@pytest.fixture(scope="session")
def packed(image: Image) -> Path:
    """The same tree, compressed."""
    return mkfs(image.tree.parent / "packed.erofs", image.tree, "-zlz4")


@pytest.fixture(scope="session")
def readable(image: Image, packed: Path) -> Path:
    """`packed`, if this kernel reads it; else the same in one file, as it is."""
    return image.single if LINUX_6_1 else packed


@pytest.fixture(scope="session")
def other_meta(image: Image) -> Path:
    """Metadata of another image with the same blob."""
    path, blob = image.tree.parent / "other.erofs", image.tree.parent / "other.blob"
    other = "-U00000000-0000-4000-8000-000000000002"
    mkfs(path, image.tree, "--chunksize=1048576", f"--blobdev={blob}", other)
    assert blob.read_bytes() == image.blob.read_bytes()
    assert path.read_bytes() != image.meta.read_bytes()
    return path


@pytest.fixture
def server() -> Iterator[WebServer]:
    """A web server without files: tests say what it serves."""
    with serve_in_thread(WebServer({})) as running:
        yield running


@pytest.fixture
def served(public_tmp: Path) -> Iterator[Daemon]:
    """A daemon on the kernel's device, with a cache of its own."""
    with daemon_in(public_tmp) as mine:
        mine.start()
        yield mine


@pytest.fixture
def place(public_tmp: Path) -> Iterator[Served]:
    """Directories for a pagein that `pagein mount` will start."""
    assert device_is_free()
    mine = Served(public_tmp)
    yield mine
    mine.close()
