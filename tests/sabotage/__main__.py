"""Plant each bug in a copy of the checkout and see which test notices it.

    python -m tests.sabotage [NAME ...]

Ends with 0 when every bug was caught. The tests that run are those of the two halves and the
scenarios; the whole suite has more.
"""

import concurrent.futures
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tests.sabotage.bugs import BUGS, CHECKOUT, Bug

TESTS = (
    "tests/scenarios",
    "tests/protocol",
    "tests/cachefiles",
    "tests/culler",
    "tests/test_netfs.py",
    "tests/daemon",
    "tests/test_fscache.py",
    "tests/test_fscache_reads.py",
    "tests/test_fscache_model.py",
    "tests/machine",
    "tests/test_rangeset.py",
)
LIMIT = 900.0
"""Seconds for one bug. One that makes the tests hang has been noticed, but not by a test."""
ENDING = 40.0
"""Seconds for the runs to clean up when this is interrupted."""
_COPIED = ("src", "tests", "examples", "docs", "pyproject.toml", "ARCHITECTURE.md", "README.md")


class _Runs:
    """The runs of pytest under way. Each has a session of its own, so no Ctrl-C reaches them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: set[subprocess.Popen[str]] = set()
        self._over = False

    def add(self, run: subprocess.Popen[str]) -> None:
        """One more; interrupted at once if all were ended already."""
        with self._lock:
            self._runs.add(run)
            if self._over:
                _signal(run, signal.SIGINT)

    def discard(self, run: subprocess.Popen[str]) -> None:
        """It has been waited for."""
        with self._lock:
            self._runs.discard(run)

    def end(self) -> None:
        """Have each clean up after itself, as pytest does when it is interrupted."""
        with self._lock:
            self._over = True
            for run in self._runs:
                _signal(run, signal.SIGINT)
            left = list(self._runs)
        give_up = time.monotonic() + ENDING
        while any(run.poll() is None for run in left) and time.monotonic() < give_up:
            time.sleep(0.1)
        for run in left:
            if run.poll() is None:
                _signal(run, signal.SIGKILL)


_runs = _Runs()


def _signal(run: subprocess.Popen[str], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(run.pid, number)


def main(names: list[str]) -> int:
    """Try the bugs of these names, or all; the exit status."""
    known = {bug.name: bug for bug in BUGS}
    if unknown := [name for name in names if name not in known]:
        print(f"no such bug: {', '.join(unknown)}; there are: {', '.join(known)}", file=sys.stderr)
        return 2
    chosen = [known[name] for name in names] or list(BUGS)
    started, missed = time.monotonic(), 0
    try:
        sound = _verdict(None)
    except BaseException:
        _runs.end()
        raise
    if sound is not None:
        print(f"the tests fail without any bug: {sound}", file=sys.stderr)
        return 1
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        try:
            for bug, caught in zip(chosen, pool.map(_verdict, chosen), strict=True):
                missed += caught is None
                print(f"{bug.name:36} {caught or 'NOT NOTICED'}", flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            _runs.end()
            raise
    caught_all = len(chosen) - missed
    print(f"{caught_all} of {len(chosen)} caught in {time.monotonic() - started:.0f} s")
    return 1 if missed else 0


def _verdict(bug: Bug | None) -> str | None:
    """The test that fails with `bug` in the source, or None. Raises RuntimeError for a hang."""
    with tempfile.TemporaryDirectory(prefix="pagein-sabotage-", dir="/var/tmp") as name:
        top = Path(name)
        top.chmod(0o755)  # the user half runs as nobody
        for each in _COPIED:
            source = CHECKOUT / each
            if source.is_dir():
                shutil.copytree(source, top / each, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, top / each)
        if bug is not None:
            bug.plant(top)
        return next(_failed(top), None)


def _failed(top: Path) -> Iterator[str]:
    """Run the tests of the copy until one fails; what failed."""
    argv = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "--tb=no"]
    argv += ["-p", "no:cacheprovider", "-o", "timeout=120", *TESTS]
    env = os.environ | {"PYTHONPATH": f"{top}/src", "PYTHONDONTWRITEBYTECODE": "1"}
    env |= {"PAGEIN_TEST_RUN": os.urandom(16).hex()}
    env.pop("CI", None)
    where = "import pagein; print(pagein.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", where], env=env, cwd=top, capture_output=True, text=True, check=True
    ).stdout
    if not found.startswith(str(top)):
        raise RuntimeError(f"the tests would not run the copy, but {found}")
    with subprocess.Popen(
        argv,
        env=env,
        cwd=top,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as run:
        _runs.add(run)
        try:
            said, _ = run.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            _signal(run, signal.SIGKILL)
            raise RuntimeError(f"the tests hang:\n{run.communicate()[0][-2000:]}") from None
        _runs.discard(run)
    if run.returncode:
        named = re.search(r"^(?:FAILED|ERROR) (\S+)", said, re.MULTILINE)
        if named is None:
            raise RuntimeError(f"pytest failed by itself:\n{said[-2000:]}")
        yield named[1]


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
