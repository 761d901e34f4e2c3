"""The fds of this process, to see that a test leaves none.

What another test has left to a thread or to the garbage collector may close its own at any moment:
so count nothing, and compare by `<=`.
"""

import gc
import os


def open_fds() -> set[tuple[str, str]]:
    """Numbers, and what each is of."""
    gc.collect()
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add((number, os.readlink(f"/proc/self/fd/{number}")))
        except OSError:  # the one that listed the directory
            continue
    return found
