"""Boots a User-Mode Linux kernel, runs one command in it, and leaves nothing behind.

The guest's root directory is the host's, through hostfs and read-only. The whole kernel is one
unprivileged process: where we are root it runs as nobody, in a mount namespace of its own in which
the directories that it needs are in reach (a checkout below /root is not, for nobody).
"""

from __future__ import annotations

import os
import selectors
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]

TIMED_OUT = 124
"""Exit status after the time-out, as of timeout(1)."""
NO_STATUS = 125
"""Exit status when the guest ended without one: it crashed."""

_NOBODY = 65534
_MEMORY_BYTES = 768 << 20
_DISK_BYTES = 1 << 30  # sparse
_PASSED_ON = ("CI", "LANG", "LC_ALL", "TZ", "TERM")
_LOG_LINES = 40

# Run by root in a new mount namespace: HOLD COVER... -- PATH... -- COMMAND...
# Each COVER becomes an empty directory that everybody may enter, each PATH is put back below it.
# First of all the mounts that tests make are let go of, stacks of layers too: what is unmounted
# outside has to end.
_ENTER = r"""
mapfile -t mounts </proc/self/mountinfo
for mount in "${mounts[@]}"; do
    read -r _ _ _ _ at _ <<<"$mount"
    case ${mount##* - } in
        overlay\ *layers/* | erofs\ * | fuse.pagein\ * | *\ /dev/loop*)
            umount -l "$(printf %b "$at")" 2>/dev/null ;;
    esac
done
set -e
hold=$1 covers=() paths=(); shift
while [[ $1 != -- ]]; do covers+=("$1"); shift; done; shift
while [[ $1 != -- ]]; do paths+=("$1"); shift; done; shift
for i in "${!paths[@]}"; do mkdir -p "$hold/$i"; mount --bind "${paths[i]}" "$hold/$i"; done
for cover in "${covers[@]}"; do mount -t tmpfs -o mode=755 tmpfs "$cover"; done
for i in "${!paths[@]}"; do mkdir -p "${paths[i]}"; mount --bind "$hold/$i" "${paths[i]}"; done
exec "$@"
"""


class BootError(Exception):
    """The kernel cannot be booted here; one line for the user."""


