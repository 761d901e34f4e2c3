"""`pagein::https://...` and `pagein::` before every other URL of fsspec: read through a cache.

The cache is that of `pagein.open`: sparse files shared by any number of processes, each range
fetched once. See docs/fsspec.md.
"""

from pagein.fsspec.filesystem import PageinFileSystem

__all__ = ["PageinFileSystem"]
