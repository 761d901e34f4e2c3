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

DIFFERENCES: tuple[Difference, ...] = (
    Difference(
        row="an empty write is EOPNOTSUPP",
        facts=("2 empty",),
        scenarios=("verbs",),
        kernel=("device: '': EOPNOTSUPP",),
        ours=("device: '': ok",),
    ),
    Difference(
        row="`bind` alone is the original mode",
        facts=("2.1 original mode",),
        scenarios=("original_mode",),
        kernel=("device: 'bind': ok",),
        ours=("device: 'bind': EOPNOTSUPP",),
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
)

ELSEWHERE: dict[str, str] = {
    "a write to a file that somebody mounted directly goes through": "tests/cachefiles",
    "6.1 writes misaligned data at the offset rounded down": "the recordings are of 6.12",
    "a READ waits for ever": "a wait that has no end cannot be shown",
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
