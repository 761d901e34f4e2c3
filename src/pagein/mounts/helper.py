"""The process in which mounts are made: ``python -m pagein.mounts.helper``, one job each.

It reads one JSON job on stdin and answers with one JSON line on stdout. With ``--serve FD`` it
stays, and forks a process for each job that comes on that socket (`serve`; `helpers` is the other
end): a stack of three layers is four mounts, and starting an interpreter takes longer than a mount.

    {"op": "mount", "primary": PATH, "devices": [PATH, ...], "target": DIR,
     "options": [TEXT, ...], "loop": "auto" | "always" | "never"}
    {"op": "mount-fscache", "fsid": KEY, "devices": [KEY, ...], "domain": KEY, "target": DIR,
     "label": TEXT}
    {"op": "mount-overlay", "layers": [DIR, ... lowest first], "target": DIR, "suid": false,
     "upper": DIR, "work": DIR, "volatile": false}    (the last three only for one that is written)
    {"op": "umount", "target": DIR, "lazy": false}

    {"ok": true, "loop": [DEVICE, ...]}
    {"ok": false, "errno": N, "message": TEXT}

Standard library only, so that it starts fast. It may be killed at any time: its loop devices go
with it unless they are mounted. A mount whose answer nobody takes any more is undone.
"""

import contextlib
import errno
import json
import os
import select
import signal
import socket
import stat
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn

from pagein.mounts import superblock, syscalls

ATTRIBUTES: Final = (
    syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
)
"""An image's metadata comes from elsewhere: no set-uid programs, no device nodes, ever."""

_REQUIRED: Final = frozenset({"ro", "nosuid", "nodev"})


def _fail(number: int, message: str) -> OSError:
    return OSError(number, message)


def _read(path: str, length: int, offset: int) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        mode = os.fstat(fd).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise _fail(errno.EINVAL, f"{path} is neither a file nor a block device")
        return os.pread(fd, length, offset)
    finally:
        os.close(fd)


def _length(path: str) -> int:
    """Return the size of a file or block device in bytes; OSError when it is not there."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return os.lseek(fd, 0, os.SEEK_END)
    finally:
        os.close(fd)


def _is_block_device(path: str) -> bool:
    return stat.S_ISBLK(os.stat(path).st_mode)


def _check_target(target: str) -> None:
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        raise _fail(errno.ENOENT, f"mount point {target} does not exist") from None
    if not stat.S_ISDIR(mode):
        raise _fail(errno.ENOTDIR, f"mount point {target} is not a directory")
    # The kernel would stack a second file system on top and hide the first.
    mounted = syscalls.mount_at(target)
    if mounted is not None:
        text = f"mount point {target} is busy: {mounted.source} ({mounted.fstype}) is mounted there"
        raise _fail(errno.EBUSY, f"{text}; choose another")


def _check_image(primary: str, devices: Sequence[str]) -> None:
    """Say exactly what the kernel would answer with a bare EINVAL, or find out later.

    Without any ``device=`` the kernel mounts an image that wants some, and every read of a file
    fails (facts frontends 2); one that is too short mounts too.
    """
    try:
        found = superblock.superblock(_read(primary, superblock.SIZE, superblock.OFFSET))
    except ValueError as error:
        raise _fail(errno.EINVAL, f"{primary} is {error}; mkfs.erofs makes one") from None
    if found.extra_devices != len(devices):
        text = f"{primary} wants {found.extra_devices} data device(s), {len(devices)} given"
        raise _fail(errno.EINVAL, f"{text}: name each, in its order, with --device")
    _check_length(primary, found.length)
    for index, device in enumerate(devices):
        at = found.table + index * superblock.SLOT_SIZE
        slot = _read(primary, superblock.SLOT_SIZE, at)
        if len(slot) < superblock.SLOT_SIZE:
            raise _fail(errno.EINVAL, f"{primary} ends within its device table")
        _check_length(device, found.device_length(slot))


def _check_length(path: str, least: int) -> None:
    length = _length(path)
    if length < least:
        raise _fail(
            errno.EINVAL, f"{path} has {length} bytes, the image says {least}: is it cut off?"
        )


def _key_value(option: str) -> tuple[str, str | None]:
    key, equals, value = option.partition("=")
    return key, value if equals else None


def _mount_erofs(primary: str, devices: Sequence[str], target: str, options: Sequence[str]) -> None:
    with contextlib.ExitStack() as opened:
        settings = [_key_value(option) for option in options]
        settings += [("device", syscalls.short_name(device, opened)) for device in devices]
        try:
            syscalls.mount_in_steps(primary, target, "erofs", ATTRIBUTES, settings)
        except OSError as error:
            raise _explain(error, primary) from None
    # /proc/self/mountinfo does not list the devices; that their number is the image's was checked
    # before. What it does list must be what was asked for.
    entry = syscalls.mount_at(target)
    wanted = entry is not None and entry.fstype == "erofs" and entry.source == primary
    if entry is None or not wanted or not _REQUIRED.issubset(entry.options):
        with contextlib.suppress(OSError):
            syscalls.umount(target, syscalls.UMOUNT_NOFOLLOW)
        raise _fail(errno.EIO, f"{target} was mounted, but is not what was asked for: {entry}")


def _mount_loop(
    primary: str, devices: Sequence[str], target: str, options: Sequence[str]
) -> list[str]:
    """Mount through loop devices; what is a block device already stays one."""
    with contextlib.ExitStack() as held:
        made: list[str] = []

        def block(path: str) -> str:
            if _is_block_device(path):
                return path
            device = syscalls.attach_loop(path)
            held.callback(device.close)  # autoclear: the mount is what holds it from then on
            made.append(device.path)
            return device.path

        source = block(primary)
        _mount_erofs(source, [block(device) for device in devices], target, options)
        return made


def mount(job: dict[str, Any]) -> list[str]:
    """Mount an EROFS image and return the loop devices taken; OSError says why not."""
    primary, devices, mode = job["primary"], job["devices"], job["loop"]
    target = os.path.realpath(job["target"])
    options = job.get("options", [])
    _check_target(target)
    _check_image(primary, devices)
    if mode == "always":
        return _mount_loop(primary, devices, target, options)
    try:
        _mount_erofs(primary, devices, target, options)
    except OSError as error:
        # ENOTBLK: before 6.12, or without EROFS_FS_BACKED_BY_FILE, or a stacked file system.
        if error.errno != errno.ENOTBLK or mode != "auto":
            raise
        return _mount_loop(primary, devices, target, options)
    return []


def mount_fscache(job: dict[str, Any]) -> list[str]:
    """Mount through the kernel's own fscache (`mounts.kernel`); OSError says why not."""
    from pagein.mounts import kernel

    _check_target(job["target"])
    kernel.mount(job)
    return []


