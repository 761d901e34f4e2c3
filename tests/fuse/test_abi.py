"""The FUSE structures: against the C compiler, and byte for byte where a meaning is encoded."""

import itertools
import shutil
import stat
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagein.fuse import abi

HEADER = Path("/usr/include/linux/fuse.h")
OLDEST = 38  # the minor version of Debian 12's header: older ones lack names used below


def _compile(directory: Path, lines: list[str]) -> list[str]:
    """Run a C program that prints one line for each of ``lines`` (format, expression)."""
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler (cc)")
    if not HEADER.exists():
        pytest.skip(f"needs {HEADER} (linux-libc-dev)")
    body = "\n".join(lines)
    source = (
        "#include <linux/fuse.h>\n#include <stddef.h>\n#include <stdint.h>\n#include <stdio.h>\n"
        f"#if FUSE_KERNEL_MINOR_VERSION < {OLDEST}\n#error old header\n#endif\n"
        f"int main(void) {{\n{body}\nreturn 0;\n}}\n"
    )
    (directory / "probe.c").write_text(source)
    probe = str(directory / "probe")
    subprocess.run(["cc", "-o", probe, f"{probe}.c"], check=True, timeout=200, capture_output=True)
    done = subprocess.run([probe], check=True, timeout=10, capture_output=True, text=True)
    return done.stdout.split("\n")[:-1]


def test_every_layout_is_the_compilers(tmp_path: Path) -> None:
    lines = []
    expected = []
    for name, layout in abi.LAYOUTS.items():
        if name != "fuse_dirent":  # its name[] is no field of ours, but counts for alignment only
            lines.append(f'printf("{name} %zu\\n", sizeof(struct {name}));')
            expected.append(f"{name} {layout.size}")
        for field, offset in layout.offsets.items():
            if not field.startswith("_"):
                text = f"{name}.{field}"
                lines.append(f'printf("{text} %zu\\n", offsetof(struct {name}, {field}));')
                expected.append(f"{text} {offset}")
    assert _compile(tmp_path, lines) == expected


def test_dirent_header_ends_where_the_name_begins(tmp_path: Path) -> None:
    probe = _compile(tmp_path, ['printf("%zu\\n", FUSE_NAME_OFFSET);'])
    assert probe == [str(abi.LAYOUTS["fuse_dirent"].size)]


def test_every_number_is_the_headers(tmp_path: Path) -> None:
    known = {f"FUSE_{opcode.name}": int(opcode) for opcode in abi.Opcode}
    lines = [f'printf("{name} %d\\n", {name});' for name in known]
    macros = {f"FUSE_{flag.name}": int(flag) for flag in abi.Init}
    macros |= {f"FOPEN_{flag.name}": int(flag) for flag in abi.Fopen}
    macros |= {f"FATTR_{flag.name}": int(flag) for flag in abi.Fattr}
    macros |= {
        "FUSE_ROOT_ID": abi.ROOT_ID,
        "FUSE_KERNEL_VERSION": abi.KERNEL_VERSION,
        "FUSE_MIN_READ_BUFFER": abi.MIN_READ_BUFFER,
        "FUSE_POLL_SCHEDULE_NOTIFY": abi.POLL_SCHEDULE_NOTIFY,
        "FUSE_GETATTR_FH": abi.GETATTR_FH,
        "FUSE_RELEASE_FLUSH": abi.RELEASE_FLUSH,
        "FUSE_WRITE_CACHE": abi.WRITE_CACHE,
        "FUSE_IOCTL_COMPAT": abi.IOCTL_COMPAT,
        "FUSE_UNIQUE_RESEND": abi.UNIQUE_RESEND,
    }
    for name in macros:  # the header may be older than the newest of them
        lines.append(f"#ifdef {name}\n")
        lines.append(f'printf("{name} %llu\\n", (unsigned long long)(uint64_t){name});\n#endif')
    found = dict(line.split() for line in _compile(tmp_path, lines))
    wanted = {name: str(value) for name, value in (known | macros).items()}
    assert found == {name: wanted[name] for name in found}
    newer = {"FUSE_HAS_RESEND", "FUSE_UNIQUE_RESEND"}
    assert set(wanted) - set(found) <= newer


