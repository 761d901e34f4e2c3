"""Another process: `reader.py URL CACHE OFFSET LENGTH` prints what it read, as a digest."""

import hashlib
import sys

import fsspec


def main() -> None:
    url, cache, offset, length = sys.argv[1:]
    with fsspec.open(url, pagein={"cache": cache}) as file:
        file.seek(int(offset))
        print(hashlib.sha256(file.read(int(length))).hexdigest())


if __name__ == "__main__":
    main()
