"""`pagein run`: exit codes, streams, signals, and that nothing is left, however it ends."""

import contextlib
import os
import pty
import signal
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.containers.conftest import Runner
from tests.e2e.harness import DEADLINE, wait_for
from tests.kills.test_kills import kill_process

pytestmark = pytest.mark.root

IGNORING = "trap '' TERM INT; echo ready; while :; do sleep 0.1; done"


def finish(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Exit status and output of a command that is to end."""
    out, err = process.communicate(timeout=DEADLINE)
    return process.returncode, out, err


def line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def mark(name: str) -> str:
    """A variable that the processes of this run's containers are known by."""
    return f"MARK={name}-{os.environ['PAGEIN_TEST_RUN']}"


def processes_with(variable: str) -> dict[int, int]:
    """Processes of this machine, containers included, that have a variable: pid -> its parent."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone
            if variable.encode() in (path / "environ").read_bytes().split(b"\0"):
                stat = (path / "stat").read_text().rpartition(")")[2].split()
                found[int(path.name)] = int(stat[1])
    return found


def first_with(variable: str) -> int:
    """The first process of a container; pids say nothing of who was before whom."""
    found = processes_with(variable)
    (first,) = [pid for pid, parent in found.items() if parent not in found]
    return first


def children_with(word: str, parent: int) -> list[int]:
    """Children that have `word` in their command line; others come and go, runc's for one."""
    found = []
    for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        with contextlib.suppress(OSError):  # gone
            if word in Path(f"/proc/{pid}/cmdline").read_text():
                found.append(int(pid))
    return found


# ---- exit codes ---------------------------------------------------------------------------------


def test_streams_and_exit_code(runner: Runner) -> None:
    process = runner.start("sh", "-c", "cat; echo err >&2; exit 3")
    out, err = process.communicate("in\n", timeout=DEADLINE)
    assert (process.returncode, out, err) == (3, "in\n", "err\n")
    assert not runner.leftovers()


def test_the_images_command(runner: Runner) -> None:
    image = runner.image(Entrypoint=["sh", "-c"], Cmd=["exit 7"])
    assert runner.pagein.run("run", image).returncode == 7
    assert runner.pagein.run("run", image, "--", "exit 8").returncode == 8
    assert runner.pagein.run("run", runner.image(), "sh", "-c", "exit 9").returncode == 9
    assert runner.pagein.run("run", "--entrypoint", "true", image).returncode == 0


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["nothing-of-the-kind"], 127, "nothing-of-the-kind"),
        (["/srv/nothing"], 127, "/srv/nothing"),
        (["/srv/text"], 126, "permission denied"),
        (["/srv"], 126, "/srv"),
    ],
)
def test_a_command_that_cannot_be(runner: Runner, words: list[str], status: int, text: str) -> None:
    done = runner(*words)
    assert done.returncode == status, done
    assert text in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def test_killed(runner: Runner) -> None:
    process = runner.start("sh", "-c", IGNORING, options=("--env", mark("killed")))
    assert line(process) == "ready"
    os.kill(first_with(mark("killed")), signal.SIGKILL)
    assert finish(process)[0] == 137
    assert not runner.leftovers()


def test_orphans_end_with_the_first_process(runner: Runner) -> None:
    script = "(sleep 600 &) ; (sleep 600 & sleep 600 &) ; exit 4"
    done = runner("sh", "-c", script, options=("--env", mark("orphans")))
    assert done.returncode == 4
    assert not processes_with(mark("orphans"))


@pytest.mark.parametrize(
    ("options", "config", "text"),
    [
        (("--user", "stranger"), {}, "unable to find user stranger"),
        (("--volume", "/nowhere:/x"), {}, "/nowhere"),
        (("--volume", "x"), {}, "expected SRC:DST"),
        (("--tty",), {}, "not a terminal"),
        ((), {"StopSignal": "SIGNOTHING"}, "StopSignal"),
    ],
)
def test_what_pagein_cannot_do(
    runner: Runner, options: tuple[str, ...], config: dict[str, Any], text: str
) -> None:
    done = runner("true", options=options, **config)
    assert done.returncode == 125
    assert text in done.stderr
    assert done.stderr.startswith("pagein: ")
    assert done.stderr.count("\n") == 1


def test_an_image_that_is_none(runner: Runner) -> None:
    done = runner.pagein.run("run", "stack:/nowhere", "true")
    assert (done.returncode, done.stderr.count("\n")) == (125, 1)
    assert "/nowhere" in done.stderr
    assert not runner.leftovers()


# ---- what it sees -------------------------------------------------------------------------------


def test_user_directory_and_variables(runner: Runner) -> None:
    script = "id -u; id -g; id -G; pwd; echo $A $B $HOME; hostname"
    options = ("--env", "B=line", "--workdir", "/made/here")
    done = runner("sh", "-c", script, options=options, User="app", Env=["A=image", "B=image"])
    *start, hostname = done.stdout.splitlines()
    expected = ["1000", "1001", "1001 2000", "/made/here", "image line /home/app"]
    assert start == expected, done
    assert len(hostname) == 12
    done = runner("id", "-u", options=("--user", "0:app"), User="app")
    assert done.stdout == "0\n"


