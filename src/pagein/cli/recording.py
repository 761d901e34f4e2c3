"""Recording for `pagein trace record`: the kernel half notes reads, the user half names files."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

from pagein.cli.halves import Ask, kept_running, kernel_half, running, user_half, wait_stopped
from pagein.cli.settings import Settings, default_user
from pagein.cli.units import human
from pagein.control import ControlError
from pagein.images.catalogue import Catalogue
from pagein.images.traces.document import Trace
from pagein.images.traces.record import FileTouch, made_of

_MOST = 2048  # touches of one question: less than `control.MAX_LINE`
_PAUSE = 0.5
_TIMEOUT = 60.0
_MOUNTS = 30.0  # `pagein run`'s own default


def record_mount(settings: Settings, target: str, seconds: float | None) -> Trace:
    """Record what is read of the mount on `target` until a signal, or for `seconds`."""
    if not running(settings):
        raise ControlError(errno.EINVAL, f"{target} is not mounted by pagein")

    def ask(question: dict[str, Any], timeout: float) -> dict[str, Any]:
        return kernel_half(settings, question, timeout=timeout)

    name = _name_of(ask, target)
    recorder = _Recorder(settings, ask, target)
    print(f"pagein: recording {name}; Ctrl-C ends it", file=sys.stderr)
    with _signals() as told:
        recorder.until(lambda: bool(told), seconds)
    return recorder.trace(name)


def record_run(arguments: Sequence[str], seconds: float | None) -> tuple[int, Trace]:
    """Record a `pagein run` with these arguments, in a cache of its own; its exit status."""
    with tempfile.TemporaryDirectory(prefix="pagein-trace-", dir="/var/tmp") as directory:
        os.chmod(directory, 0o711)  # the user half passes through it
        settings = Settings(os.path.join(directory, "state"), os.path.join(directory, "cache"))
        try:
            with kept_running(settings, _MOUNTS, default_user()) as ask:
                recorder = _Recorder(settings, ask, None)
                status = _run(settings, recorder, arguments, seconds)
                known = Catalogue(os.path.join(settings.cache, "images")).images()
                recorded = recorder.trace(known[0].name if known else "")
                with contextlib.suppress(ControlError):
                    ask({"op": "leave"}, 5.0)
        finally:
            wait_stopped(settings)
    return status, recorded


def save(trace: Trace, path: str) -> None:
    """Write a trace to a file, whole or not at all; OSError when there is nothing in it."""
    if not trace.touches:
        raise OSError(errno.ENODATA, "nothing was read, so there is no trace")
    partial = f"{path}.{os.getpid()}.new"
    try:
        with open(partial, "xb") as file:
            file.write(trace.dump())
        os.rename(partial, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
        raise
    size = sum(touch.length for touch in trace.touches)
    files = len({(touch.layer, touch.path) for touch in trace.touches})
    print(f"pagein: {human(size)} of {files} files: {path}", file=sys.stderr)


class _Recorder:
    """One recording of a kernel half, and what was taken of it so far."""

    def __init__(self, settings: Settings, ask: Ask, target: str | None) -> None:
        self._settings = settings
        self._ask = ask
        self._touches: list[FileTouch] = []
        self._unknown = self._lost = 0
        self._number = ask({"op": "record", "target": target}, _TIMEOUT)["recording"]

    def until(self, over: Callable[[], bool], seconds: float | None) -> None:
        """Record until `over` says so, or for `seconds`."""
        end = None if seconds is None else time.monotonic() + seconds
        while not over() and (end is None or time.monotonic() < end):
            self._take(last=False)
            time.sleep(_PAUSE if end is None else min(_PAUSE, max(0.0, end - time.monotonic())))

    def trace(self, image: str) -> Trace:
        """End it: the trace of all that was recorded. OSError when it is not all."""
        while self._take(last=True):
            pass
        if self._lost:
            print(f"pagein: {self._lost} reads too many were not recorded", file=sys.stderr)
        if self._unknown and not self._touches:
            text = "no layers of a container image: only of those traces are recorded"
            raise OSError(errno.EOPNOTSUPP, text)
        return made_of(image, self._touches)

    def _take(self, *, last: bool) -> bool:
        """Bring what is there; whether there is more."""
        question = {"op": "touches", "recording": self._number, "most": _MOST, "last": last}
        taken = self._ask(question, _TIMEOUT)
        self._lost = taken["lost"]
        if taken["touches"]:
            question = {"op": "translate", "touches": taken["touches"]}
            named = user_half(self._settings, question, timeout=_TIMEOUT)
            self._touches += [tuple(each) for each in named["touches"]]
            self._unknown += named["unknown"]
        return bool(taken["more"])


def _run(
    settings: Settings, recorder: _Recorder, arguments: Sequence[str], seconds: float | None
) -> int:
    """`pagein run` as a child that has our streams and gets our signals; its exit status."""
    command = [sys.executable, "-P", "-m", "pagein.cli.main"]
    command += ["--state-dir", settings.state_dir, "--cache", settings.cache, "run", *arguments]
    with _signals() as told, subprocess.Popen(command) as child:

        def over() -> bool:
            # Ctrl-C reaches it by itself: it is of our process group.
            if signal.SIGTERM in told:
                told.clear()
                child.terminate()
            return child.poll() is not None

        try:
            recorder.until(over, seconds)
        finally:
            if child.poll() is None:
                child.terminate()
            status = child.wait()
    return status if status >= 0 else 128 - status


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """SIGINT and SIGTERM are noted in the list, and do nothing else, until the end of the block."""
    told: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        told.append(number)

    before = {each: signal.signal(each, note) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _name_of(ask: Ask, target: str) -> str:
    """What is mounted there. Raises ControlError."""
    for mount in ask({"op": "status"}, _TIMEOUT)["mounts"]:
        if mount["target"] == target:
            return str(mount["sources"][0])
    raise ControlError(errno.EINVAL, f"{target} is not mounted by pagein")
