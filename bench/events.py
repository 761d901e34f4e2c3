"""What the kernel half's trace events cost, off and on: python bench/events.py [--rounds N]

A round is a READ from the reader's miss to its CREAD, both halves in one process and nothing
written, so that the kernel half's own work is nearly all of it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import timeit
import tracemalloc

from pagein.cachefiles import tracepoints
from pagein.cachefiles.tracepoints import trace
from pagein.fscache import Cookie
from pagein.protocol.messages import Open, Read, decode
from pagein.testing import AnonFd, Kernel

PAGE = 4096


def mounted(kernel: Kernel) -> tuple[Cookie, AnonFd]:
    """A blob with one hole, and its anonymous fd."""
    kernel.recorder.on = False
    device = kernel.bind()
    mounting = kernel.mount(b"v", b"k")
    message = decode(device.read())
    assert isinstance(message, Open)
    fd = device.open_fd(message.object_id)
    device.write(b"copen %d,%d" % (message.msg_id, PAGE))
    return mounting.result(), fd


def one_round(kernel: Kernel, cookie: Cookie, fd: AnonFd) -> None:
    """A READ that is answered without data: the reader gets EIO, and the hole stays."""
    reading = kernel.read(cookie, 0, PAGE)
    message = decode(kernel.device.read())
    assert isinstance(message, Read)
    fd.cread(message.msg_id)
    assert reading.done


def timed(kernel: Kernel, cookie: Cookie, fd: AnonFd, rounds: int) -> float:
    """Microseconds a round."""
    started = time.perf_counter()
    for _ in range(rounds):
        one_round(kernel, cookie, fd)
    return (time.perf_counter() - started) / rounds * 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=2000)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as directory, Kernel(directory) as kernel:
        cookie, fd = mounted(kernel)
        timed(kernel, cookie, fd, rounds)
        off, on = [], []
        for _ in range(7):  # in turn, so that the machine's moods fall on both
            trace.switch(False)
            off.append(timed(kernel, cookie, fd, rounds))
            trace.switch(True)
            on.append(timed(kernel, cookie, fd, rounds))
        events = trace.count / rounds
        trace.switch(False)
        tracemalloc.start()
        timed(kernel, cookie, fd, rounds)
        here = tracemalloc.Filter(True, tracepoints.__file__)
        kept = tracemalloc.take_snapshot().filter_traces([here]).traces
        tracemalloc.stop()
    look = min(timeit.repeat("if trace.on: pass", globals={"trace": trace}, number=1_000_000))
    empty = min(timeit.repeat("pass", number=1_000_000))
    names = {"trace": trace, "kind": tracepoints.ONDEMAND_CREAD}
    kept_one = min(timeit.repeat("trace.event(kind, b'k', 1)", globals=names, number=100_000))
    print(f"a look at the flag             {(look - empty) * 1000:8.1f} ns")
    print(f"an event that is kept          {kept_one * 10_000:8.1f} ns")
    print(f"a round has                    {events:8.1f} events")
    print(f"a round, events off            {min(off):8.1f} us")
    print(f"a round, events on             {min(on):8.1f} us")
    print(f"memory of events while off     {sum(each.size for each in kept):8} bytes")


if __name__ == "__main__":
    main()
