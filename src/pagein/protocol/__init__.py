"""The CacheFiles on-demand protocol as values: no I/O, no state of its own.

`messages` is what a device's read() returns, `commands` is what its write() accepts, `states` is
the life of objects and requests. The kernel half and the user half share this package and nothing
else. Import the modules by name: the package itself re-exports nothing.
"""
