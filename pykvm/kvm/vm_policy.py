"""How a `Vm` behaves: which exits happen, MSR access, clock, and set-up that Intel hosts need.

KVM API: KVM_SET_CLOCK, KVM_GET_CLOCK, KVM_SET_TSS_ADDR, KVM_SET_IDENTITY_MAP_ADDR,
KVM_X86_SET_MSR_FILTER, KVM_SET_PMU_EVENT_FILTER in section 4; the capabilities that the methods
name in sections 7 and 8.
"""

from __future__ import annotations

from collections.abc import Iterable

from pykvm._native import ffi
from pykvm.kvm import constants as c
from pykvm.kvm.errors import InvalidArgument, KvmError, Unsupported
from pykvm.kvm.record import Record
from pykvm.kvm.vm_base import VmBase, check_int
from pykvm.typed import Any


class Clock(Record):
    """The guest's kvmclock. All but `clock` only as `flags` (`constants.KVM_CLOCK_*`) say.

    `clock`: ns; `realtime`: the host's wall clock in ns at that moment; `host_tsc`: its TSC.
    """

    clock: int
    flags: int = 0
    realtime: int = 0
    host_tsc: int = 0


class MsrFilterRange(Record):
    """A range of MSRs for `Vm.set_msr_filter`.

    `base`: the first MSR. `bitmap`: bit n (little endian) is MSR base+n, 1 allows the access.
    `read`, `write`: which accesses it is about. `MsrFilterRange.of` makes one from a list of MSRs.
    """

    base: int
    count: int
    bitmap: bytes
    read: bool = True
    write: bool = True

    @classmethod
    def of(
        cls, indices: Iterable[int], *, allow: bool = False, read: bool = True, write: bool = True
    ) -> MsrFilterRange:
        """The smallest range that denies (or only allows) just these MSRs."""
        wanted = sorted(set(indices))
        if not wanted:
            raise ValueError("a filter range needs at least one MSR")
        base, count = wanted[0], wanted[-1] - wanted[0] + 1
        mask = sum(1 << (index - base) for index in wanted)
        if not allow:
            mask ^= (1 << count) - 1
        return cls(base, count, mask.to_bytes((count + 7) // 8, "little"), read, write)


class VmPolicy(VmBase):
    """What a VM lets its guest do and when it exits."""

    # -- addresses and limits ------------------------------------------------------------------

    def set_tss_addr(self, gpa: int) -> None:
        """Gives KVM three pages of guest-physical space below 4 GiB, unused by the guest.

        Old Intel hosts (without unrestricted guest) need them to run real mode.
        """
        name = "KVM_SET_TSS_ADDR"
        if gpa % c.PAGE_SIZE or not 0 <= gpa <= (1 << 32) - 3 * c.PAGE_SIZE:
            raise InvalidArgument(
                name, f"gpa={gpa:#x}", "it must be a multiple of 4 KiB, 12 KiB below 4 GiB"
            )
        self.ioctl(name, gpa)

    def set_identity_map_addr(self, gpa: int) -> None:
        """Gives KVM one page for the identity map of real mode (see `set_tss_addr`).

        Before the first vCPU; 0xfffbc000 unless set.
        """
        name = "KVM_SET_IDENTITY_MAP_ADDR"
        self._need_no_vcpus(name, f"gpa={gpa:#x}")
        if gpa % c.PAGE_SIZE or not 0 <= gpa < 1 << 32:
            raise InvalidArgument(
                name, f"gpa={gpa:#x}", "it must be a multiple of 4 KiB below 4 GiB"
            )
        self.ioctl(name, ffi.new("__u64 *", gpa))

    def set_boot_cpu_id(self, vcpu_id: int) -> None:
        """Which vCPU is the bootstrap processor; 0 unless set. Before the first vCPU."""
        self._need_no_vcpus("KVM_SET_BOOT_CPU_ID", f"vcpu_id={vcpu_id}")
        self.ioctl("KVM_SET_BOOT_CPU_ID", check_int(vcpu_id, 31, "vcpu_id", "KVM_SET_BOOT_CPU_ID"))

    def set_nr_mmu_pages(self, pages: int) -> None:
        """The most pages that KVM may spend on shadow page tables; at least 64."""
        low = 64  # KVM_MIN_ALLOC_MMU_PAGES
        self.ioctl(
            "KVM_SET_NR_MMU_PAGES",
            check_int(pages, 32, "pages", "KVM_SET_NR_MMU_PAGES", low=low),
        )

    def set_max_vcpu_id(self, limit: int) -> None:
        """Promises that all vCPU ids are below `limit`, which saves KVM memory."""
        self._need_no_vcpus("KVM_ENABLE_CAP", f"limit={limit}")
        self.enable_cap("KVM_CAP_MAX_VCPU_ID", limit)

    # -- time ----------------------------------------------------------------------------------

    def get_clock(self) -> Clock:
        """The guest's kvmclock."""
        data: Any = ffi.new("struct kvm_clock_data *")
        self.ioctl("KVM_GET_CLOCK", data)
        return Clock.from_c(data)

    def set_clock(self, clock: Clock | int) -> None:
        """Sets the guest's kvmclock, in ns.

        A `Clock` with `KVM_CLOCK_REALTIME` in its flags goes on as if it had run since then; other
        flags are the kernel's to tell and not passed on.
        """
        wanted = Clock(clock) if isinstance(clock, int) else clock
        data: Any = ffi.new("struct kvm_clock_data *")
        wanted.replace(flags=wanted.flags & c.KVM_CLOCK_REALTIME).to_c(data)
        self.ioctl("KVM_SET_CLOCK", data)

    def get_tsc_khz(self) -> int:
        """The TSC frequency that new vCPUs get, in kHz. Needs `KVM_CAP_VM_TSC_CONTROL`."""
        self._need("KVM_CAP_VM_TSC_CONTROL", "KVM_GET_TSC_KHZ", "the VM's TSC")
        return self.ioctl("KVM_GET_TSC_KHZ")

    def set_tsc_khz(self, khz: int) -> None:
        """Sets the TSC frequency that new vCPUs get, in kHz. Before the first vCPU."""
        self._need("KVM_CAP_VM_TSC_CONTROL", "KVM_SET_TSC_KHZ", f"khz={khz}")
        self._need_no_vcpus("KVM_SET_TSC_KHZ", f"khz={khz}")
        self.ioctl("KVM_SET_TSC_KHZ", check_int(khz, 32, "khz", "KVM_SET_TSC_KHZ", low=1))

    # -- exits ---------------------------------------------------------------------------------

    def disable_exits(
        self,
        *,
        hlt: bool = False,
        mwait: bool = False,
        pause: bool = False,
        cstate: bool = False,
        aperfmperf: bool = False,
    ) -> None:
        """Lets the guest idle the host CPU itself instead of leaving it. Before any vCPU."""
        wanted = {
            "hlt": (hlt, c.KVM_X86_DISABLE_EXITS_HLT),
            "mwait": (mwait, c.KVM_X86_DISABLE_EXITS_MWAIT),
            "pause": (pause, c.KVM_X86_DISABLE_EXITS_PAUSE),
            "cstate": (cstate, c.KVM_X86_DISABLE_EXITS_CSTATE),
            "aperfmperf": (aperfmperf, c.KVM_X86_DISABLE_EXITS_APERFMPERF),
        }
        have = self.check_extension("KVM_CAP_X86_DISABLE_EXITS")
        mask = 0
        for name, (chosen, bit) in wanted.items():
            if chosen and not have & bit:
                raise Unsupported("KVM_ENABLE_CAP", name, f"this host cannot disable {name} exits")
            mask |= bit if chosen else 0
        self._need_no_vcpus("KVM_ENABLE_CAP", "disable_exits")
        self.enable_cap("KVM_CAP_X86_DISABLE_EXITS", mask)

    def enable_msr_exits(
        self, *, invalid: bool = True, unknown: bool = True, filtered: bool = True
    ) -> None:
        """Brings MSR accesses that KVM would answer with #GP to user space.

        `RdmsrExit` and `WrmsrExit` then come for MSRs with a refused value (`invalid`), MSRs that
        KVM does not know (`unknown`) and those that `set_msr_filter` denies (`filtered`).
        """
        mask = c.KVM_MSR_EXIT_REASON_INVAL if invalid else 0
        mask |= c.KVM_MSR_EXIT_REASON_UNKNOWN if unknown else 0
        mask |= c.KVM_MSR_EXIT_REASON_FILTER if filtered else 0
        self._need("KVM_CAP_X86_USER_SPACE_MSR", "KVM_ENABLE_CAP", "MSR exits")
        self.enable_cap("KVM_CAP_X86_USER_SPACE_MSR", mask)

    def set_msr_filter(
        self, ranges: Iterable[MsrFilterRange] = (), *, default_allow: bool = True
    ) -> None:
        """Which MSRs the guest may reach; the others give #GP, or an exit (`enable_msr_exits`).

        At most 16 ranges of at most 12,288 MSRs; MSRs outside all of them are as `default_allow`
        says. No ranges and `default_allow` take the filter away. x2APIC MSRs are never filtered.
        """
        name = "KVM_X86_SET_MSR_FILTER"
        wanted = list(ranges)
        self._need("KVM_CAP_X86_MSR_FILTER", name, f"{len(wanted)} ranges")
        if len(wanted) > c.KVM_MSR_FILTER_MAX_RANGES:
            raise InvalidArgument(
                name, f"{len(wanted)} ranges", f"at most {c.KVM_MSR_FILTER_MAX_RANGES} are possible"
            )
        if not wanted and not default_allow:
            raise InvalidArgument(
                name, "default_allow=False", "KVM wants at least one range to deny the others"
            )
        request: Any = ffi.new("struct kvm_msr_filter *")
        request.flags = (
            c.KVM_MSR_FILTER_DEFAULT_ALLOW if default_allow else c.KVM_MSR_FILTER_DEFAULT_DENY
        )
        keep = []
        for target, given in zip(request.ranges, wanted, strict=False):
            keep.append(_fill_range(target, given, name))
        try:
            self.ioctl(name, request)
        except KvmError as error:
            raise error.explained(f"{len(wanted)} ranges", "two ranges may overlap") from None

    def exit_on_emulation_failure(self, enabled: bool = True) -> None:
        """Brings instructions that KVM cannot emulate to user space, user mode's too."""
        capability = "KVM_CAP_EXIT_ON_EMULATION_FAILURE"
        self._need(capability, "KVM_ENABLE_CAP", "exit_on_emulation_failure")
        self.enable_cap(capability, int(enabled))

    def enable_hypercall_exits(self, mask: int) -> None:
        """Brings hypercalls (bit n: hypercall number n) to user space, those KVM allows."""
        have = self.check_extension("KVM_CAP_EXIT_HYPERCALL")
        if mask & ~have:
            raise Unsupported(
                "KVM_ENABLE_CAP", f"mask={mask:#x}", f"this host passes on {have:#x} at most"
            )
        self.enable_cap("KVM_CAP_EXIT_HYPERCALL", mask)

    def enable_bus_lock_exits(self) -> None:
        """Makes each bus lock of the guest an exit. Before the first vCPU; Intel only."""
        capability = "KVM_CAP_X86_BUS_LOCK_EXIT"
        self._need(capability, "KVM_ENABLE_CAP", "bus lock exits")
        self._need_no_vcpus("KVM_ENABLE_CAP", "bus lock exits")
        self.enable_cap(capability, c.KVM_BUS_LOCK_DETECTION_EXIT)

    def enable_notify_exits(self, window: int = 0, *, to_user: bool = True) -> None:
        """Breaks a guest that blocks interrupts for `window` TSC ticks and more. Intel."""
        capability = "KVM_CAP_X86_NOTIFY_VMEXIT"
        self._need(capability, "KVM_ENABLE_CAP", "notify exits")
        flags = c.KVM_X86_NOTIFY_VMEXIT_ENABLED
        flags |= c.KVM_X86_NOTIFY_VMEXIT_USER if to_user else 0
        check_int(window, 32, "window", "KVM_ENABLE_CAP")
        self.enable_cap(capability, window << 32 | flags)

    # -- details of the virtual CPU ------------------------------------------------------------

    def enable_exception_payload(self, enabled: bool = True) -> None:
        """Keeps CR2/DR6 of a pending exception apart in `Vcpu.get_vcpu_events`."""
        self.enable_cap("KVM_CAP_EXCEPTION_PAYLOAD", int(enabled))

    def enable_triple_fault_event(self, enabled: bool = True) -> None:
        """Shows a pending triple fault in `Vcpu.get_vcpu_events`."""
        self.enable_cap("KVM_CAP_X86_TRIPLE_FAULT_EVENT", int(enabled))

    def enable_x2apic_ids(self, *, disable_broadcast_quirk: bool = True) -> None:
        """32-bit APIC ids in messages and in `Vcpu.get_lapic`."""
        flags = c.KVM_X2APIC_API_USE_32BIT_IDS
        if disable_broadcast_quirk:
            flags |= c.KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK
        self.enable_cap("KVM_CAP_X2APIC_API", flags)

    def disable_quirks(self, mask: int) -> None:
        """Switches off deviations from hardware that old guests rely on.

        `mask`: `constants.KVM_X86_QUIRK_*`.
        """
        have = self.check_extension("KVM_CAP_DISABLE_QUIRKS2")
        if mask & ~have:
            raise Unsupported(
                "KVM_ENABLE_CAP", f"mask={mask:#x}", f"this host can switch off {have:#x}"
            )
        self.enable_cap("KVM_CAP_DISABLE_QUIRKS2", mask)

    def disable_pmu(self) -> None:
        """Hides the performance counters from the guest. Before the first vCPU."""
        self._need("KVM_CAP_PMU_CAPABILITY", "KVM_ENABLE_CAP", "the PMU")
        self._need_no_vcpus("KVM_ENABLE_CAP", "the PMU")
        self.enable_cap("KVM_CAP_PMU_CAPABILITY", c.KVM_PMU_CAP_DISABLE)

    def set_pmu_event_filter(
        self, events: Iterable[int], *, allow: bool, fixed_counters: int = 0, masked: bool = False
    ) -> None:
        """Which performance events the guest may count: only these, or all but these."""
        name = "KVM_SET_PMU_EVENT_FILTER"
        wanted = list(events)
        self._need("KVM_CAP_PMU_EVENT_FILTER", name, f"{len(wanted)} events")
        request: Any = ffi.new(
            "struct kvm_pmu_event_filter *", {"nevents": len(wanted), "events": wanted}
        )
        request.action = c.KVM_PMU_EVENT_ALLOW if allow else c.KVM_PMU_EVENT_DENY
        request.fixed_counter_bitmap = fixed_counters
        request.flags = c.KVM_PMU_EVENT_FLAG_MASKED_EVENTS if masked else 0
        self.ioctl(name, request)

    def set_halt_poll(self, ns: int) -> None:
        """How long a halting vCPU polls for work before it sleeps, in ns."""
        self._need("KVM_CAP_HALT_POLL", "KVM_ENABLE_CAP", f"ns={ns}")
        self.enable_cap("KVM_CAP_HALT_POLL", ns)

    def set_apic_bus_cycle_ns(self, ns: int) -> None:
        """The period of the LAPIC timer's bus clock, 1 ns unless set. Before any vCPU."""
        self._need("KVM_CAP_X86_APIC_BUS_CYCLES_NS", "KVM_ENABLE_CAP", f"ns={ns}")
        self.enable_cap("KVM_CAP_X86_APIC_BUS_CYCLES_NS", ns)


def _fill_range(target: Any, given: MsrFilterRange, name: str) -> Any:
    what = f"range at MSR {given.base:#x}"
    check_int(given.base, 32, "base", name)
    limit = c.KVM_MSR_FILTER_MAX_BITMAP_SIZE * 8
    if not 0 < given.count <= limit:
        raise InvalidArgument(
            name, what, f"{given.count} MSRs are not 1 to {limit}; use two ranges"
        )
    if len(given.bitmap) < (given.count + 7) // 8:
        raise InvalidArgument(
            name, what, f"its bitmap of {len(given.bitmap)} bytes is too short for {given.count}"
        )
    if not (given.read or given.write):
        raise InvalidArgument(name, what, "it is about neither reads nor writes")
    bitmap = ffi.new("__u8[]", given.bitmap)
    target.flags = (c.KVM_MSR_FILTER_READ if given.read else 0) | (
        c.KVM_MSR_FILTER_WRITE if given.write else 0
    )
    target.nmsrs = given.count
    target.base = given.base
    target.bitmap = bitmap
    return bitmap
