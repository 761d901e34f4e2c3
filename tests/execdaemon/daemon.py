"""The same as daemon.c, in Python: `daemon.py CACHE FILES`. It knows nothing of pagein."""

import fcntl
import mmap
import os
import select
import struct
import sys

HEADER, OPEN, READ = struct.Struct("=IIII"), struct.Struct("=IIII"), struct.Struct("=QQ")
PAGE, MAX_MESSAGE, READ_COMPLETE = 4096, 1024, 0x40049801


def main() -> None:
    cache, files = sys.argv[1:]
    device = os.open("/dev/cachefiles", os.O_RDWR | os.O_CLOEXEC)
    for command in (f"dir {cache}", "tag CacheFiles", "bind ondemand"):
        os.write(device, command.encode())
    objects: dict[int, tuple[int, int]] = {}
    poll = select.poll()
    poll.register(device, select.POLLIN)
    while True:
        raw = os.read(device, MAX_MESSAGE)
        if not raw:
            poll.poll()
            continue
        msg_id, opcode, _, object_id = HEADER.unpack_from(raw)
        body = raw[HEADER.size :]
        if opcode == 0:
            volume, cookie, anon, _ = OPEN.unpack_from(body)
            name = body[OPEN.size + volume :][:cookie].decode()
            os.set_inheritable(anon, False)
            file = os.open(f"{files}/{name}", os.O_RDONLY | os.O_CLOEXEC)
            objects[object_id] = anon, file
            os.write(device, f"copen {msg_id},{os.fstat(file).st_size}".encode())
        elif opcode == 1:
            for fd in objects.pop(object_id, ()):
                os.close(fd)
        else:
            offset, length = READ.unpack(body)
            fill(*objects[object_id], offset, length, msg_id)


def fill(anon: int, file: int, offset: int, length: int, msg_id: int) -> None:
    start, end = offset // PAGE * PAGE, -(-(offset + length) // PAGE) * PAGE
    with mmap.mmap(-1, end - start) as buffer:  # aligned: the cache is written with O_DIRECT
        os.preadv(file, [buffer], start)
        os.pwrite(anon, buffer, start)
    fcntl.ioctl(anon, READ_COMPLETE, msg_id)


if __name__ == "__main__":
    main()
