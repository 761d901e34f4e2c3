"""The user half: talks the on-demand protocol to a device and fills its cache from origins.

`Daemon` is the public class; the rest is for those who build something of their own.
"""

from pagein.daemon.device import AnonFd, Device, DeviceDead
from pagein.daemon.filedevice import FileDevice
from pagein.daemon.fill import Fill
from pagein.daemon.loop import Daemon

__all__ = ["AnonFd", "Daemon", "Device", "DeviceDead", "FileDevice", "Fill"]
