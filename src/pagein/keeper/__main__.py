"""The keeper's process: `python -m pagein.keeper ...`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging

from pagein.control import message_of
from pagein.keeper.half import GivenUp
from pagein.keeper.held import Held
from pagein.keeper.keeper import Keeper, say

log = logging.getLogger("pagein.keeper")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the keeper's command line."""
    parser = argparse.ArgumentParser(prog="pagein.keeper")
    parser.add_argument("--state-dir", required=True)
    parser.add_argument("--cache", required=True)
    parser.add_argument("--timeout", type=float, default=30.0)
    parser.add_argument("--linger", type=float, default=3.0)
    parser.add_argument("--daemon-user", default="nobody")
    parser.add_argument("--no-daemon", action="store_true")
    parser.add_argument("--ready-fd", type=int, default=-1)
    parser.add_argument("--announce", help="what to print when everything is ready")
    return parser.parse_args(argv)


def main(kind: type[Keeper] = Keeper) -> int:
    """Run the keeper; its exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s keeper %(message)s")
    options = arguments()
    try:
        held = Held(options.state_dir, daemon_control=not options.no_daemon)
        with contextlib.closing(held):
            asyncio.run(kind(options, held).run())
    except (OSError, GivenUp) as problem:
        log.error("%s", message_of(problem))
        say(options, message_of(problem))
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
