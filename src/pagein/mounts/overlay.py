"""overlayfs over mounted layers: one directory tree, read-only or with a directory that is written.

What may fail, fails with a `MountError` that says why and leaves nothing, as in `mounts.erofs`.
This adapter decides how layers become one tree, nothing about where they come from:

* ``redirect_dir=nofollow``: a layer's metadata comes from elsewhere, and must not say that its
  directory is another one. Renaming a directory of a layer fails with EXDEV, as mv(1) expects.
* ``metacopy=off``: likewise for a file whose data would be another file's.
* ``index=off``: an upper directory stays usable when the layers are mounted anew; the price is
  that a hard link of a layer is broken when one of its names is written.
* ``xino=auto``: one st_dev for the whole tree, as on a disk, though every layer is a file system of
  its own: `find -xdev`, tar and rsync go by it. Inode numbers then use all 64 bits.
* no ``userxattr``: whiteouts and opaque directories are those that root makes (trusted.*).
* ``volatile`` on request: what is thrown away at the end need not be synced first.
* nodev always: overlayfs knows whiteouts by their inode and opens none. nosuid unless asked.
"""

import contextlib
import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from pagein.mounts import syscalls

MAX_LAYERS: Final = 500
"""What overlayfs takes (OVL_MAX_STACK)."""

_CHOICES: Final = (
    ("redirect_dir", "nofollow"),
    ("metacopy", "off"),
    ("index", "off"),
    ("xino", "auto"),
)


@dataclass(frozen=True, slots=True)
class Upper:
    """Where what is written goes: two directories of one file system, of this mount alone.

    What is not there is made; an upper directory is then what the root of the layers is.
    """

    upper: str
    work: str
    volatile: bool = False
    """Whether it may be lost when the machine dies."""


async def mount_overlay(
    layers: Sequence[str],
    target: str,
    *,
    empty: str,
    upper: Upper | None,
    suid: bool,
    timeout: float,
) -> None:
    """Mount the directories ``layers``, lowest first, as one tree on ``target``.

    ``empty`` is an empty directory: a read-only overlay has two layers at least. ``suid`` lets
    set-uid programs work. Raises MountError, ETIMEDOUT after ``timeout`` seconds.
    """
    from pagein.mounts import erofs

    job: dict[str, Any] = {"op": "mount-overlay", "target": target, "suid": suid}
    job["layers"] = [empty, *layers] if len(layers) == 1 and upper is None else list(layers)
    if upper is not None:
        job |= {"upper": upper.upper, "work": upper.work, "volatile": upper.volatile}
    await erofs.ask_to_mount(job, f"the layers on {target}", timeout)


# ---- in the helper ------------------------------------------------------------------------------


def mount(job: dict[str, Any], *, append: bool = True) -> None:
    """Do a job of `mount_overlay`; OSError says why not. ``append``: by lowerdir+ if possible."""
    layers: list[str] = job["layers"]
    if len(layers) > MAX_LAYERS:
        text = f"{len(layers)} layers: overlayfs takes {MAX_LAYERS} at most"
        raise OSError(errno.E2BIG, text)
    attributes = syscalls.MOUNT_ATTR_NODEV | (0 if job["suid"] else syscalls.MOUNT_ATTR_NOSUID)
    if "upper" in job:
        _check_unused(job)
        _make_upper(job["upper"], layers[-1])
        os.makedirs(job["work"], 0o700, exist_ok=True)
    else:
        attributes |= syscalls.MOUNT_ATTR_RDONLY
    with contextlib.ExitStack() as opened:
        options: list[tuple[str, str | None]] = list(_CHOICES)
        for key, value in (("upperdir", job.get("upper")), ("workdir", job.get("work"))):
            if value is not None:
                options.append((key, syscalls.short_name(value, opened)))
        if job.get("volatile"):
            options.append(("volatile", None))
        try:
            if not (append and _append(layers, job["target"], attributes, options, opened)):
                _at_once(layers, job["target"], attributes, options)
        except OSError as error:
            raise _explain(error, job) from None
    _check_made(job)


