"""Holds the device for two daemons, one after the other.

    holder.py DIRECTORY FILES DAEMON [FD]

They inherit it under its number, or under FD.
"""

import os
import subprocess
import sys
from pathlib import Path


def main() -> None:
    directory, files, program = map(Path, sys.argv[1:4])
    device = os.open("/dev/cachefiles", os.O_RDWR | os.O_CLOEXEC)
    for command in (f"dir {directory}/cache", "tag CacheFiles", "bind ondemand"):
        os.write(device, command.encode())

    passed = os.dup2(device, int(sys.argv[4])) if sys.argv[4:] else device

    def daemon() -> subprocess.Popen[bytes]:
        words: list[str | Path] = [program, "-d", str(passed), directory / "cache", files]
        return subprocess.Popen(words, pass_fds=[passed])

    first = daemon()
    target = directory / "mnt"
    mount = ["mount", "-t", "erofs", "-o", "fsid=meta,device=blob", "none", str(target)]
    subprocess.run(mount, check=True)
    assert (target / "4096").stat().st_size == 4096
    first.kill()
    first.wait()
    reader = subprocess.Popen(["cat", target / "3000000"], stdout=subprocess.PIPE)
    second = daemon()
    data, _ = reader.communicate(timeout=100)
    print("whole" if len(data) == 3_000_000 and data.endswith(b"02999992") else len(data))
    subprocess.run(["umount", target], check=True)
    second.terminate()
    second.wait()


if __name__ == "__main__":
    main()