def test_no_network_but_loopback(runner: Runner) -> None:
    done = runner("sh", "-c", "ip -o link | wc -l; ip -o addr show dev lo; cat /etc/hosts")
    assert done.stdout.startswith("1\n")
    assert "127.0.0.1/8" in done.stdout
    assert "127.0.0.1\tlocalhost" in done.stdout


def test_the_hosts_network(runner: Runner) -> None:
    before = Path("/etc/hosts").read_bytes()
    script = "echo >>/etc/hosts; ls -l /proc/self/ns/net; hostname; cat /etc/hosts"
    done = runner("sh", "-c", script, options=("--net", "host"))
    assert os.readlink("/proc/self/ns/net") in done.stdout
    assert os.uname().nodename in done.stdout
    assert before.decode() in done.stdout
    assert Path("/etc/hosts").read_bytes() == before


def test_volumes(runner: Runner, public_tmp: Path) -> None:
    ours, theirs = public_tmp / "ours", public_tmp / "theirs"
    for path in (ours, theirs):
        path.mkdir()
        (path / "file").write_text(f"{path.name}\n")
    script = "cat /a/file /b/c/file; echo new >/a/file; echo new >/b/c/file"
    options = ("--volume", f"{ours}:/a", "-v", f"{theirs}:/b/c:ro")
    done = runner("sh", "-c", script, options=options)
    assert done.stdout == "ours\ntheirs\n"
    assert "Read-only" in done.stderr
    assert ((ours / "file").read_text(), (theirs / "file").read_text()) == ("new\n", "theirs\n")


def test_what_is_written_is_gone(runner: Runner) -> None:
    script = "cat /srv/text; echo new >/srv/text; cat /srv/text"
    for _ in range(2):
        assert runner("sh", "-c", script).stdout == "text\nnew\n"


def test_what_is_written_is_kept(runner: Runner, public_tmp: Path) -> None:
    options = ("--rw", public_tmp / "rw")
    runner("sh", "-c", "echo new >/srv/text", options=options)
    assert runner("cat", "/srv/text", options=options).stdout == "new\n"
    assert runner("cat", "/srv/text").stdout == "text\n"
    assert (public_tmp / "rw/upper/srv/text").read_text() == "new\n"


def test_nothing_can_be_written(runner: Runner) -> None:
    script = "echo x >/srv/text || echo x >/dev/shm/x && cat /dev/shm/x"
    done = runner("sh", "-c", script, options=("--read-only",))
    assert (done.returncode, done.stdout) == (0, "x\n")
    assert "Read-only" in done.stderr


def test_64_megabytes(runner: Runner) -> None:
    done = runner("sh", "-c", "dd if=/dev/zero of=/tmp/x bs=1M count=64 && wc -c </tmp/x")
    assert (done.returncode, done.stdout) == (0, "67108864\n")


def test_privileges(runner: Runner) -> None:
    """Docker's capabilities, the devices of runc, what is masked and what is read-only."""
    script = (
        "cat /proc/self/status; mount -t tmpfs x /tmp; cat /proc/kcore | wc -c;"
        " echo 1 >/proc/sys/kernel/domainname; ls /dev/sda /dev/vda /dev/fuse 2>/dev/null;"
        " cat /proc/self/mountinfo"
    )
    done = runner("sh", "-c", script)
    assert "CapEff:\t00000000a80425fb" in done.stdout
    assert "permission denied" in done.stderr
    assert "Read-only" in done.stderr
    assert "/dev/" not in [word for word in done.stdout.split() if word in ("/dev/sda", "/dev/vda")]
    (root,) = [entry for entry in done.stdout.splitlines() if " / / " in entry]
    assert "nodev" in root.split()[5]
    assert "nosuid" not in root.split()[5]


# ---- signals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "config", "trapped"),
    [
        (signal.SIGTERM, {}, "TERM"),
        (signal.SIGINT, {}, "INT"),
        (signal.SIGHUP, {}, "HUP"),
        (signal.SIGTERM, {"StopSignal": "SIGQUIT"}, "QUIT"),
    ],
)
def test_signals_are_forwarded(
    runner: Runner, number: int, config: dict[str, Any], trapped: str
) -> None:
    script = f"trap 'exit 42' {trapped}; echo ready; while :; do sleep 0.1; done"
    process = runner.start("sh", "-c", script, **config)
    assert line(process) == "ready"
    process.send_signal(number)
    assert finish(process)[0] == 42
    assert not runner.leftovers()


def test_three_signals_are_an_end(runner: Runner) -> None:
    script = "trap 'echo heard' TERM; echo ready; while :; do sleep 0.1; done"
    process = runner.start("sh", "-c", script)
    assert line(process) == "ready"
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        assert line(process) == "heard"  # two that come at once are one
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 137
    assert not runner.leftovers()


# ---- kill -9 ------------------------------------------------------------------------------------


