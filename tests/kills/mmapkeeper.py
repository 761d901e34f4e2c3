"""pagein's keeper with `mmapdaemon` in place of the user half."""

import sys
from pathlib import Path

from pagein.keeper.half import Half
from pagein.keeper.keeper import Keeper
from pagein.keeper.process import main

DAEMON = str(Path(__file__).with_name("mmapdaemon.py"))


class MmapKeeper(Keeper):
    """Starts the mapped daemon."""

    def user_half(self) -> Half:
        half = super().user_half()
        at = half.command.index("pagein.daemon")
        half.command[at - 1 : at + 1] = [DAEMON]
        half.name = "mapped daemon"
        return half


if __name__ == "__main__":
    sys.exit(main(MmapKeeper))
