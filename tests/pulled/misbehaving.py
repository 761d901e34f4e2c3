"""What tests of registries that misbehave share: an image, twice in a real registry."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest
from tests.e2e.harness import Pagein
from tests.images.processes import docker_registry, htpasswd, skopeo_copy
from tests.layers.rig import Indexed
from tests.pulled.front import Front
from tests.pulled.rig import Layers, good, log_in, user
from tests.pulled.rootfs import BUSYBOX, Adder, add_directory, make_layer, write_image

FILES = 24
SIZE = 2_200_000
"""Bytes of a file: more than lies between two checkpoints of an index, so that each file has to be
fetched by itself."""
PAGE, MIDDLE = 4096, 1 << 20
ORDER = sorted(range(FILES), key=lambda number: f"{number:05b}"[::-1])
"""Numbers of files in an order in which no three are at equal distances: who reads them so reads no
stream, and nothing is fetched ahead."""


def content(number: int) -> bytes:
    """What is in /data/NUMBER: nothing that compresses."""
    return random.Random(number).randbytes(SIZE)


def _programs(add: Adder) -> None:
    for name in ("./", "bin", "data", "etc"):
        add_directory(add, name)
    add("bin/busybox", Path(BUSYBOX).read_bytes(), mode=0o755)


def _data(add: Adder) -> None:
    for name in ("./", "data"):
        add_directory(add, name)
    for number in range(FILES):
        add(f"data/{number}", content(number))


@dataclass(frozen=True)
class Pushed:
    """A docker-registry with Basic auth, in which the image is twice: app:v1, and with its indexes
    as indexed:v1."""

    host: str
    directory: Path
    image: Layers
    blobs: tuple[Path, ...]
    """What the cache is to hold: metadata and data of each layer."""

    def check(self, pagein: Pagein) -> int:
        """No wrong byte is in the cache, nor in what is kept of images; how many are in it."""
        check_store(pagein.cache / "images")
        return pagein.assert_cached_right(*self.blobs)


def check_store(store: Path) -> None:
    """Everything that is kept of images has the digest that it is named by."""
    for kind in ("documents", "indexes", "layers"):
        for path in (store / kind).glob("*"):
            assert path.name == f"sha256-{sha256(path.read_bytes()).hexdigest()}", path


@contextmanager
def pushing(top: Path) -> Iterator[Pushed]:
    """A registry with its files below `top`."""
    layers = [make_layer(fill) for fill in (_programs, _data)]
    image = Layers(write_image(top / "layout", layers, Env=["PATH=/bin"]), layers)
    blobs = []
    for number, (packed, _) in enumerate(layers):
        for part, data in zip(("meta", "data"), Indexed(packed, top / "index").read(), strict=True):
            blobs.append(top / f"{number}.{part}")
            blobs[-1].write_bytes(data)
    with docker_registry(top, htpasswd(top)) as host, pytest.MonkeyPatch.context() as environment:
        log_in(top / "docker", host, environment)
        environment.setenv("XDG_CACHE_HOME", str(top / "user-cache"))
        for name in ("app", "indexed"):
            skopeo_copy(image.name, f"docker://{host}/{name}:v1")
        good(user("index", "--push", f"docker://{host}/indexed:v1"))
        yield Pushed(host, top, image, tuple(blobs))


class Mounted:
    """The image with its indexes, mounted once; each test takes files that nobody has read."""

    def __init__(self, front: Front, pagein: Pagein) -> None:
        self.front = front
        self.pagein = pagein
        self._next = 0
        self._logged = 0

    def next_file(self) -> tuple[Path, int]:
        """A file and its number; what is asked and logged counts from now on."""
        self.front.asked.clear()
        self._logged = len(self.pagein.log())
        number, self._next = ORDER[self._next], self._next + 1
        return file_in(self.pagein, number), number

    def log(self) -> str:
        """What was logged since the last `next_file`; never a traceback."""
        said = self.pagein.log()[self._logged :]
        assert "Traceback" not in said, said
        return said


def plain(front: Front) -> str:
    """The image without indexes."""
    return f"docker://{front.host}/app:v1"


def indexed(front: Front) -> str:
    """The image with its indexes."""
    return f"docker://{front.host}/indexed:v1"


def mount(pagein: Pagein, name: str, *, timeout: float = 30) -> None:
    """Mount it where this pagein mounts."""
    good(pagein.run("mount", "--timeout", timeout, name, pagein.target))


def file_in(pagein: Pagein, number: int) -> Path:
    """/data/NUMBER, mounted."""
    return pagein.target / "data" / str(number)


def right(number: int) -> bytes:
    """What `piece` is to return."""
    return content(number)[MIDDLE : MIDDLE + PAGE]


def piece(path: Path) -> bytes:
    """A page from the middle of a file, nothing while it cannot be read."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(fd, PAGE, MIDDLE)
    except OSError:
        return b""
    finally:
        os.close(fd)
