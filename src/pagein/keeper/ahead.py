"""What the user half imports, on its way from the disk before it is asked for.

After a boot its hundreds of little files are not in memory, and an interpreter waits for one after
the other: as long as it takes to import them. A process that lives for a moment opens all of them.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_PACKAGES = [
    "aiohappyeyeballs",
    "aiohttp",
    "aiosignal",
    "asyncio",
    "attr",
    "concurrent/futures",
    "email",
    "frozenlist",
    "http",
    "idna",
    "msgspec",
    "multidict",
    "pagein/daemon",
    "pagein/erofs",
    "pagein/images",
    "pagein/images/foresight",
    "pagein/images/layers",
    "pagein/images/toc",
    "pagein/images/traces",
    "pagein/origins",
    "pagein/protocol",
    "propcache",
    "urllib",
    "yarl",
]
_FIRST = "aiohttp"
"""If this one is in memory all of them are, more or less."""
_CODE = f".{sys.implementation.cache_tag}.pyc"


def read_ahead() -> None:
    """Have the files read, unless they are in memory; does not wait for it."""
    first = next(_files([_FIRST]), None)
    if first is None or _in_memory(first):
        return
    pid = os.fork()
    if not pid:
        try:
            os.closerange(3, 1 << 20)
            if not os.fork():  # nobody has to wait for that one
                for path in _files(_PACKAGES):
                    _will_need(path)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def _files(packages: list[str]) -> Iterator[str]:
    """The byte code of packages and what of them is in C."""
    for package in packages:
        for place in sys.path:
            found = os.path.join(place, package)
            if not os.path.exists(os.path.join(found, "__init__.py")):
                continue
            for directory in (os.path.join(found, "__pycache__"), found):
                for name in sorted(_names(directory)):
                    if name.endswith((_CODE, ".so")):
                        yield os.path.join(directory, name)
            break


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:  # there is no byte code
        return []


def _in_memory(path: str) -> bool:
    """Whether the beginning of a file is in the page cache; True where nobody can tell."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.preadv(fd, [bytearray(1)], 0, os.RWF_NOWAIT)
        finally:
            os.close(fd)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _will_need(path: str) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
        os.close(fd)
    except OSError:
        return
