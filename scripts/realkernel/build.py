"""Builds the User-Mode Linux kernel of scripts/real-kernel, once, and keeps it.

The source is Debian's linux-source-SERIES, the version that apt would install now. The binary is
kept under a name made of all that decides what it is: that version, kernel.config, the compiler.

Two configurations: `ondemand` is kernel.config, `plain` the same without the on-demand mode, as a
distribution builds it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
CONFIG = HERE / "kernel.config"

CONFIGURATIONS = ("ondemand", "plain")

_ONDEMAND = ("CACHEFILES_ONDEMAND", "EROFS_FS_ONDEMAND")
# Of 9p the original mode: fscache cannot be chosen by itself, somebody has to want it.
_INDISPENSABLE = ("CACHEFILES", "EROFS_FS", "HOSTFS", "BLK_DEV_UBD", "EXT4_FS", "9P_FSCACHE")
_LOG_LINES = 30

# Before Linux 6.13 the room for a process's vector registers has a fixed size, 2,696 bytes. With
# AMX they need 11,008, and the first process dies ("ptrace set fp regs failed, errno = 14").
_EDITS = (("arch/x86/um/user-offsets.c", "DEFINE_LONGS(HOST_FP_SIZE, 2696)", 2696, 12288),)


class BuildError(Exception):
    """The kernel cannot be had; one line for the user."""


class _Superseded(BuildError):
    """The package's version is not in the archive any more."""


def cache_directory() -> Path:
    """Where kernels are kept unless the user says otherwise."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base, "pagein", "kernels")


def kernel(series: str, configuration: str, directory: Path) -> Path:
    """The kernel of `series` in `directory`, built if it is not there. Raises BuildError."""
    package = f"linux-source-{series}"
    config = _config(configuration)
    try:
        return _kept(package, _candidate(package), config, directory)
    except _Superseded:
        # The archive drops old versions; the lists knew of one.
        _update()
        return _kept(package, _candidate(package), config, directory)


def _kept(package: str, version: str, config: bytes, directory: Path) -> Path:
    path = directory / f"linux-{version}-{_digest(version, config)}"
    if path.exists():  # it is renamed into place: there is no half of one
        return path
    directory.mkdir(parents=True, exist_ok=True)
    with _locked(directory / "lock"):  # two at once would only take twice as long
        if not path.exists():
            _build(package, version, config, path)
    return path


def _config(configuration: str) -> bytes:
    """The text of kernel.config; of `plain` without the on-demand mode."""
    text = CONFIG.read_bytes()
    if configuration == "plain":
        for symbol in _ONDEMAND:
            text = text.replace(f"CONFIG_{symbol}=y\n".encode(), b"")
    return text


def _candidate(package: str) -> str:
    """The version of `package` that apt would install."""
    for update in (False, True):
        if update:
            _update()
        shown = subprocess.run(
            ["apt-cache", "policy", package], capture_output=True, text=True, check=False
        ).stdout
        found = re.search(r"^ *Candidate: (\S+)$", shown, re.MULTILINE)
        if found and found[1] != "(none)":
            return found[1]
        if os.geteuid():
            break
    raise BuildError(f"apt knows no {package}: this needs Debian, and `apt-get update` before")


def _update() -> None:
    _run(["apt-get", "-q", "-o", "DPkg::Lock::Timeout=180", "update"])


def _digest(version: str, config: bytes) -> str:
    compiler = subprocess.run(["gcc", "--version"], capture_output=True, check=True).stdout
    edits = repr(_EDITS).encode()
    parts = (version.encode(), config, edits, compiler.splitlines()[0])
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _build(package: str, version: str, config: bytes, path: Path) -> None:
    started = time.monotonic()
    for killed in path.parent.glob("build-*"):  # we have the lock: nobody builds there
        shutil.rmtree(killed)
    with tempfile.TemporaryDirectory(prefix="build-", dir=path.parent) as name:
        work = Path(name)
        _say(f"building the kernel of {package} {version}, once (some minutes) ...")
        _unpack(package, version, work)
        _configure(work, config)
        stamp = ["KBUILD_BUILD_TIMESTAMP=1970-01-01", "KBUILD_BUILD_USER=pagein"]
        stamp.append("KBUILD_BUILD_HOST=pagein")
        _run([*_make(work), f"-j{os.cpu_count() or 1}", *stamp, "linux"], work)
        _run(["strip", "-o", str(work / "stripped"), str(work / "out/linux")], work)
        os.rename(work / "stripped", path)
    _say(f"built {path} in {time.monotonic() - started:.0f} s")


def _unpack(package: str, version: str, work: Path) -> None:
    try:
        _run(["apt-get", "-q", "download", f"{package}={version}"], work)
    except BuildError:
        if os.geteuid():
            raise
        raise _Superseded(f"{package} {version} cannot be downloaded") from None
    (archive,) = work.glob("*.deb")
    _run(["dpkg-deb", "-x", str(archive), str(work / "deb")], work)
    (work / "src").mkdir()
    (tarball,) = (work / "deb/usr/src").glob("*.tar.xz")
    unpack = ["tar", "-C", str(work / "src"), "--strip-components=1", "-xJf", str(tarball)]
    _run(unpack, work)
    shutil.rmtree(work / "deb")
    archive.unlink()
    for name, text, old, new in _EDITS:
        file = work / "src" / name
        file.write_text(file.read_text().replace(text, text.replace(str(old), str(new))))


def _configure(work: Path, config: bytes) -> None:
    wanted = work / "kernel.config"
    wanted.write_bytes(config)
    _run([*_make(work), f"KCONFIG_ALLCONFIG={wanted}", "allnoconfig"], work)
    have = (work / "out/.config").read_text()
    for symbol in (*_INDISPENSABLE, *_ONDEMAND):
        asked = f"CONFIG_{symbol}=y\n"
        if (asked.encode() in config) != (asked in have):
            raise BuildError(f"this kernel source has no {symbol}, or not as our kernel.config")


def _make(work: Path) -> list[str]:
    return ["nice", "-n", "19", "make", "-s", "-C", f"{work}/src", f"O={work}/out", "ARCH=um"]


def _run(command: list[str], work: Path | None = None) -> None:
    """Run a step silently. Raises BuildError, after the end of what it said."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command,
            cwd=work,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # make's children go with it
        )
        try:
            status = process.wait()
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if status:
            log.seek(0)
            sys.stderr.writelines(log.readlines()[-_LOG_LINES:])
            raise BuildError(f"{' '.join(command[:8])} ... failed (exit code {status})")


def _say(text: str) -> None:
    print(f"real-kernel: {text}", file=sys.stderr, flush=True)
