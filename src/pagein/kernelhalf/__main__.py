"""`python -m pagein.kernelhalf ...`: the kernel half as the keeper starts it."""

from pagein import standby

standby.run("pagein.kernelhalf.process", waits=standby.waits())
