"""A cachefiles daemon of one's own, and its tests: no kernel, no root, no waiting.

    python -m pytest examples/test_own_daemon.py

The daemon is all that is yours here: `OwnDaemon`. On a real kernel its `device` and its fds are
made of os.read, os.write, os.pwrite and fcntl.ioctl; see docs/testing.md.
"""

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from pagein.protocol.messages import Close, Open, Read, decode
from pagein.testing import AnonFd, Delay, Device, Fail, Kernel, Kill, Killed, Step

BLOBS = {b"image": b"".join(bytes([n]) * 4096 for n in range(1, 9))}


class OwnDaemon:
    """Serves `BLOBS`, one message after the other."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.fds: dict[int, tuple[AnonFd, bytes]] = {}

    def serve(self) -> None:
        """Everything that can be read now; what is met closed is asked for again, so once more."""
        while self.device.poll():
            if raw := self.device.read():
                self.answer(decode(raw))

    def answer(self, message: Open | Read | Close) -> None:
        if isinstance(message, Open):
            self.open(message)
        elif isinstance(message, Read):
            fd, content = self.fds[message.object_id]
            try:
                fd.pwrite(content[message.off : message.off + message.len], message.off)
            finally:
                fd.cread(message.msg_id)  # an error is a CREAD without the data
        else:
            fd, _ = self.fds.pop(message.object_id)
            fd.close()

    def open(self, message: Open) -> None:
        fd = self.device.open_fd(message.object_id)
        content = BLOBS.get(message.cookie_key)
        if content is None:
            self.device.write(b"copen %d,%d" % (message.msg_id, -errno.ENOENT))
            fd.close()
            return
        self.fds[message.object_id] = fd, content
        self.device.write(b"copen %d,%d" % (message.msg_id, len(content)))


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    with Kernel(tmp_path) as kernel:
        yield kernel


def test_a_reader_gets_its_bytes(kernel: Kernel) -> None:
    daemon = OwnDaemon(kernel.bind())
    mounting = kernel.mount(b"erofs,image", b"image")
    daemon.serve()
    reading = kernel.read(mounting.result(), 4096, 8192)
    daemon.serve()
    assert reading.result() == BLOBS[b"image"][4096:12288]


def test_a_blob_that_is_not_there(kernel: Kernel) -> None:
    daemon = OwnDaemon(kernel.bind())
    mounting = kernel.mount(b"erofs,image", b"no such")
    daemon.serve()
    with pytest.raises(OSError):
        mounting.result()
    assert not kernel.device.fds  # nothing leaks


def test_a_full_disk_is_an_error_and_never_zeros(kernel: Kernel) -> None:
    daemon = OwnDaemon(kernel.bind())
    mounting = kernel.mount(b"erofs,image", b"image")
    daemon.serve()
    kernel.faults.add(Step.STORE, Fail(errno.ENOSPC))
    reading = kernel.read(mounting.result(), 0, 4096)
    with pytest.raises(OSError, match="No space left"):
        daemon.serve()
    with pytest.raises(OSError):
        reading.result()


def test_killed_between_write_and_cread(kernel: Kernel) -> None:
    daemon = OwnDaemon(kernel.bind())
    mounting = kernel.mount(b"erofs,image", b"image")
    daemon.serve()
    reading = kernel.read(mounting.result(), 0, 4096)
    kernel.faults.add(Step.CREAD, Kill())
    with pytest.raises(Killed):
        daemon.serve()
    assert not reading.done  # it waits, and is not told anything wrong

    kernel.device.restart()
    successor = OwnDaemon(kernel.device)
    kernel.device.write(b"restore")
    successor.serve()
    assert reading.result() == BLOBS[b"image"][:4096]


def test_an_hour_passes_in_no_time(kernel: Kernel) -> None:
    daemon = OwnDaemon(kernel.bind())
    kernel.faults.add(Step.COMMAND, Delay(3600))  # our copen takes an hour
    mounting = kernel.mount(b"erofs,image", b"image")
    with pytest.raises(OSError) as late:
        daemon.serve()
    assert late.value.errno == errno.EINVAL  # nobody waits for it any more
    with pytest.raises(OSError):
        mounting.result()
    assert kernel.now == 3600


CONVERSATION = """\
     0.000  netfs   mount erofs,image image
     0.000  daemon  read() = OPEN msg_id=0 object_id=1 volume=erofs,image cookie=image
     0.000  daemon  open_fd(1) = fd 1
     0.000  daemon  write('copen 0,32768') = 13
     0.000  netfs   mount erofs,image image = 32768 bytes
     0.000  netfs   read image [0, +4096]
     0.000  daemon  read() = READ msg_id=1 object_id=1 off=0 len=4096
     0.000  daemon  pwrite(fd 1, 4096 bytes, 0) = 4096
     0.000  daemon  cread(fd 1, 1) = ok
     0.000  netfs   read image [0, +4096] = 4096 bytes 01*4096
"""


def test_the_conversation_is_as_it_was(kernel: Kernel) -> None:
    daemon = OwnDaemon(kernel.bind())
    kernel.recorder.lines.clear()
    mounting = kernel.mount(b"erofs,image", b"image")
    daemon.serve()
    kernel.read(mounting.result(), 0, 4096)
    daemon.serve()
    assert kernel.recorder.text == CONVERSATION
