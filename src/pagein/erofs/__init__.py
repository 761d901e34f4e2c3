"""The on-disk format of EROFS: images written and read, without I/O of its own.

`tree` says what a file system is, `writer` makes an image of it, `reader` reads uncompressed
images, hostile ones too. Both halves and the tools stand on it; it imports nothing of pagein.
"""
