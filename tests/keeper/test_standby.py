"""Processes begun before their command is known: what they get, and what they have of others."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.harness import Pagein, mkfs, pagein_in, wait_for

from pagein import standby
from pagein.cli import early

WHAT = """
import json, os, sys

def main():
    fds = {int(fd) for fd in os.listdir("/proc/self/fd")}
    told = {
        "argv": sys.argv[1:],
        "cmdline": os.fsdecode(open("/proc/self/cmdline", "rb").read().rstrip(b"\\0")).split("\\0"),
        "cwd": os.getcwd(),
        "session": os.getsid(0) == os.getpid(),
        "fds": sorted(fd for fd in fds if os.path.exists(f"/proc/self/fd/{fd}")),
        "threads": len(os.listdir("/proc/self/task")),
    }
    for word in sys.argv[1:]:
        if word.isdigit():
            os.write(int(word), word.encode())
    print(json.dumps(told), flush=True)
    return 7
"""
PROGRAM = "from pagein import standby\nstandby.run('what', waits=standby.waits())\n"
FORKER = """
import os, sys
from pagein import standby

read, write = os.pipe2(os.O_CLOEXEC)
os.close(read), os.close(write)
standby.prepare("program")
if standby.fork("forked"):
    standby.run("what", waits=True)
child = standby.ordered([*standby.command_of("forked"), "a"], [])
standby.dismiss()
sys.exit(child.wait())
"""


@pytest.fixture(autouse=True)
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules that the processes find; in the end nobody waits any more."""
    (tmp_path / "what.py").write_text(WHAT)
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    yield
    standby.dismiss()


def command(*words: str) -> list[str]:
    return [*standby.command_of("program"), *words]


def said(child: standby.Child | None, output: Path) -> Any:
    assert child is not None
    assert child.wait(60) == 7
    return json.loads(output.read_text())


def ordered(output: Path, *words: str, fds: tuple[int, ...] = ()) -> standby.Child | None:
    with output.open("wb") as file:
        return standby.ordered(command(*words), fds, output=file.fileno())


def test_it_becomes_what_the_command_says(tmp_path: Path) -> None:
    standby.prepare("program")
    words = ("--option", "", "two words", "\udcff")
    found = said(ordered(tmp_path / "out", *words), tmp_path / "out")
    assert found["argv"] == list(words)
    assert found["cmdline"] == command(*words)
    assert (found["cwd"], found["session"], found["threads"]) == ("/", True, 1)


def test_it_has_the_files_of_its_command_and_no_others(tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    others = os.pipe()
    try:
        for fd in others:
            os.set_inheritable(fd, True)
        standby.prepare("program")
        child = ordered(tmp_path / "out", str(theirs), fds=(theirs,))
        assert said(child, tmp_path / "out")["fds"] == sorted({0, 1, 2, theirs})
        assert os.read(ours, 100) == str(theirs).encode()
    finally:
        for fd in (ours, theirs, *others):
            os.close(fd)


def test_a_fork_has_neither_those_of_who_forked_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKER], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (7, "")
    found = json.loads(done.stdout)
    assert (found["argv"], found["fds"], found["threads"]) == (["a"], [0, 1, 2], 1)
    assert found["session"]


def test_files_may_change_places() -> None:
    first, second = os.pipe()
    before = [os.readlink(f"/proc/self/fd/{fd}") for fd in (first, second)]
    flags = [os.get_inheritable(fd) for fd in (first, second)]
    copies = [os.dup(first), os.dup(second)]
    try:
        modes = [os.fstat(fd).st_mode for fd in (first, second)]
        standby._place(copies, [second, first])
        assert [os.readlink(f"/proc/self/fd/{fd}") for fd in (first, second)] == before[::-1]
        assert [os.fstat(fd).st_mode for fd in (second, first)] == modes
        assert [os.get_inheritable(fd) for fd in (first, second)] == flags
        os.write(first, b"x")  # it was the end to read from
        assert os.read(second, 1) == b"x"
    finally:
        os.close(first)
        os.close(second)


