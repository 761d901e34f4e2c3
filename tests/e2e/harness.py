"""One pagein with directories of its own, driven by its command line as a user drives it."""

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pagein.cachefiles.presence import data_ranges
from pagein.testing.webserver import WebServer

T = TypeVar("T")

COMMAND = (sys.executable, "-P", "-m", "pagein.cli.main")
MODULES = {"pagein.keeper", "pagein.kernelhalf", "pagein.kernelhalf.linux", "pagein.daemon"}
DEADLINE = 120.0
"""Seconds after which a command of a test is hanging."""
_PATIENCE = 60.0


@dataclass(frozen=True)
class Image:
    """A tree, and the same as metadata and blob, as one file, and compressed."""

    tree: Path
    meta: Path
    blob: Path
    single: Path

    @property
    def files(self) -> list[Path]:
        """Its files, relative."""
        found = (path for path in self.tree.rglob("*") if path.is_file())
        return sorted(path.relative_to(self.tree) for path in found)


def mkfs(image: Path, tree: Path, *options: str) -> Path:
    """Make an EROFS image; always the same bytes for the same tree."""
    uuid = "-U00000000-0000-4000-8000-000000000001"
    command = ["mkfs.erofs", "-T0", uuid, "--quiet", *options, str(image), str(tree)]
    subprocess.run(command, check=True, timeout=DEADLINE, capture_output=True)
    return image


def make_image(directory: Path, tree: Path) -> Image:
    """All forms of an image of `tree`."""
    blob = directory / "blob.erofs"
    split = ("--chunksize=1048576", f"--blobdev={blob}")
    meta = mkfs(directory / "meta.erofs", tree, *split)
    return Image(tree, meta, blob, mkfs(directory / "single.erofs", tree))


def wait_for(what: Callable[[], Any], *, patience: float = _PATIENCE) -> Any:
    """Poll until `what` returns something true, and return that."""
    give_up = time.monotonic() + patience
    while not (found := what()):
        assert time.monotonic() < give_up, f"{what} did not come about"
        time.sleep(0.02)
    return found


def once_it_works(read: Callable[[], T], *, patience: float = _PATIENCE) -> T:
    """What `read` returns as soon as it does: for half a second the daemon remembers a failure."""
    give_up = time.monotonic() + patience
    while True:
        try:
            return read()
        except (OSError, subprocess.CalledProcessError):
            if time.monotonic() > give_up:
                raise
        time.sleep(0.05)