def _append(
    layers: Sequence[str],
    target: str,
    attributes: int,
    options: Sequence[tuple[str, str | None]],
    opened: contextlib.ExitStack,
) -> bool:
    """Mount with a lowerdir+ for each layer (Linux 6.8); False where the kernel has none."""
    lower = [("lowerdir+", syscalls.short_name(layer, opened)) for layer in reversed(layers)]
    try:
        syscalls.mount_in_steps("overlay", target, "overlay", attributes, [*lower, *options])
    except OSError as error:
        # Linux 6.5 to 6.7 names the option; before, a context of the old kind names nothing.
        said = error.strerror or ""
        if error.errno == errno.EINVAL and ("lowerdir+" in said or said == os.strerror(22)):
            return False
        raise
    return True


def _at_once(
    layers: Sequence[str],
    target: str,
    attributes: int,
    options: Sequence[tuple[str, str | None]],
) -> None:
    """Mount by mount(2), whose options fit one page: layers by names relative to where they are."""
    parent = os.path.commonpath([os.path.dirname(layer) for layer in layers])
    os.chdir(parent)  # this process does one job
    lower = ":".join(os.path.relpath(layer, parent) for layer in reversed(layers))
    words = [f"lowerdir={lower}"]
    words += [key if value is None else f"{key}={value}" for key, value in options]
    flags = syscalls.MS_NODEV
    flags |= syscalls.MS_NOSUID if attributes & syscalls.MOUNT_ATTR_NOSUID else 0
    flags |= syscalls.MS_RDONLY if attributes & syscalls.MOUNT_ATTR_RDONLY else 0
    syscalls.mount("overlay", target, "overlay", flags, ",".join(words))


def _check_unused(job: dict[str, Any]) -> None:
    """Refuse an upper directory that another overlay writes to: the kernel only warns of it."""
    mine = {os.path.realpath(job["upper"]), os.path.realpath(job["work"])}
    for entry in syscalls.mounts():
        if entry.fstype != "overlay":
            continue
        for option in entry.super_options:
            key, _, value = option.partition("=")
            if key in ("upperdir", "workdir") and os.path.realpath(value) in mine:
                text = f"{value} is in use: {entry.target} is mounted with it"
                raise OSError(errno.EBUSY, f"{text}; choose another directory")


def _make_upper(upper: str, top: str) -> None:
    """The root of a tree that is written has the attributes of the upper directory."""
    os.makedirs(os.path.dirname(upper), 0o700, exist_ok=True)
    try:
        os.mkdir(upper, 0o700)
    except FileExistsError:
        return
    root = os.stat(top)
    os.chown(upper, root.st_uid, root.st_gid)
    os.chmod(upper, root.st_mode & 0o7777)
    os.utime(upper, ns=(root.st_atime_ns, root.st_mtime_ns))


def _check_made(job: dict[str, Any]) -> None:
    """overlayfs mounts read-only what it finds it cannot write to; that was not asked for."""
    entry = syscalls.mount_at(job["target"])
    writable = entry is not None and "rw" in entry.super_options
    if entry is None or entry.fstype != "overlay" or writable != ("upper" in job):
        with contextlib.suppress(OSError):
            syscalls.umount(job["target"], syscalls.UMOUNT_NOFOLLOW)
        text = f"{job['target']} was mounted, but is not what was asked for: {entry}"
        raise OSError(errno.EIO, text)


def _explain(error: OSError, job: dict[str, Any]) -> OSError:
    texts = {
        errno.ENODEV: "this kernel has no overlayfs",
        errno.EPERM: "mounting is not permitted: not root?",
        errno.EINVAL: "overlayfs refuses these directories; the kernel's log says why",
    }
    number = error.errno or errno.EIO
    text = error.strerror or os.strerror(number)
    if text == os.strerror(number):
        text = texts.get(number, text)
    where = job.get("upper", job["target"])
    return OSError(number, f"{where}: {text}")
