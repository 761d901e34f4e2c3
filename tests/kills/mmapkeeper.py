"""pagein's keeper with `mmapdaemon` in place of the user half."""

import sys
from pathlib import Path

from pagein import keeper

DAEMON = str(Path(__file__).with_name("mmapdaemon.py"))


class MmapKeeper(keeper.Keeper):
    async def user_half(self) -> keeper.Half:
        half = await super().user_half()
        at = half.command.index("pagein.daemon")
        half.command[at - 1 : at + 1] = [DAEMON]
        half.name = "mapped daemon"
        return half


if __name__ == "__main__":
    keeper.Keeper = MmapKeeper  # type: ignore[misc]
    sys.exit(keeper.main())