def run(kernel: Path, command: Sequence[str], *, timeout: float) -> int:
    """Run `command` in the guest and return its exit status, or TIMED_OUT, or NO_STATUS.

    Its output and errors go to ours. Raises BootError.
    """
    with _directory() as job:
        _prepare(job, kernel, command)
        log = os.open(job / "kernel.log", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            status = _boot(job, log, time.monotonic() + timeout)
            text = (job / "status").read_text().strip() if (job / "status").exists() else ""
            if status is not None:
                return status
            if text.isdecimal():
                return int(text)
            sys.stderr.write("real-kernel: the guest ended without an answer; it said last:\n")
            with open(log, errors="replace", closefd=False) as said:
                said.seek(0)
                sys.stderr.writelines(said.readlines()[-_LOG_LINES:])
            return NO_STATUS
        finally:
            os.close(log)


@contextmanager
def _directory() -> Iterator[Path]:
    # Not $TMPDIR: the guest's user has to get there.
    path = Path(tempfile.mkdtemp(prefix="pagein-kernel-", dir="/var/tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def _prepare(job: Path, kernel: Path, command: Sequence[str]) -> None:
    """Everything that the guest's user must find in the run's directory."""
    shutil.copyfile(kernel, job / "linux")
    (job / "linux").chmod(0o755)
    (job / "command").write_text(_script(command))
    with open(job / "disk", "wb") as disk:
        disk.truncate(_DISK_BYTES)
    mkfs = ["mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,nodiscard"]
    subprocess.run([*mkfs, str(job / "disk")], check=True, stdin=subprocess.DEVNULL)
    if os.geteuid() == 0:
        for path in (job, *job.iterdir()):
            os.chown(path, _NOBODY, _NOBODY)


def _script(command: Sequence[str]) -> str:
    lines = [f"cd {shlex.quote(str(CHECKOUT))}", "export PYTHONDONTWRITEBYTECODE=1 HOME=/tmp"]
    lines.append(f"export PATH={shlex.quote(str(CHECKOUT / '.venv/bin'))}:$PATH")
    for name, value in os.environ.items():
        if name in _PASSED_ON or name.startswith("PAGEIN_"):
            lines.append(f"export {name}={shlex.quote(value)}")
    if not sys.stdout.isatty():  # the guest's consoles are, whatever ours is
        lines.append("export NO_COLOR=1 TERM=dumb")
    lines.append(f"exec {shlex.join(command)}")
    return "\n".join(lines) + "\n"


# ---- the process ---------------------------------------------------------------------------------


def _boot(job: Path, log: int, give_up: float) -> int | None:
    """Run the kernel until it ends; None then, or an exit status of our own."""
    needed = [CHECKOUT, Path(sys.base_prefix)]
    with Pipes() as pipes:
        words = [str(job / "linux"), *_kernel_words(job, needed, pipes)]
        process = subprocess.Popen(
            [*_outside(job, needed), *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=_environment(job),
            pass_fds=pipes.writing,
            start_new_session=True,
        )
        try:
            pipes.close_writing()
            if pipes.forward(give_up):
                process.wait(max(give_up - time.monotonic(), 1.0))
                return None
        except subprocess.TimeoutExpired:
            pass
        finally:
            _end(process)
    print("real-kernel: timed out", file=sys.stderr)
    return TIMED_OUT


def _environment(job: Path) -> dict[str, str]:
    """The kernel's own. Its memory is a file: in memory, where there is enough of that."""
    memory = os.statvfs("/dev/shm")
    enough = memory.f_bavail * memory.f_frsize >= _MEMORY_BYTES  # a container may have 64 MiB
    path = "/usr/sbin:/usr/bin:/sbin:/bin"
    return {"PATH": path, "HOME": str(job), "TMPDIR": "/dev/shm" if enough else str(job)}


def _kernel_words(job: Path, needed: Sequence[Path], pipes: Pipes) -> list[str]:
    out, err = pipes.writing
    words = [f"mem={_MEMORY_BYTES >> 20}M", f"ubd0={job}/disk"]
    words += [f"umid={job.name}", f"uml_dir={job}"]
    words += ["root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "panic=1", "loglevel=4"]
    # stdout has the kernel's messages; the command has consoles of its own.
    words += ["console=tty0", "con=null", "con0=null,fd:1"]
    words += [f"con1=null,fd:{out}", f"con2=null,fd:{err}"]
    words += [f"init={HERE}/init.sh", f"PAGEIN_JOB={job}"]
    words.append(f"PAGEIN_KEEP={':'.join(map(str, needed))}")
    for word in words:
        if any(character.isspace() for character in word):
            raise BootError(f"a kernel's command line cannot say {word!r}: blanks in it")
    return words


def _outside(job: Path, needed: Sequence[Path]) -> list[str]:
    """The words before the kernel's: how it becomes unprivileged, with `needed` in reach."""
    for path in needed:
        if not path.stat().st_mode & stat.S_IXOTH or not path.stat().st_mode & stat.S_IROTH:
            raise BootError(f"{path} is not readable for everybody: chmod o+rx")
    setpriv = ["setpriv", "--no-new-privs", "--pdeathsig=KILL"]
    if os.geteuid() != 0:
        return setpriv
    covers = {cover for path in needed if (cover := _closed_above(path))}
    paths = [path for path in needed if _closed_above(path)]
    words = ["unshare", "--mount", "--propagation", "private", "bash", "-c", _ENTER, "bash"]
    words += [str(job / "hold"), *map(str, covers), "--", *map(str, paths), "--"]
    words += [*setpriv, f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"]
    return words


def _closed_above(path: Path) -> Path | None:
    """The topmost directory above `path` that not everybody may enter."""
    for directory in reversed(path.parents):
        if not directory.stat().st_mode & stat.S_IXOTH:
            return directory
    return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the guest: each of its processes is one of ours."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Pipes:
    """The guest's output and errors, on their way to ours."""

    def __init__(self) -> None:
        self._reading: list[int] = []
        self.writing: list[int] = []

    def __enter__(self) -> Pipes:
        for _ in range(2):
            read, write = os.pipe2(os.O_CLOEXEC)
            self._reading.append(read)
            self.writing.append(write)
        return self

    def __exit__(self, *_: object) -> None:
        self.close_writing()
        for fd in self._reading:
            os.close(fd)

    def close_writing(self) -> None:
        """Let the guest be the only one that can write."""
        for fd in self.writing:
            os.close(fd)
        self.writing = []

    def forward(self, give_up: float) -> bool:
        """Pass everything on until the guest has ended; False at the deadline (monotonic)."""
        targets = dict(zip(self._reading, (1, 2), strict=True))
        with selectors.DefaultSelector() as selector:
            for fd in targets:
                selector.register(fd, selectors.EVENT_READ)
            while targets:
                left = give_up - time.monotonic()
                if left <= 0:
                    return False
                for key, _ in selector.select(left):
                    data = os.read(key.fd, 65536)
                    if data:
                        _write_all(targets[key.fd], data)
                    else:
                        selector.unregister(key.fd)
                        del targets[key.fd]
        return True


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
