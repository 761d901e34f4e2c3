"""The heap: a process that has asked for it gives memory back, but not while it builds an index."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from pagein.images.layers.heap import heap
from pagein.images.layers.worker import switching

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

def freed():
    "How much of 24 MiB is kept when they have been freed."
    before = resident()
    blocks = [bytearray(b"x" * (1 << 20)) for _ in range(24)]
    blocks.clear()
    return resident() - before

heap.give_back()
outside = freed()
switching.enter()
inside = freed()
switching.leave()
print(outside >> 20, inside >> 20, freed() >> 20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_blocks_are_kept_only_while_an_index_is_built() -> None:
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60
    )
    outside, inside, after = map(int, found.stdout.split())
    assert outside < 8
    assert inside > 16
    assert after < 8