def test_one_that_has_died_is_no_help(tmp_path: Path) -> None:
    standby.prepare("program")
    (waiting,) = standby._waiting
    waiting.child.kill()
    waiting.child.wait()
    assert ordered(tmp_path / "out") is None
    assert not standby._waiting


def test_one_for_another_command_is_not_taken(tmp_path: Path) -> None:
    standby.prepare("program")
    assert standby.ordered([*standby.command_of("what")], []) is None
    (waiting,) = standby._waiting
    standby.dismiss()
    assert waiting.child.returncode == -9


def test_without_an_order_it_ends_with_who_began_it() -> None:
    text = "from pagein import standby; standby.prepare('program', bound=False)\n"
    text += "print(standby._waiting[0].child.pid)"
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=True
    )
    pid = int(done.stdout)
    wait_for(lambda: _gone(pid))


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_what_the_forks_share_is_of_the_standard_library() -> None:
    text = "import sys, pagein.keeper.common\n"
    text += "print(*(n for n in sys.modules if n.partition('.')[0] not in sys.stdlib_module_names))"
    done = subprocess.run(
        [sys.executable, "-I", "-c", text], capture_output=True, text=True, timeout=60, check=True
    )
    ours = {name for name in done.stdout.split() if name.startswith("pagein")}
    assert ours == {"pagein", "pagein.keeper", "pagein.keeper.common"}
    assert {"aiohttp", "msgspec"}.isdisjoint(done.stdout.split())


# ---- the command line ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("run image", early.DEFAULT_STATE_DIR),
        ("mount source dir", early.DEFAULT_STATE_DIR),
        ("--cache c --state-dir /s run image -- x", "/s"),
        ("run --state-dir /s image", "/s"),
        ("mount --state-dir=/s source dir", "/s"),
        ("--state-dir /a run --state-dir /b image", "/b"),
        ("run image -- prog --state-dir /s -h", early.DEFAULT_STATE_DIR),
        ("mount --front-end kernel source dir", None),
        ("mount -t erofs -o fsid=x none dir", None),
        ("run --help", None),
        ("run", None),
        ("umount dir", None),
        ("", None),
    ],
)
def test_which_commands_begin_a_keeper(line: str, found: str | None) -> None:
    assert early.wanted_in(line.split()) == found


@pytest.fixture
def place(public_tmp: Path) -> Iterator[Pagein]:
    with pagein_in(public_tmp) as mine:
        yield mine


@pytest.mark.root
def test_a_start_is_two_interpreters_and_their_forks(place: Pagein, public_tmp: Path) -> None:
    """The user half has an address space of its own; what is root shares one layout."""
    tree = public_tmp / "tree"
    tree.mkdir()
    place.mount(str(mkfs(public_tmp / "image", tree)))
    stacks = {}
    for pid, line in place.processes().items():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        stacks[line.split()[3]] = int(fields[25])  # startstack of proc(5)
        helpers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if "pagein.kernelhalf" in line:
            (helper,) = helpers
            fields = Path(f"/proc/{helper}/stat").read_text().rpartition(")")[2].split()
            stacks["helper"] = int(fields[25])
    assert stacks["pagein.keeper"] == stacks["pagein.kernelhalf"] == stacks["helper"] != 0
    assert stacks["pagein.daemon"] != stacks["pagein.keeper"]
    place.umount()
    assert not place.leftovers()


@pytest.mark.root
def test_a_command_that_fails_leaves_none(place: Pagein) -> None:
    mark = f"PAGEIN_STANDBY_TEST={os.urandom(8).hex()}"
    name, _, value = mark.partition("=")
    argv = place.argv("mount", "--no-such-option", "source", "directory")
    done = subprocess.run(
        argv, capture_output=True, timeout=60, check=False, env={**os.environ, name: value}
    )
    assert done.returncode == 2
    wait_for(lambda: not _marked(mark.encode()))
    assert not place.state.exists()


def _marked(mark: bytes) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(entry.name)
    return found
