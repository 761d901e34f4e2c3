"""What a kernel half leaves for its successor, in one small file of the runtime directory.

The keeper holds the FUSE connections, so open files outlive the process that serves them. Their
handles, the objects they belong to and the mounts made over them are written down before the reply
that makes them known; requests are not, since the kernel sends lost ones again.
"""

from __future__ import annotations

import os

import msgspec

from pagein.protocol.space import LIMITS


class DeviceState(msgspec.Struct):
    """The open device."""

    handle: int
    poll_handles: list[int] = []
    dir: bytes | None = None
    tag: bytes | None = None
    limits: dict[str, int] = msgspec.field(default_factory=lambda: dict(LIMITS))
    """Per cent, by the commands that set them."""
    ondemand: bool = False
    bound: bool = False
    culling: bool = False


class ObjectState(msgspec.Struct):
    """An object that has an object_id, or anonymous files still open."""

    volume: bytes
    cookie: bytes
    id: int
    open: bool
    """Whether it is in the state OPEN."""
    size: int | None
    handles: list[int]


class ExportState(msgspec.Struct):
    """A blob's file."""

    node: int
    volume: bytes
    cookie: bytes
    size: int
    handles: list[int]


class MountState(msgspec.Struct):
    """A mount: its directory, what was asked for, what it stands on."""

    target: str
    labels: list[str]
    keys: list[tuple[bytes, bytes]]
    nodes: list[int] = []
    """Exports it holds; none for a mount made directly on complete files."""
    loop: list[str] = []
    done: bool = False


class LayerState(msgspec.Struct):
    """A layer of stacks; what is mounted there is among the mounts."""

    name: str
    number: int


class StackState(msgspec.Struct):
    """An overlay: its directory, what it is called, the names of its layers, lowest first."""

    target: str
    label: str
    layers: list[str]
    upper: tuple[str, str, bool] | None = None
    """Upper and work directory, and whether it is volatile."""
    done: bool = False


class State(msgspec.Struct):
    """Everything a successor has to know."""

    epoch: int = 0
    """How many kernel halves there were before; keeps ids and handles apart."""
    device: DeviceState | None = None
    objects: list[ObjectState] = []
    exports: list[ExportState] = []
    mounts: list[MountState] = []
    layers: list[LayerState] = []
    stacks: list[StackState] = []


def load(path: str) -> State | None:
    """The predecessor's state, or None when there was none. Raises ValueError when damaged."""
    try:
        with open(path, "rb") as file:
            return msgspec.json.decode(file.read(), type=State)
    except FileNotFoundError:
        return None


def save(path: str, state: State) -> None:
    """Write the state so that a kill at any moment leaves the old one or the new one."""
    temporary = path + ".new"
    with open(temporary, "wb") as file:
        file.write(msgspec.json.encode(state))
    os.rename(temporary, path)
