"""Public test tools: what one needs to try a daemon, or code on top of pagein, without a kernel.

`Kernel` is a kernel half in this process, without root, on a clock that one holds; its steps and
the daemon's fail when told (`faults`), and what was said can be read as text (docs/testing.md).
`pagein.testing.webserver` serves ranges from loopback, at a chosen rate, and can lie.
`pagein.testing.proxy` is a link with a round-trip time and a bandwidth, which counts.
"""

from pagein.testing.device import AnonFd, Device
from pagein.testing.faults import (
    POSSIBLE,
    Delay,
    Drop,
    Fail,
    Fault,
    Faults,
    Kill,
    Killed,
    Short,
    Step,
)
from pagein.testing.kernel import Kernel, Waiting
from pagein.testing.loop import SteppedLoop, Stuck
from pagein.testing.recorder import Recorder

__all__ = [
    "POSSIBLE",
    "AnonFd",
    "Delay",
    "Device",
    "Drop",
    "Fail",
    "Fault",
    "Faults",
    "Kernel",
    "Kill",
    "Killed",
    "Recorder",
    "Short",
    "Step",
    "SteppedLoop",
    "Stuck",
    "Waiting",
]
