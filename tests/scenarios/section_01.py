"""Facts 1: the device node."""

from __future__ import annotations

import mmap
import os

from tests.scenarios.registry import scenario
from tests.scenarios.world import World


@scenario("1 busy")
def second_open(w: World) -> None:
    """One open at a time; the next one begins anew."""
    device = w.open()
    w.try_open(name="second")
    device.write(b"tag x")
    device.close()
    again = w.open(name="third")
    again.write(b"tag x")


@scenario("1 access modes")
def access_modes(w: World) -> None:
    """All access modes open it; then the ordinary rules hold."""
    device = w.open(os.O_WRONLY)
    device.write(b"dir " + os.fsencode(w.cache))
    device.write(b"bind ondemand")
    device.read()
    device.close()
    device = w.open(os.O_RDONLY)
    device.write(b"tag x")
    device.read()


@scenario("1 lseek", "1 ioctl", "1 mmap", "1 nonblock")
def what_is_no_device(w: World) -> None:
    """It has no position, no ioctl, no mapping, and never blocks."""
    device = w.open(os.O_RDWR | os.O_NONBLOCK)
    device.lseek(5, os.SEEK_SET)
    device.lseek(0, os.SEEK_END)
    device.ioctl(0x40049801, 1)
    device.ioctl(0x5401)
    device.mmap(mmap.PROT_READ)
    device.read()
