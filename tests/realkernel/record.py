"""Records what a kernel's /dev/cachefiles says and answers, for the unit tests of the protocol.

Run in the guest of scripts/real-kernel, it writes a tar archive of the recordings that it is asked
for, by default those of the on-demand mode (tests/protocol/recordings/README.md):

    scripts/real-kernel python -m tests.realkernel.record | tar -x -C tests/protocol/recordings
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.harness import make_image, mkfs
from tests.protocol.recording import dump
from tests.realkernel.recorder import DEADLINE, Recorder

from pagein.protocol import commands
from pagein.protocol.messages import PAGE_SIZE, Open, Read

DISK = Path("/run/disk")


class Machine:
    """A directory of the guest's disk: files to serve, a cache, mount points."""

    def __init__(self, directory: Path, files: dict[str, Path]) -> None:
        """Bind a new cache."""
        self._directory = directory
        self.daemon = Recorder(files)
        self.daemon.bind(directory / "cache")

    def start(self, *argv: str | Path) -> subprocess.Popen[bytes]:
        """Start a command, which may lie on a mount: Popen would wait for its exec."""
        command = ["sh", "-c", 'exec "$@"', "sh", *argv]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def run(self, text: str, *argv: str | Path) -> None:
        """Serve while a command runs, which must succeed."""
        self.daemon.mark(text)
        self.finish(self.start(*argv))

    def finish(self, process: subprocess.Popen[bytes]) -> None:
        """Serve until a command ends; it must succeed."""
        self.daemon.serve(lambda: process.poll() is not None)
        assert process.wait(DEADLINE) == 0, process.args

    def mount(self, options: str) -> tuple[Path, subprocess.Popen[bytes]]:
        """Start to mount."""
        target = Path(tempfile.mkdtemp(prefix="mnt-", dir=self._directory))
        return target, self.start("mount", "-t", "erofs", "-o", options, "none", target)

    def mounted(self, options: str) -> Path:
        """Mount, serving."""
        self.daemon.mark(f"mount -o {options}")
        target, process = self.mount(options)
        self.finish(process)
        return target

    def umount(self, *targets: Path) -> None:
        """Unmount, and serve until everything is closed."""
        for target in targets:
            self.run("umount", "umount", target)
        self.daemon.mark("after the last umount")
        self.daemon.serve(lambda: self.daemon.idle)


@contextlib.contextmanager
def machine(directory: Path, files: dict[str, Path]) -> Iterator[Machine]:
    """A `Machine` whose device is let go of."""
    mine = Machine(directory, files)
    try:
        yield mine
    finally:
        mine.daemon.close()


# ---- what is recorded


def program(directory: Path) -> Recorder:
    """A program is started from a mount: exec and page faults, its libraries there too."""
    tree = directory / "tree"
    said = subprocess.run(["ldd", "/bin/sh"], capture_output=True, text=True, check=True).stdout
    libraries = re.findall(r"/\S+", said)
    for path in ("/bin/sh", *libraries):
        (tree / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tree / path[1:])
    (loader,) = (path for path in libraries if "/ld-" in path)
    (libc,) = (path for path in libraries if "/libc." in path)
    with machine(directory, {"program": mkfs(directory / "image", tree)}) as mine:
        at = mine.mounted("fsid=program")
        argv = [f"{at}{loader}", "--library-path", f"{at}{os.path.dirname(libc)}"]
        argv += [f"{at}/bin/sh", "-c", "for word in a b; do echo $word; done"]
        mine.run("start of a program", *argv)
        mine.umount(at)
        return mine.daemon


def domain(directory: Path) -> Recorder:
    """Three mounts of a domain: two share a blob, which is closed with the second of them."""
    image = make_image(directory, _tree(directory))
    other = mkfs(
        directory / "other.erofs",
        image.tree,
        "--chunksize=1048576",
        f"--blobdev={directory / 'other.blob'}",
        "-U00000000-0000-4000-8000-000000000002",
    )
    names = {"meta": image.meta, "blob": image.blob, "other": other, "single": image.single}
    with machine(directory, names) as mine:
        targets = [
            mine.mounted("fsid=meta,domain_id=domain,device=blob"),
            mine.mounted("fsid=other,domain_id=domain,device=blob"),
            mine.mounted("fsid=single,domain_id=domain"),
        ]
        for target in targets:
            mine.run("read everything", "sh", "-c", 'cat "$0"/*', target)
        mine.umount(*targets)
        return mine.daemon


