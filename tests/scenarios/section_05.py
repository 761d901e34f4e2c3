"""Facts 5: poll and epoll on the device."""

from __future__ import annotations

import contextlib
import select
from collections.abc import Iterator

from tests.scenarios.files import DEADLINE, QUIET, Device, bits
from tests.scenarios.registry import scenario
from tests.scenarios.world import World

from pagein.protocol.messages import Read


class Edge:
    """An edge-triggered epoll on the device."""

    def __init__(self, w: World, device: Device, epoll: select.epoll) -> None:
        self._w = w
        self._epoll = epoll
        epoll.register(device.fileno(), select.EPOLLIN | select.EPOLLET)

    def event(self) -> None:
        """Wait for the event that must come."""
        self._say(self._epoll.poll(DEADLINE))

    def none(self) -> None:
        """See that none comes."""
        self._say(self._epoll.poll(QUIET))

    def _say(self, found: list[tuple[int, int]]) -> None:
        self._w.note(f"edge: {', '.join(bits(mask) for _, mask in found) or 'none'}")


@contextlib.contextmanager
def edge_triggered(w: World, device: Device) -> Iterator[Edge]:
    """Listen for edges."""
    with select.epoll() as epoll:
        yield Edge(w, device, epoll)


@scenario("5 POLLIN", "5 no other bits")
def poll_bits(w: World) -> None:
    """POLLIN while a request was not read, and nothing else ever in ordinary times."""
    device = w.open()
    device.poll()
    device.close()
    device = w.bound(name="second")
    device.poll()
    mounting = w.netfs.mount()
    device.wait()
    message, anon = device.take_open()
    device.poll()
    device.copen(message)
    device.wait()
    read = device.take(Read)
    device.poll()
    anon.answer(read)
    mounting.result()
    device.poll()
    w.netfs.umount()
    device.wait()
    device.read()
    device.poll()


@scenario("5 wakes", "5 edge-triggered")
def wakes(w: World) -> None:
    """A new request wakes who sleeps, `restore` does, and a copen that makes a READ deliverable."""
    device = w.bound()
    with edge_triggered(w, device) as edge:
        edge.none()
        mounting = w.netfs.mount()
        edge.event()
        message, anon = device.take_open()
        edge.none()
        device.write(b"copen 0")
        edge.none()
        device.copen(message)
        edge.event()
        read = device.take(Read)
        edge.none()
        device.write(b"restore")
        edge.event()
        device.take(Read)
        anon.answer(read)
        mounting.result()


@scenario("5 close does not wake", "5 copen wakes")
def closing_does_not_wake(w: World) -> None:
    """The last close of an anonymous fd wakes nobody; the copen of a reopening does."""
    device = w.bound()
    anon = w.mounted(device)
    reading = w.netfs.read(0, 4096)
    device.take(Read)
    with edge_triggered(w, device) as edge:
        edge.none()
        device.write(b"restore")
        edge.event()
        anon.close()
        edge.none()
        device.poll()
        device.read()
        edge.event()
        message, anon = device.take_open()
        edge.none()
        device.copen(message)
        edge.event()
        anon.answer(device.take(Read))
        reading.result()
