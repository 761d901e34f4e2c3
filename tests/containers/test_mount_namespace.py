"""A container is not started where nobody sees its mounts. With real namespaces: realkernel."""

import re
import subprocess

import pytest
from tests.containers.conftest import Runner
from tests.containers.test_run import line
from tests.e2e.harness import DEADLINE

pytestmark = pytest.mark.root

ELSEWHERE = """
import os, sys
real = os.readlink
os.readlink = lambda path, **more: (
    "mnt:[1]" if path == "/proc/self/ns/mnt" else real(path, **more)
)
from pagein.cli.main import main
sys.argv[0] = "pagein"
main()
"""


def test_a_container_from_another_mount_namespace(runner: Runner) -> None:
    """A namespace that is copied would keep what other tests mount: this one only says so."""
    first = runner.start("sh", "-c", "echo ready; cat")
    assert line(first) == "ready"
    argv = runner.pagein.argv("run", runner.image(), "--", "true")
    command = [argv[0], "-c", ELSEWHERE, *argv[argv.index("pagein.cli.main") + 1 :]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 125
    assert re.fullmatch(
        r"pagein: pagein \(process \d+\) runs in another mount namespace, and would mount"
        r" there; start the command with `nsenter -m -t \d+`\n",
        done.stderr,
    ), done.stderr
    assert first.communicate("still here\n", timeout=DEADLINE)[0] == "still here\n"
    assert not runner.leftovers()
