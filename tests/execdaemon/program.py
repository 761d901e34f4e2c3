"""What a program sees of the device, as JSON: `program.py CACHE FILES TARGET`.

It knows nothing of pagein, and says on a kernel with /dev/cachefiles what it says here.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import resource
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.execdaemon import daemon

NOBODY = 65534
libc = ctypes.CDLL(None, use_errno=True)


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returned, or the name of its errno."""
    try:
        return call()
    except OSError as problem:
        return errno.errorcode[problem.errno or 0]


def in_child(work: Callable[[], Any]) -> Any:
    """What `work` returns in a forked process."""
    read, write = os.pipe()
    if not (pid := os.fork()):
        os.write(write, json.dumps(outcome(work)).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as stream:
        said = stream.read()
    os.waitpid(pid, 0)
    return json.loads(said)


class Mount:
    """mount(8) of the image `single`, which waits for what is answered meanwhile."""

    def __init__(self, target: str) -> None:
        self.target = target
        argv = ["mount", "-t", "erofs", "-o", "fsid=single", "none", target]
        self.process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)

    def failed(self) -> bool:
        return self.process.wait(100) != 0


def read_libc(fd: int, address: int | None, length: int) -> Any:
    if libc.read(fd, ctypes.c_void_p(address), ctypes.c_size_t(length)) < 0:
        raise OSError(ctypes.get_errno(), "read")
    return 0


@contextlib.contextmanager
def no_more_fds() -> Iterator[None]:
    """Every number below the soft limit is taken."""
    kept = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, kept[1]))
    taken = []
    with contextlib.suppress(OSError):
        while True:
            taken.append(os.dup(0))
    yield
    for fd in taken:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, kept)


def wait_for_request(device: int) -> None:
    import select

    poll = select.poll()
    poll.register(device, select.POLLIN)
    assert poll.poll(100_000)


def as_nobody_open() -> int:
    os.setuid(NOBODY)
    return os.open("/dev/cachefiles", os.O_RDWR)


def main() -> None:
    cache, files, target = sys.argv[1:]
    found: dict[str, Any] = {}
    found["open by nobody"] = in_child(as_nobody_open)
    found["open of nothing"] = outcome(lambda: os.open("/dev/cachefile", os.O_RDWR))
    found["open relative"] = in_child(relative)
    device = os.open("/dev/cachefiles", os.O_RDWR | os.O_CLOEXEC)
    found["can be selected"] = device < 1024
    found["close on exec"] = not os.get_inheritable(device)
    found["second open"] = outcome(lambda: os.open("/dev/cachefiles", os.O_RDWR))
    for command in (f"dir {cache}", "tag CacheFiles", "bind ondemand"):
        os.write(device, command.encode())
    found["nothing there"] = os.read(device, 1024) == b""
    found["ioctl of the device"] = outcome(lambda: fcntl.ioctl(device, daemon.READ_COMPLETE, 0))

    mount = Mount(target)
    wait_for_request(device)
    found["small buffer"] = outcome(lambda: os.read(device, 16))
    with no_more_fds():
        found["no fd left"] = outcome(lambda: os.read(device, 1024))
    found["its mount fails"] = mount.failed()

    mount = Mount(target)
    wait_for_request(device)
    found["bad address"] = outcome(lambda: read_libc(device, 8, 1024))
    found["that mount fails"] = mount.failed()

    mount = Mount(target)
    wait_for_request(device)
    copy = os.dup(device)
    # readv is a read for each buffer: the first one has to do.
    found["readv"] = outcome(lambda: os.readv(copy, [bytearray(20), bytearray(1004)]))
    first, second = bytearray(1004), bytearray(20)
    count = os.readv(copy, [first, second])
    os.close(copy)
    serving(found, device, bytes(first + second)[:count], files)
    found["mounted"] = not mount.failed()
    sizes = [os.path.getsize(entry) for entry in os.scandir(target)]
    found["whole"] = sum(len(Path(entry).read_bytes()) for entry in os.scandir(target)) == sum(
        sizes
    )
    subprocess.run(["umount", target], check=True)
    print(json.dumps(found))


def relative() -> bool:
    os.chdir("/usr")
    os.close(os.open("../dev/./cachefiles", os.O_RDWR))
    directory = os.open("/dev", os.O_PATH)
    os.close(os.open("cachefiles", os.O_RDWR, dir_fd=directory))
    return True


def serving(found: dict[str, Any], device: int, raw: bytes, files: str) -> None:
    """Answer an OPEN by hand, then serve in a forked process that is nobody."""
    msg_id, _, _, _ = daemon.HEADER.unpack_from(raw)
    _, _, anon, _ = daemon.OPEN.unpack_from(raw, daemon.HEADER.size)
    found["the fd of an OPEN is write-only"] = fcntl.fcntl(anon, fcntl.F_GETFL) & 3 == os.O_WRONLY
    found["and not close-on-exec"] = os.get_inheritable(anon)
    found["write before copen"] = outcome(lambda: os.pwrite(anon, bytes(4096), 0))
    file = os.open(f"{files}/single", os.O_RDONLY)
    os.write(device, f"copen {msg_id},{os.fstat(file).st_size}".encode())
    complete = struct.pack("=I", 12345)
    found["CREAD by pointer"] = outcome(lambda: fcntl.ioctl(anon, daemon.READ_COMPLETE, complete))
    found["CREAD of nothing"] = outcome(lambda: fcntl.ioctl(anon, daemon.READ_COMPLETE, 12345))
    if not os.fork():
        os.setuid(NOBODY)
        threading.Thread(target=serve, args=(device, anon, file), daemon=True).start()
        threading.Event().wait(100)
        os._exit(0)
    os.close(anon)


def serve(device: int, anon: int, file: int) -> None:
    while True:
        wait_for_request(device)
        raw = os.pread(device, 1024, 4711)
        if raw and daemon.HEADER.unpack_from(raw)[1] == 1:
            os._exit(0)
        if raw:
            offset, length = daemon.READ.unpack_from(raw, daemon.HEADER.size)
            daemon.fill(anon, file, offset, length, daemon.HEADER.unpack_from(raw)[0])


if __name__ == "__main__":
    main()
