"""The kernel half as a process: device, cache, blob files and mounts put together."""
