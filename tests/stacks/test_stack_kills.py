"""kill -9 of each part at every step in the life of a stack: made, or refused and undone."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.e2e.harness import wait_for
from tests.ending import killed
from tests.kills.test_kills import KERNEL_HALF, USER_HALF, kill, pid_of
from tests.stacks.conftest import Stacker, tree_of

from pagein.testing.webserver import WebServer, serve_in_thread

pytestmark = pytest.mark.root

MOUNT = """
import json, sys
from pagein.cli.halves import kept_running
from pagein.cli.settings import Settings
from pagein.cli.sources import blob_of
from pagein.cli.stacks import Layer, mount_stack
from pagein.control import ControlError
state, cache, target, *sources = sys.argv[1:]
settings = Settings(state, cache)
try:
    with kept_running(settings, 30, "nobody", "fuse") as ask:
        layers = [Layer(s.rpartition("/")[2], [blob_of(settings, s, timeout=200)]) for s in sources]
        mount_stack(ask, target, layers, label="", timeout=30)
except ControlError as problem:
    sys.exit(str(problem))
"""


def begin(stacker: Stacker, *sources: str) -> "subprocess.Popen[str]":
    """A command that mounts a stack, in a process of its own."""
    pagein = stacker.pagein
    places = [str(each) for each in (pagein.state, pagein.cache, pagein.target)]
    command = [sys.executable, "-c", MOUNT, *places, *sources]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def layers(stacker: Stacker, count: int = 3) -> list[Path]:
    return [stacker.files(f"{n}", **{f"f{n}": f"{n}"}) for n in range(count)]


def kill_keeper(stacker: Stacker) -> None:
    """Kill the keeper, and wait until both halves have gone with it."""
    assert kill(stacker.pagein, "pagein.keeper")
    wait_for(lambda: not stacker.pagein.processes())
    wait_for(lambda: not stacker.pagein.locked)


def test_a_kernel_half_after_another(stacker: Stacker) -> None:
    made, other = layers(stacker), stacker.pagein.dir("other")
    target = stacker.mount(*made)
    stacker.mount(*made[:2], target=other)
    before = stacker.layer_mounts()
    for _ in range(2):
        # What is read may come from memory, and then nobody has waited for the one that is to die.
        wait_for(lambda: kill(stacker.pagein, KERNEL_HALF))
        assert tree_of(target) == ["f0:0", "f1:1", "f2:2"]
    assert len(stacker.pagein.status()["mounts"]) == 2
    assert stacker.layer_mounts() == before
    stacker.pagein.umount()
    assert len(stacker.layer_mounts()) == 2
    stacker.pagein.umount(other)
    wait_for(lambda: not stacker.pagein.leftovers())


def test_unmounted_while_there_is_no_kernel_half(stacker: Stacker) -> None:
    target = stacker.mount(*layers(stacker))
    assert kill(stacker.pagein, KERNEL_HALF)
    subprocess.run(["umount", target], check=True)
    wait_for(lambda: not stacker.layer_mounts())
    wait_for(lambda: not stacker.pagein.leftovers())


def test_a_keeper_that_was_killed(stacker: Stacker) -> None:
    made, other = layers(stacker), stacker.pagein.dir("other")
    stacker.mount(*made)
    stacker.mount(*made[:2], target=other)
    kill_keeper(stacker)
    stacker.pagein.umount(other)
    assert len(stacker.layer_mounts()) == 3
    stacker.pagein.umount()
    assert not stacker.layer_mounts()
    subprocess.run(["umount", "-l", stacker.pagein.state / "dev"], check=True)
    subprocess.run(["umount", "-l", stacker.pagein.state / "blobs"], check=True)
    for path in stacker.pagein.state.glob("*.sock"):
        path.unlink()


def test_layers_of_a_killed_keeper_are_taken_away_by_the_next(stacker: Stacker) -> None:
    made = layers(stacker)
    target = stacker.mount(*made)
    kill_keeper(stacker)
    other = stacker.mount(*made[1:], target=stacker.pagein.dir("other"))
    assert tree_of(other) == ["f1:1", "f2:2"]
    assert len(stacker.layer_mounts()) == 2
    subprocess.run(["umount", "-l", target], check=True)
    stacker.pagein.umount(other)
    wait_for(lambda: not stacker.pagein.leftovers())


def rounds(stacker: Stacker, module: str, times: int) -> None:
    """Kill while a stack is mounted, each time at another moment."""
    made, draw, pagein = layers(stacker), random.Random(module), stacker.pagein
    with serve_in_thread(WebServer({f"/{path.name}": path for path in made})) as web:
        urls = [web.url(f"/{path.name}") for path in made]
        for _ in range(times):
            process = begin(stacker, *urls)
            with killed(process):
                wait_for(lambda: pid_of(pagein, module) is not None)
                time.sleep(draw.random() * 1.0)
                kill(pagein, module)
                _, errors = process.communicate(timeout=120)
            if process.returncode == 0:
                assert tree_of(pagein.target) == ["f0:0", "f1:1", "f2:2"]
                pagein.umount()
            else:
                assert errors.count("\n") == 1, errors
            wait_for(lambda: not stacker.layer_mounts())
            wait_for(lambda: not pagein.leftovers())


@pytest.mark.parametrize("module", [USER_HALF, KERNEL_HALF])
def test_killed_while_mounting(stacker: Stacker, module: str) -> None:
    rounds(stacker, module, 4)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("module", [USER_HALF, KERNEL_HALF])
def test_killed_while_mounting_often(stacker: Stacker, module: str) -> None:
    rounds(stacker, module, 60)
