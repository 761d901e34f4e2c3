"""`python -m pagein.daemon ...`: the user half as the keeper starts it."""

from pagein.daemon.process import main

raise SystemExit(main())
