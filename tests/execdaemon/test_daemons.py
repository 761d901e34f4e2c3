"""Daemons that know nothing of pagein, run by it; on the real kernel: test_real_kernel.py."""

import json
import signal
import sys
from pathlib import Path

import pytest
from tests.e2e.harness import DEADLINE, wait_for
from tests.execdaemon.rig import DRIVER, PYTHON_DAEMON, ExecDaemon

pytestmark = pytest.mark.root


@pytest.mark.parametrize("options", ["fsid=single", "fsid=meta,domain_id=d,device=blob"])
def test_a_static_c_daemon_serves_a_mount(
    place: ExecDaemon, c_daemon: Path, files: Path, sums: dict[str, str], options: str
) -> None:
    daemon = (c_daemon, "-j", "3", place.cache, files)
    done = place.run(*DRIVER, place.directory, options, "--", *daemon)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == sums


def test_a_python_daemon_serves_a_mount(
    place: ExecDaemon, files: Path, sums: dict[str, str]
) -> None:
    daemon = (*PYTHON_DAEMON, place.cache, files)
    done = place.run(*DRIVER, place.directory, "fsid=meta,device=blob", "--", *daemon)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == sums


def test_mounts_are_asked_for_outside_too(
    place: ExecDaemon, c_daemon: Path, files: Path, sums: dict[str, str]
) -> None:
    place.start(
        c_daemon, place.cache, files, options=("--mount", f"fsid=meta,device=blob,{place.target}")
    )
    place.wait_mounted()
    other = place.directory / "other"
    other.mkdir()
    done = place.pagein("mount", "-t", "erofs", "-o", "fsid=single", "none", other)
    assert done.returncode == 0, done.stderr
    for tree in (place.target, other):
        assert {path.name for path in tree.iterdir()} == set(sums)
        assert (tree / "3000000").read_bytes()[-8:] == b"02999992"
    assert place.pagein("umount", other).returncode == 0


def test_a_mount_that_fails_ends_it(place: ExecDaemon, c_daemon: Path, files: Path) -> None:
    options = ("--mount", f"fsid=absent,{place.target}")
    done = place.run(c_daemon, place.cache, files, options=options)
    assert (done.returncode, done.stderr) == (
        125,
        "pagein: absent: No such file or directory\n",
    )


def test_a_daemon_is_replaced_and_its_requests_restored(
    place: ExecDaemon, c_daemon: Path, files: Path
) -> None:
    """The holder passes the device on by fork and exec; the first daemon is killed by it."""
    program = Path(__file__).with_name("holder.py")
    done = place.run(*DRIVER[:1], program, place.directory, files, c_daemon)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "whole\n"


def test_the_device_may_have_any_number_if_every_read_is_looked_at(
    place: ExecDaemon, c_daemon: Path, files: Path
) -> None:
    program = Path(__file__).with_name("holder.py")
    words = (*DRIVER[:1], program, place.directory, files, c_daemon, "30")
    done = place.run(*words, options=("--every-read",))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "whole\n"


def test_a_number_whose_reads_are_not_seen_is_told(place: ExecDaemon) -> None:
    program = "import os; os.dup2(os.open('/dev/cachefiles', os.O_RDWR), 30)"
    done = place.run(sys.executable, "-c", program)
    assert done.stderr == (
        "exec-daemon: the device was duplicated to fd 30, of which reads are not seen;"
        " use --every-read\n"
    )


def test_a_termination_is_passed_on_and_the_exit_code_comes_back(place: ExecDaemon) -> None:
    script = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done"
    process = place.start("sh", "-c", script)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=DEADLINE)
    assert process.returncode == 7


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (("sh", "-c", "kill -USR1 $$"), 128 + signal.SIGUSR1, ""),
        (("no-such-program",), 127, "pagein: no-such-program: No such file or directory\n"),
        (("/etc/passwd",), 126, "pagein: /etc/passwd: Permission denied\n"),
    ],
    ids=["killed", "missing", "no program"],
)
def test_how_a_command_ends(
    place: ExecDaemon, command: tuple[str, ...], code: int, said: str
) -> None:
    done = place.run(*command)
    assert (done.returncode, done.stderr) == (code, said)


def test_a_daemon_in_the_background_keeps_it_running(
    place: ExecDaemon, c_daemon: Path, files: Path
) -> None:
    process = place.start("sh", "-c", '"$@" &', "sh", c_daemon, place.cache, files)
    wait_for((place.cache / "graveyard").exists)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=DEADLINE)
    assert (process.returncode, place.left()) == (0, [])