def _message(opcode: int, unique: int, body: bytes, *, extensions: int = 0) -> bytes:
    length = abi.IN_HEADER_SIZE + len(body)
    head = abi.LAYOUTS["fuse_in_header"].pack(length, opcode, unique, 7, 1, 2, 3, extensions)
    return head + body


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.binary(max_size=200))
def test_a_request_round_trips(opcode: int, unique: int, body: bytes) -> None:
    request = abi.Request.parse(memoryview(_message(opcode, unique, body)))
    assert (request.opcode, request.unique, request.nodeid) == (opcode, unique, 7)
    assert (request.uid, request.gid, request.pid) == (1, 2, 3)
    assert bytes(request.body) == body
    assert request.resent == (unique >= 2**63)


@given(st.binary(max_size=120))
def test_any_bytes_are_a_request_or_an_abi_error(data: bytes) -> None:
    try:
        request = abi.Request.parse(memoryview(data))
    except abi.AbiError:
        return
    assert abi.IN_HEADER_SIZE + len(request.body) <= len(data)


def test_extensions_are_no_part_of_the_body() -> None:
    data = _message(abi.Opcode.LOOKUP, 2, b"a\0" + bytes(6) + bytes(16), extensions=2)
    assert bytes(abi.Request.parse(memoryview(data)).body) == b"a\0" + bytes(6)


@pytest.mark.parametrize("cut", [1, 39, 40, 41])
def test_a_message_that_is_not_as_long_as_it_says(cut: int) -> None:
    data = memoryview(_message(abi.Opcode.READ, 2, bytes(40)))
    with pytest.raises(abi.AbiError):
        abi.Request.parse(data[:cut])


PARSERS = (
    abi.InitIn,
    abi.GetattrIn,
    abi.SetattrIn,
    abi.OpenIn,
    abi.ReleaseIn,
    abi.FlushIn,
    abi.ReadIn,
    abi.WriteIn,
    abi.FsyncIn,
    abi.GetxattrIn,
    abi.AccessIn,
    abi.InterruptIn,
    abi.IoctlIn,
    abi.PollIn,
    abi.FallocateIn,
    abi.LseekIn,
)


@pytest.mark.parametrize("parser", PARSERS)
def test_a_body_that_is_too_short_says_so(parser: type[abi.ReadIn]) -> None:
    # Any of them: what matters is that they share the classmethod.
    with pytest.raises(abi.AbiError, match="bytes"):
        parser.parse(memoryview(bytes(3)))


def test_write_takes_exactly_the_announced_bytes() -> None:
    head = struct.pack("=QQIIQIxxxx", 5, 4096, 3, abi.WRITE_CACHE, 9, 0o2)
    found = abi.WriteIn.parse(memoryview(head + b"abc"))
    assert (found.fh, found.offset, found.size, bytes(found.data)) == (5, 4096, 3, b"abc")
    assert (found.write_flags, found.lock_owner, found.flags) == (abi.WRITE_CACHE, 9, 2)
    with pytest.raises(abi.AbiError, match="announces 3 bytes, 2 came"):
        abi.WriteIn.parse(memoryview(head + b"ab"))


def test_ioctl_carries_what_the_pointer_points_to() -> None:
    head = struct.pack("=QIIQII", 5, 0, 0x40049801, 0x7000, 4, 0)
    found = abi.IoctlIn.parse(memoryview(head + struct.pack("=I", 77)))
    assert (found.fh, found.cmd, found.out_size) == (5, 0x40049801, 0)
    assert bytes(found.data) == struct.pack("=I", 77)


def test_getattr_by_handle_and_by_inode() -> None:
    assert abi.GetattrIn.parse(struct.pack("=IIQ", abi.GETATTR_FH, 0, 9)).fh == 9
    assert abi.GetattrIn.parse(struct.pack("=IIQ", 0, 0, 9)).fh is None


def test_setattr_reads_the_fields_it_names() -> None:
    # valid, fh, size, lock_owner, three times, three times' nanoseconds, mode, -, uid, gid, -
    body = struct.pack("=IIQQQ24x12xIIIII", abi.Fattr.SIZE, 0, 4, 4096, 1, 0o600, 0, 11, 12, 0)
    assert abi.SetattrIn.parse(body) == (abi.Fattr.SIZE, 4, 4096, 0o600, 11, 12)


def test_names() -> None:
    assert abi.name(b"blob\0") == b"blob"
    assert abi.GetxattrIn.parse(struct.pack("=II", 64, 0) + b"user.x\0") == (64, b"user.x")
    with pytest.raises(abi.AbiError):
        abi.name(b"blob")


