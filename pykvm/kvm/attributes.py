"""Device attributes: a get/set/has interface that devices, vCPUs and /dev/kvm itself share.

An attribute is a (group, attr) pair of numbers; its value is a piece of memory whose layout the
attribute defines (KVM API, KVM_SET_DEVICE_ATTR and Documentation/virt/kvm/devices/).
"""

from __future__ import annotations

from pykvm._native import ffi
from pykvm.kvm.errors import KvmError
from pykvm.kvm.fd import FdOwner
from pykvm.typed import Any


class AttributeOwner(FdOwner):
    """A descriptor that takes KVM_SET/GET/HAS_DEVICE_ATTR."""

    def has_attribute(self, group: int, attr: int) -> bool:
        """Whether the kernel knows the attribute here."""
        try:
            self._attribute("KVM_HAS_DEVICE_ATTR", group, attr, ffi.NULL)
        except KvmError:
            return False
        return True

    def get_attribute(self, group: int, attr: int, size: int = 8) -> bytes:
        """The attribute's value, `size` bytes long. Raises `KvmError`."""
        value: Any = ffi.new("char[]", size)
        self._attribute("KVM_GET_DEVICE_ATTR", group, attr, value)
        return bytes(ffi.buffer(value, size))

    def set_attribute(self, group: int, attr: int, value: bytes | int = b"") -> None:
        """Sets the attribute; an int is passed as 8 bytes, little endian. Raises `KvmError`."""
        data = value.to_bytes(8, "little") if isinstance(value, int) else value
        self._attribute("KVM_SET_DEVICE_ATTR", group, attr, ffi.new("char[]", data or b"\0"))

    def _attribute(self, ioctl: str, group: int, attr: int, value: Any) -> None:
        request: Any = ffi.new("struct kvm_device_attr *")
        request.group = group
        request.attr = attr
        request.addr = int(ffi.cast("uintptr_t", value))
        try:
            self.ioctl(ioctl, request)
        except KvmError as error:
            raise error.explained(
                f"group={group} attr={attr}", f"{self._name} may not have that attribute"
            ) from None
