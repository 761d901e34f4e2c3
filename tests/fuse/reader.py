"""A process that uses a mount, by orders: ``python reader.py PATH FLAGS``.

It opens PATH and carries out one system call per order line, telling each result as a JSON line:
``hash`` (read all of it), ``wait`` (epoll), ``write N``, ``dup``, ``close`` (the oldest
descriptor), ``seek WHENCE OFFSET``, ``ioctl CMD ID``, ``truncate``.

Buffers are page-aligned: of others the kernel cannot put a mebibyte into one request.
"""

import fcntl
import hashlib
import json
import mmap
import os
import select
import struct
import sys
from typing import Any

CHUNK = 1 << 20


def tell(event: str, **values: Any) -> None:
    print(json.dumps({"event": event, **values}), flush=True)


def pattern(size: int) -> bytes:
    """The bytes that ``write`` writes: different in each page."""
    return b"".join(struct.pack("=I", number) for number in range(size // 4))


def do_hash(fd: int) -> dict[str, Any]:
    total = hashlib.sha256()
    offset = 0
    with mmap.mmap(-1, CHUNK) as buffer:
        while count := os.preadv(fd, [buffer], offset):
            total.update(buffer[:count])
            offset += count
    return {"sha256": total.hexdigest(), "size": offset}


def do_wait(fd: int) -> dict[str, Any]:
    with select.epoll() as epoll:
        epoll.register(fd, select.EPOLLIN)
        before = epoll.poll(0)
        tell("waiting", ready=len(before))
        return {"mask": [mask for _, mask in epoll.poll(100)]}


def do(fds: list[int], verb: str, *words: str) -> dict[str, Any]:
    fd = fds[0]
    match verb:
        case "hash":
            return do_hash(fd)
        case "wait":
            return do_wait(fd)
        case "write":
            with mmap.mmap(-1, int(words[0])) as buffer:
                buffer[:] = pattern(len(buffer))
                return {"written": os.write(fd, buffer)}
        case "dup":
            fds.append(os.dup(fd))
        case "close":
            os.close(fds.pop(0))
        case "seek":
            return {"offset": os.lseek(fd, int(words[1]), int(words[0]))}
        case "ioctl":
            argument = bytearray(struct.pack("=I", int(words[1])))
            return {"result": fcntl.ioctl(fd, int(words[0]), argument)}
        case "truncate":
            os.ftruncate(fd, 10)
        case _:
            raise ValueError(verb)
    return {}


def main() -> None:
    fds = [os.open(sys.argv[1], int(sys.argv[2]))]
    tell("ready")
    for line in sys.stdin:
        verb, *words = line.split()
        try:
            result = do(fds, verb, *words)
        except OSError as error:
            result = {"errno": error.errno}
        tell(verb, **result)
        tell("done", order=line.rstrip("\n"))


if __name__ == "__main__":
    main()