def test_forgets() -> None:
    body = struct.pack("=II", 2, 0) + struct.pack("=QQQQ", 5, 1, 6, 2)
    assert list(abi.forgets(body)) == [(5, 1), (6, 2)]
    assert abi.forget(struct.pack("=Q", 3)) == 3


def test_init_of_an_old_and_of_a_new_kernel() -> None:
    old = abi.InitIn.parse(struct.pack("=IIII", 7, 31, 4096, abi.Init.MAX_PAGES))
    assert old == (7, 31, 4096, abi.Init.MAX_PAGES)
    low = abi.Init.INIT_EXT | abi.Init.MAX_PAGES
    new = abi.InitIn.parse(struct.pack("=IIIII44x", 7, 45, 4096, low, abi.Init.HAS_RESEND >> 32))
    assert new.flags == low | abi.Init.HAS_RESEND
    # Without INIT_EXT what follows is no flags2.
    plain = abi.InitIn.parse(struct.pack("=IIIII44x", 7, 45, 4096, 0, 0xFFFF))
    assert plain.flags == 0


def test_init_out_splits_the_flags() -> None:
    out = abi.init_out(
        minor=40,
        flags=abi.Init.HAS_RESEND | abi.Init.BIG_WRITES,
        max_readahead=1,
        max_write=2,
        max_pages=3,
        max_background=4,
        congestion_threshold=5,
    )
    assert struct.unpack("=IIIIHHIIHHI28x", out) == (7, 40, 1, 1 << 5, 4, 5, 2, 1, 3, 0, 1 << 7)


def test_entry_and_attr_carry_the_attributes_and_the_validity() -> None:
    attr = abi.Attr(9, stat.S_IFREG | 0o600, size=4097, uid=1, gid=2, mtime_ns=3_500_000_000)
    entry = abi.entry_out(attr, entry_valid=1.5, attr_valid=2.25)
    assert struct.unpack_from("=QQQQII", entry) == (9, 0, 1, 2, 500_000_000, 250_000_000)
    assert entry[40:] == attr.encode()
    out = abi.attr_out(attr, valid=2.25)
    assert struct.unpack_from("=QI", out) == (2, 250_000_000)
    assert out[16:] == attr.encode()
    fields = struct.unpack("=6Q10I", attr.encode())
    assert fields[:6] == (9, 4097, 9, 3, 3, 3)
    assert fields[6:] == (500_000_000,) * 3 + (stat.S_IFREG | 0o600, 1, 1, 2, 0, 4096, 0)
    assert len(abi.entry_out(attr, entry_valid=abi.FOREVER)) == 128


def test_small_answers() -> None:
    assert abi.open_out(3, abi.Fopen.DIRECT_IO) == struct.pack("=QII", 3, 1, 0)
    assert abi.write_out(9) == struct.pack("=II", 9, 0)
    assert abi.poll_out(1) == struct.pack("=II", 1, 0)
    assert abi.lseek_out(2**40) == struct.pack("=Q", 2**40)
    assert abi.ioctl_out(-1) == struct.pack("=iIII", -1, 0, 0, 0)
    assert abi.getxattr_out(7) == struct.pack("=II", 7, 0)
    assert abi.notify_poll_out(8) == struct.pack("=Q", 8)
    assert abi.out_header(5, -2, 100) == struct.pack("=IiQ", 116, -2, 5)
    statfs = abi.statfs_out(blocks=10, free=4, files=2)
    assert struct.unpack_from("=5Q3I", statfs) == (10, 4, 4, 2, 0, 4096, 255, 4096)


@given(
    st.lists(st.binary(min_size=1, max_size=255).filter(lambda name: 0 not in name), max_size=40),
    st.integers(280, 4096),
)
def test_a_directory_listed_in_pieces_is_the_directory(names: list[bytes], size: int) -> None:
    entries = [(index + 2, stat.S_IFREG | 0o600, name) for index, name in enumerate(names)]
    found = []
    offset = 0
    for _ in itertools.repeat(None, len(entries) + 1):
        piece = abi.dirents(entries, offset, size)
        assert len(piece) <= size
        if not piece:
            break
        at = 0
        while at < len(piece):
            ino, offset, length, kind = struct.unpack_from("=QQII", piece, at)
            assert kind == stat.S_IFREG >> 12
            found.append((ino, piece[at + 24 : at + 24 + length]))
            at += (24 + length + 7) // 8 * 8
    assert found == [(ino, name) for ino, _, name in entries]
