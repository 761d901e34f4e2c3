"""What is in memory: kept there, or known to have been taken away by somebody else.

Other processes of the suite, and other users of the machine, drop caches whenever they like: a test
that counts what a second read costs has to see to it that the first one is still in memory.
"""

import mmap
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

MAP_LOCKED = 0x2000


@contextmanager
def in_memory(paths: Iterable[Path]) -> Iterator[None]:
    """Keep what files hold in memory, where neither a command nor want of memory takes it away."""
    flags = mmap.MAP_SHARED | mmap.MAP_POPULATE | MAP_LOCKED
    with ExitStack() as stack:
        for path in paths:
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ)
            stack.callback(mapped.close)
        yield


def drops() -> list[str]:
    """How much somebody, or want of memory, has taken from the page cache."""
    lines = Path("/proc/vmstat").read_text().splitlines()
    return [line for line in lines if line.startswith(("drop_", "pgsteal_", "workingset_refault"))]
