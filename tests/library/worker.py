"""A process of its own that reads a URL through the library: `worker.py URL CACHE SEED`.

Prints "ready", waits for a line, reads 64 KiB pieces in an order drawn from SEED, and prints the
SHA-256 of the whole. With a fourth argument it reads that many pieces and then waits to be killed.
"""

import hashlib
import random
import sys
import time

import pagein

PIECE = 64 << 10


def main() -> None:
    url, cache, seed, *most = sys.argv[1:]
    with pagein.open(url, cache=cache, timeout=200) as file:
        print("ready", flush=True)
        sys.stdin.readline()
        order = list(range(0, file.size, PIECE))
        random.Random(int(seed)).shuffle(order)
        pieces = {}
        for count, at in enumerate(order):
            pieces[at] = file.pread(PIECE, at)
            if most and count == int(most[0]):
                print("enough", flush=True)
                time.sleep(250)
        whole = b"".join(pieces[at] for at in sorted(pieces))
        print(hashlib.sha256(whole).hexdigest(), flush=True)


if __name__ == "__main__":
    main()
