"""The processes of an exec-daemon: who starts whom, and who tidies up after whom.

    front        the command itself: forwards signals, passes the exit code on
      supervisor answers the daemon's notified calls
        keeper   and the kernel half
        COMMAND  and all that it starts

Either of the first two may be killed at any moment: the other one then kills what is left of the
COMMAND (both adopt orphans, so that none gets away), takes the mounts away and ends the kernel
half. When the last process of the COMMAND has ended by itself, so does the kernel half.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from pagein.control import message_of
from pagein.execdaemon import seccomp, tree
from pagein.execdaemon.fsid import FsidMount
from pagein.execdaemon.kernelhalf import KernelHalf
from pagein.execdaemon.supervisor import Supervisor

FORWARDED: Final = frozenset(
    {
        signal.SIGTERM,
        signal.SIGINT,
        signal.SIGHUP,
        signal.SIGQUIT,
        signal.SIGUSR1,
        signal.SIGUSR2,
    }
)
_WATCHED = FORWARDED | {signal.SIGCHLD}
FAILED: Final = 125
"""Exit code when it is pagein that failed; 126 and 127 are of a COMMAND that does not start."""
_NOT_EXECUTABLE, _NOT_FOUND = 126, 127
_SIGNALLED = 128
_WINDOW = 16
"""Numbers that fds of the device may have in one process of the COMMAND."""
_SELECT_MAX = 1024
"""Fds from here on cannot be given to select(2)."""
_KILL_TIMEOUT = 10.0


@dataclass(frozen=True)
class Job:
    """What was asked for."""

    command: Sequence[str]
    keeper: Sequence[str]
    """Command line of the keeper."""
    state_dir: str
    mounts: Sequence[tuple[FsidMount, str]]
    """To be made when the daemon has bound its cache; directories without symbolic links."""
    timeout: float
    every_read: bool


def run(job: Job) -> int:
    """Do the job; the exit code for the shell."""
    seccomp.this_machine()
    tree.adopt_orphans()
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    front = os.getpid()
    supervisor = _fork(lambda: _Supervising(job, front).run())
    while True:
        ended = _wait(lambda number: _tell([supervisor], number))
        if supervisor in ended:
            break
    code = ended[supervisor]
    if code >= 0:
        return code
    text = f"the supervisor was killed (signal {-code}); so is what it supervised"
    print(f"pagein: {text}", file=sys.stderr)
    keeper = _keepers(tree.descendants(), job)
    tree.end(keeper, _KILL_TIMEOUT)
    KernelHalf(job.state_dir, job.timeout).end(keeper)
    return FAILED


def _keepers(pids: Sequence[int], job: Job) -> list[int]:
    """Those of `pids` that run the job's keeper or a half of it."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
            if [os.fsdecode(word) for word in words[: len(job.keeper)]] == list(job.keeper):
                found.append(pid)
    return found


def _fork(work: Callable[[], int]) -> int:
    """Run `work` in a child, which ends with what it returns."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = FAILED
    try:
        code = work()
    except OSError as problem:
        print(f"pagein: {message_of(problem)}", file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        os._exit(code)  # nothing of the parent's is to be done twice


def _wait(forward: Callable[[int], None]) -> dict[int, int]:
    """Wait for children and return those that ended; meanwhile forward signals."""
    while True:
        got = signal.sigwaitinfo(_WATCHED)
        if got.si_signo == signal.SIGCHLD:
            return tree.reap()
        # Of the terminal's signals (si_code above 0) each of us gets one anyway.
        if got.si_code <= 0:
            forward(got.si_signo)


def _tell(pids: Sequence[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


class _Supervising:
    """The supervisor's process."""

    def __init__(self, job: Job, front: int) -> None:
        self._job = job
        self._front = front
        self._half = KernelHalf(job.state_dir, job.timeout)
        self._over = False
        """Nobody is under the filter any more."""
        self._failure = ""
        self._orphaned = False

    def run(self) -> int:
        """Run the command; its exit code for the shell."""
        tree.adopt_orphans()
        tree.follow_parent(signal.SIGTERM, self._front)
        keeper = self._half.start(self._job.keeper)
        try:
            return self._supervise(keeper)
        finally:
            tree.end((keeper,), _KILL_TIMEOUT)
            self._half.end([keeper])

    def _supervise(self, keeper: int) -> int:
        machine = seccomp.this_machine()
        window = seccomp.EVERY if self._job.every_read else _window()
        filter_ = seccomp.program(machine, window)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        command = _fork(lambda: self._exec(theirs, machine, filter_))
        theirs.close()
        with ours:
            _, fds, _, _ = socket.recv_fds(ours, 1, 1)
        code = None
        if fds:
            listener = seccomp.Listener(fds[0], machine)
            directory = self._half.device_directory
            answering = Supervisor(listener, directory, window, self._half.mount)
            self._begin(lambda: self._answer(answering))
            for options, target in self._job.mounts:
                self._begin(partial(self._half.mount, options.question(target)))
        while code is None or not (self._over or not fds):
            ended = _wait(lambda number: self._forward(command, keeper, number))
            code = ended.get(command, code)
            if keeper in ended:
                raise self._half.ended()
            if self._failure:
                raise OSError(0, self._failure)
            if self._orphaned:
                return FAILED
        self._half.check()  # else that is why the command ended
        return code if code >= 0 else _SIGNALLED - code

    def _answer(self, supervisor: Supervisor) -> None:
        supervisor.run()
        self._over = True

    def _begin(self, work: Callable[[], None]) -> None:
        """Do `work` in a thread; the main one hears of its end."""

        def do() -> None:
            try:
                work()
            except Exception as problem:
                self._failure = message_of(problem)
            os.kill(os.getpid(), signal.SIGCHLD)

        threading.Thread(target=do, daemon=True).start()

    def _forward(self, command: int, keeper: int, number: int) -> None:
        if os.getppid() != self._front:
            self._orphaned = True
            os.kill(os.getpid(), signal.SIGCHLD)
            return
        left = tree.descendants((keeper,))
        # A daemon that went to the background is what is left.
        _tell([command] if command in left else left, number)

    def _exec(
        self,
        sock: socket.socket,
        machine: seccomp.Architecture,
        filter_: Sequence[seccomp.Instruction],
    ) -> int:
        """In a child: become the command, under the filter."""
        command = list(self._job.command)
        tree.follow_parent(signal.SIGKILL, os.getppid())
        # mount(8) of util-linux 2.39 and newer would use fsopen, whose options come one by one.
        environment = {**os.environ, "LIBMOUNT_FORCE_MOUNT2": "always"}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        listener = seccomp.install(machine, filter_)
        socket.send_fds(sock, [b"f"], [listener])
        try:
            os.execvpe(command[0], command, environment)
        except OSError as problem:
            print(f"pagein: {command[0]}: {problem.strerror}", file=sys.stderr)
            missing = isinstance(problem, FileNotFoundError)
            return _NOT_FOUND if missing else _NOT_EXECUTABLE


def _window() -> range:
    """The last numbers that the command's limit allows, and select(2)."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    top = _SELECT_MAX if soft == resource.RLIM_INFINITY else min(soft, _SELECT_MAX)
    return range(max(top - _WINDOW, 0), top)
