"""Facts 1: the device node."""

from __future__ import annotations

import mmap
import os

from tests.scenarios.image import metadata
from tests.scenarios.processes import as_nobody, holding, open_as_nobody
from tests.scenarios.registry import scenario
from tests.scenarios.world import World

from pagein.protocol.messages import Read


@scenario("1 busy", "1 fresh")
def second_open(w: World) -> None:
    """One open at a time; the next one begins anew."""
    device = w.open()
    w.try_open(name="second")
    device.write(b"tag x")
    device.close()
    again = w.open(name="third")
    again.write(b"tag x")


@scenario("1 privileges")
def open_without_privileges(w: World) -> None:
    """The mode of the file does not matter, the opener's privileges do."""
    open_as_nobody(w.log, w.kernel.device)


@scenario("1 no later check")
def served_without_privileges(w: World) -> None:
    """Who was given the open device needs no privileges to serve it."""
    device = w.bound()
    _, anon = w.opening(device)
    d, a = device.fileno(), anon.fileno()
    as_nobody(w.log, "copen 0,65536", f"os.write({d}, b'copen 0,65536')", d)
    message = device.take(Read)
    as_nobody(w.log, "pwrite of page 0", f"os.pwrite({a}, aligned({metadata()!r}), 0)", a)
    anon.cread(message.msg_id)
    w.netfs.started[-1].result()
    as_nobody(w.log, "read", f"os.read({d}, 1024)", d)


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


@scenario("1 lseek", "1 offsets", "1 ioctl", "1 mmap", "1 nonblock")
def what_is_no_device(w: World) -> None:
    """It has no position, no ioctl, no mapping, and never blocks."""
    device = w.open(os.O_RDWR | os.O_NONBLOCK)
    device.lseek(5, os.SEEK_SET)
    device.lseek(0, os.SEEK_END)
    w.log.call("pwrite 'tag x' at 1000", lambda: os.pwrite(device.fileno(), b"tag x", 1000))
    device.read(at=1000)
    device.ioctl(0x40049801, 1)
    device.ioctl(0x5401)
    device.mmap(mmap.PROT_READ)
    device.read()


@scenario("1 copies")
def a_copy_holds_it(w: World) -> None:
    """The last copy of the fd is what counts, in whatever process."""
    device = w.bound()
    with holding(w.log, device.fileno()):
        device.close()
        w.try_open(name="second")
    w.open(name="third")


@scenario("1 anonymous fds")
def an_anonymous_fd_holds_it(w: World) -> None:
    """It stays busy until the last anonymous fd is closed, of which a copy counts too."""
    device = w.bound()
    anon = w.mounted(device)
    copy = anon.dup()
    device.close()
    w.try_open(name="second")
    anon.close()
    w.try_open(name="third")
    copy.close()
    w.open(name="fourth")
