"""Floating-point and vector state of a vCPU (KVM API, 4.22 KVM_GET_FPU, 4.42 to 4.45,
KVM_GET_XSAVE2)."""

from __future__ import annotations

import errno
from functools import cached_property

from pykvm._native import ffi
from pykvm.kvm.errors import InvalidArgument, KvmError
from pykvm.kvm.record import Record
from pykvm.kvm.vcpu_base import VcpuBase
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Buffer

_LEGACY_SIZE = 4096


class FpuState(Record):
    """x87 and SSE registers (`struct kvm_fpu`).

    `fpr`: the eight x87 registers as 16 bytes each (80 bits used); `xmm`: the sixteen XMM
    registers; `ftwx`: the tag word in FXSAVE form, one bit a register. The kernel neither fills in
    `mxcsr` nor takes it: MXCSR travels in the XSAVE area only.
    """

    fpr: tuple[bytes, ...]
    fcw: int
    fsw: int
    ftwx: int
    last_opcode: int
    last_ip: int
    last_dp: int
    xmm: tuple[bytes, ...]
    mxcsr: int


class VcpuFpu(VcpuBase):
    """x87, SSE, AVX and what XSAVE manages."""

    def get_fpu(self) -> FpuState:
        """A copy of the x87 and SSE registers."""
        return self._get("KVM_GET_FPU", FpuState, "kvm_fpu")

    def set_fpu(self, state: FpuState) -> None:
        """Sets the x87 and SSE registers."""
        self._set("KVM_SET_FPU", state, "kvm_fpu")

    fpu = property(get_fpu, set_fpu, doc="x87 and SSE registers: a copy; assign it to set them.")

    @cached_property
    def xsave_size(self) -> int:
        """Bytes in `xsave`: 4,096, or more where the guest may use AMX and the like."""
        return max(_LEGACY_SIZE, self.vm.check_extension("KVM_CAP_XSAVE2"))

    def get_xsave(self) -> bytes:
        """The XSAVE area, `xsave_size` bytes, laid out as CPUID leaf 0xD says."""
        area: Any = ffi.new("char[]", self.xsave_size)
        larger = self.xsave_size > _LEGACY_SIZE
        self.ioctl("KVM_GET_XSAVE2" if larger else "KVM_GET_XSAVE", area)
        return bytes(ffi.buffer(area))

    def set_xsave(self, area: Buffer) -> None:
        """Sets everything that XSAVE manages, from an area of `xsave_size` bytes."""
        data = bytes(memoryview(area).cast("B"))
        if len(data) != self.xsave_size:
            raise InvalidArgument(
                "KVM_SET_XSAVE", f"{len(data)} bytes", f"the area has {self.xsave_size} bytes here"
            )
        try:
            self.ioctl("KVM_SET_XSAVE", ffi.new("char[]", data))
        except KvmError as error:
            hint = ""
            if error.errno == errno.EINVAL:
                bits = int.from_bytes(data[512:520], "little")
                mxcsr = int.from_bytes(data[24:28], "little")
                hint = f"XSTATE_BV {bits:#x} or MXCSR {mxcsr:#x} has bits that the host lacks"
            raise error.explained(f"{len(data)} bytes", hint) from None

    xsave = property(get_xsave, set_xsave, doc="The XSAVE area as bytes: a copy.")

    def get_xcrs(self) -> dict[int, int]:
        """The extended control registers by number (XCR0 is 0)."""
        data: Any = ffi.new("struct kvm_xcrs *")
        self.ioctl("KVM_GET_XCRS", data)
        return {int(x.xcr): int(x.value) for x in data.xcrs[0 : data.nr_xcrs]}

    def set_xcrs(self, xcrs: dict[int, int]) -> None:
        """Sets extended control registers."""
        data: Any = ffi.new("struct kvm_xcrs *")
        if len(xcrs) > len(data.xcrs):
            raise InvalidArgument(
                "KVM_SET_XCRS", f"{len(xcrs)} registers", f"at most {len(data.xcrs)} are possible"
            )
        data.nr_xcrs = len(xcrs)
        for target, (number, value) in zip(data.xcrs, xcrs.items(), strict=False):
            target.xcr = number
            target.value = value
        try:
            self.ioctl("KVM_SET_XCRS", data)
        except KvmError as error:
            raise error.explained(
                ", ".join(f"XCR{n}={v:#x}" for n, v in xcrs.items()),
                "XCR0 needs bit 0 and may have only features of the vCPU's CPUID leaf 0xD",
            ) from None

    xcrs = property(get_xcrs, set_xcrs, doc="Extended control registers by number: a copy.")
