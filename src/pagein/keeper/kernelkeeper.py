"""The keeper of the front end `kernel`: the kernel half is Linux itself.

In its place stands a small process of ours that mounts and knows what is mounted. The user half is
the same as ever; the next one gets the device's fd too, and says `restore` (facts cachefiles-kernel
10). It is started when the last one has been waited for, and thereby all its anonymous fds are
closed: an OPEN that it left would fail otherwise.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pagein.daemon.device import DEVICE_LOST
from pagein.keeper.half import Half
from pagein.keeper.heldkernel import HeldKernel
from pagein.keeper.keeper import AnyKeeper, user_half
from pagein.keeper.shown import SOCKET, Shown


class KernelKeeper(AnyKeeper):
    """Holds /dev/cachefiles."""

    held: HeldKernel

    def __init__(self, options: argparse.Namespace) -> None:
        """Take everything that is to be held. Raises OSError."""
        held = HeldKernel(options.state_dir, device=options.device, cache=options.cache)
        super().__init__(options, held)

    def show(self) -> Shown:
        """Without a page: the kernel leaves no numbers."""
        held = self.held
        return Shown(held.stack, held.path(SOCKET), self.options.metrics_port, page=False)

    def kernel_half(self) -> Half:
        """The deputy of the one in the kernel."""
        held, options = self.held, self.options
        command = [sys.executable, "-P", "-m", "pagein.kernelhalf.linux"]
        command += ["--control-fd", str(held.control), "--state", held.path("kernel-half.json")]
        command += ["--cache", options.cache, "--timeout", str(options.timeout)]
        command += ["--linger", str(options.linger)]
        return Half("deputy of the kernel", command, [held.control])

    def user_half(self) -> Half:
        """The user half; it ends for good with the kernel's cache."""
        return user_half(self, self.held.device, hopeless=DEVICE_LOST)

    async def device(self) -> Sequence[int]:
        """The device's fd."""
        return (self.held.device_fd,)
