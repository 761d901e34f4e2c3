"""Programs that write much, leave daemons behind, or are killed by the kernel."""

import signal
from pathlib import Path

import pytest
from tests.containers.conftest import Runner
from tests.containers.test_run import finish, first_with, line, mark, processes_with

pytestmark = pytest.mark.root

GIB = 1 << 30


@pytest.mark.long
def test_a_gigabyte(runner: Runner) -> None:
    script = "dd if=/dev/zero of=/srv/x bs=1M count=1024 && wc -c </srv/x; exit 6"
    done = runner("sh", "-c", script)
    assert (done.returncode, done.stdout) == (6, f"{GIB}\n"), done
    kept = sum(path.lstat().st_blocks * 512 for path in runner.pagein.cache.rglob("*"))
    assert kept < GIB // 8


def test_daemons_end_with_the_first_process(runner: Runner) -> None:
    """Also those that have left their session, and hold none of its streams."""
    detached = "/bin/busybox setsid sh -c 'sleep 600 & echo >/tmp/up; exec sleep 600'"
    script = f"{detached} </dev/null >/dev/null 2>&1 & until [ -e /tmp/up ]; do :; done; exit 8"
    done = runner("sh", "-c", script, options=("--env", mark("daemons")))
    assert done.returncode == 8
    assert not processes_with(mark("daemons"))


def test_a_child_that_is_killed_is_not_the_end(runner: Runner) -> None:
    script = "sh -c 'kill -9 $$'; echo $?; exit 9"
    done = runner("sh", "-c", script)
    assert (done.returncode, done.stdout) == (9, "137\n"), done


def limit_memory(pid: int, size: int) -> None:
    """No more than `size` bytes of memory for the cgroup of a process."""
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    for hierarchy, kinds, path in (entry.split(":", 2) for entry in lines):
        if "memory" in kinds.split(","):
            limit = Path(f"/sys/fs/cgroup/memory{path}/memory.limit_in_bytes")
        elif hierarchy == "0":
            limit = Path(f"/sys/fs/cgroup{path}/memory.max")
        else:
            continue
        if path != "/" and limit.exists():
            limit.write_text(str(size))
            return
    pytest.skip("the container has no cgroup of its own that counts memory")


@pytest.mark.long
def test_killed_for_want_of_memory(runner: Runner) -> None:
    script = "echo ready; read x; exec dd if=/dev/zero of=/dev/null bs=512M count=1"
    process = runner.start("sh", "-c", script, options=("--env", mark("oom")))
    assert line(process) == "ready"
    limit_memory(first_with(mark("oom")), 64 << 20)
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    assert finish(process)[0] == 128 + signal.SIGKILL
    assert not runner.leftovers()
