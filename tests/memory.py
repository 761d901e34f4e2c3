"""How much memory a process has had at most: its own, not that of whoever started it.

`getrusage` will not do: `ru_maxrss` outlives exec(2), and so tells of the parent, that was forked.
"""

import re
from pathlib import Path


def peak() -> int:
    """Bytes of memory that this process has had at most, since it began or since `forget_peak`."""
    found = re.search(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


def forget_peak() -> int:
    """Begin anew with what this process has now, which is returned."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()
