"""The library: remote files as Python files, fetched when they are read, in a shared cache.

`open` and `aopen` need no privileges and no daemon: both halves run in this process, and share the
cache directory with every other process of the user (design decision 14).
"""

import logging

from pagein.library.files import AsyncBlobFile, BlobFile, aopen, open

# What a read failed with is in its OSError; the log is for programs that ask for it.
logging.getLogger("pagein").addHandler(logging.NullHandler())

__all__ = ["AsyncBlobFile", "BlobFile", "aopen", "open"]
