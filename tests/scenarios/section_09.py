"""Facts 9: which READs are made, and what becomes of their readers."""

from __future__ import annotations

from tests.scenarios import image
from tests.scenarios.files import Anon
from tests.scenarios.registry import scenario
from tests.scenarios.world import World

from pagein.protocol.messages import Read

PAGE = image.PAGE


@scenario("9.1 whole pages")
def reads_are_pages(w: World) -> None:
    """A byte is asked for with its page; a range that touches two pages, with both."""
    device = w.bound()
    anon = w.mounted(device)
    for offset, length in ((100, 1), (3 * PAGE - 1, 2), (5 * PAGE + 10, 3 * PAGE)):
        reading = w.netfs.read(offset, length)
        anon.answer(device.take(Read))
        reading.result()


@scenario("9.2 leading hole", "9.2 next hole")
def reads_cover_the_leading_hole(w: World) -> None:
    """A READ goes up to the next data; behind that, the next hole has a READ of its own."""
    device = w.bound()
    anon = w.mounted(device)
    anon.fill(4, 2)
    reading = w.netfs.read(0, 8 * PAGE)
    anon.answer(device.take(Read))
    anon.answer(device.take(Read))
    reading.result()
    device.nothing()


@scenario("9.2 data first")
def reads_begin_behind_data(w: World) -> None:
    """What is present at the beginning is not asked for."""
    device = w.bound()
    anon = w.mounted(device)
    anon.fill(1, 3)
    reading = w.netfs.read(0, 6 * PAGE)
    anon.answer(device.take(Read))
    reading.result()


@scenario("9.2 all there")
def reads_of_what_is_there(w: World) -> None:
    """No READ for what is present, nor for what is in the page cache."""
    device = w.bound()
    anon = w.mounted(device)
    anon.fill(1, 4)
    for _ in range(2):
        w.netfs.read(0, 4 * PAGE).result()
    device.nothing()


@scenario("9.2 not merged")
def reads_of_two_mounts(w: World) -> None:
    """Two mounts that share a blob ask for the same range twice: READs may overlap."""
    device = w.bound()
    blobs: list[Anon] = []
    for name in ("a", "b"):
        mounting = w.netfs.mount(name, f"blob-{name}", "shared", "dev")
        message, anon = device.take_open()
        device.copen(message)
        anon.answer(device.take(Read), devices=1)
        if not blobs:
            message, blob = device.take_open()
            device.copen(message, image.DEVICE_SIZE)
            blobs.append(blob)
        mounting.result()
    first = w.netfs.read(0, 2 * PAGE, name="a", file="more")
    one = device.take(Read)
    second = w.netfs.read(0, 4 * PAGE, name="b", file="more")
    two = device.take(Read)
    blobs[0].answer(one, device=1)
    first.result()
    blobs[0].answer(two, device=1)
    second.result()


@scenario("9.4 no data", "9.4 page by page", "9.4 not remembered")
def cread_without_data(w: World) -> None:
    """Completed without data: once more for the page alone, then EIO; the next read asks anew."""
    device = w.bound()
    anon = w.mounted(device)
    reading = w.netfs.read(0, PAGE)
    while w.asked(device, reading):
        anon.cread(device.take(Read).msg_id)
    reading.result()
    again = w.netfs.read(0, PAGE)
    anon.answer(device.take(Read))
    again.result()


@scenario("9.4 prefix")
def cread_with_a_part(w: World) -> None:
    """A beginning is accepted, and the rest asked for by the next READ."""
    device = w.bound()
    anon = w.mounted(device)
    reading = w.netfs.read(0, 8 * PAGE)
    first = device.take(Read)
    anon.fill(1)
    anon.cread(first.msg_id)
    second = device.take(Read)
    anon.fill(2, 3)
    anon.cread(second.msg_id)
    anon.answer(device.take(Read))
    reading.result()


@scenario("9.4 zeros are data")
def zeros_that_were_written(w: World) -> None:
    """Zeros that were written are data."""
    device = w.bound()
    anon = w.mounted(device)
    reading = w.netfs.read(0, PAGE)
    message = device.take(Read)
    anon.pwrite(bytes(PAGE), message.off)
    anon.cread(message.msg_id)
    reading.result()
    device.nothing()


@scenario("9.5 killed", "8.3 dead reader", "14 killed in delivery", "14 killable")
def killed_reader(w: World) -> None:
    """A killed reader's READ is withdrawn: nothing to read, and a late CREAD is EINVAL."""
    device = w.bound()
    anon = w.mounted(device)
    reading = w.netfs.read(0, PAGE)
    message = device.take(Read)
    reading.signal("KILL")
    reading.result()
    anon.fill(1)
    anon.cread(message.msg_id)
    w.netfs.read(0, PAGE).result()


@scenario("9.5 killed unread")
def killed_reader_before_delivery(w: World) -> None:
    """The same before its READ was delivered."""
    device = w.bound()
    w.mounted(device)
    reading = w.netfs.read(0, PAGE)
    device.wait()
    reading.signal("KILL")
    reading.result()
    device.nothing()
    device.read()


@scenario("9.5 handled signals")
def signalled_reader(w: World) -> None:
    """A signal that is handled does not end the wait."""
    device = w.bound()
    anon = w.mounted(device)
    reading = w.netfs.read(0, PAGE)
    message = device.take(Read)
    reading.signal("USR1")
    reading.waits()
    anon.answer(message)
    reading.result()


@scenario("9.6 tail")
def tail_of_an_object(w: World) -> None:
    """The last page of an object whose size is no multiple is written whole, zeros at its end."""
    device = w.bound()
    mounting = w.netfs.mount()
    anon = w.serve_mount(device, mounting, image.SIZE - 1000)
    reading = w.netfs.read((image.DATA_PAGES - 1) * PAGE, PAGE)
    message = device.take(Read)
    anon.pwrite(image.page(15)[:-1000] + bytes(1000), message.off)
    anon.cread(message.msg_id)
    reading.result()


@scenario("9.3 small blocks")
def holes_of_small_blocks(w: World) -> None:
    """On blocks of 1 KiB a hole may begin and end inside a page."""
    w.room(block=1024)
    path = w.disk.plant("erofs,blob", "blob", image.SIZE, {0: image.page(0)})
    with path.open("r+b") as file:
        file.seek(PAGE + 1024)
        file.write(image.letter(1) * 1024)
    device = w.bound()
    message, anon = w.opening(device)
    device.copen(message, image.SIZE)
    w.netfs.started[-1].result()
    reading = w.netfs.read(0, PAGE)
    while w.asked(device, reading):
        found = device.take(Read)
        anon.fill(1)
        anon.cread(found.msg_id)
    reading.result()