def mount_overlay(job: dict[str, Any]) -> list[str]:
    """Mount layers as one tree (`mounts.overlay`); OSError says why not."""
    from pagein.mounts import overlay

    _check_target(job["target"])
    overlay.mount(job)
    return []


def _explain(error: OSError, primary: str) -> OSError:
    texts = {
        errno.ENOTBLK: 'this kernel does not mount EROFS from a file, and loop is "never"',
        errno.ENODEV: "this kernel has no EROFS",
        errno.EINVAL: "not an EROFS image of a kind this kernel knows, or wrong devices",
        errno.EPERM: "mounting is not permitted: not root?",
    }
    number = error.errno or errno.EIO
    text = texts.get(number)
    # What the kernel itself says of this mount, when it does, is nearer to the cause.
    said = error.strerror if error.strerror != os.strerror(number) else None
    return _fail(number, f"{primary}: {', '.join(filter(None, [text, said])) or error.strerror}")


def umount(job: dict[str, Any]) -> list[str]:
    """Undo a mount; OSError EINVAL when there is none, EBUSY when it is in use."""
    target = os.path.realpath(job["target"])
    flags = syscalls.UMOUNT_NOFOLLOW | (syscalls.MNT_DETACH if job.get("lazy") else 0)
    try:
        syscalls.umount(target, flags)
    except OSError as error:
        texts = {
            errno.EINVAL: f"{target} is not a mount point",
            errno.ENOENT: f"mount point {target} does not exist",
            errno.EBUSY: f"{target} is in use",
        }
        number = error.errno or errno.EIO
        raise _fail(number, texts.get(number, f"{target}: {error.strerror}")) from None
    return []


_OPERATIONS: Final[dict[str, Callable[[dict[str, Any]], list[str]]]] = {
    "mount": mount,
    "mount-fscache": mount_fscache,
    "mount-overlay": mount_overlay,
    "umount": umount,
}


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Do one job and return its answer."""
    try:
        return {"ok": True, "loop": _OPERATIONS[job["op"]](job)}
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        return {
            "ok": False,
            "errno": error.errno or errno.EIO,
            "message": f"{name}{error.strerror}",
        }


def _tell(job: dict[str, Any], answer: dict[str, Any], line: int) -> int:
    """Give the answer, or undo a mount when its owner has gone meanwhile; the exit status."""
    try:
        os.write(line, json.dumps(answer).encode() + b"\n")
    except (BrokenPipeError, ConnectionResetError):
        if job["op"] != "umount" and answer["ok"]:
            syscalls.umount(os.path.realpath(job["target"]), syscalls.UMOUNT_NOFOLLOW)
        return 1
    return 0


IDLE: Final = 10.0
"""Seconds after which a helper that has no more to do ends."""
MAX_JOB: Final = 1 << 20
PIDFD: Final = b"p"
"""The first message of a job: with it comes a pidfd, by which the job's process can be killed."""


def serve(owner: socket.socket) -> None:
    """Do each job that comes on ``owner`` in a process of its own; end with the owner, or idle.

    With a job comes a socket for what becomes of it: `PIDFD`, then the answer, then its end, which
    is that of the process.
    """
    signal.signal(signal.SIGCHLD, lambda *_: _reap())
    while select.select([owner], [], [], IDLE)[0]:
        job, fds, _, _ = socket.recv_fds(owner, MAX_JOB, 1, socket.MSG_CMSG_CLOEXEC)
        if not job:
            return
        with socket.socket(fileno=fds[0]) as line:
            _fork(json.loads(job), line, owner)


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _fork(job: dict[str, Any], line: socket.socket, owner: socket.socket) -> None:
    # Nobody waits for the child before there is a pidfd: until then its number is its own.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    try:
        pid = os.fork()
        if not pid:
            _do(job, line, owner)
        pidfd = os.pidfd_open(pid)
        try:
            socket.send_fds(line, [PIDFD], [pidfd])
        except (BrokenPipeError, ConnectionResetError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)  # nobody waits for it any more
        finally:
            os.close(pidfd)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})


def _do(job: dict[str, Any], line: socket.socket, owner: socket.socket) -> NoReturn:
    """The forked process: one job, and no more."""
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        owner.close()
        status = _tell(job, run(job), line.fileno())
    except Exception as problem:  # a bug: its owner says so to the user
        print(f"the mount helper failed: {problem!r}", file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def main() -> None:
    """Answer the job on stdin, or serve."""
    if sys.argv[1:2] == ["--serve"]:
        with socket.socket(fileno=int(sys.argv[2])) as owner:
            serve(owner)
        return
    job = json.load(sys.stdin)
    if status := _tell(job, run(job), sys.stdout.fileno()):
        sys.exit(status)


if __name__ == "__main__":
    main()