def failover(directory: Path) -> Recorder:
    """Daemons die: with an OPEN, with a READ, with nothing to do; the next ones go on."""
    image = mkfs(directory / "image", _tree(directory))
    with machine(directory, {"failover": image}) as mine:
        daemon = mine.daemon
        daemon.mark("mount; the daemon dies with the OPEN")
        target, mounting = mine.mount("fsid=failover")
        assert isinstance(daemon.next(), Open)
        daemon.die()
        daemon.must(commands.restore())
        mine.finish(mounting)

        daemon.mark("the daemon dies with a READ")
        reading = mine.start("cat", target / "1")
        asked = daemon.next()
        assert isinstance(asked, Read)
        daemon.die()
        daemon.must(commands.restore())
        mine.finish(reading)

        daemon.mark("the daemon dies with nothing to do")
        daemon.die()
        mine.run("read something else", "cat", target / "2")

        daemon.mark("the daemon fetches, then says restore, and answers twice")
        reading = mine.start("cat", target / "3")
        asked = daemon.next()
        assert isinstance(asked, Read)
        daemon.fill(asked)
        daemon.must(commands.restore())
        daemon.cread(asked.object_id, asked.msg_id)
        daemon.cread(asked.object_id, asked.msg_id)
        mine.finish(reading)
        mine.umount(target)
        return daemon


def mistakes(directory: Path) -> Recorder:
    """A daemon that errs: each answer is one that ours must survive."""
    image = mkfs(directory / "image", _tree(directory))
    with machine(directory, {"mistakes": image, "refused": image}) as mine:
        daemon = mine.daemon
        daemon.mark("nothing is asked")
        daemon.read()
        for text in ("copen 0,4096", "copen 0", "copen ,", "copen", "copen x,1", "copen -1,1"):
            daemon.command(text.encode())
        for text in ("bind ondemand", "dir /run", "tag other", " restore", "", "nothing 1"):
            daemon.command(text.encode())
        for data in (b"restore\0", b"\nrestore", b"x" * PAGE_SIZE, b"copen 18446744073709551616,1"):
            daemon.command(data)
        daemon.mark("an OPEN is refused")
        _, mounting = mine.mount("fsid=refused")
        assert daemon.poll(DEADLINE)
        daemon.read(8)  # too small: the request stays
        asked = daemon.next()
        assert isinstance(asked, Open)
        daemon.cread(asked.object_id, asked.msg_id)
        daemon.must(commands.copen(asked.msg_id, -2))
        daemon.command(commands.copen(asked.msg_id, 4096))
        daemon.forget(asked.object_id)
        daemon.serve(lambda: mounting.poll() is not None)
        assert mounting.wait(DEADLINE) != 0
        target = mine.mounted("fsid=mistakes")
        mine.run("look at a file", "stat", target / "1")
        daemon.mark("a READ is answered with wrong ids, then without data")
        reading = mine.start("cat", target / "1")
        first = daemon.next()
        assert isinstance(first, Read)
        daemon.cread(first.object_id, first.msg_id + 1)
        daemon.command(commands.copen(first.msg_id, 4096))
        daemon.cread(first.object_id, first.msg_id)
        mine.finish(reading)  # it asks again, page by page
        mine.umount(target)
        return daemon


def without_ondemand(directory: Path) -> Recorder:
    """The commands of the on-demand mode on a kernel that was built without it."""
    daemon = Recorder({})
    cache = directory / "cache"
    cache.mkdir()
    try:
        daemon.mark("without a directory")
        _try_all(daemon)
        daemon.must(commands.dir_(str(cache)))
        daemon.must(commands.tag("recorded"))
        daemon.mark("not bound")
        _try_all(daemon)
        daemon.mark("bound")
        daemon.must(commands.bind(ondemand=False))
        _try_all(daemon)
        daemon.command(commands.bind(ondemand=False))
        return daemon
    finally:
        daemon.close()


def _try_all(daemon: Recorder) -> None:
    daemon.read()
    for text in (
        *("bind ondemand", "bind  ondemand", "bind ondemand ", "bind x"),
        *("copen 0,4096", "copen 0,-2", "copen", "copen x", "copen 0x0,0", "copen 0,1\nrest"),
        *("restore", "restore x", "restore\n", " restore", "Restore", "restores"),
    ):
        daemon.command(text.encode())
    daemon.read()


def _tree(directory: Path) -> Path:
    """A few files of some pages each, with names of digits."""
    tree = directory / "tree"
    tree.mkdir()
    for number in range(1, 5):
        (tree / str(number)).write_bytes(bytes([number]) * (number * 40_000))
    return tree


ONDEMAND = (program, domain, failover, mistakes)
SESSIONS = {
    session.__name__.replace("_", "-"): session for session in (*ONDEMAND, without_ondemand)
}


def main() -> None:
    """Record the sessions that are named on the command line."""
    release = os.uname().release
    series = ".".join(release.split(".")[:2])
    names = sys.argv[1:] or [name for name, session in SESSIONS.items() if session in ONDEMAND]
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as archive:
        for name in names:
            data = dump(release, record(name).entries)
            member = tarfile.TarInfo(f"linux-{series}/{name}.bin")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def record(name: str) -> Recorder:
    """Run one of the sessions in a directory of its own, which is gone if that succeeds."""
    directory = DISK / f"record-{name}"  # its name is in the recording
    directory.mkdir()
    recorder = SESSIONS[name](directory)
    shutil.rmtree(directory)
    return recorder


if __name__ == "__main__":
    main()
