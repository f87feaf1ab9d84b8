"""System V shared memory, as AFL++ hands it to its targets (shmat(2))."""

from __future__ import annotations

import ctypes
import os
import struct

from pykvm.fuzz.errors import FuzzError

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.shmat.restype = ctypes.c_void_p
_LIBC.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
_LIBC.shmdt.argtypes = [ctypes.c_void_p]
_LIBC.shmctl.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
_IPC_STAT = 2
_SIZE_AT = 48  # of shm_segsz in struct shmid_ds, behind struct ipc_perm (x86-64)


class SharedMemory:
    """The segment whose number is in the environment variable `name`; writable.

    Raises `FuzzError` where there is none, or it is smaller than `least` bytes.
    """

    def __init__(self, name: str, least: int) -> None:
        text = os.environ.get(name, "")
        if not text.isdigit():
            raise FuzzError(f"{name}={text!r} is not the number of a shared memory segment")
        number = int(text)
        status = ctypes.create_string_buffer(256)
        address = None
        if _LIBC.shmctl(number, _IPC_STAT, status) == 0:
            address = _LIBC.shmat(number, None, 0)
        if address is None or address == ctypes.c_void_p(-1).value:
            why = os.strerror(ctypes.get_errno())
            raise FuzzError(f"cannot attach the shared memory {name}={number}: {why}")
        self._address = address
        (size,) = struct.unpack_from("<Q", status.raw, _SIZE_AT)
        if size < least:
            self.close()
            raise FuzzError(
                f"the shared memory {name} has {size} bytes, not {least}; set AFL_MAP_SIZE={least}"
            )
        self.view = memoryview((ctypes.c_char * size).from_address(address)).cast("B")

    def close(self) -> None:
        """Detaches it. Twice is harmless."""
        if self._address is not None:
            if hasattr(self, "view"):
                self.view.release()
            _LIBC.shmdt(self._address)
            self._address = None
