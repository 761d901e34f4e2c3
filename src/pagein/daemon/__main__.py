"""`python -m pagein.daemon ...`: the user half as the keeper starts it."""

import gc

gc.disable()  # importing makes no garbage, and the collector looks for it all the time

from pagein.daemon.process import main  # noqa: E402

gc.freeze()
gc.enable()

raise SystemExit(main())
