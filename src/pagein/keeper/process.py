"""The keeper as a process: its command line, and how it ends."""

from __future__ import annotations

import argparse
import contextlib
import logging
import signal
import sys
from collections.abc import Callable

from pagein.control import message_of
from pagein.keeper.half import GivenUp
from pagein.keeper.keeper import AnyKeeper, Keeper, say

log = logging.getLogger("pagein.keeper")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the keeper's command line."""
    parser = argparse.ArgumentParser(prog="pagein.keeper")
    parser.add_argument("--state-dir", required=True)
    parser.add_argument("--cache", required=True)
    parser.add_argument("--front-end", choices=("fuse", "kernel"), default="fuse")
    parser.add_argument("--device", help="the kernel's, for the front end `kernel`")
    parser.add_argument("--timeout", type=float, default=30.0)
    parser.add_argument("--fail-after", type=float, default=30.0)
    parser.add_argument("--linger", type=float, default=3.0)
    parser.add_argument("--daemon-user", default="nobody")
    parser.add_argument("--background", default="off")
    parser.add_argument("--no-daemon", action="store_true")
    parser.add_argument("--metrics", action="store_true")
    parser.add_argument("--metrics-port", help="besides, for HTTP over TCP: [ADDRESS:]PORT")
    parser.add_argument("--ready-fd", type=int, default=-1)
    parser.add_argument("--announce", help="what to print when everything is ready")
    return parser.parse_args(argv)


def keeper_of(options: argparse.Namespace) -> AnyKeeper:
    """The keeper of the front end that was asked for. Raises OSError."""
    if options.front_end == "kernel":
        from pagein.keeper.kernelkeeper import KernelKeeper

        return KernelKeeper(options)
    return Keeper(options)


def main(kind: Callable[[argparse.Namespace], AnyKeeper] = keeper_of) -> int:
    """Run the keeper; its exit status."""
    # Until there is a loop: what was taken is let go, as for any other failure.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s keeper %(message)s")
    options = arguments()
    try:
        keeper = kind(options)
        with contextlib.closing(keeper.held):
            import asyncio  # the halves are on their way already

            asyncio.run(keeper.run())
    except (OSError, GivenUp) as problem:
        if options.ready_fd < 0:  # somebody looks at our standard error
            print(f"pagein: {message_of(problem)}", file=sys.stderr)
        else:
            log.error("%s", message_of(problem))
        say(options, message_of(problem), last=True)
        return 1
    except KeyboardInterrupt:
        return 1
    return 0
