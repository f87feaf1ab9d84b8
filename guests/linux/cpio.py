"""Writes cpio archives of the format "newc", which Linux unpacks into its first root file system.

Source: Documentation/driver-api/early-userspace/buffer-format.rst of the kernel. Archives may be
joined end to end; a later file replaces an earlier one of the same name.
"""

from __future__ import annotations

import stat


class Archive:
    """Files, folders, links and device nodes, all owned by root, time stamp 0."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._inode = 0
        self._folders: set[str] = set()

    def _entry(
        self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        self._inode += 1
        path = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(path), 0)
        self._data += b"070701" + b"".join(b"%08X" % field for field in fields) + path
        self._pad()
        self._data += data
        self._pad()

    def _pad(self) -> None:
        self._data += bytes(-len(self._data) % 4)

    def folder(self, name: str, mode: int = 0o755) -> None:
        """A folder, and those above it."""
        parts = name.split("/")
        for depth in range(1, len(parts) + 1):
            path = "/".join(parts[:depth])
            if path not in self._folders:
                self._folders.add(path)
                self._entry(path, stat.S_IFDIR | mode)

    def _parent(self, name: str) -> None:
        if "/" in name:
            self.folder(name.rsplit("/", 1)[0])

    def file(self, name: str, data: bytes | str, mode: int = 0o644) -> None:
        """A regular file; the folders above it are made."""
        self._parent(name)
        self._entry(name, stat.S_IFREG | mode, data.encode() if isinstance(data, str) else data)

    def link(self, name: str, target: str) -> None:
        """A symbolic link."""
        self._parent(name)
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, name: str, major: int, minor: int) -> None:
        """A character device node."""
        self._parent(name)
        self._entry(name, stat.S_IFCHR | 0o600, device=(major, minor))

    def done(self) -> bytes:
        """The archive with its end mark, padded so that another may follow."""
        self._inode = -1
        self._entry("TRAILER!!!", 0)
        return bytes(self._data) + bytes(-len(self._data) % 512)
