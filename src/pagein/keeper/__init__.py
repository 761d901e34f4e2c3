"""The keeper: parent of both halves. Holds what must outlive them, restarts what dies.

It holds the two /dev/fuse fds, the device's fd and the listening sockets. As long as it lives a
half may be killed at any moment: readers wait, its successor goes on. When the keeper itself dies
the FUSE connections end and every reader gets EIO, never zeros. It does nothing else.
"""
