"""Where our transcript may differ from the real kernel's, line by line.

Each entry names the row of the table "Where pagein differs from the kernel, on purpose" in
ARCHITECTURE.md that is its reason, by the text of the row's first cell. An entry that is not used
is an error, and so is a row that no entry shows and `ELSEWHERE` does not know.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ARCHITECTURE = Path(__file__).parents[2] / "ARCHITECTURE.md"
HEADING = "## Where pagein differs from the kernel, on purpose"


@dataclass(frozen=True, slots=True)
class Difference:
    """In these scenarios, lines `ours` stand wherever the kernel has the lines `kernel`."""

    row: str
    facts: tuple[str, ...]
    scenarios: tuple[str, ...]
    kernel: tuple[str, ...]
    ours: tuple[str, ...]


_ROOT_OF_OURS = "names in .: directory 700 cache, directory 700 graveyard, file 600 pagein.inflight"
_FILE = "file of 'blob': mode 600 size 65536 xattr 000000000001000000000000000000000100"
_TAIL = (
    r"file of '\x02\x00\x00\x00\x00\x00\x00\x00': mode 600 size 12288"
    " xattr 00000000000020640000000000000000010001000000"
)
_AGAIN = ("in $CACHE/cache/Ierofs,blob/@02:",)

DIFFERENCES: tuple[Difference, ...] = (
    Difference(
        row="an empty write is EOPNOTSUPP",
        facts=("2 empty",),
        scenarios=("verbs",),
        kernel=("device: '': EOPNOTSUPP",),
        ours=("device: '': ok",),
    ),
    Difference(
        row="a percentage of 2^64 and more wraps",
        facts=("2.1 limits wrap",),
        scenarios=("limits_are_percentages",),
        kernel=("device: 'frun 18446744073709551623%': ok",),
        ours=("device: 'frun 18446744073709551623%': EINVAL",),
    ),
    Difference(
        row="a symbolic link as `dir` is ENOTDIR",
        facts=("2.2 link",),
        scenarios=("bind_through_a_link",),
        kernel=("device: 'dir $DIR/link': ok", "device: 'bind ondemand': ENOTDIR"),
        ours=("device: 'dir $DIR/link': ok", "device: 'bind ondemand': ok"),
    ),
    Difference(
        row="tmpfs is refused",
        facts=("2.2 file systems",),
        scenarios=("bind_on_other_file_systems",),
        kernel=("device: 'dir $TMPFS': ok", "device: 'bind ondemand': EOPNOTSUPP"),
        ours=("device: 'dir $TMPFS': ok", "device: 'bind ondemand': ok"),
    ),
    Difference(
        row="`cache/`, `graveyard/` and directories below cannot be removed while in use",
        facts=("2.2 kernel files",),
        scenarios=("directories_in_use",),
        kernel=("rmdir graveyard: EBUSY",),
        ours=("rmdir graveyard: ok",),
    ),
    Difference(
        row="a read() to a bad address loses the request",
        facts=("4.4 bad pointer",),
        scenarios=("read_into_nowhere",),
        kernel=("device: poll: nothing", "device: read: 0", "mount a (fsid=blob): EIO or ENOBUFS"),
        ours=(
            "device: poll: POLLIN",
            "device: read: OPEN id=0 object=1 len=47 flags=0 'erofs,blob' 'blob'",
        ),
    ),
    Difference(
        row="the fd of an OPEN is in the message",
        facts=("4.4 no fd free",),
        scenarios=("no_fd_free",),
        kernel=("device: read: EMFILE",),
        ours=(
            "device: read: OPEN id=0 object=1 len=47 flags=0 'erofs,blob' 'blob'",
            "object 1: open: EMFILE",
            "device: 'copen 0,-24': ok",
        ),
    ),
    Difference(
        row="lseek on the device returns 0",
        facts=("1 lseek",),
        scenarios=("what_is_no_device",),
        kernel=("device: lseek SET 5: 0",),
        ours=("device: lseek SET 5: 5",),
    ),
    Difference(
        row="CREAD takes its id by value",
        facts=("1 ioctl",),
        scenarios=("what_is_no_device",),
        kernel=("device: ioctl 0x40049801: ENOTTY",),
        ours=("device: ioctl 0x40049801: EFAULT",),
    ),
    Difference(
        row="each new volume gets 256 fan-out directories",
        facts=("2.2 directories",),
        scenarios=("what_bind_makes",),
        kernel=("names in cache/Ierofs,blob: directories 700 @..: 256",),
        ours=("names in cache/Ierofs,blob: directories 700 @..: 1",),
    ),
    Difference(
        row="beside `cache/` and `graveyard/` there is nothing",
        facts=("2.2 directories",),
        scenarios=("what_bind_makes",),
        kernel=("names in .: directory 700 cache, directory 700 graveyard",),
        ours=(_ROOT_OF_OURS,),
    ),
    Difference(
        row="a new backing file is linked when the object is withdrawn",
        facts=("7.2 new file invisible", "7.4 commit at close"),
        scenarios=("new_file_appears_at_the_end",),
        kernel=("file of 'blob': none",),
        ours=(f"{_FILE} data pages 0-3",),
    ),
    Difference(
        row="a new backing file is linked when the object is withdrawn",
        facts=("7.4 commit at close",),
        scenarios=("close_after_the_last_fd",),
        kernel=("file of 'blob': none",),
        ours=(f"{_FILE} data pages 0-0",),
    ),
    Difference(
        row="READs go beyond the size that copen told",
        facts=("6 size zero", "6 size no bound"),
        scenarios=("copen_size_zero",),
        kernel=(
            "device: read: READ id=1 object=1 0+4096",
            "object 1: pwrite 4096 at 0: 4096",
            "object 1: cread 1: ok",
            "mount a (fsid=blob): ok",
        ),
        ours=("device: read: CLOSE id=1 object=1", "mount a (fsid=blob): EIO"),
    ),
    Difference(
        row="READs go beyond the size that copen told",
        facts=("6 size no bound",),
        scenarios=("copen_size_too_small",),
        kernel=(
            "device: read: READ id=2 object=1 16384+4096",
            "object 1: pwrite 4096 at 16384: 4096",
            "object 1: cread 2: ok",
            "read a/data 12288+4096: 4096 bytes E",
        ),
        ours=("read a/data 12288+4096: EIO",),
    ),
    Difference(
        row="each new volume gets 256 fan-out directories",
        facts=("11 fan-out of a failure",),
        scenarios=("fan_out_of_a_failed_open",),
        kernel=("names in cache/Ierofs,blob: directories 700 @..: 256",),
        ours=("names in cache/Ierofs,blob: none",),
    ),
    Difference(
        row="a new backing file is linked when the object is withdrawn",
        facts=("11 first fill",),
        scenarios=("cull_what_is_filled_first",),
        kernel=("device: 'inuse Dblob': ENOENT", *_AGAIN, "device: 'cull Dblob': ENOENT"),
        ours=("device: 'inuse Dblob': EBUSY", *_AGAIN, "device: 'cull Dblob': EBUSY"),
    ),
    Difference(
        row="`cull` takes what somebody else has open",
        facts=("11 opened by others",),
        scenarios=("cull_what_another_has_open",),
        kernel=(
            *("device: 'inuse Dblob': ok", *_AGAIN, "device: 'cull Dblob': ok"),
            "file of 'blob': none",
        ),
        ours=(
            *("device: 'inuse Dblob': EBUSY", *_AGAIN, "device: 'cull Dblob': EBUSY"),
            f"{_FILE} data pages 0-0",
        ),
    ),
    Difference(
        row="`cull` and `inuse` act on any directory",
        facts=("11 no containment",),
        scenarios=("cull_elsewhere",),
        kernel=(
            *("device: 'inuse file': ok", "in $DIR/elsewhere:", "device: 'cull file': ok"),
            "left elsewhere: []",
        ),
        ours=(
            *("device: 'inuse file': EINVAL", "in $DIR/elsewhere:", "device: 'cull file': EINVAL"),
            "left elsewhere: ['file']",
        ),
    ),
    Difference(
        row="the last page of a netfs's file is not cached if the file ends inside it",
        facts=("original tail",),
        scenarios=("a_netfs_and_the_end_of_a_file",),
        kernel=(f"{_TAIL} data pages none",),
        ours=(f"{_TAIL} data pages 2-2",),
    ),
    Difference(
        row="the last page of a netfs's file is not cached if the file ends inside it",
        facts=("original tail",),
        scenarios=("a_netfs_and_the_end_of_a_file",),
        kernel=("read b/data 8192+4096: 100 bytes C", "fetched: 8192+100"),
        ours=("read b/data 8192+4096: 100 bytes C", "fetched: nothing"),
    ),
    Difference(
        row="with another tag than that of old mounts, new ones are ENOBUFS",
        facts=("7.5 another tag",),
        scenarios=("another_tag_beside_dead_mounts",),
        kernel=("mount b (fsid=other): ENOBUFS",),
        ours=(
            "second: read: OPEN id=0 object=1 len=49 flags=0 'erofs,other' 'other'",
            "second: 'copen 0,65536': ok",
            "second: read: READ id=1 object=1 0+4096",
            "object 1: pwrite 4096 at 0: 4096",
            "object 1: cread 1: ok",
            "mount b (fsid=other): ok",
        ),
    ),
    Difference(
        row="on blocks of 1 KiB READs begin and end at those",
        facts=("9.3 small blocks",),
        scenarios=("holes_of_small_blocks",),
        kernel=("device: read: READ id=1 object=1 4096+1024",),
        ours=("device: read: READ id=1 object=1 4096+4096",),
    ),
    Difference(
        row="EIO of a lookup makes the whole cache dead",
        facts=("7.6 dead", "2 dead"),
        scenarios=("an_io_error_of_the_backing_file_system",),
        kernel=(
            "device: 'restore': EIO",
            "object 1: pwrite 4096 at 8192: 4096",
            "object 1: cread 2: EINVAL",
            "read a/data 4096+4096: ENOBUFS",
            "read a/data 0+4096 ...",
            "read a/data 0+4096: ENOBUFS",
        ),
        ours=(
            "device: 'restore': ok",
            "object 1: pwrite 4096 at 8192: 4096",
            "object 1: cread 2: ok",
            "read a/data 4096+4096: 4096 bytes C",
            "read a/data 0+4096 ...",
            "read a/data 0+4096: 4096 bytes B",
        ),
    ),
    Difference(
        row="an anonymous fd's SEEK_SET, CUR and END act on the cache file",
        facts=("8.1 before copen",),
        scenarios=("anon_before_copen",),
        kernel=("object 1: lseek SET 0: ENOBUFS", "object 1: lseek END 0: ENOBUFS"),
        ours=("object 1: lseek SET 0: 0", "object 1: lseek END 0: 0"),
    ),
    Difference(
        row="an anonymous fd's SEEK_SET, CUR and END act on the cache file",
        facts=("7.4 writes after close",),
        scenarios=("surviving_fd",),
        kernel=("object 1': lseek END 0: ENOBUFS",),
        ours=("object 1': lseek END 0: 0",),
    ),
    Difference(
        row="an anonymous fd's SEEK_SET, CUR and END act on the cache file",
        facts=("8.1 lseek moves another",),
        scenarios=("anon_position",),
        kernel=(
            "object 1: lseek CUR 0: 20480",
            "object 1: lseek CUR 4096: 24576",
            "object 1: lseek HOLE 0: 12288",
        ),
        ours=(
            "object 1: lseek CUR 0: 24576",
            "object 1: lseek CUR 4096: 28672",
            "object 1: lseek HOLE 0: 8192",
        ),
    ),
    Difference(
        row="an anonymous fd's SEEK_SET, CUR and END act on the cache file",
        facts=("8.1 lseek moves another",),
        scenarios=("anon_position",),
        kernel=("object 1: lseek HOLE 0: 16384",),
        ours=("object 1: lseek HOLE 0: 12288",),
    ),
    Difference(
        row="pread of an anonymous fd is ESPIPE",
        facts=("8.1 reads",),
        scenarios=("anon_cannot_be_read",),
        kernel=("pread: ESPIPE",),
        ours=("pread: EBADF",),
    ),
    Difference(
        row="a write may end inside a page",
        facts=("8.1 length of blocks",),
        scenarios=("anon_write_inside_a_page",),
        kernel=("object 1: pwrite 512 at 4096: 512", "object 1: lseek DATA 4096: 4096"),
        ours=("object 1: pwrite 512 at 4096: EINVAL", "object 1: lseek DATA 4096: ENXIO"),
    ),
    Difference(
        row="a write from memory that is not aligned is EINVAL",
        facts=("8.1 misaligned memory",),
        scenarios=("anon_misaligned_memory",),
        kernel=("object 1: pwrite 4096 at 4096, memory at 1: EINVAL",),
        ours=("object 1: pwrite 4096 at 4096, memory at 1: 4096",),
    ),
    Difference(
        row="READs go beyond the size that copen told",
        facts=("8.1 grows",),
        scenarios=("anon_beyond_the_end",),
        kernel=("object 1: lseek END 0: 73728", "object 1: lseek DATA 65536: 69632"),
        ours=("object 1: lseek END 0: 65536", "object 1: lseek DATA 65536: ENXIO"),
    ),
    Difference(
        row="sendfile and splice into an anonymous fd are EINVAL",
        facts=("8.1 copied into",),
        scenarios=("anon_copied_into",),
        kernel=(
            "sendfile: EINVAL",
            "splice: EINVAL",
            "copy_file_range: EINVAL",
            "object 1: lseek DATA 4096: ENXIO",
        ),
        ours=(
            "sendfile: 4096",
            "splice: 4096",
            "copy_file_range: EXDEV",
            "object 1: lseek DATA 4096: 4096",
        ),
    ),
    Difference(
        row="fstat of an anonymous fd says size 0",
        facts=("8.1 fstat",),
        scenarios=("anon_fstat",),
        kernel=("object 1: fstat: mode 600 size 0",),
        ours=("object 1: fstat: mode 600 size 65536",),
    ),
)

ELSEWHERE: dict[str, str] = {
    "a write to a file that somebody mounted directly goes through": "tests/cachefiles",
    "every cache leaves some of its file system free": "tests/cachefiles",
    "6.1 writes misaligned data at the offset rounded down": "the recordings are of 6.12",
    "a READ waits for ever": "a wait that has no end cannot be shown",
    "an ioctl other than CREAD is EINVAL": "tests/cachefiles/test_serving.py",
    "a cookie key of 253 to 255 bytes may stop the machine": "it would stop the machine",
}
"""Rows that no transcript can show, and why or where they are held."""


def rows() -> dict[str, tuple[str, str]]:
    """The table in ARCHITECTURE.md: first cell -> (what pagein does, reason)."""
    text = ARCHITECTURE.read_text().split(HEADING, 1)[1].split("\n## ", 1)[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    return {kernel: (pagein, reason) for kernel, pagein, reason in cells}


def expected(name: str, recorded: str, table: Iterable[Difference] = DIFFERENCES) -> str:
    """What our transcript must be, from what the real kernel's is.

    Raises ValueError naming an entry that has nothing to replace.
    """
    lines = recorded.splitlines()
    for entry in table:
        if name in entry.scenarios:
            lines = _replaced(lines, entry, name)
    return "\n".join([*lines, ""])


def _replaced(lines: list[str], entry: Difference, name: str) -> list[str]:
    made: list[str] = []
    at, size = 0, len(entry.kernel)
    while at < len(lines):
        if tuple(lines[at : at + size]) == entry.kernel:
            made += entry.ours
            at += size
        else:
            made.append(lines[at])
            at += 1
    if made == lines:
        raise ValueError(f"unused difference in {name}: {entry.row!r}: {entry.kernel}")
    return made
