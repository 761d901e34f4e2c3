"""Making room in a cache: what cachefilesd does for the kernel (facts cachefiles-kernel 11).

Least recently used first, never what is in use, down to the run marks. `idle` finds what there is,
`evict` takes it away, by the device's commands or by write leases, `culling` decides how much.
"""
