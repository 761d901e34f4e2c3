"""A bad day: registry and web server reset, stall, truncate, corrupt, and answer 429 and 503.

Image after image is mounted and read by several readers at once. Every byte must be right, no read
may wait beyond its deadline, and the user half, one and the same for all of it, must hold no more
at the end than at the beginning.

    scripts/test --long tests/soak -s         # 15 minutes; PAGEIN_SOAK=SECONDS for another time
"""

import errno
import os
import random
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.e2e.harness import Pagein, mkfs
from tests.images.processes import docker_registry, skopeo_copy
from tests.pulled.front import Front
from tests.pulled.rig import good, user
from tests.pulled.rootfs import Adder, add_directory, make_layer, write_image
from tests.soak.half import Held, Watch, held
from tests.soak.storm import Storm

from pagein.testing.webserver import WebServer, serve_in_thread

pytestmark = pytest.mark.root

TIMEOUT = 4.0
"""Seconds: the deadline of a read."""
LATE = 8.0
"""Seconds that a busy machine may be late with an answer, or this test with a look."""
READERS = 4
SIZES = (1_000_000, 700_000, 300_000, 64 << 10, 40_000, 4096, 5000, 123, 1)
TRIES = 500
BASE = "base"


def files_of(number: int) -> dict[str, bytes]:
    """The content of one round: half of it can be compressed."""
    drawn = random.Random(number)
    return {
        f"{at}": drawn.randbytes(size) if at % 2 else drawn.randbytes(size // 8 + 1) * 8
        for at, size in enumerate(SIZES)
    }


@dataclass
class Seen:
    """What was seen, for the end of the test and whoever reads its output."""

    rounds: int = 0
    bytes: int = 0
    errors: int = 0
    """Reads that failed, and were right the next time or a later one."""
    mounts_again: int = 0
    held: list[Held] = field(default_factory=list)


class Soak:
    """A registry and a web server in a storm, and one pagein."""

    def __init__(self, top: Path, host: str, front: Front, server: WebServer) -> None:
        self.top = top
        self.host = host
        self.front = front
        self.server = server
        self.pagein = Pagein(top)
        self.seen = Seen()
        self.files: dict[str, bytes | Path] = {}
        server.files = self.files

    def provide(self, number: int) -> list[str]:
        """An image, every other one with its indexes, and a file system; honestly."""
        files = files_of(number)
        place = self.top / f"round-{number}"
        tree = place / "tree"
        tree.mkdir(parents=True)
        for name, data in files.items():
            (tree / name).write_bytes(data)

        def fill(add: Adder) -> None:
            add_directory(add, "./")
            for name, data in files.items():
                add(name, data)

        layout = write_image(place / "layout", [make_layer(fill)])
        name = f"r{number}:v1"
        skopeo_copy(f"oci:{layout}:v1", f"docker://{self.host}/{name}")
        if number % 2:
            good(
                user("--cache", place / "cache", "index", "--push", f"docker://{self.host}/{name}")
            )
        data = mkfs(place / "image", tree, "-C4096").read_bytes()
        self.files[f"/{number}"] = data
        shutil.rmtree(place)
        return [f"docker://{self.front.host}/{name}", self.server.url(f"/{number}")]

    def mount(self, source: str, target: Path) -> None:
        """As often as it takes: a command may fail, with a line that says why."""
        words = ("mount", "--timeout", TIMEOUT, source, target)
        while (done := self.pagein.run(*words)).returncode:
            assert "Traceback" not in done.stderr, done
            assert "pagein: " in done.stderr, done
            self.seen.mounts_again += 1
            assert self.seen.mounts_again < TRIES, done

    def round(self, number: int) -> None:
        """Provide, mount, read all of it by several at once, and unmount."""
        sources = self.provide(number)
        targets = [self.pagein.dir(f"mnt-{kind}") for kind in ("image", "plain")]
        for source, target in zip(sources, targets, strict=True):
            self.mount(source, target)
        with ThreadPoolExecutor(2 * READERS) as readers:
            jobs = [
                readers.submit(self._read_all, target, number, seed)
                for target in targets
                for seed in range(READERS)
            ]
            for job in jobs:
                job.result()
        for target in targets:
            self.pagein.umount(target)
        del self.files[f"/{number}"]
        self.seen.rounds += 1

    def _read_all(self, target: Path, number: int, seed: int) -> None:
        drawn = random.Random(seed)
        files = list(files_of(number).items())
        drawn.shuffle(files)
        for name, data in files:
            piece = drawn.choice((4096, 64 << 10, 1 << 20))
            assert self._read(target / name, len(data), piece) == data, f"{target / name}: wrong"
            self.seen.bytes += len(data)

    def _read(self, path: Path, size: int, piece: int) -> bytes:
        found = bytearray()
        for _ in range(TRIES):
            try:
                # Opening reads too: metadata of a single file comes as its data does.
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    while len(found) < size:
                        found += os.pread(fd, piece, len(found))
                finally:
                    os.close(fd)
                return bytes(found)
            except OSError as problem:
                assert problem.errno == errno.EIO, problem
                self.seen.errors += 1
                time.sleep(0.1)  # the failure is remembered for longer
        raise AssertionError(f"{path} cannot be read")

    def settled(self) -> None:
        """Until the user half, the same as ever, holds no more than after the first round."""
        found = held(self.pagein)
        first = self.seen.held[0] if self.seen.held else found
        give_up = time.monotonic() + 30
        while found.tasks > first.tasks or found.files > first.files:
            assert time.monotonic() < give_up, f"{found}; after the first round {first}"
            time.sleep(0.1)
            found = held(self.pagein)
        assert found.pid == first.pid, "the user half was replaced"
        self.seen.held.append(found)


@contextmanager
def soak_in(top: Path, storms: tuple[Storm, Storm]) -> Iterator[Soak]:
    with ExitStack() as stack:
        host = stack.enter_context(docker_registry(top))
        front = stack.enter_context(Front(host).running())
        server = stack.enter_context(serve_in_thread(WebServer({})))
        soak = Soak(top, host, front, server)
        stack.enter_context(_closing(soak))
        # One mount stands all the time, so that there is one user half all the time.
        soak.files[f"/{BASE}"] = mkfs(top / "small.erofs", _small_tree(top)).read_bytes()
        soak.mount(server.url(f"/{BASE}"), soak.pagein.dir(BASE))
        front.lie, server.faults = storms[0].lie, storms[1].fault
        yield soak


@contextmanager
def _closing(soak: Soak) -> Iterator[None]:
    try:
        yield
    finally:
        soak.front.lie, soak.server.faults = None, None
        soak.pagein.close()


def _small_tree(top: Path) -> Path:
    tree = top / "small"
    tree.mkdir()
    (tree / "file").write_text("small\n")
    return tree


def run_for(seconds: float, top: Path) -> None:
    """Round after round; at least three, of which the first is to warm up."""
    storms = Storm(1, 0.35), Storm(2, 0.35)
    with soak_in(top, storms) as soak, Watch(soak.pagein).running() as watch:
        end = time.monotonic() + seconds
        while soak.seen.rounds < 3 or time.monotonic() < end:
            soak.round(soak.seen.rounds)
            soak.settled()
            assert watch.oldest <= TIMEOUT + LATE
        _report(soak, storms, watch)
        assert not _growing([each.memory for each in soak.seen.held])
        assert "Traceback" not in soak.pagein.log()
        kinds = {kind for storm in storms for kind in storm.seen}
        assert {"reset", "corrupt", "status", "none"} <= kinds, kinds


def _growing(memory: list[int]) -> bool:
    """Whether the last third needs more than the one in the middle; few rounds do not tell."""
    third = len(memory) // 3
    if third < 5:
        return False
    middle, last = sorted(memory[third : 2 * third]), sorted(memory[-third:])
    return last[third // 2] > 1.05 * middle[third // 2] + (4 << 20)


def _report(soak: Soak, storms: tuple[Storm, Storm], watch: Watch) -> None:
    seen = soak.seen
    print(f"\n{seen.rounds} rounds, {seen.bytes >> 20} MiB read and right, {seen.errors} reads")
    print(f"failed and were right later, {seen.mounts_again} mounts were made again")
    for name, storm in zip(("registry", "web server"), storms, strict=True):
        print(f"{name}: " + ", ".join(f"{kind} {n}" for kind, n in sorted(storm.seen.items())))
    print(f"the oldest read of {watch.looks} looks: {watch.oldest:.1f} s; deadline {TIMEOUT} s")
    steps = max(1, len(seen.held) // 6)
    for number in range(0, len(seen.held), steps):
        print(f"after round {number + 1}: {seen.held[number]}")
    print(f"after the last: {seen.held[-1]}")


@pytest.fixture
def place() -> Iterator[Path]:
    """On a disk, and readable for the user half."""
    top = Path(f"/var/tmp/pagein-test-{os.environ['PAGEIN_TEST_RUN']}-soak")
    top.mkdir()
    top.chmod(0o755)
    yield top
    shutil.rmtree(top)


def test_a_bad_minute(place: Path) -> None:
    """As few rounds as tell anything: some 20 s on a quiet machine."""
    run_for(0.0, place)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_a_bad_day(place: Path) -> None:
    run_for(float(os.environ.get("PAGEIN_SOAK", "900")), place)
