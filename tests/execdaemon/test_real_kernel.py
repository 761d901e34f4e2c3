"""The same daemons and programs on the kernel's own device, without pagein."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.harness import DEADLINE, wait_for
from tests.execdaemon.rig import DRIVER, PROGRAM, PYTHON_DAEMON, SEEN, ExecDaemon
from tests.realkernel.rig import device_is_free

CHECKOUT = Path(__file__).parents[2]
OPTIONS = ("fsid=single", "fsid=meta,device=blob", "fsid=meta,domain_id=d,device=blob")


@pytest.fixture
def directory(public_tmp: Path) -> Iterator[Path]:
    """On the guest's disk."""
    for name in ("cache", "mnt"):
        (public_tmp / name).mkdir()
    yield public_tmp
    wait_for(device_is_free)


def run(*words: str | Path) -> str:
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.realkernel
@pytest.mark.parametrize("options", OPTIONS)
def test_the_c_daemon(
    directory: Path, c_daemon: Path, files: Path, sums: dict[str, str], options: str
) -> None:
    daemon = (c_daemon, "-j", "3", directory / "cache", files)
    assert json.loads(run(*DRIVER, directory, options, "--", *daemon)) == sums


@pytest.mark.realkernel
def test_the_python_daemon(directory: Path, files: Path, sums: dict[str, str]) -> None:
    daemon = (*PYTHON_DAEMON, directory / "cache", files)
    assert json.loads(run(*DRIVER, directory, "fsid=single", "--", *daemon)) == sums


@pytest.mark.realkernel
def test_what_a_program_sees(directory: Path, files: Path) -> None:
    assert json.loads(run(*PROGRAM, directory / "cache", files, directory / "mnt")) == SEEN


@pytest.mark.realkernel
def test_a_daemon_is_replaced(directory: Path, c_daemon: Path, files: Path) -> None:
    program = Path(__file__).with_name("holder.py")
    assert run(sys.executable, program, directory, files, c_daemon) == "whole\n"


@pytest.mark.root
@pytest.mark.long
@pytest.mark.parametrize("options", OPTIONS)
def test_the_same_binary_on_both_kernels(
    place: ExecDaemon, c_daemon: Path, files: Path, sums: dict[str, str], options: str
) -> None:
    """Compiled once; here under exec-daemon, there as it is."""
    daemon = (c_daemon, "-j", "3", place.cache, files)
    here = place.run(*DRIVER, place.directory, options, "--", *daemon)
    assert here.returncode == 0, here.stderr
    with tempfile.TemporaryDirectory(dir=CHECKOUT) as shared:  # what the guest sees of the host
        os.chmod(shared, 0o755)
        binary, blobs = Path(shutil.copy(c_daemon, shared)), Path(shared) / "files"
        shutil.copytree(files, blobs)
        argv: list[str | Path] = [
            sys.executable,
            DRIVER[1],
            "/run/disk/d",
            options,
            "--",
            binary,
            "-j",
            "3",
        ]
        guest: list[str | Path] = [CHECKOUT / "scripts/real-kernel", "--timeout", "60", *argv]
        there = run(*guest, "/run/disk/d/cache", blobs)
    assert json.loads(there.splitlines()[-1]) == json.loads(here.stdout) == sums
