"""The kernel half of CacheFiles' on-demand mode, in user space; files named after the kernel's."""
