"""Damaged images read to the end: ``python -m tests.erofs.fuzz COUNT SEED IMAGE [DEVICE]``.

Every image is the given one with a few bytes changed, its checksum made right again for some.
Reading gives a result or an ErofsError (or an OSError that names a path); anything else ends this
program with a traceback or a signal, and so does more memory or processor time than the limit.
Prints what became of them.
"""

import collections
import itertools
import random
import resource
import struct
import sys
from pathlib import Path

from tests.erofs.images import of_bytes
from tests.memory import peak

from pagein.erofs.errors import ErofsError
from pagein.erofs.format import crc32c
from pagein.erofs.reader import Image

MEMORY = 512 << 20
PROCESSOR = 60
"""Seconds of processor time; the machine may be busy with something else."""
_PIECE = 1 << 16
_INTERESTING = (0, 1, 0x7F, 0x80, 0xFF)


def damaged(data: bytes, chance: random.Random) -> bytes:
    """A copy with a few bytes, or a few whole fields, changed."""
    made = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        width = chance.choice((1, 2, 4, 8))
        at = chance.choice((chance.randrange(1024, 1152), chance.randrange(len(made))))
        at = min(at & -width, len(made) - width)
        if chance.random() < 0.5:
            made[at : at + width] = bytes([chance.choice(_INTERESTING)]) * width
        else:
            made[at : at + width] = chance.randbytes(width)
    if chance.random() < 0.1:
        del made[chance.randrange(len(made)) :]
    elif chance.random() < 0.5 and len(made) >= 4096:
        made[1028:1032] = bytes(4)
        made[1028:1032] = struct.pack("<I", crc32c(made[1024:4096]))
    return bytes(made)


def read_all(image: Image) -> None:
    """Everything a caller can ask, of every file, but no more of each than a piece."""
    for found in image.walk():
        image.xattrs(found)
        if found.is_dir:
            image.child(found, b"m")
            continue
        image.lookup(found.path)
        collections.deque(itertools.islice(image.extents(found), 1000), maxlen=0)
        image.read(found, 0, _PIECE)
        image.read(found, max(0, found.size - _PIECE), _PIECE)
        if found.mode & 0o170000 == 0o120000:
            image.readlink(found)


def main() -> None:
    """Damage and read."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR, PROCESSOR))
    count, seed = int(sys.argv[1]), int(sys.argv[2])
    data, *devices = (Path(name).read_bytes() for name in sys.argv[3:])
    chance = random.Random(seed)
    became: collections.Counter[str] = collections.Counter()
    for _ in range(count):
        try:
            read_all(of_bytes(damaged(data, chance), *devices))
            became["read"] += 1
        except ErofsError as problem:
            assert "\n" not in str(problem), problem
            became["refused"] += 1
        except OSError as problem:
            assert problem.filename, problem
            became["no such path"] += 1
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(f"{dict(became)}, {used.ru_utime:.1f} s, {peak() >> 20} MiB")


if __name__ == "__main__":
    main()
