"""A keeper whose user half kills itself, once at each of `POINTS`, in their order.

dying.py DIRECTORY KEEPER-ARGUMENT...       the keeper; a file in DIRECTORY for each point passed
dying.py DIRECTORY --die USER-HALF-ARGUMENT...
"""

import inspect
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pagein.daemon import presence, process
from pagein.daemon.filedevice import FileAnonFd
from pagein.daemon.loop import Daemon
from pagein.keeper.half import Half
from pagein.keeper.kernelkeeper import KernelKeeper
from pagein.keeper.process import main

POINTS = {
    "OPEN delivered": (Daemon, "_open", "before"),
    "copen to be said": (Daemon, "_copen", "before"),
    "copen said": (Daemon, "_copen", "after"),
    "seeding": (presence, "seed", "before"),
    "READ delivered": (Daemon, "_read", "before"),
    "data written": (FileAnonFd, "_complete", "before"),
    "CREAD done": (FileAnonFd, "_complete", "after"),
    "CLOSE delivered": (Daemon, "_withdraw", "before"),
}


class DyingKeeper(KernelKeeper):
    """Starts this file as the user half."""

    def user_half(self) -> Half:
        half = super().user_half()
        at = half.command.index("pagein.daemon")
        half.command[at - 1 : at + 1] = [__file__, str(DIRECTORY), "--die"]
        return half


def die_at_next_point() -> None:
    """Arm the first point that no earlier life has passed."""
    for point, (owner, name, when) in POINTS.items():
        if not (DIRECTORY / point).exists():
            setattr(owner, name, _dying(getattr(owner, name), DIRECTORY / point, when))
            return


def _dying(call: Callable[..., Any], mark: Path, when: str) -> Callable[..., Any]:
    def die() -> None:
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)

    async def on_the_loop(*arguments: Any) -> None:
        if when == "after":
            await call(*arguments)
        die()

    def in_a_thread(*arguments: Any) -> None:
        if when == "after":
            call(*arguments)
        die()

    return on_the_loop if inspect.iscoroutinefunction(call) else in_a_thread


if __name__ == "__main__":
    DIRECTORY = Path(sys.argv.pop(1))
    if sys.argv[1] == "--die":
        del sys.argv[1]
        die_at_next_point()
        sys.exit(process.main())
    sys.exit(main(DyingKeeper))
