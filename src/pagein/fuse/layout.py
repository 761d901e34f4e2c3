"""The structures of ``<linux/fuse.h>`` that pagein uses, each as one `Layout`.

They stand in `LAYOUTS` too, so that a test can compare every one with the C compiler's idea of it.
All numbers are in host order, as the kernel writes them.
"""

import struct
from typing import Any, Final

Buffer = bytes | bytearray | memoryview


class AbiError(ValueError):
    """Bytes that cannot be the FUSE structure they were taken for."""


class Layout:
    """One C structure: ``name`` as in the header and ``fields`` as ``"name:code ..."``.

    A field whose code is ``x`` padding takes no value; ``_rest`` is what newer headers give names.
    The kernel pads every structure to 64 bits by named fields, so there is no hidden padding and
    native order without alignment is exact.
    """

    __slots__ = ("name", "offsets", "size", "struct")

    def __init__(self, name: str, fields: str) -> None:
        self.name = name
        self.offsets: dict[str, int] = {}
        form = "="
        for field in fields.split():
            label, code = field.split(":")
            self.offsets[label] = struct.calcsize(form)
            form += code
        self.struct = struct.Struct(form)
        self.size = self.struct.size
        LAYOUTS[name] = self

    def pack(self, *values: int) -> bytes:
        """Return the structure with these values."""
        return self.struct.pack(*values)

    def unpack(self, data: Buffer) -> tuple[Any, ...]:
        """Return the values at the start of ``data``; `AbiError` when it is too short."""
        try:
            return self.struct.unpack_from(data)
        except struct.error:
            raise AbiError(f"{self.name} is {self.size} bytes, got {len(data)}") from None


LAYOUTS: Final[dict[str, Layout]] = {}

IN = Layout(
    "fuse_in_header",
    "len:I opcode:I unique:Q nodeid:Q uid:I gid:I pid:I total_extlen:H padding:2x",
)
OUT = Layout("fuse_out_header", "len:I error:i unique:Q")
INIT_IN = Layout("fuse_init_in", "major:I minor:I max_readahead:I flags:I flags2:I unused:44x")
INIT_IN_SHORT: Final = struct.Struct("=IIII")  # what kernels before 7.36 send
INIT_OUT = Layout(
    "fuse_init_out",
    "major:I minor:I max_readahead:I flags:I max_background:H congestion_threshold:H max_write:I"
    " time_gran:I max_pages:H map_alignment:H flags2:I _rest:28x",
)
ATTR = Layout(
    "fuse_attr",
    "ino:Q size:Q blocks:Q atime:Q mtime:Q ctime:Q atimensec:I mtimensec:I ctimensec:I mode:I"
    " nlink:I uid:I gid:I rdev:I blksize:I flags:I",
)
ENTRY_OUT = Layout(
    "fuse_entry_out",
    "nodeid:Q generation:Q entry_valid:Q attr_valid:Q entry_valid_nsec:I attr_valid_nsec:I"
    " attr:88x",
)
ATTR_OUT = Layout("fuse_attr_out", "attr_valid:Q attr_valid_nsec:I dummy:4x attr:88x")
FORGET_IN = Layout("fuse_forget_in", "nlookup:Q")
BATCH_FORGET_IN = Layout("fuse_batch_forget_in", "count:I dummy:4x")
FORGET_ONE = Layout("fuse_forget_one", "nodeid:Q nlookup:Q")
GETATTR_IN = Layout("fuse_getattr_in", "getattr_flags:I dummy:4x fh:Q")
SETATTR_IN = Layout(
    "fuse_setattr_in",
    "valid:I padding:4x fh:Q size:Q lock_owner:8x atime:24x atimensec:12x mode:I unused4:4x"
    " uid:I gid:I unused5:4x",
)
OPEN_IN = Layout("fuse_open_in", "flags:I open_flags:I")
OPEN_OUT = Layout("fuse_open_out", "fh:Q open_flags:I _rest:4x")
RELEASE_IN = Layout("fuse_release_in", "fh:Q flags:I release_flags:I lock_owner:Q")
FLUSH_IN = Layout("fuse_flush_in", "fh:Q unused:4x padding:4x lock_owner:Q")
READ_IN = Layout(
    "fuse_read_in",
    "fh:Q offset:Q size:I read_flags:I lock_owner:Q flags:I padding:4x",
)
WRITE_IN = Layout(
    "fuse_write_in",
    "fh:Q offset:Q size:I write_flags:I lock_owner:Q flags:I padding:4x",
)
WRITE_OUT = Layout("fuse_write_out", "size:I padding:4x")
FSYNC_IN = Layout("fuse_fsync_in", "fh:Q fsync_flags:I padding:4x")
GETXATTR_IN = Layout("fuse_getxattr_in", "size:I padding:4x")
GETXATTR_OUT = Layout("fuse_getxattr_out", "size:I padding:4x")
ACCESS_IN = Layout("fuse_access_in", "mask:I padding:4x")
INTERRUPT_IN = Layout("fuse_interrupt_in", "unique:Q")
IOCTL_IN = Layout("fuse_ioctl_in", "fh:Q flags:I cmd:I arg:Q in_size:I out_size:I")
IOCTL_OUT = Layout("fuse_ioctl_out", "result:i flags:4x in_iovs:4x out_iovs:4x")
POLL_IN = Layout("fuse_poll_in", "fh:Q kh:Q flags:I events:I")
POLL_OUT = Layout("fuse_poll_out", "revents:I padding:4x")
POLL_WAKEUP_OUT = Layout("fuse_notify_poll_wakeup_out", "kh:Q")
FALLOCATE_IN = Layout("fuse_fallocate_in", "fh:Q offset:Q length:Q mode:I padding:4x")
LSEEK_IN = Layout("fuse_lseek_in", "fh:Q offset:Q whence:I padding:4x")
LSEEK_OUT = Layout("fuse_lseek_out", "offset:Q")
STATFS_OUT = Layout(
    "fuse_kstatfs",
    "blocks:Q bfree:Q bavail:Q files:Q ffree:Q bsize:I namelen:I frsize:I padding:4x spare:24x",
)
DIRENT = Layout("fuse_dirent", "ino:Q off:Q namelen:I type:I")

IN_HEADER_SIZE: Final = IN.size
WRITE_DATA_OFFSET: Final = IN.size + WRITE_IN.size
"""Where the data of a WRITE begins in its message, in bytes."""
