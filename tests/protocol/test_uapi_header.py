"""Our layouts and numbers are those a C compiler finds in <linux/cachefiles.h>."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TypeAlias

import pytest

from pagein.protocol import messages
from pagein.protocol.messages import Close, Message, Opcode, Open, Read

# One line each: a name and its value, or a field's name, its offset and its size in bytes.
PROGRAM = r"""
#include <stddef.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <linux/cachefiles.h>

#define NUMBER(name, value) printf("%s %llu\n", name, (unsigned long long)(value))
#define FIELD(type, field) printf(#type "." #field " %zu %zu\n", \
    offsetof(struct type, field), sizeof(((struct type *)0)->field))

int main(void)
{
    NUMBER("OP_OPEN", CACHEFILES_OP_OPEN);
    NUMBER("OP_CLOSE", CACHEFILES_OP_CLOSE);
    NUMBER("OP_READ", CACHEFILES_OP_READ);
    NUMBER("MSG_MAX_SIZE", CACHEFILES_MSG_MAX_SIZE);
    NUMBER("IOC_READ_COMPLETE", CACHEFILES_IOC_READ_COMPLETE);
    NUMBER("cachefiles_msg", sizeof(struct cachefiles_msg));
    NUMBER("cachefiles_open", sizeof(struct cachefiles_open));
    NUMBER("cachefiles_read", sizeof(struct cachefiles_read));
    NUMBER("cachefiles_msg.data", offsetof(struct cachefiles_msg, data));
    NUMBER("cachefiles_open.data", offsetof(struct cachefiles_open, data));
    FIELD(cachefiles_msg, msg_id);
    FIELD(cachefiles_msg, opcode);
    FIELD(cachefiles_msg, len);
    FIELD(cachefiles_msg, object_id);
    FIELD(cachefiles_open, volume_key_size);
    FIELD(cachefiles_open, cookie_key_size);
    FIELD(cachefiles_open, fd);
    FIELD(cachefiles_open, flags);
    FIELD(cachefiles_read, off);
    FIELD(cachefiles_read, len);
    return 0;
}
"""

Facts: TypeAlias = dict[str, tuple[int, ...]]


def compile_c(compiler: str, source: str, program: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [compiler, "-Wall", "-Werror", "-x", "c", "-", "-o", str(program)],
        input=source,
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        pytest.skip("needs a C compiler (gcc)")
    program = tmp_path_factory.mktemp("uapi") / "layout"
    bare = "#include <linux/cachefiles.h>\nint main(void) { return 0; }\n"
    if compile_c(compiler, bare, program).returncode:
        pytest.skip("needs <linux/cachefiles.h> (linux-libc-dev, libc6-dev)")
    compiled = compile_c(compiler, PROGRAM, program)
    assert compiled.returncode == 0, compiled.stderr
    ran = subprocess.run([program], capture_output=True, text=True, timeout=200, check=True)
    lines = (line.split() for line in ran.stdout.splitlines())
    return {name: tuple(map(int, numbers)) for name, *numbers in lines}


def test_numbers(header: Facts) -> None:
    assert header["OP_OPEN"] == (Opcode.OPEN,)
    assert header["OP_CLOSE"] == (Opcode.CLOSE,)
    assert header["OP_READ"] == (Opcode.READ,)
    assert header["MSG_MAX_SIZE"] == (messages.MSG_MAX_SIZE,)
    assert header["IOC_READ_COMPLETE"] == (messages.IOC_READ_COMPLETE,)


def test_sizes(header: Facts) -> None:
    header_size = messages.HEADER_SIZE
    assert header["cachefiles_msg"] == header["cachefiles_msg.data"] == (header_size,)
    open_size = messages.OPEN_HEADER_SIZE - header_size
    assert header["cachefiles_open"] == header["cachefiles_open.data"] == (open_size,)
    assert header["cachefiles_read"] == (messages.READ_MSG_SIZE - header_size,)


OPEN = Open(0x11121314, 0x21222324, b"volume", b"cookie\0key", 0x31323334, 0x41424344)
READ = Read(0x51525354, 0x61626364, 0x0102030405060708, 0x1112131415161718)
CLOSE = Close(0x71727374, 0x81828384)

FIELDS: list[tuple[Message, str, int]] = [
    (OPEN, "cachefiles_msg.msg_id", OPEN.msg_id),
    (OPEN, "cachefiles_msg.opcode", Opcode.OPEN),
    (OPEN, "cachefiles_msg.len", 49),
    (OPEN, "cachefiles_msg.object_id", OPEN.object_id),
    (OPEN, "cachefiles_open.volume_key_size", 7),
    (OPEN, "cachefiles_open.cookie_key_size", 10),
    (OPEN, "cachefiles_open.fd", OPEN.fd),
    (OPEN, "cachefiles_open.flags", OPEN.flags),
    (READ, "cachefiles_msg.msg_id", READ.msg_id),
    (READ, "cachefiles_msg.opcode", Opcode.READ),
    (READ, "cachefiles_msg.len", 32),
    (READ, "cachefiles_msg.object_id", READ.object_id),
    (READ, "cachefiles_read.off", READ.off),
    (READ, "cachefiles_read.len", READ.len),
    (CLOSE, "cachefiles_msg.msg_id", CLOSE.msg_id),
    (CLOSE, "cachefiles_msg.opcode", Opcode.CLOSE),
    (CLOSE, "cachefiles_msg.len", 16),
    (CLOSE, "cachefiles_msg.object_id", CLOSE.object_id),
]


@pytest.mark.parametrize(
    ("message", "field", "value"), FIELDS, ids=[f"{m.opcode.name}-{f}" for m, f, _ in FIELDS]
)
def test_fields(header: Facts, message: Message, field: str, value: int) -> None:
    """What C would read at the place of a field is the value of the field."""
    offset, size = header[field]
    if not field.startswith("cachefiles_msg."):
        offset += header["cachefiles_msg.data"][0]
    data = message.encode()[offset : offset + size]
    assert len(data) == size
    assert int.from_bytes(data, sys.byteorder) == value


def test_keys_follow_each_other(header: Facts) -> None:
    start = header["cachefiles_msg.data"][0] + header["cachefiles_open.data"][0]
    assert OPEN.encode()[start:] == b"volume\0cookie\0key"
