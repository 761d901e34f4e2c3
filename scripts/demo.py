"""The program of scripts/demo, which says what it does; started by it, with all it needs there."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shutil
import signal
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

from demo_library import through_the_library
from demo_server import Server
from demo_show import DemoError, Show
from demo_tree import MB, Tree, copy_tree, hash_file

from pagein.testing.instance import CommandFailed, Instance, mounted_below

_RATE = 25 * MB  # bytes per second: 200 Mbit/s
_READERS = 8
_CAP_SYS_ADMIN = 21


def why_no_mount() -> str | None:
    """What is missing to mount, or None."""
    if os.geteuid():
        return "this is not root"
    status = Path("/proc/self/status").read_text()
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff"))
    if not int(effective, 16) >> _CAP_SYS_ADMIN & 1:
        return "root may not mount here"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as problem:
        return f"/dev/fuse: {(problem.strerror or 'unusable').lower()}"
    with contextlib.suppress(FileNotFoundError):
        subprocess.run(["modprobe", "-q", "erofs"], check=False)
    if "\terofs\n" not in Path("/proc/filesystems").read_text():
        return "this kernel has no EROFS"
    return None


# ---- the image -----------------------------------------------------------------------------------


def make_image(show: Show, tmp: Path, limit: int) -> tuple[Tree, list[Path]]:
    """The tree, and its image: metadata and data in files of their own."""
    free = shutil.disk_usage(tmp).free
    if free < 4 * limit:  # the copy, the image, the cache, and air
        limit = max(free // 4, 1)
    with show.step("copying files of this machine", line=False) as step:
        tree = copy_tree(tmp / "tree", limit, lambda size: step.at(size, limit))
    (tmp / "www").mkdir()
    meta, blob = tmp / "www/tree.meta", tmp / "www/tree.blob"
    command = ["mkfs.erofs", "--quiet", "--chunksize=1048576", f"--blobdev={blob}"]
    command += [str(meta), str(tree.root)]
    with show.step("making the image (mkfs.erofs)", line=False):
        made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        raise DemoError(f"mkfs.erofs: {made.stderr.strip()}")
    return tree, [meta, blob]


# ---- with a mount --------------------------------------------------------------------------------


def on_a_mount(show: Show, tree: Tree, server: Server, tmp: Path, stack: ExitStack) -> None:
    """The demo for root."""
    pagein = stack.enter_context(Instance(tmp))
    image = [server.url + "tree.meta", server.url + "tree.blob"]
    some, everything = a_few(tree), list(tree.checksums)
    top = tmp / "mnt"
    top.mkdir()

    with show.step("mounted"):
        pagein.mount(image, top)
    with show.step("ls -lR") as step:
        step.name = list_all(top)
    compare(show, f"read {len(some)} files, checksums equal", top, tree, some)
    with show.step("running a program") as step:
        step.name = run_program(tree, top)
    compare(show, f"read all, {len(everything):,} checksums equal", top, tree, everything)
    with show.step("unmounted, server stopped"):
        pagein.umount(top)
        server.stop()
    show.fetched = None
    with show.step("mounted again, from the cache"):
        pagein.mount(image, top)
    compare(show, f"read all, {len(everything):,} checksums equal", top, tree, everything)
    with show.step("unmounting", line=False):
        pagein.umount(top)


def list_all(top: Path) -> str:
    """List everything; what was listed, in words."""
    listed = subprocess.run(["ls", "-lR", top], capture_output=True, check=True).stdout
    entries = sum(line[:1] in b"-ld" and len(line) > 40 for line in listed.splitlines() if line)
    return f"ls -lR, {entries:,} names"


def a_few(tree: Tree) -> list[Path]:
    """Three files that somebody might look at."""
    library = tree.python.library.relative_to("/")
    notices = [path for path in tree.checksums if path.name == "copyright"]
    wanted = [library / "os.py", library / "json/decoder.py", *notices[len(notices) // 2 :][:1]]
    return [path for path in wanted if path in tree.checksums]


def compare(show: Show, name: str, top: Path, tree: Tree, paths: list[Path]) -> None:
    """Read `paths` below `top` to the end; DemoError unless each is as its original was."""

    def differs(path: Path) -> bool:
        return hash_file(top / path) != tree.checksums[path]

    with show.step(name) as step, ThreadPoolExecutor(_READERS) as pool:
        try:
            for done, (path, bad) in enumerate(zip(paths, pool.map(differs, paths), strict=True)):
                if bad:
                    raise DemoError(f"/{path} is not what it was")
                step.at(done + 1, len(paths))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def run_program(tree: Tree, top: Path) -> str:
    """Run the tree's Python with the tree's library, from below `top`; what ran, in words."""
    code = (
        "import sys, json, email, asyncio, xml.dom; assert json.__file__.startswith(sys.argv[1]);"
        "print(sys.version.split()[0], len(sys.modules))"
    )
    program = top / tree.python.program.relative_to("/")
    home = top / tree.python.prefix.relative_to("/")
    ran = subprocess.run(
        [program, "-S", "-B", "-c", code, top],
        env={**os.environ, "PYTHONHOME": str(home)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if ran.returncode:
        raise DemoError(f"{program}: {ran.stderr.strip()}")
    version, modules = ran.stdout.split()
    return f"ran its Python {version}, {modules} modules"


# ---- all of it -----------------------------------------------------------------------------------


def demo(show: Show, limit: int, stack: ExitStack) -> None:
    """Everything; what must be undone is left to `stack`."""
    reason = why_no_mount()
    # Below /var/tmp: a disk. Readable, because what fetches is not root.
    tmp = Path(tempfile.mkdtemp(prefix="pagein-demo-", dir="/var/tmp"))
    tmp.chmod(0o755)
    stack.callback(remove, tmp)
    tree, image = make_image(show, tmp, limit)
    size = sum(file.stat().st_size for file in image)
    server = stack.enter_context(Server(tmp / "www", _RATE))
    show.fetched = lambda: (server.sent(), size)

    parts = ", ".join(map(str, tree.parts))
    show.say(f"  [dim]image [/]  {len(tree.checksums):,} files, {size / MB:.0f} MB, of {parts}")
    show.say(f"  [dim]server[/]  {server.url} at 200 Mbit/s: {size / _RATE:.0f} s for all of it")
    if reason is not None:
        show.say(f"  [yellow]no mount: {reason}; reading through the library instead[/]")
    show.say()
    show.heading()
    if reason is None:
        on_a_mount(show, tree, server, tmp, stack)
    else:
        through_the_library(show, image, server, tmp)
    show.say()
    show.say("  [bold]Every byte was right, and the second time nobody had to send it.[/]")


def remove(directory: Path) -> None:
    """Remove `directory`, but nothing through a mount that is still there."""
    if mounted_below(directory):
        raise DemoError(f"still mounted, and not removed: {directory}")
    shutil.rmtree(directory, ignore_errors=True)


def _interrupted(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def main() -> int:
    """Run the demo; its exit status."""
    parser = argparse.ArgumentParser(prog="scripts/demo")
    parser.add_argument("--size", type=int, default=200, metavar="MB", help="of the files")
    parser.add_argument("--record", type=Path, metavar="FILE.svg", help="save a picture of it")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupted)

    logging.getLogger("pagein").setLevel(logging.ERROR)  # that the server is gone is no news here
    show = Show()
    try:
        with ExitStack() as stack:
            # What is undone last: from then on nothing may cut the undoing short.
            try:
                demo(show, options.size * MB, stack)
            finally:
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                    signal.signal(number, signal.SIG_IGN)
    except KeyboardInterrupt:
        show.say("  stopped, and cleaned up")
        return 130
    except (CommandFailed, DemoError, OSError, subprocess.SubprocessError) as problem:
        show.say(f"  [red]error:[/] {problem}")
        return 1
    if options.record:
        show.save(options.record, "scripts/demo")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
