"""From an OCI image config and a command line to the config.json of the OCI runtime spec.

No I/O. What is chosen here is what docker chooses, where it is not the user's own choice: names and
values can be looked up in its default spec (moby, oci/defaults.go). There is no seccomp filter.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pagein.containers.users import User

DEFAULT_PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CAPABILITIES: Final = (
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)
MASKED: Final = (
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
)
READ_ONLY: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

_SYSTEM_MOUNTS: Final = (
    ("/proc", "proc", "proc", "nosuid noexec nodev"),
    ("/dev", "tmpfs", "tmpfs", "nosuid strictatime mode=755 size=65536k"),
    ("/dev/pts", "devpts", "devpts", "nosuid noexec newinstance ptmxmode=0666 mode=0620 gid=5"),
    ("/dev/shm", "tmpfs", "shm", "nosuid noexec nodev mode=1777 size=65536k"),
    ("/dev/mqueue", "mqueue", "mqueue", "nosuid noexec nodev"),
    ("/sys", "sysfs", "sysfs", "nosuid noexec nodev ro"),
)
_CGROUP: Final = ("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid noexec nodev relatime ro")


@dataclass(frozen=True, slots=True)
class Volume:
    """A file or directory of this machine in the container."""

    source: str
    target: str
    read_only: bool = False

    @classmethod
    def parse(cls, text: str) -> Volume:
        """From SRC:DST[:ro]. Raises OSError EINVAL in one line."""
        source, _, rest = text.partition(":")
        target, _, mode = rest.partition(":")
        if not source or not target.startswith("/") or mode not in ("", "ro", "rw"):
            problem = "expected SRC:DST[:ro], DST absolute"
            raise OSError(errno.EINVAL, f"--volume {text}: {problem}")
        return cls(source, target, mode == "ro")


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What the command line says, over what the image says."""

    name: str
    """The container's id; its host name too, unless it shares the host's."""
    command: Sequence[str] = ()
    entrypoint: str | None = None
    """None: the image's. Otherwise the image's Cmd does not count either; "" is none."""
    env: Sequence[str] = ()
    """K=V each."""
    user: str | None = None
    workdir: str | None = None
    volumes: Sequence[Volume] = ()
    host_network: bool = False
    tty: bool = False
    tty_size: tuple[int, int] = (0, 0)
    """Rows and columns that its terminal has from the beginning."""
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Machine:
    """What this machine gives: found out by `runc.machine`."""

    capabilities: frozenset[str]
    """Those that can be given on at all."""
    cgroups: bool
    """Whether there are any, and they can be written to."""
    open_files: int
    """The hard limit of RLIMIT_NOFILE."""
    hostname: str
    binds: Sequence[Volume] = field(default=())
    """Files of the network that the container gets: /etc/hosts and /etc/resolv.conf."""


def runtime_spec(
    root: str, config: Mapping[str, Any], options: RunOptions, user: User, machine: Machine
) -> dict[str, Any]:
    """The config.json of a container. Raises OSError EINVAL for an image without a command."""
    capabilities = sorted(machine.capabilities.intersection(CAPABILITIES))
    limit = machine.open_files
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": options.tty,
            **_console(options),
            "user": {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.groups)},
            "args": arguments(config, options),
            "env": environment(config, options, user, machine),
            "cwd": options.workdir or config.get("WorkingDir") or "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": limit, "soft": limit}],
            "noNewPrivileges": False,
        },
        "root": {"path": root, "readonly": options.read_only},
        "hostname": machine.hostname if options.host_network else options.name,
        "mounts": _mounts(options, machine),
        "linux": {
            "namespaces": [{"type": kind} for kind in _namespaces(options, machine)],
            "maskedPaths": list(MASKED),
            "readonlyPaths": list(READ_ONLY),
            **({"resources": _resources()} if machine.cgroups else {}),
        },
    }


def arguments(config: Mapping[str, Any], options: RunOptions) -> list[str]:
    """Entrypoint and command, as docker combines them. Raises OSError EINVAL when both are none."""
    entrypoint = list(config.get("Entrypoint") or ())
    command = list(config.get("Cmd") or ())
    if options.entrypoint is not None:
        entrypoint = [options.entrypoint] if options.entrypoint else []
        command = []
    if options.command:
        command = list(options.command)
    if not entrypoint + command:
        raise OSError(errno.EINVAL, "the image names no command: give one after --")
    return entrypoint + command


def environment(
    config: Mapping[str, Any], options: RunOptions, user: User, machine: Machine
) -> list[str]:
    """Variables, later ones over earlier: ours, the image's, the command line's."""
    own = [DEFAULT_PATH, f"HOME={user.home}"]
    own.append(f"HOSTNAME={machine.hostname if options.host_network else options.name}")
    if options.tty:
        own.append("TERM=xterm")
    found: dict[str, str] = {}
    for word in (*own, *(config.get("Env") or ()), *options.env):
        key, _, value = word.partition("=")
        found[key] = value
    return [f"{key}={value}" for key, value in found.items()]


def _console(options: RunOptions) -> dict[str, Any]:
    rows, columns = options.tty_size
    return {"consoleSize": {"height": rows, "width": columns}} if options.tty else {}


def _mounts(options: RunOptions, machine: Machine) -> list[dict[str, Any]]:
    system = [*_SYSTEM_MOUNTS, *([_CGROUP] if machine.cgroups else [])]
    found: list[dict[str, Any]] = [
        {"destination": at, "type": kind, "source": source, "options": words.split()}
        for at, kind, source, words in system
    ]
    for volume in (*machine.binds, *options.volumes):
        mode = "ro" if volume.read_only else "rw"
        found.append(
            {
                "destination": volume.target,
                "type": "bind",
                "source": volume.source,
                "options": ["rbind", "rprivate", mode],
            }
        )
    return found


def _namespaces(options: RunOptions, machine: Machine) -> list[str]:
    kinds = ["pid", "ipc", "uts", "mount"]
    if not options.host_network:
        kinds.append("network")
    if machine.cgroups:
        kinds.append("cgroup")
    return kinds


def _resources() -> dict[str, Any]:
    """No devices but those that runc allows each container (null, zero, tty ...)."""
    return {"devices": [{"allow": False, "access": "rwm"}]}