class Pagein:
    """A runtime directory, a cache and mount points, below one directory."""

    def __init__(self, directory: Path, *, cache: Path | None = None) -> None:
        self.directory = directory
        self.state = directory / "run"
        self.cache = cache or directory / "cache"
        self.target = self.dir("mnt")

    def dir(self, name: str) -> Path:
        """A mount point."""
        path = self.directory / name
        path.mkdir(exist_ok=True)
        return path

    # ---- commands ----------------------------------------------------------------------------

    def argv(self, *arguments: object) -> list[str]:
        """The command line of `pagein ARGUMENTS` for these directories."""
        places = ["--state-dir", str(self.state), "--cache", str(self.cache)]
        return [*COMMAND, *places, *map(str, arguments)]

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, whatever that is."""
        argv = self.argv(*arguments)
        return subprocess.run(argv, capture_output=True, text=True, timeout=DEADLINE, check=False)

    def ok(self, *arguments: object) -> str:
        """Run a command that must work without a word on standard error; its output."""
        done = self.run(*arguments)
        assert (done.returncode, done.stderr) == (0, ""), (arguments, done, self.log())
        return done.stdout

    def mount(
        self, *sources: str, target: Path | None = None, options: tuple[str, ...] = ()
    ) -> None:
        """Mount metadata (or all) and devices."""
        primary, *devices = sources
        arguments = [word for device in devices for word in ("--device", device)]
        self.ok("mount", *options, primary, *arguments, target or self.target)

    def umount(self, target: Path | None = None) -> None:
        """Unmount."""
        self.ok("umount", target or self.target)

    def status(self) -> dict[str, Any]:
        """What `pagein status --json` says."""
        found: dict[str, Any] = json.loads(self.ok("status", "--json"))
        return found

    def replaced(self, half: str, pid: int) -> bool:
        """Whether a half ("pid", "daemon_pid") runs in another process now, and answers."""
        done = self.run("status", "--json")  # which fails if it takes that half long to start
        return done.returncode == 0 and json.loads(done.stdout).get(half) not in (None, pid)

    def log(self) -> str:
        """The log of the three processes."""
        with contextlib.suppress(FileNotFoundError):
            return (self.state / "log").read_text()
        return ""

    # ---- what is there -----------------------------------------------------------------------

    def processes(self) -> dict[int, str]:
        """Living processes of this pagein, but not commands: pid -> command line."""
        found = {}
        for proc in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (proc / "cmdline").read_bytes().decode(errors="replace").split("\0")
                ours = any(str(self.directory) in word for word in words)
                if ours and not MODULES.isdisjoint(words):
                    found[int(proc.name)] = " ".join(words)
        return found

    def leftovers(self) -> list[str]:
        """Mounts, loop devices, processes, sockets and locks of this pagein."""
        found = [f"process {pid}: {line}" for pid, line in self.processes().items()]
        found += [f"mount {at}" for at in self.mounts()]
        for path in Path("/sys/block").glob("loop*/loop/backing_file"):
            with contextlib.suppress(OSError):
                if path.read_text().startswith(f"{self.directory}/run"):
                    found.append(f"loop device {path}")
        found += [f"socket {path}" for path in self.state.glob("*.sock")]
        if self.locked:
            found.append("lock")
        return found

    @property
    def locked(self) -> bool:
        """Whether a keeper holds the runtime directory."""
        try:
            fd = os.open(self.state / "lock", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def cache_files(self) -> list[Path]:
        """The cache files of all blobs."""
        return sorted(path for path in (self.cache / "cache").rglob("*") if path.is_file())

    def assert_cached_right(self, *sources: Path) -> int:
        """Every byte that the cache calls present is that of one of `sources`; how many are.

        Each file of the cache is of one source, one of those that have its size.
        """
        total = 0
        padded = [data + bytes(-len(data) % 4096) for data in map(Path.read_bytes, sources)]
        sizes = [path.stat().st_size for path in sources]
        for path in self.cache_files():
            size = int.from_bytes(os.getxattr(path, "user.CacheFiles.cache")[:8], "big")
            held = []
            with path.open("rb") as file:
                for start, end in data_ranges(file.fileno(), 0, path.stat().st_size):
                    held.append((start, end, os.pread(file.fileno(), end - start, start)))
            assert any(
                all(data[start:end] == found for start, end, found in held)
                for data, of in zip(padded, sizes, strict=True)
                if of == size
            ), f"{path}: wrong bytes"
            total += sum(end - start for start, end, _ in held)
        return total

    # ---- the end -----------------------------------------------------------------------------

    def mounts(self) -> list[str]:
        """Mount points below the directory, but for the cache, in the order of mounting."""
        below, ignored = f"{self.directory}/", str(self.cache)
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        targets = (line.split()[4] for line in lines)
        return [at for at in targets if at.startswith(below) and at != ignored]

    def close(self) -> None:
        """Undo everything, also after a failed test, then insist that nothing is left."""
        own = f"{self.state}/"
        for at in reversed(self.mounts()):
            if not at.startswith(own):
                self.run("umount", "--lazy", at)
        give_up = time.monotonic() + _PATIENCE
        while (left := self.leftovers()) and time.monotonic() < give_up:
            time.sleep(0.02)
        if left:
            log = self.log()
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
            wait_for(lambda: not self.processes())
            for at in reversed(self.mounts()):
                subprocess.run(["umount", "--lazy", at], capture_output=True, check=False)
            # With what went wrong before it, if anything did.
            raise AssertionError(f"left behind: {left}\n{log}")


@contextlib.contextmanager
def pagein_in(directory: Path, **options: Any) -> Iterator[Pagein]:
    """A `Pagein` that is ended."""
    pagein = Pagein(directory, **options)
    try:
        yield pagein
    finally:
        pagein.close()


# ---- readers ------------------------------------------------------------------------------------


def sums(tree: Path) -> dict[str, str]:
    """sha256 of every file below `tree`, by sha256sum in a process of its own."""
    command = "find . -type f -print0 | sort -z | xargs -0 -r sha256sum --"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=tree,
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE,
    )
    lines = (line.split("  ", 1) for line in done.stdout.splitlines())
    return {name: digest for digest, name in lines}


def listing(tree: Path) -> str:
    """`ls -lR` of `tree`, in a process of its own."""
    done = subprocess.run(
        ["ls", "-lR"], cwd=tree, capture_output=True, text=True, check=True, timeout=DEADLINE
    )
    return done.stdout


def forget(*paths: Path, written: bool = False) -> None:
    """Let the kernel drop the pages of files from memory, so that the next read is a read.

    `written`: also those that are not on disk yet. (Not by /proc/sys/vm/drop_caches: that takes
    from other tests too, and as sync(2) it waits for every mount that anybody is just making.)
    """
    for path in paths:
        with path.open("rb") as file:
            if written:
                os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_errno(path: Path, offset: int = 0, length: int = 4096) -> int:
    """The errno of reading a piece of a file, or 0 if that worked."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.pread(fd, length, offset)
    except OSError as problem:
        return problem.errno or -1
    finally:
        os.close(fd)
    return 0


def serve(server: WebServer, **files: Path) -> list[str]:
    """Serve files under their names; their URLs."""
    server.files = {f"/{name}": path for name, path in files.items()}
    return [server.url(f"/{name}") for name in files]


def ranges_of(server: WebServer, path: str) -> list[tuple[int, int]]:
    """What was asked of one file of a server, in bytes, without the look that `resolve` takes."""
    return [
        (start, end) for name, start, end in server.requests if name == path and end - start > 1
    ]
