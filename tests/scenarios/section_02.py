"""Facts 2: commands."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from tests.scenarios import libc
from tests.scenarios.files import Device
from tests.scenarios.registry import scenario
from tests.scenarios.transcript import ok
from tests.scenarios.world import World

from pagein.mounts import syscalls
from pagein.protocol.messages import Close


@scenario("2 too long", "2 longest")
def long_commands(w: World) -> None:
    """4095 bytes are a command, 4096 are not, whatever is in them."""
    device = w.open()
    device.write(b"tag ".ljust(4096, b"x"))
    device.write(b"tag\0".ljust(4096, b"x"))
    device.write(b"tag ".ljust(4095, b"x"))
    device.write(b"tag y")


@scenario("2 bad pointer")
def command_from_nowhere(w: World) -> None:
    """A command that cannot be read."""
    device = w.open()
    what = "device: write from a bad address"
    w.log.call(what, lambda: libc.write_from_nowhere(device.fileno(), 5))


@scenario("2 nul", "2 newline first", "2 newline")
def nul_and_newline(w: World) -> None:
    """A NUL is an error wherever it is; the first newline ends the command."""
    device = w.open()
    device.write(b"tag x\0")
    device.write(b"tag x\ny\0")
    device.write(b"\ntag x")
    device.write(b"bogus\0")
    device.write(b"tag x\n\n bogus")
    device.write(b"tag y\n")


@scenario("2 verbs", "2 leading blank", "2 empty")
def verbs(w: World) -> None:
    """A verb is what it is, and begins with the command."""
    device = w.open()
    device.write(b"bogus")
    device.write(b"TAG x")
    device.write(b"tagx")
    device.write(b" tag x")
    device.write(b"\ttag x")
    device.write(b" ")
    device.write(b"")
    device.write(b"tag x")


@scenario("2 blanks")
def blanks_before_arguments(w: World) -> None:
    """Any blanks may be before the arguments; those after them belong to them."""
    device = w.open()
    device.write(b"dir \t\v\f\r\xa0 " + os.fsencode(w.cache))
    device.write(b"bind \t ondemand")
    device.close()
    device = w.open(name="second")
    device.write(b"dir " + os.fsencode(w.cache) + b" ")
    device.write(b"bind ondemand")


@scenario("2.1 dir empty", "2.1 dir twice", "2.1 dir unchecked")
def dir_command(w: World) -> None:
    """`dir` takes anything, once."""
    device = w.open()
    device.write(b"dir")
    device.write(b"dir  ")
    device.write(b"dir /does/not/exist")
    device.write(b"dir " + os.fsencode(w.cache))
    device.write(b"dir")
    device.write(b"bind ondemand")
    device.write(b"dir " + os.fsencode(w.cache))


@scenario("2.1 tag empty", "2.1 tag twice", "2.1 tag default")
def tag_command(w: World) -> None:
    """`tag` works once, before the first try to bind."""
    device = w.open()
    device.write(b"tag")
    device.write(b"tag  ")
    device.write(b"tag one two")
    device.write(b"tag one two")
    device.write(b"tag")
    device.close()
    device = w.open(name="second")
    device.write(b"dir /does/not/exist")
    device.write(b"bind ondemand")
    device.write(b"tag x")


@scenario("2.1 bind without dir", "2.1 bind argument", "2.1 bind twice")
def bind_command(w: World) -> None:
    """Checks of `bind`: a directory, not bound, then the argument."""
    device = w.open()
    device.write(b"bind")
    device.write(b"bind ondemand")
    device.write(b"dir " + os.fsencode(w.cache))
    for argument in (b"bogus", b"ondemand x", b"ondemand ", b"Ondemand"):
        device.write(b"bind " + argument)
    device.write(b"bind  ondemand")
    device.write(b"bind ondemand")
    device.write(b"bind bogus")
    device.write(b"bind")


@scenario("2.1 mode sticks", "2.2 bind again", "14 error paths")
def mode_sticks(w: World) -> None:
    """On-demand mode survives a bind that fails; the same fd may bind later."""
    later = w.directory / "later"
    device = w.open()
    device.write(b"dir " + os.fsencode(later))
    device.write(b"copen 0,0")
    device.write(b"bind ondemand")
    device.write(b"copen 0,0")
    device.write(b"restore")
    later.mkdir()
    device.write(b"bind")
    mounting = w.netfs.mount()
    message, _ = device.take_open()
    device.copen(message, -5)
    device.nothing()
    mounting.settle()


@scenario("2.1 not in on-demand mode", "2.1 original mode")
def original_mode(w: World) -> None:
    """Without `ondemand` it is the original mode, which knows no copen and no restore."""
    device = w.open()
    device.write(b"copen 0,0")
    device.write(b"copen")
    device.write(b"restore")
    device.write(b"dir " + os.fsencode(w.cache))
    device.write(b"bind")
    device.write(b"copen 0,0")
    device.write(b"restore")


@scenario("2.1 limits form", "2.1 limits wrap")
def limits_are_percentages(w: World) -> None:
    """A decimal number and a percent sign, and that is all."""
    device = w.open()
    for argument in ("", " ", "8", "8 %", "8%%", "8% ", "-8%", "+8%", "0x8%", "8.5%", "% 8", "8%x"):
        device.write(b"brun " + argument.encode())
    device.write(b"brun 010%")
    device.write(b"bstop %")
    device.write(b"brun %")
    device.write(b"frun 18446744073709551623%")


@scenario("2.1 limits")
def limits_hang_together(w: World) -> None:
    """0 <= stop < cull < run < 100, at each single command."""
    device = w.open()
    for kind in ("b", "f"):
        for command in (
            *("run 5%", "run 6%", "run 100%", "run 99%"),
            *("cull 99%", "cull 98%", "stop 98%", "stop 97%"),
            *("cull 97%", "run 98%", "stop 0%", "cull 0%", "cull 1%", "run 1%", "run 2%"),
            *("stop 1%", "cull 2%"),
        ):
            device.write(f"{kind}{command}".encode())


@scenario("2.1 secctx", "14 secctx")
def secctx_command(w: World) -> None:
    """Without a security module there are no contexts; that is said at once."""
    device = w.open()
    device.write(b"secctx")
    device.write(b"secctx ")
    device.write(b"secctx system_u:system_r:cachefiles_kernel_t:s0")
    device.write(b"secctx again")
    device.write(b"dir " + os.fsencode(w.cache))
    device.write(b"bind ondemand")


@scenario("2.1 debug")
def debug_command(w: World) -> None:
    """A mask in any base; nothing is 0."""
    device = w.open()
    for argument in ("", " ", "0", "7", "0x10", "010", "0x", "08", "x", "-1", "+1", "1 ", "1,2"):
        device.write(b"debug " + argument.encode())
    device.write(b"debug 18446744073709551616")
    device.write(b"debug 99999999999999999999999999")
    device.write(b"debug")


@scenario("2.1 restore arguments")
def restore_arguments(w: World) -> None:
    """`restore` looks at no arguments."""
    device = w.bound()
    device.write(b"restore")
    device.write(b"restore junk, more")


@scenario("2.2 directories")
def what_bind_makes(w: World) -> None:
    """`bind` makes two directories, a volume one more."""
    device = w.bound()
    w.disk.names()
    anon = w.mounted(device)
    w.disk.names("cache")
    w.disk.show_volume("erofs,blob")
    w.disk.names("cache/Ierofs,blob")
    w.netfs.umount()
    device.take(Close)
    anon.close()


@scenario("2.2 existing directories")
def bind_finds_its_directories(w: World) -> None:
    """Directories that are there are used as they are."""
    (w.cache / "cache").mkdir(0o750)
    (w.cache / "graveyard").mkdir(0o755)
    (w.cache / "more").mkdir(0o755)
    device = w.bound()
    device.write(b"bind")
    w.log.say(", ".join(f"{p.name} {p.stat().st_mode:o}" for p in sorted(w.cache.glob("[cgm]*"))))


def try_bind(w: World, device: Device, path: str | Path) -> None:
    """Bind a directory, which has the name `path` in the transcript."""
    device.write(b"dir " + os.fsencode(path))
    device.write(b"bind ondemand")
    device.close()


@scenario("2.2 no directory")
def bind_without_a_directory(w: World) -> None:
    """What is not there, and what is no directory."""
    try_bind(w, w.open(), w.directory / "not-there")
    file = w.directory / "file"
    file.write_text("")
    try_bind(w, w.open(), file)
    try_bind(w, w.open(), file / "below")


@scenario("2.2 link")
def bind_through_a_link(w: World) -> None:
    """The directory may not be named by a symbolic link to it; one on the way does not matter."""
    link = w.directory / "link"
    link.symlink_to(w.cache)
    try_bind(w, w.open(), link)
    link.unlink()
    link.symlink_to(w.directory)
    try_bind(w, w.open(), link / w.cache.name)


@scenario("2.2 unusable directory")
def bind_finds_a_file(w: World) -> None:
    """What should be a directory of the cache is none."""
    (w.cache / "cache").write_text("")
    try_bind(w, w.open(), w.cache)
    (w.cache / "cache").unlink()
    (w.cache / "graveyard").symlink_to("/does/not/exist")
    try_bind(w, w.open(), w.cache)


@scenario("2.2 file systems")
def bind_on_other_file_systems(w: World) -> None:
    """Not every file system can be the place of a cache."""
    try_bind(w, w.open(), "/proc")
    try_bind(w, w.open(), "/sys")
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="pagein-test-") as name:
        w.log.names[name] = "$TMPFS"
        try_bind(w, w.open(), name)


@scenario("2.2 read-only")
def bind_on_a_read_only_file_system(w: World) -> None:
    """A cache has to be written."""
    w.room().set_read_only()
    device = w.open()
    device.write(b"dir " + os.fsencode(w.cache))
    device.write(b"bind ondemand")


@scenario("2.2 relative directory")
def bind_from_a_working_directory(w: World) -> None:
    """The path is looked up at bind, from the working directory of who binds."""
    device = w.open()
    before = Path.cwd()
    device.write(b"dir cache-directory")
    try:
        os.chdir(w.directory)
        device.write(b"bind ondemand")
    finally:
        os.chdir(before)
    w.log.say(f"bound: {(w.cache / 'cache').exists()}")


@scenario("2.2 kernel files")
def directories_in_use(w: World) -> None:
    """A directory in use cannot be removed."""
    w.bound()
    w.log.call("rmdir graveyard", (w.cache / "graveyard").rmdir, ok)


@scenario("2.2 backing mount")
def file_system_in_use(w: World) -> None:
    """The file system of a bound cache cannot be unmounted, not even with nothing mounted."""
    w.room()
    device = w.bound()
    w.log.call("umount the cache's file system", lambda: syscalls.umount(str(w.cache)), ok)
    device.poll()
