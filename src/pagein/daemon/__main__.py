"""`python -m pagein.daemon ...`: the user half as the keeper starts it."""

import gc

from pagein.daemon.certificates import read_beside

gc.disable()  # importing makes no garbage, and the collector looks for it all the time
with read_beside():
    from pagein.daemon.process import main
gc.freeze()
gc.enable()

raise SystemExit(main())
