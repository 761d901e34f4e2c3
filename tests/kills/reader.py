"""A program that reads a file at random and compares each byte with its source.

`reader.py FILE SOURCE SEED` says `ready`, and reads until SIGTERM; then it prints one JSON line of
counts. A wrong byte ends it at once with status 2. Imports nothing of pagein: it is what an
application is.
"""

import errno
import json
import os
import random
import signal
import sys


def main() -> int:
    path, source, seed = sys.argv[1:]
    stop = False

    def on_term(*_: object) -> None:
        nonlocal stop
        stop = True

    signal.signal(signal.SIGTERM, on_term)
    print("ready", flush=True)
    draw = random.Random(int(seed))
    counts = {"right": 0, "eio": 0, "bytes": 0}
    there = os.open(source, os.O_RDONLY)
    size = os.fstat(there).st_size
    while not stop:
        try:
            here = os.open(path, os.O_RDONLY)
        except OSError as problem:
            if problem.errno != errno.EIO:
                raise
            counts["eio"] += 1
            continue
        for _ in range(20):
            length = draw.choice((1, 4096, 65536, 262144))
            offset = draw.randrange(size)
            try:
                got = os.pread(here, length, offset)
            except OSError as problem:
                if problem.errno != errno.EIO:
                    raise
                counts["eio"] += 1
                continue
            wanted = os.pread(there, length, offset)
            if got != wanted[: len(got)]:
                at = next(i for i, (a, b) in enumerate(zip(got, wanted, strict=False)) if a != b)
                print(f"WRONG at {offset} +{length}, from +{at}: {got[at : at + 32].hex()}")
                return 2
            # read(2) stops in front of what fails; asked for that alone it would say EIO.
            counts["right" if len(got) == len(wanted) else "eio"] += 1
            counts["bytes"] += len(got)
        os.close(here)
    print(json.dumps(counts), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
