"""`Kvm`: /dev/kvm itself. What the host can do, and new VMs (KVM API, "system ioctls")."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from functools import cached_property

from pykvm._native import ffi
from pykvm.kvm import constants as c
from pykvm.kvm.attributes import AttributeOwner
from pykvm.kvm.cpuid import CpuidEntry, read_cpuid
from pykvm.kvm.errors import KvmError, KvmUnavailable, Unsupported
from pykvm.kvm.msrs import read_msrs
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykvm.kvm.vm import Vm


class Kvm(AttributeOwner):
    """The system's KVM. Closing it leaves the VMs that it made alive.

    Raises `KvmUnavailable` when the device is missing, closed to this user, or not KVM version 12.
    """

    def __init__(self, path: str = "/dev/kvm") -> None:
        super().__init__(_open(path), path)
        self.path = path
        try:
            self._check_version()
        except BaseException:
            self.close()
            raise

    def _check_version(self) -> None:
        try:
            version = self.api_version
        except KvmError as error:
            raise KvmUnavailable(
                self.path,
                error.errno or errno.ENOTTY,
                f"{self.path} is not the KVM device",
                "give the path of the device that the kvm module made (usually /dev/kvm)",
            ) from None
        if version != c.KVM_API_VERSION:
            raise KvmUnavailable(
                self.path,
                errno.EPROTO,
                f"{self.path} speaks version {version} of the KVM API, pykvm {c.KVM_API_VERSION}",
                "use a kernel of 2.6.22 or newer with its own kvm module",
            )

    @property
    def api_version(self) -> int:
        """12 since Linux 2.6.22, and for good (KVM API, 4.1)."""
        return self.ioctl("KVM_GET_API_VERSION")

    @cached_property
    def vcpu_mmap_size(self) -> int:
        """Bytes that a vCPU shares with user space: `kvm_run` and what follows it (4.5)."""
        return self.ioctl("KVM_GET_VCPU_MMAP_SIZE")

    def check_extension(self, extension: str | int) -> int:
        """What the host says about a capability, by name ("KVM_CAP_IRQFD", "irqfd") or number.

        0: it is not there. Otherwise 1 or a value that the capability defines (KVM API, 4.4).
        Some capabilities differ between VMs: see `Vm.check_extension`.
        """
        return self.ioctl("KVM_CHECK_EXTENSION", c.capability(extension))

    def capabilities(self) -> dict[str, int]:
        """`check_extension` of every `KVM_CAP_*` of the kernel's headers, by name."""
        return {name: self.check_extension(number) for name, number in c.capabilities().items()}

    # -- CPUID ---------------------------------------------------------------------------------

    def supported_cpuid(self) -> list[CpuidEntry]:
        """CPUID as a guest can have it here: the usual start of a vCPU's own table (4.46)."""
        return read_cpuid(self, "KVM_GET_SUPPORTED_CPUID")

    def emulated_cpuid(self) -> list[CpuidEntry]:
        """Features that KVM emulates although the CPU lacks them; they may be slow in guests."""
        return read_cpuid(self, "KVM_GET_EMULATED_CPUID")

    def supported_hv_cpuid(self) -> list[CpuidEntry]:
        """The Hyper-V leaves that KVM can give a guest. Raises `Unsupported`."""
        if not self.check_extension("KVM_CAP_SYS_HYPERV_CPUID"):
            raise Unsupported(
                "KVM_GET_SUPPORTED_HV_CPUID", None, "this host's KVM does not imitate Hyper-V"
            )
        return read_cpuid(self, "KVM_GET_SUPPORTED_HV_CPUID")

    # -- MSRs ----------------------------------------------------------------------------------

    def msr_index_list(self) -> list[int]:
        """The MSRs that make up a vCPU's state and can be read and written (4.3)."""
        return self._msr_list("KVM_GET_MSR_INDEX_LIST")

    def msr_feature_index_list(self) -> list[int]:
        """The MSRs that tell what the host's KVM can do, for `msr_features` (4.3)."""
        return self._msr_list("KVM_GET_MSR_FEATURE_INDEX_LIST")

    def msr_features(self, indices: Iterable[int] | None = None) -> dict[int, int]:
        """Values of feature MSRs, all of them unless named (KVM_GET_MSRS on /dev/kvm, 4.18)."""
        wanted = self.msr_feature_index_list() if indices is None else indices
        return read_msrs(self, wanted)

    def _msr_list(self, ioctl: str) -> list[int]:
        size = 0
        while True:
            table: Any = ffi.new("struct kvm_msr_list *", {"nmsrs": size, "indices": size})
            try:
                self.ioctl(ioctl, table)
            except KvmError as error:
                if error.errno != errno.E2BIG or table.nmsrs <= size:
                    raise
                size = table.nmsrs  # the kernel has said how many there are
                continue
            return [table.indices[i] for i in range(table.nmsrs)]

    # -- others --------------------------------------------------------------------------------

    def mce_cap_supported(self) -> int:
        """MCG_CAP bits that `Vcpu.setup_mce` takes.

        The low byte, the number of banks, is up to `check_extension("KVM_CAP_MCE")`.
        """
        value: Any = ffi.new("__u64 *")
        self.ioctl("KVM_X86_GET_MCE_CAP_SUPPORTED", value)
        return int(value[0])

    def xcomp_guest_supported(self) -> int:
        """XCR0 bits that a guest may be given, once `arch_prctl` allows them to this process."""
        data = self.get_attribute(0, c.KVM_X86_XCOMP_GUEST_SUPP)
        return int.from_bytes(data, "little")

    def create_vm(self, vm_type: int = c.KVM_X86_DEFAULT_VM) -> Vm:
        """A new VM without memory and vCPUs (4.2).

        `vm_type`: `constants.KVM_X86_*_VM`; others than the default need `KVM_CAP_VM_TYPES`.
        """
        from pykvm.kvm.vm import Vm

        try:
            fd = self.ioctl("KVM_CREATE_VM", vm_type)
        except KvmError as error:
            if vm_type != c.KVM_X86_DEFAULT_VM and error.errno == errno.EINVAL:
                kinds = self.check_extension("KVM_CAP_VM_TYPES") or 1
                known = ", ".join(str(i) for i in range(64) if kinds >> i & 1)
                raise Unsupported(
                    "KVM_CREATE_VM", f"vm_type={vm_type}", f"this host has the types {known}"
                ) from None
            raise
        return Vm(self, fd, vm_type)


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        number = error.errno or errno.ENOENT
        problem, remedy = _DIAGNOSES.get(
            number, ("{path} cannot be opened (" + os.strerror(number) + ")", _TRY_DOCTOR)
        )
        raise KvmUnavailable(path, number, problem.format(path=path), remedy) from None


_TRY_DOCTOR = "`pykvm doctor` looks for the reason"
_NO_MODULE = (
    "load the kernel module (modprobe kvm_intel or kvm_amd) after enabling VT-x or AMD-V in the "
    "firmware; in a VM, enable nested virtualization; in a container, pass --device /dev/kvm"
)
_NO_ACCESS = (
    "join its group (sudo usermod -aG kvm $USER, then log in again) or run as root; in a "
    "container, allow the device too"
)
_DIAGNOSES = {
    errno.ENOENT: ("there is no {path}", _NO_MODULE),
    errno.ENXIO: ("{path} exists, but no kernel module serves it", _NO_MODULE),
    errno.ENODEV: ("{path} exists, but no kernel module serves it", _NO_MODULE),
    errno.EACCES: ("this user may not open {path}", _NO_ACCESS),
    errno.EPERM: ("this user may not open {path}", _NO_ACCESS),
    errno.EBUSY: (
        "{path} is taken by another hypervisor",
        "stop the other one (VirtualBox, VMware) or unload its module",
    ),
    errno.EISDIR: ("{path} is a directory", "give the path of the device file"),
}
