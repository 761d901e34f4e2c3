"""Ports that are told before anybody listens there, or that somebody listens on once more."""

import random
import socket
from pathlib import Path

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def quiet_port() -> int:
    """A port of loopback that is free, and that the kernel gives to nobody who asks for any.

    So nobody else gets it between two who listen there, or before the first.
    """
    first = int(_RANGE.read_text().split()[0])
    for _ in range(1000):
        port = random.SystemRandom().randrange(min(10_000, first // 2), first)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no free port")
