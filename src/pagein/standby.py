"""Processes begun before their command is known: they import, and wait for it.

An interpreter and what it imports take longer than all else of a start, and do not depend on the
command. So who will need a process has it begun first thing (`prepare`), with nothing of its own:
no file, no directory, no output. It waits on a socket for its command, and for the files that the
command names by their numbers (`ordered`); without one it ends with whoever began it. From then on
it is as if the command had been executed, also to look at in /proc.

This imports next to nothing, since nothing can be begun before it is imported. Linux only.
"""

from __future__ import annotations

import _socket
import gc
import os
import sys
from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import NoReturn

_FLAG = "--standby"
_LINE = 3
"""The number of the socket there."""
_ROOM = 2048
"""Bytes kept in the command line for that which it will show."""
_MAX_ORDER = 1 << 17
_MAX_FDS = 64
_FD = 4  # bytes of one in a message
_PR_SET_PDEATHSIG = 1
_SIGKILL, _SIGTERM = 9, 15


class Child:
    """A process that was begun here, as far as `subprocess.Popen` would show it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit status, -n for signal n; None while it lives."""
        return self._wait(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; its exit status, -n for signal n.

        Raises subprocess.TimeoutExpired after `timeout` seconds.
        """
        if timeout is not None and self.poll() is None:
            self._wait_shortly(timeout)
        status = self._wait(0)
        assert status is not None
        return status

    def _wait_shortly(self, timeout: float) -> None:
        import select
        from subprocess import TimeoutExpired

        fd = os.pidfd_open(self.pid)
        try:
            if not select.select([fd], [], [], timeout)[0]:
                raise TimeoutExpired(str(self.pid), timeout)
        finally:
            os.close(fd)

    def _wait(self, options: int) -> int | None:
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, options)
            except ChildProcessError:  # as Popen has it
                pid, status = self.pid, 0
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def kill(self) -> None:
        """SIGKILL; nothing if it has been waited for."""
        self._signal(_SIGKILL)

    def terminate(self) -> None:
        """SIGTERM; nothing if it has been waited for."""
        self._signal(_SIGTERM)

    def _signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class _Waiting:
    """A process of one module, and the socket that it waits on."""

    def __init__(self, module: str, line: _socket.socket, pid: int) -> None:
        self.command = command_of(module)
        self.child = Child(pid)
        self._line = line

    def order(self, command: Sequence[str], fds: Mapping[int, int]) -> None:
        """Give it its command line, and copies of `fds` by the numbers they get. Raises OSError."""
        numbers = " ".join(map(str, fds))
        data = b"\0".join(map(os.fsencode, [f"{os.getpid()} {numbers}", *command]))
        passed = b"".join(fd.to_bytes(_FD, sys.byteorder) for fd in fds.values())
        rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, passed)
        self._line.sendmsg([data], [rights], _socket.MSG_NOSIGNAL)
        self._line.close()

    def dismiss(self) -> None:
        """End it; it has nothing yet that would be left behind."""
        self._line.close()
        self.child.kill()
        self.child.wait()

    def move(self, above: int) -> None:
        """Have the socket under a number from `above` on."""
        self._line, line = _socket.socket(fileno=_moved(self._line.fileno(), above)), self._line
        line.close()

    def forget(self) -> None:
        """In a forked process: it is not its own."""
        self._line.close()


_waiting: list[_Waiting] = []


def command_of(module: str) -> list[str]:
    """The beginning of a command line; -P keeps the working directory off the module path."""
    return [sys.executable, "-P", "-m", module]


def prepare(module: str, *, bound: bool = True) -> None:
    """Begin a process that will run `module`; if that cannot be, it will be begun when needed.

    `bound`: it is killed when this one ends. It has a session of its own.
    """
    words = [*command_of(module), _FLAG, "bound" if bound else "free", "-" * _ROOM]
    ours, its = _line()
    null = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)]
    actions = [(os.POSIX_SPAWN_DUP2, its.fileno(), _LINE), *null]
    try:
        pid = os.posix_spawn(words[0], words, os.environ, file_actions=actions, setsid=True)
    except (OSError, NotImplementedError):
        ours.close()
    else:
        _waiting.append(_Waiting(module, ours, pid))
    finally:
        its.close()


def fork(module: str, *, bound: bool = True) -> bool:
    """Begin one that has everything imported that this process has; True in that process.

    There `run` is to follow; `bound` as of `prepare`. This process has to have one thread, and
    nothing open but what it got from here.
    """
    ours, its = _line()
    pid = os.fork()
    if pid:
        its.close()
        _waiting.append(_Waiting(module, ours, pid))
        return False
    ours.close()
    while _waiting:
        _waiting.pop().forget()
    os.setsid()
    os.dup2(its.fileno(), _LINE)
    if its.fileno() == _LINE:
        its.detach()
    else:
        its.close()
    sys.argv[1:] = [_FLAG, "bound" if bound else "free"]
    return True


def _line() -> tuple[_socket.socket, _socket.socket]:
    return _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)


def ordered(
    command: Sequence[str], fds: Sequence[int], *, output: int | None = None
) -> Child | None:
    """Have a process that waits run `command`, if one can; the process.

    It gets copies of `fds` under the same numbers, `output` for its output and errors, or ours.
    """
    for waiting in _waiting:
        if list(command[: len(waiting.command)]) != waiting.command:
            continue
        _waiting.remove(waiting)
        out = {1: 1, 2: 2} if output is None else {1: output, 2: output}
        try:
            waiting.order(command, {**out, **{fd: fd for fd in fds}})
        except OSError:  # it has ended
            waiting.dismiss()
            return None
        return waiting.child
    return None


def dismiss() -> None:
    """Have those end that wait still; nobody needs them."""
    while _waiting:
        _waiting.pop().dismiss()


# ---- in such a process --------------------------------------------------------------------------


def waits() -> bool:
    """Whether this process is one; then it has nothing open but its socket."""
    if sys.argv[1:2] != [_FLAG]:
        return False
    os.closerange(_LINE + 1, 1 << 20)  # of whoever ran our command
    os.chdir("/")
    return True


def run(module: str, *, waits: bool) -> NoReturn:
    """Import `module` and run its `main`, which has the exit status; if `waits`, with a command."""
    gc.disable()  # importing makes no garbage, and the collector looks for it all the time
    main = import_module(module).main
    gc.freeze()
    gc.enable()
    if waits:
        take_orders()
    raise SystemExit(main())


def take_orders() -> None:
    """Wait for the command, and have it in `sys.argv`; does not return if there is none."""
    bound = sys.argv[2] == "bound"
    line = _socket.socket(fileno=_LINE)
    room = _socket.CMSG_SPACE(_MAX_FDS * _FD)
    data, ancillary, flags, _ = line.recvmsg(_MAX_ORDER, room, _socket.MSG_CMSG_CLOEXEC)
    line.close()
    if not data or flags & (_socket.MSG_TRUNC | _socket.MSG_CTRUNC):
        os._exit(1)
    head, *command = map(os.fsdecode, data.split(b"\0"))
    parent, *numbers = map(int, head.split())
    if bound:
        _die_with(parent)
    passed = b"".join(item for _, _, item in ancillary)
    _place([_number(passed, at) for at in range(0, len(passed), _FD)], numbers)
    sys.argv[1:] = command[len(command_of("")) :]
    show(command)


def _number(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + _FD], sys.byteorder)


def _die_with(parent: int) -> None:
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _place(fds: Sequence[int], numbers: Sequence[int]) -> None:
    """Have `fds` under these numbers, which may be those of others of them."""
    above = max(numbers) + 1
    for waiting in _waiting:
        waiting.move(above)
    moved = [_moved(fd, above) for fd in fds]
    for fd in fds:
        os.close(fd)
    for fd, number in zip(moved, numbers, strict=True):
        os.dup2(fd, number, inheritable=number < _LINE)
        os.close(fd)


def _moved(fd: int, above: int) -> int:
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above)


def show(words: Sequence[str]) -> None:
    """Have /proc show these words as the command line, as far as there is room."""
    import ctypes

    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end of proc(5)
    if 0 < start < end:
        text = b"\0".join(map(os.fsencode, words))[: end - start - 1]
        ctypes.memset(start, 0, end - start)
        ctypes.memmove(start, text, len(text))
