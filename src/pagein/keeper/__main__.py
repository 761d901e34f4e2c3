"""`python -m pagein.keeper ...`: the keeper as commands start it.

If it waits for its command, so do both halves already. The kernel half and its mount helper, as
privileged as the keeper, are forks of it, with what all three import. The user half is not: it
shall not know where in memory those have what.
"""

from importlib import import_module

from pagein import standby
from pagein.keeper.ahead import read_ahead

waits = standby.waits()
if waits:
    standby.prepare("pagein.daemon")
    read_ahead()
    import_module("pagein.keeper.common")
    if standby.fork("pagein.kernelhalf"):
        if standby.fork("pagein.mounts.helper", bound=False):
            standby.run("pagein.mounts.helper", waits=True)
        standby.run("pagein.kernelhalf.process", waits=True)
standby.run("pagein.keeper.process", waits=waits)
