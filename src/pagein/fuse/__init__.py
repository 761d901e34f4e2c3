"""The FUSE wire format and one connection, straight over ``/dev/fuse``: no libfuse, no policy.

``abi`` turns bytes into values and back, ``connection`` moves them; what a file system is,
its callers decide.
"""
