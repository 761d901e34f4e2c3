"""mount(2), umount2(2), /proc/self/mountinfo and loop devices. Standard library only.

`ctypes.CDLL` releases the interpreter lock around a call, so a mount that blocks stops one thread
and not the process. All failures are OSError with the errno of the kernel.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_MOVE: Final = 8192
MS_PROPAGATION: Final = 0xF << 17  # MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE, MS_SHARED
MOUNT_ATTR_RDONLY: Final = 1
MOUNT_ATTR_NOSUID: Final = 2
MOUNT_ATTR_NODEV: Final = 4
MNT_DETACH: Final = 2
UMOUNT_NOFOLLOW: Final = 8
MAX_DATA: Final = 4095
"""Bytes of option text that mount(2) takes; it cuts off the rest without a word."""

MAX_VALUE: Final = 255
"""Longest value of one option of `mount_in_steps`, in bytes."""

_QUOTED: Final = frozenset("\\,:")
"""Characters that one file system or another takes for more than themselves in an option."""

# The same on every architecture but alpha, which is not one of ours.
_SYS_MOVE_MOUNT: Final = 429
_SYS_FSOPEN: Final = 430
_SYS_FSCONFIG: Final = 431
_SYS_FSMOUNT: Final = 432
_CLOEXEC: Final = 1  # FSOPEN_CLOEXEC and FSMOUNT_CLOEXEC
_FSCONFIG_SET_FLAG: Final = 0
_FSCONFIG_SET_STRING: Final = 1
_FSCONFIG_CREATE: Final = 6
_MOVE_FROM_FD: Final = 4  # MOVE_MOUNT_F_EMPTY_PATH
_AT_FDCWD: Final = -100

_LOOP_CTL_GET_FREE: Final = 0x4C82
_LOOP_CONFIGURE: Final = 0x4C0A
_LOOP_CLR_FD: Final = 0x4C01
_LOOP_SET_DIRECT_IO: Final = 0x4C08
_LO_READ_ONLY: Final = 1
_LO_AUTOCLEAR: Final = 4
_LOOP_CONFIG: Final = struct.Struct("=II52xI64s64s32x16x64x")  # fd, block size, flags, names
_LOOP_TRIES: Final = 32
_SECTOR: Final = 512

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p] * 3 + [ctypes.c_ulong, ctypes.c_char_p]
_libc.syscall.restype = ctypes.c_long
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]


def _check(result: int, path: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)


def mount(source: str, target: str, fstype: str, flags: int, data: str = "") -> None:
    """Do mount(2). OSError E2BIG when ``data`` is longer than the kernel would read."""
    options = os.fsencode(data)
    if len(options) > MAX_DATA:
        raise OSError(errno.E2BIG, f"mount options of {len(options)} bytes", target)
    names = (os.fsencode(source), os.fsencode(target), os.fsencode(fstype))
    _check(_libc.mount(*names, flags, options), target)


def _syscall(number: int, *arguments: int | bytes | None) -> int:
    """Do a system call that the C library may not know; OSError as it fails."""
    typed = [ctypes.c_long(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in arguments]
    result: int = _libc.syscall(ctypes.c_long(number), *typed)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def mount_in_steps(
    source: str,
    target: str,
    fstype: str,
    attributes: int,
    options: Iterable[tuple[str, str | None]],
) -> None:
    """Mount as mount(2) does, but with nothing left by a process that is killed in the middle.

    mount(2) of a file on FUSE waits for its server, and a process killed meanwhile leaves the mount
    behind when the server answers after all. fsopen(2), fsconfig(2), fsmount(2) and move_mount(2)
    (Linux 5.2) wait before anything shows, and do not come to their last step.

    ``attributes`` are MOUNT_ATTR_*, and MOUNT_ATTR_RDONLY makes the file system itself read-only as
    well; each option is a (key, value), or (key, None) for a flag.
    Raises OSError, ENAMETOOLONG for a ``source`` or value of more than `MAX_VALUE` bytes; its
    ``strerror`` is what the kernel logged for this mount, if it did.
    """
    context = _syscall(_SYS_FSOPEN, os.fsencode(fstype), _CLOEXEC)
    try:
        first: list[tuple[str, str | None]] = [("source", source)]
        if attributes & MOUNT_ATTR_RDONLY:
            first.append(("ro", None))
        try:
            for key, value in (*first, *options):
                _set_option(context, key, value)
            _syscall(_SYS_FSCONFIG, context, _FSCONFIG_CREATE, None, None, 0)
        except OSError as error:
            raise OSError(error.errno, _context_log(context) or error.strerror) from None
        made = _syscall(_SYS_FSMOUNT, context, _CLOEXEC, attributes)
    finally:
        os.close(context)
    try:
        _syscall(_SYS_MOVE_MOUNT, made, b"", _AT_FDCWD, os.fsencode(target), _MOVE_FROM_FD)
    finally:
        os.close(made)


def short_name(path: str, opened: contextlib.ExitStack) -> str:
    """Return a name of ``path`` that fits an option and needs no quoting, until ``opened`` ends.

    The kernel wants the name only until the mount is made.
    """
    if len(os.fsencode(path)) <= MAX_VALUE and not set(path) & _QUOTED:
        return path
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    opened.callback(os.close, fd)
    return f"/proc/self/fd/{fd}"


def _set_option(context: int, key: str, value: str | None) -> None:
    text = None if value is None else os.fsencode(value)
    if text is not None and len(text) > MAX_VALUE:
        raise OSError(errno.ENAMETOOLONG, f"more than {MAX_VALUE} bytes: {value}")
    command = _FSCONFIG_SET_FLAG if text is None else _FSCONFIG_SET_STRING
    _syscall(_SYS_FSCONFIG, context, command, key.encode(), text, 0)


def _context_log(context: int) -> str:
    """Return the last error that the kernel has noted for a mount in the making, or nothing."""
    last = ""
    with contextlib.suppress(OSError):  # ENODATA: no more
        while message := os.read(context, 1024).decode(errors="replace"):
            if message.startswith("e "):
                last = message[2:].strip()
    return last


def umount(target: str, flags: int = 0) -> None:
    """Do umount2(2)."""
    _check(_libc.umount2(os.fsencode(target), flags), target)


def mount_fuse(
    fd: int,
    target: str,
    *,
    name: str = "pagein",
    allow_other: bool = True,
    max_read: int = 1 << 20,
    flags: int = MS_NOSUID | MS_NODEV,
) -> None:
    """Mount an open ``/dev/fuse`` on the directory ``target``; ``max_read`` in bytes.

    Does not wait for a server: INIT is queued on ``fd``. ``name`` shows as source and in the type.
    """
    options = f"fd={fd},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
    options += f",max_read={max_read}" + (",allow_other" if allow_other else "")
    mount(name, target, f"fuse.{name}", flags, options)


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line of /proc/self/mountinfo (proc_pid_mountinfo(5)), escapes decoded."""

    id: int
    parent: int
    device: str
    root: str
    target: str
    options: tuple[str, ...]
    fstype: str
    source: str
    super_options: tuple[str, ...]


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def parse_mountinfo(line: str) -> MountEntry:
    """Return the entry of one line; ValueError when it is none."""
    fields = line.split()
    # Optional fields (propagation) stand between the sixth and a lone dash.
    dash = fields.index("-", 6)
    number, parent, device, root, target, options = fields[:6]
    fstype, source, super_options = fields[dash + 1 : dash + 4]
    return MountEntry(
        int(number),
        int(parent),
        device,
        _unescape(root),
        _unescape(target),
        tuple(options.split(",")),
        fstype,
        _unescape(source),
        tuple(_unescape(super_options).split(",")),
    )


