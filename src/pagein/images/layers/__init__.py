"""Image layers as registries hold them, tar, tar+gzip and tar+zstd, and the index that opens them.

An index says where in an unmodified layer the data of each file lies, how to enter its compression
there, and what each piece must hash to. Importing this package is cheap.
"""
