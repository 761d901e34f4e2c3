"""What every test has: the rules of the suite, and the proof that it leaves nothing behind.

* `root` marks a test that mounts. Where that is impossible it skips; under CI=true a skip of it
  fails, and so does that of a whole module, or of what "needs" something: there a skip would hide
  a missing part.
* When the last test is done, no mount, loop device, process or fd may be left that was not there
  before the first (`nothing_left_behind`).
* `public_tmp` is for what the user half, which runs as nobody, has to read.

Two runs on one machine do not see each other: each has an id, and what names the directory of
another run is not ours.
"""

import os
import re
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from multiprocessing import resource_tracker
from pathlib import Path

import hypothesis
import pytest

RUN_VARIABLE = "PAGEIN_TEST_RUN"
# Processes of pytest-xdist are runs of their own.
RUN_ID = os.environ.get(RUN_VARIABLE, os.urandom(16).hex()) + os.environ.pop(
    "PYTEST_XDIST_WORKER", ""
)
os.environ[RUN_VARIABLE] = RUN_ID
PUBLIC_DIR = Path("/var/tmp") / f"pagein-test-{RUN_ID}"
CI = os.environ.get("CI") == "true"
GRACE = 30.0
"""Seconds that the kernel and dying processes have to finish after the last test."""

CAP_SYS_ADMIN = 21

hypothesis.settings.register_profile(
    "pagein",
    # A shared machine stalls for longer than any limit per example: the suite asserts no times.
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize=CI,
    database=None,
    print_blob=True,
)
hypothesis.settings.load_profile("pagein")


# ---- tests that need root -----------------------------------------------------------------------


def why_not_root() -> str | None:
    """What a test marked `root` is missing here, or None."""
    status = Path("/proc/self/status").read_text()
    effective = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    if os.geteuid() != 0 or effective is None or not int(effective[1], 16) >> CAP_SYS_ADMIN & 1:
        return "needs root with CAP_SYS_ADMIN"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"needs /dev/fuse: {error.strerror}"
    if "\terofs\n" not in Path("/proc/filesystems").read_text():
        # Not loaded is fine, mount(2) does that.
        modules = Path("/lib/modules", os.uname().release)
        if not any(modules.glob("kernel/fs/erofs/erofs.ko*")):
            return "needs EROFS in the kernel"
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("realkernel") and not os.path.exists("/dev/cachefiles"):
        pytest.skip("needs a kernel with /dev/cachefiles: scripts/test --real-kernel")
    if item.get_closest_marker("root") and (reason := why_not_root()):
        pytest.skip(reason)


