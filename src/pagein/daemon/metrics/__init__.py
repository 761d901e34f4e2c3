"""Prometheus metrics of the user half, and with them the numbers of the kernel half.

Loaded only when asked for: it needs the extra `metrics`. Nothing here counts anything. What is
counted anyway (`daemon.tally`, `protocol.numbers`) gets names when somebody looks.
"""
