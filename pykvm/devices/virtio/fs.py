"""`VirtioFs`: a shared folder by virtiofsd (VIRTIO 1.2, section 5.11)."""

from __future__ import annotations

import os
import struct

from pykvm.devices.vhost.virtiofsd import Virtiofsd
from pykvm.devices.virtio.vhost_user import VhostUserDevice

_TAG_BYTES = 36


class VirtioFs(VhostUserDevice):
    """A folder that the guest mounts: `mount -t virtiofs TAG /mnt`.

    virtiofsd, a child process of this one, answers the guest's FUSE requests over vhost-user; it
    locks itself into the folder. Each start of the driver gets a new one. What it knows (inodes,
    open files) is not part of a saved state: a guest that had the folder mounted gets errors for
    it after a load in another process, until it mounts again. Raises `ShareError`, `BackendError`.
    """

    def __init__(
        self, directory: str | os.PathLike[str], tag: str = "share", *, readonly: bool = False,
        name: str = "virtio-fs",
    ) -> None:  # fmt: skip
        raw = tag.encode()
        if not 1 <= len(raw) <= _TAG_BYTES or b"\0" in raw:
            raise ValueError(f"the tag {tag!r} is not 1 to {_TAG_BYTES} bytes of text")
        self.tag = tag
        self.server = Virtiofsd(directory, readonly=readonly)
        # 5.11.4: the tag, padded with zeros, and the number of request queues.
        config = raw.ljust(_TAG_BYTES, b"\0") + struct.pack("<I", 1)
        try:
            super().__init__(self.server.start, "fs", config=config, timeout=10.0, name=name)
        except BaseException:
            self.server.stop()
            raise
        self._used = False

    def activated(self) -> None:
        """As the base class."""
        self._used = True
        super().activated()

    def device_reset(self) -> None:
        """The next session gets a server that knows nothing of this one."""
        super().device_reset()
        if self._used:
            self._used = False
            self._hang_up()
            self.server.stop()

    def close(self) -> None:
        """Ends the server."""
        super().close()
        self.server.stop()