def _skip_reason(longrepr: object) -> str:
    return str(longrepr[2]) if isinstance(longrepr, tuple) else str(longrepr)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if not (CI and report.skipped) or hasattr(report, "wasxfail"):
        return report
    reason = _skip_reason(report.longrepr).removeprefix("Skipped: ")
    marks = [mark for mark in ("root", "realkernel") if item.get_closest_marker(mark)]
    if marks or reason.startswith("needs "):
        marked = "".join(f" marked `{mark}`" for mark in marks)
        report.outcome = "failed"
        report.longrepr = f"a test{marked} was skipped under CI=true: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if CI and report.skipped:
        reason = _skip_reason(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"a whole module was skipped under CI=true: {reason}"
    return report


# ---- nothing is left behind ---------------------------------------------------------------------


def _mounts() -> Iterator[tuple[object, str]]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        # Mount ids are used again; options may change during a mount's life.
        yield (fields[0], fields[4]), f"mount {fields[4]} ({line.partition(' - ')[2]})"


def _loop_devices() -> Iterator[tuple[object, str]]:
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            file = path.read_text().rstrip("\n")
        except OSError:  # detached just now
            continue
        yield (path, file), f"loop device /dev/{path.parts[3]} ({file})"


def _processes() -> Iterator[tuple[object, str]]:
    """Every living process of this run: marked, or forked by us without exec."""
    mark = f"{RUN_VARIABLE}={RUN_ID}".encode()
    for proc in Path("/proc").glob("[0-9]*"):
        try:
            stat = (proc / "stat").read_text().rpartition(")")[2].split()
            command = (proc / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            ours = int(stat[1]) == os.getpid()
            if not ours and mark not in (proc / "environ").read_bytes().split(b"\0"):
                continue
        except OSError:  # gone, or another user's
            continue
        zombie = ", not reaped" if stat[0] == "Z" else ""
        if "multiprocessing.resource_tracker" not in command:  # lives as long as its interpreter
            yield int(proc.name), f"process {proc.name} ({command.strip()}{zombie})"


def _fds() -> Iterator[tuple[object, str]]:
    tracker = getattr(resource_tracker, "_resource_tracker", None)  # its pipe, kept for ever
    kept = str(getattr(tracker, "_fd", None))
    # After -x or Ctrl-C the end comes with the output uncaptured, so 0 to 2 are other files then.
    for fd in set(os.listdir("/proc/self/fd")) - {"0", "1", "2", kept}:
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:  # the one that listed the directory
            continue
        yield (fd, target), f"fd {fd} ({target})"


SOURCES: tuple[Callable[[], Iterator[tuple[object, str]]], ...] = (
    _mounts,
    _loop_devices,
    _processes,
    _fds,
)


# Directories of runs: of this suite, of any pytest, of scripts/bare-machine, of benchmarks.
A_RUN = re.compile(r"/pagein-test-|/pytest-of-[^/]+/|/pagein-bare\.|/pagein-bench-")


class Inventory:
    """What the machine holds now that a test could leave behind."""

    def __init__(self, temporary: Path) -> None:
        self._own = re.compile(rf"/pagein-test-{re.escape(RUN_ID)}\b|{re.escape(str(temporary))}/")
        self._before = self._take()

    @staticmethod
    def _take() -> dict[object, str]:
        ignored = {os.getpid(), os.getppid()}
        return {key: text for of in SOURCES for key, text in of() if key not in ignored}

    def added(self) -> list[str]:
        """One line for each thing that is new since the start and not another run's."""
        new = [text for key, text in self._take().items() if key not in self._before]
        return sorted(text for text in new if self._own.search(text) or not A_RUN.search(text))

    def added_after(self, grace: float) -> list[str]:
        """As `added`, but what goes away by itself within `grace` seconds does not count."""
        deadline = time.monotonic() + grace
        while (left := self.added()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inventory]:
    """Fails the run if the suite leaves a mount, loop device, process or fd.

    Being the first fixture of the session it is the last to be torn down.
    """
    inventory = Inventory(tmp_path_factory.getbasetemp())
    yield inventory
    if left := inventory.added_after(GRACE):
        pytest.fail("the suite left behind:\n  " + "\n  ".join(left), pytrace=False)


# ---- directories --------------------------------------------------------------------------------


def _mounted_below(directory: Path) -> list[str]:
    below = f"{directory}/"
    points = (line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return [point for point in points if f"{point}/".startswith(below)]


@pytest.fixture
def public_tmp(request: pytest.FixtureRequest) -> Iterator[Path]:
    """An empty directory, mode 0755 up to the root and on a disk, that every user can read."""
    name = re.sub(r"\W+", "_", request.node.name)[:40]
    PUBLIC_DIR.mkdir(exist_ok=True)
    PUBLIC_DIR.chmod(0o755)
    directory = PUBLIC_DIR / f"{name}-{os.urandom(4).hex()}"
    directory.mkdir()
    directory.chmod(0o755)
    yield directory
    if mounted := _mounted_below(directory):
        # Never remove through a mount: what is below is somebody's data.
        pytest.fail(f"still mounted: {', '.join(mounted)}", pytrace=False)
    shutil.rmtree(directory)
    if not any(PUBLIC_DIR.iterdir()):
        PUBLIC_DIR.rmdir()