def test_a_killed_command_leaves_nothing(runner: Runner) -> None:
    process = runner.start("sh", "-c", IGNORING, options=("--env", mark("guarded")))
    assert line(process) == "ready"
    process.kill()
    process.communicate(timeout=DEADLINE)  # nothing holds its streams
    wait_for(lambda: not runner.leftovers())
    wait_for(lambda: not processes_with(mark("guarded")))
    wait_for(lambda: not runner.pagein.leftovers())


def test_the_next_command_cleans_up(runner: Runner) -> None:
    """Also when the guard was killed with it."""
    process = runner.start("sh", "-c", IGNORING, options=("--env", mark("swept")))
    assert line(process) == "ready"
    (guard,) = children_with("pagein.cli.main", process.pid)
    os.kill(guard, signal.SIGKILL)
    process.kill()
    process.wait(DEADLINE)
    for stream in (process.stdin, process.stdout, process.stderr):
        assert stream is not None
        stream.close()  # the container, which lives, has the other ends
    assert processes_with(mark("swept"))
    assert runner.leftovers()
    runner.pagein.run("status")
    assert not runner.leftovers()
    assert not processes_with(mark("swept"))
    wait_for(lambda: not runner.pagein.leftovers())


def test_a_sweep_lets_the_living_be(runner: Runner) -> None:
    process = runner.start("sh", "-c", "echo ready; cat")
    assert line(process) == "ready"
    assert len(runner.pagein.status()["mounts"]) == 1
    done = runner.pagein.run("run", runner.image(), "--", "true")
    assert done.returncode == 0
    out, _ = process.communicate("still here\n", timeout=DEADLINE)
    assert (process.returncode, out) == (0, "still here\n")
    assert not runner.leftovers()


@pytest.mark.parametrize("module", ["pagein.kernelhalf", "pagein.daemon"])
def test_a_half_is_killed_under_a_container(runner: Runner, module: str) -> None:
    process = runner.start("sh", "-c", "echo ready; cat; cat /srv/text")
    assert line(process) == "ready"
    for pid, command in runner.pagein.processes().items():
        if module in command.split():
            kill_process(pid)
    out, err = process.communicate("go on\n", timeout=DEADLINE)
    assert (process.returncode, out, err) == (0, "go on\ntext\n", "")
    assert not runner.leftovers()


# ---- terminals ----------------------------------------------------------------------------------


class Terminal:
    """A pseudo-terminal, and what has been seen on it."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        self.seen = b""
        subprocess.run(["stty", "cols", "91", "rows", "17"], stdin=self.slave, check=True)

    def start(self, runner: Runner, script: str) -> "subprocess.Popen[bytes]":
        """A container with this terminal, of which only the container has the other end."""
        argv = runner.pagein.argv("run", runner.image(Cmd=["sh", "-c", script]))
        slave, self.slave = self.slave, -1
        try:
            return subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave)
        finally:
            os.close(slave)

    def until(self, text: bytes) -> None:
        """Read until something has been seen."""
        while text not in self.seen:
            self.seen += os.read(self.master, 4096)

    def hang_up(self) -> None:
        """Close the master."""
        if self.master >= 0:
            os.close(self.master)
            self.master = -1


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    mine = Terminal()
    yield mine
    mine.hang_up()


def test_a_terminal(runner: Runner, terminal: Terminal) -> None:
    process = terminal.start(runner, "tty; stty size; cat; exit 5")
    terminal.until(b"17 91")
    assert b"/dev/pts/0" in terminal.seen
    os.write(terminal.master, b"typed\r\x04")
    terminal.until(b"typed\r\ntyped")
    assert process.wait(DEADLINE) == 5
    assert not runner.leftovers()


def test_a_terminal_is_resized(runner: Runner, terminal: Terminal) -> None:
    process = terminal.start(
        runner, "trap 'stty size; exit 6' WINCH; echo up; while sleep 0.1; do :; done"
    )
    terminal.until(b"up")
    termios.tcsetwinsize(terminal.master, (18, 92))
    process.send_signal(signal.SIGWINCH)  # it is not the command's controlling terminal
    terminal.until(b"18 92")
    assert process.wait(DEADLINE) == 6


def test_a_terminal_that_hangs_up(runner: Runner, terminal: Terminal) -> None:
    process = terminal.start(runner, "echo up; cat; exit 7")
    terminal.until(b"up")
    terminal.hang_up()
    assert process.wait(DEADLINE) == 7
    assert not runner.leftovers()


# ---- without ------------------------------------------------------------------------------------


def test_without_runc(runner: Runner, public_tmp: Path) -> None:
    script = (
        "import shutil, sys; shutil.which = lambda *a, **k: None\n"
        "from pagein.cli.main import main; sys.argv[0] = 'pagein'; main()"
    )
    argv = runner.pagein.argv("run", runner.image(), "--", "true")
    start = argv.index("pagein.cli.main")
    command = [argv[0], "-c", script, *argv[start + 1 :]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 125
    assert done.stderr == (
        "pagein: runc is not installed: `apt-get install runc`, or your system's package of it\n"
    )
