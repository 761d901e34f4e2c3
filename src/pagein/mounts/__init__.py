"""Mounts: the system calls, and the helper process in which they are made.

mount(2), umount2(2) and open(2) of a FUSE file system block until its server answers. So the
process that serves one never makes them itself: it has ``helper`` do it (facts half-to-half 6).
"""
