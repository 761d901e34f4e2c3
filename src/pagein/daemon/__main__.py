"""`python -m pagein.daemon ...`: the user half as the keeper starts it."""

import gc

from pagein import standby

waits = standby.waits()
gc.disable()  # as `run` does
from pagein.daemon.certificates import read_beside  # noqa: E402

with read_beside():
    import pagein.daemon.process  # noqa: F401
standby.run("pagein.daemon.process", waits=waits)