def mounts() -> list[MountEntry]:
    """Return the mounts that this process sees, in the order of the kernel; reads none of them."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        return [parse_mountinfo(line) for line in table]


def mount_at(target: str) -> MountEntry | None:
    """Return the topmost mount on ``target``, an absolute path without symbolic links."""
    found = None
    for entry in mounts():
        if entry.target == target:
            found = entry
    return found


class LoopDevice:
    """A read-only loop device over one file, which vanishes with its last user.

    Holding this object is a use; `close` ends it. A mount is another.
    """

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self._fd = fd

    def close(self) -> None:
        """Stop holding the device. It lives on as long as it is mounted."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def detach(self) -> None:
        """Take the device apart at its last close, mounted or not, and stop holding it."""
        with contextlib.suppress(OSError):
            fcntl.ioctl(self._fd, _LOOP_CLR_FD)
        self.close()


def attach_loop(path: str) -> LoopDevice:
    """Return a loop device over ``path``: read-only, autoclear, direct I/O where it can be had.

    Raises OSError EINVAL for a file that a block device cannot show whole, EBUSY when no device
    can be had.
    """
    backing = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(backing).st_size
        if size == 0 or size % _SECTOR:
            text = f"{size} bytes: a loop device shows whole sectors of {_SECTOR} only"
            raise OSError(errno.EINVAL, text, path)
        for _ in range(_LOOP_TRIES):
            device = _configure(backing, path)
            if device is not None:
                return device
    finally:
        os.close(backing)
    raise OSError(errno.EBUSY, "no free loop device", path)


def _configure(backing: int, path: str) -> LoopDevice | None:
    """Set up a free loop device; None when somebody else was quicker."""
    number = _free_loop()
    node = f"/dev/loop{number}"
    fd = os.open(node, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if not stat.S_ISBLK(os.fstat(fd).st_mode):
            raise OSError(errno.ENOTBLK, "not a block device", node)
        name = os.fsencode(path)[-63:]
        flags = _LO_READ_ONLY | _LO_AUTOCLEAR
        fcntl.ioctl(fd, _LOOP_CONFIGURE, _LOOP_CONFIG.pack(backing, 0, flags, name, b""))
    except OSError as error:
        os.close(fd)
        if error.errno == errno.EBUSY:
            return None
        raise
    # Without direct I/O every page is cached twice; a file that cannot do it says EINVAL.
    with contextlib.suppress(OSError):
        fcntl.ioctl(fd, _LOOP_SET_DIRECT_IO, 1)
    return LoopDevice(node, fd)


def _free_loop() -> int:
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
    finally:
        os.close(control)
