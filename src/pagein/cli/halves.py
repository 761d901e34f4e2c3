"""Starting the keeper when it is not running, and talking to both halves."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pagein import standby
from pagein.cli.early import held
from pagein.cli.settings import Settings
from pagein.control import Answer, Connection, ControlError, ask

Ask = Callable[[dict[str, Any], float], Answer]
"""A question and seconds to wait -> the answer, or ControlError."""
START_TIMEOUT = 30.0
KEEPER_TIMEOUT = 150.0
"""Seconds until a keeper says how it started: more than all of its own deadlines together."""
STOP_TIMEOUT = 20.0
FUSE_DEVICE = "/dev/fuse"
KERNEL_DEVICE = "/dev/cachefiles"
_MISSING = {
    FUSE_DEVICE: "this kernel has no FUSE",
    KERNEL_DEVICE: "this kernel has no CacheFiles; use --front-end fuse",
}
_RESTARTED = (errno.ECONNRESET, errno.EPIPE)


def running(settings: Settings) -> bool:
    """Whether a keeper holds this runtime directory."""
    return held(settings.state_dir)


def kernel_half(settings: Settings, question: dict[str, Any], *, timeout: float) -> Answer:
    """Ask the kernel half; once more when it was restarted before it answered."""
    return _ask(settings.path("control.sock"), question, timeout)


def user_half(settings: Settings, question: dict[str, Any], *, timeout: float) -> Answer:
    """Ask the user half; once more when it was restarted before it answered."""
    return _ask(settings.path("daemon.sock"), question, timeout)


def _ask(path: str, question: dict[str, Any], timeout: float) -> Answer:
    try:
        return ask(path, question, timeout=timeout)
    except ControlError as problem:
        if problem.errno not in _RESTARTED:
            raise
    return ask(path, question, timeout=timeout)


def keeper_command(settings: Settings, options: list[str]) -> list[str]:
    """The command line of a keeper for these directories."""
    command = standby.command_of("pagein.keeper")
    return [*command, "--state-dir", settings.state_dir, "--cache", settings.cache, *options]


def nothing() -> None:
    """What is to be done meanwhile, if there is nothing."""


@contextlib.contextmanager
def kept_running(
    settings: Settings,
    timeout: float,
    daemon_user: str,
    front_end: str = "fuse",
    meanwhile: Callable[[], None] = nothing,
    more: Sequence[str] = (),
) -> Iterator[Ask]:
    """Start the keeper and both halves unless they run, and keep them until the end of the block.

    `meanwhile` is called, and must not fail, while they are being started: what is asked of them
    then waits for them. `more` are further options of the keeper. Yields how to ask the kernel
    half. If the block fails, and nothing is mounted, they end with it. Raises ControlError with one
    line for the user.
    """
    check_prerequisites(settings, KERNEL_DEVICE if front_end == "kernel" else FUSE_DEVICE)
    options = ["--timeout", str(timeout), "--daemon-user", daemon_user]
    options += ["--front-end", front_end, "--device", KERNEL_DEVICE, *more]
    connection, found = _connect(settings, options, meanwhile)
    standby.dismiss()  # if one runs that was not there when this command began

    def ask_it(question: dict[str, Any], timeout: float) -> Answer:
        try:
            return connection.ask(question, timeout=timeout)
        except ControlError as problem:
            if problem.errno not in _RESTARTED:
                raise
        return kernel_half(settings, question, timeout=timeout)

    try:
        _check_namespace(found)
        yield ask_it
    except BaseException:
        _leave(settings, connection)
        raise
    finally:
        connection.close()


def _connect(
    settings: Settings, options: list[str], meanwhile: Callable[[], None]
) -> tuple[Connection, Answer]:
    """A connection to the kernel half, for whose life it stays, and its status.

    It is started if need be.
    """
    give_up = time.monotonic() + START_TIMEOUT
    while True:
        if not running(settings):
            _start(settings, options, meanwhile)
        try:
            return _answering(settings)
        except ControlError:
            # Starting up, or on its way out: the one gets ready, the other lets go of the lock.
            if time.monotonic() > give_up:
                text = f"pagein runs in {settings.state_dir} but does not answer; see its log"
                raise ControlError(errno.ETIMEDOUT, text) from None
        time.sleep(0.02)


def _answering(settings: Settings) -> tuple[Connection, Answer]:
    connection = Connection(settings.path("control.sock"))
    try:
        return connection, connection.ask({"op": "status"}, timeout=5.0)
    except BaseException:
        connection.close()
        raise


def _check_namespace(found: Answer) -> None:
    """Refuse to have something mounted where whoever asks for it does not see it."""
    if found["mount_namespace"] != os.readlink("/proc/self/ns/mnt"):
        pid = found["pid"]
        text = f"pagein (process {pid}) runs in another mount namespace, and would mount there"
        raise ControlError(errno.EXDEV, f"{text}; start the command with `nsenter -m -t {pid}`")


def _leave(settings: Settings, connection: Connection) -> None:
    """Do not leave anything behind after a failure that was the only reason to run."""
    with contextlib.suppress(ControlError):
        try:
            answer = connection.ask({"op": "leave"}, timeout=5.0)
        except ControlError:  # the kernel half was restarted meanwhile
            answer = ask(settings.path("control.sock"), {"op": "leave"}, timeout=5.0)
        if answer["last"]:
            connection.close()
            wait_stopped(settings)


def check_prerequisites(settings: Settings, device: str = FUSE_DEVICE) -> None:
    """Raise ControlError when this machine or user cannot mount at all, or the cache cannot be."""
    if os.geteuid() != 0:
        text = "mounting needs root; without it use the library (pagein.open)"
        raise ControlError(errno.EPERM, text)
    if not os.path.exists(device):
        raise ControlError(errno.ENODEV, f"{device} does not exist: {_MISSING[device]}")
    try:
        _check_cache(settings)
    except OSError as problem:
        reason = "not a directory" if isinstance(problem, FileExistsError) else problem.strerror
        text = f"cannot use {settings.cache} as the cache: {reason}; choose another with --cache"
        raise ControlError(problem.errno or errno.EIO, text) from None


def _check_cache(settings: Settings) -> None:
    from pagein.cachefiles.presence import probe

    os.makedirs(settings.cache, 0o711, exist_ok=True)
    probe(settings.cache)
    if running(settings):
        return
    fd = os.open(settings.cache, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # As a kernel half will take it in a moment; what comes in between, it finds out itself.
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OSError(errno.EBUSY, "another pagein has it in use") from None
    finally:
        os.close(fd)


def _start(settings: Settings, options: list[str], meanwhile: Callable[[], None]) -> bool:
    """Run a keeper in the background; False when another was faster."""
    try:
        os.makedirs(settings.state_dir, 0o700, exist_ok=True)
    except OSError as problem:
        reason = "not a directory" if isinstance(problem, FileExistsError) else problem.strerror
        text = f"cannot use {settings.state_dir}: {reason}; choose another with --state-dir"
        raise ControlError(problem.errno or errno.EIO, text) from None
    read, write = os.pipe2(os.O_CLOEXEC)
    try:
        with open(settings.path("log"), "ab") as log_file:
            # The keeper is meant to outlive this command: nobody here waits for it.
            command = [*keeper_command(settings, options), "--ready-fd", str(write)]
            waiting = standby.ordered(command, [write], output=log_file.fileno())
            process = waiting or subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                start_new_session=True,
                pass_fds=[write],
                cwd="/",
            )
    finally:
        os.close(write)
    said = ""
    try:
        for said in _lines(read, process):
            if said == "listening":
                meanwhile()
    finally:
        os.close(read)
    if said == "ok":
        process.returncode = 0  # not ours to wait for
        return True
    process.wait()
    if said == os.strerror(errno.EAGAIN):
        return False  # the lock is taken
    raise ControlError(errno.EIO, said or f"pagein could not start; see {settings.path('log')}")


def _lines(fd: int, process: subprocess.Popen[bytes] | standby.Child) -> Iterator[str]:
    """What the keeper says, until it has no more to say, or took too long and was told to end."""
    data = b""
    while True:
        while b"\n" in data:
            line, _, data = data.partition(b"\n")
            yield line.decode()
        if not select.select([fd], [], [], KEEPER_TIMEOUT)[0]:
            process.terminate()
            return
        if not (more := os.read(fd, 4096)):
            return
        data += more


def wait_stopped(settings: Settings) -> None:
    """Wait until a keeper that has nothing left to do is gone."""
    give_up = time.monotonic() + STOP_TIMEOUT
    while running(settings) and time.monotonic() < give_up:
        time.sleep(0.02)
