"""The rules in conftest.py hold: each is broken once, in a small suite of its own."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

SPAWN = "import subprocess, sys\nsleep = [sys.executable, '-c', 'import time; time.sleep(250)']\n"


def run_suite(directory: Path, source: str, **environment: str) -> tuple[int, str]:
    """Exit code and output of a run of one test file beside a copy of our conftest.py."""
    directory.mkdir(exist_ok=True)
    conftest, found = re.subn(r"(?m)^GRACE = .*", "GRACE = 0.3", (HERE / "conftest.py").read_text())
    assert found == 1
    (directory / "conftest.py").write_text(conftest)
    (directory / "pytest.ini").write_text("[pytest]\nmarkers =\n root: x\nfilterwarnings = error\n")
    (directory / "test_it.py").write_text(source)
    kept = {key: value for key, value in os.environ.items() if key not in {"CI", "PAGEIN_TEST_RUN"}}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "--basetemp"]
    done = subprocess.run(
        [*command, str(directory / "tmp"), str(directory)],
        cwd=directory,
        env=kept | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
    )
    return done.returncode, done.stdout


def test_a_clean_suite_passes(tmp_path: Path) -> None:
    source = "def test(tmp_path, public_tmp):\n    (public_tmp / 'a').write_text('')\n"
    run = f"rules-{os.urandom(4).hex()}"
    code, output = run_suite(tmp_path, source, PAGEIN_TEST_RUN=run)
    assert code == 0, output
    assert not Path(f"/var/tmp/pagein-test-{run}").exists()


@pytest.mark.parametrize(
    ("body", "named"),
    [
        pytest.param("import os\ndef test(): os.open('/dev/zero', 0)", "/dev/zero)", id="fd"),
        pytest.param(
            SPAWN + "def test(): sys.leak = subprocess.Popen(sleep)",
            "time.sleep(250)",
            id="child",
        ),
        pytest.param(
            SPAWN + "def test(): subprocess.run(['sh', '-c', '\"$@\" &', 'sh', *sleep])",
            "time.sleep(250)",
            id="orphan",
        ),
    ],
)
def test_what_is_left_fails_the_run(tmp_path: Path, body: str, named: str) -> None:
    run = f"rules-{os.urandom(4).hex()}"
    try:
        code, output = run_suite(tmp_path, body, PAGEIN_TEST_RUN=run)
    finally:
        end_processes_of(run)
    assert code == 1, output
    assert "the suite left behind" in output
    assert named in output
    assert "1 passed, 1 error" in output


def end_processes_of(run: str) -> None:
    for proc in Path("/proc").glob("[0-9]*"):
        try:
            if f"PAGEIN_TEST_RUN={run}".encode() in (proc / "environ").read_bytes().split(b"\0"):
                os.kill(int(proc.name), 9)
        except OSError:  # gone, or another user's
            continue


@pytest.mark.root
def test_a_mount_that_is_left_fails_the_run(tmp_path: Path) -> None:
    source = (
        "import subprocess\n"
        "def test(tmp_path):\n"
        "    subprocess.run(['mount', '-t', 'tmpfs', 'x', str(tmp_path)], check=True)\n"
    )
    try:
        code, output = run_suite(tmp_path, source)
    finally:
        left = tmp_path / "tmp" / "test0"
        subprocess.run(["umount", str(left)], check=True)
    assert code == 1, output
    assert f"mount {left} (tmpfs x" in output


@pytest.mark.root
def test_a_directory_with_a_mount_below_is_not_removed(tmp_path: Path) -> None:
    source = (
        "import subprocess\n"
        "def test(public_tmp):\n"
        "    subprocess.run(['mount', '-t', 'tmpfs', 'x', str(public_tmp)], check=True)\n"
        "    (public_tmp / 'data').write_text('')\n"
    )
    run = f"rules-{os.urandom(4).hex()}"
    public = Path(f"/var/tmp/pagein-test-{run}")
    try:
        code, output = run_suite(tmp_path, source, PAGEIN_TEST_RUN=run)
        (directory,) = public.iterdir()
        assert (directory / "data").exists()
    finally:
        for mounted in public.glob("*"):
            subprocess.run(["umount", str(mounted)], check=True)
        shutil.rmtree(public)
    assert code == 1, output
    assert "still mounted" in output


@pytest.mark.parametrize(
    ("source", "words"),
    [
        pytest.param(
            "import pytest\n@pytest.mark.root\ndef test(): pytest.skip('no kernel')",
            "a test marked `root` was skipped under CI=true",
            id="in the test",
        ),
        pytest.param(
            "import pytest\n"
            "@pytest.mark.root\n"
            "@pytest.mark.skipif(True, reason='no kernel')\n"
            "def test(): pass",
            "a test marked `root` was skipped under CI=true",
            id="by mark",
        ),
        pytest.param(
            "import pytest\npytest.skip('no kernel', allow_module_level=True)",
            "a whole module was skipped",
            id="a whole module",
        ),
        pytest.param(
            "import pytest\ndef test(): pytest.skip('needs pigz')",
            "under CI=true: needs pigz",
            id="a missing program",
        ),
        pytest.param(
            "import pytest\n@pytest.mark.skipif(True, reason='needs pigz')\ndef test(): pass",
            "under CI=true: needs pigz",
            id="a missing program, by mark",
        ),
    ],
)
def test_a_skip_that_hides_something_fails_under_ci_only(
    tmp_path: Path, source: str, words: str
) -> None:
    code, output = run_suite(tmp_path, source, CI="true")
    assert code not in {0, 5}, output
    assert words in output
    code, output = run_suite(tmp_path, source)
    assert code in {0, 5}, output
    assert "1 skipped" in output


def test_other_skips_and_expected_failures_pass_under_ci(tmp_path: Path) -> None:
    source = (
        "import pytest\n"
        "def test_skipped(): pytest.skip('optional')\n"
        "@pytest.mark.root\n@pytest.mark.xfail(run=False)\ndef test_expected(): pass\n"
    )
    code, output = run_suite(tmp_path, source, CI="true")
    assert code == 0, output
