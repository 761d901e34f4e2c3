"""Where things lie in nearly every image, and how large they may be. Pure."""

from __future__ import annotations

from typing import Final

LARGEST: Final = 16 << 20
"""Bytes of a program: larger ones are not wanted whole."""
LIBRARY: Final = 6 << 20
"""The same of a library: of the largest ones little is used."""

LIBRARIES = (
    b"/lib/x86_64-linux-gnu",
    b"/lib/aarch64-linux-gnu",
    b"/lib64",
    b"/lib",
    b"/usr/lib/x86_64-linux-gnu",
    b"/usr/lib/aarch64-linux-gnu",
    b"/usr/lib64",
    b"/usr/lib",
    b"/usr/local/lib",
)
LOADERS = (b"/lib64/ld-linux-x86-64.so.2", b"/lib/ld-linux-aarch64.so.1")
"""Of nearly every program: before its own header says so."""
CACHE = b"/etc/ld.so.cache"
ACCOUNTS = (b"/etc/passwd", b"/etc/group")  # the container's user is looked up there
LOCALE = (
    b"/usr/lib/locale/C.utf8/LC_CTYPE",
    b"/usr/lib/x86_64-linux-gnu/gconv/gconv-modules.cache",
)
SCRIPTS = 4  # that run one another (BINPRM_MAX_RECURSION of the kernel)
