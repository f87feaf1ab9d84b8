"""Interrupts of a `Vm`: the in-kernel chips and timer, lines, messages, routes.

KVM API: 4.24 KVM_CREATE_IRQCHIP, 4.25 KVM_IRQ_LINE, 4.26 KVM_GET_IRQCHIP, 4.52
KVM_SET_GSI_ROUTING, KVM_SIGNAL_MSI, KVM_CREATE_PIT2, KVM_CAP_SPLIT_IRQCHIP.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

from pykvm._native import ffi
from pykvm.kvm import constants as c
from pykvm.kvm.errors import InvalidArgument, KvmError
from pykvm.kvm.irqchip import IoapicState, PicState, PitChannel, PitState, Route, default_routes
from pykvm.kvm.vm_base import VmBase, check_int
from pykvm.typed import Any

_NO_CHIP = "the VM has no in-kernel interrupt controller; call create_irqchip() first"


class VmIrq(VmBase):
    """Interrupt controllers and interrupts of a VM."""

    _pit: bool
    _routes: list[Route]
    _routed: set[int]

    @property
    def irqchip(self) -> str:
        """ "kernel" (PIC, IOAPIC and LAPIC in the kernel), "split" (only the LAPIC) or "none"."""
        return self._irqchip

    @property
    def has_pit(self) -> bool:
        """Whether the VM has an in-kernel PIT."""
        return self._pit

    def create_irqchip(self) -> None:
        """Makes the in-kernel PIC pair, IOAPIC and a LAPIC for each vCPU. Before the first vCPU."""
        self._check_no_chip("KVM_CREATE_IRQCHIP")
        self.ioctl("KVM_CREATE_IRQCHIP")
        self._irqchip = "kernel"
        self._route(default_routes())

    def create_split_irqchip(self, ioapic_pins: int = c.KVM_IOAPIC_NUM_PINS) -> None:
        """Makes only the LAPICs in the kernel; PIC and IOAPIC are user space's. Before any vCPU.

        `ioapic_pins` routes are set aside; their EOIs come out as `IoapicEoiExit`.
        """
        what = f"ioapic_pins={ioapic_pins}"
        self._need("KVM_CAP_SPLIT_IRQCHIP", "KVM_ENABLE_CAP", what)
        self._check_no_chip("KVM_ENABLE_CAP")
        check_int(ioapic_pins, 32, "ioapic_pins", "KVM_ENABLE_CAP", high=4096)
        self.enable_cap("KVM_CAP_SPLIT_IRQCHIP", ioapic_pins)
        self._irqchip = "split"

    def _check_no_chip(self, ioctl: str) -> None:
        if self._irqchip != "none":
            raise InvalidArgument(
                ioctl, None, f"the VM has its {self._irqchip} irqchip already", errno.EEXIST
            )
        self._need_no_vcpus(ioctl, "the irqchip")

    def _need_chip(self, ioctl: str, what: str, *, full: bool = True) -> None:
        if self._irqchip == "none" or (full and self._irqchip != "kernel"):
            hint = _NO_CHIP
            if self._irqchip == "split":
                hint = "with a split irqchip it belongs to user space; use signal_msi and routes"
            raise InvalidArgument(ioctl, what, hint, errno.ENXIO)

    def get_irqchip(self, chip: int) -> PicState | IoapicState:
        """The state of an in-kernel chip: 0 master PIC, 1 slave PIC, 2 IOAPIC."""
        self._need_chip("KVM_GET_IRQCHIP", f"chip={chip}")
        if not 0 <= chip <= 2:
            raise InvalidArgument("KVM_GET_IRQCHIP", f"chip={chip}", "it must be 0, 1 or 2")
        request: Any = ffi.new("struct kvm_irqchip *")
        request.chip_id = chip
        self.ioctl("KVM_GET_IRQCHIP", request)
        kind = IoapicState if chip == c.KVM_IRQCHIP_IOAPIC else PicState
        return kind._from_chip(request)

    def set_irqchip(self, state: PicState | IoapicState) -> None:
        """Sets the state of the in-kernel chip that `state` came from."""
        self._need_chip("KVM_SET_IRQCHIP", f"chip={state.chip}")
        request: Any = ffi.new("struct kvm_irqchip *")
        request.chip_id = state.chip
        state._to_chip(request)
        self.ioctl("KVM_SET_IRQCHIP", request)

    # -- the PIT -------------------------------------------------------------------------------

    def create_pit2(self, *, speaker: bool = False) -> None:
        """Makes the in-kernel 8254 timer, on GSI 0. Needs the in-kernel irqchip.

        `speaker`: KVM also answers port 0x61.
        """
        self._need_chip("KVM_CREATE_PIT2", "the PIT")
        if self._pit:
            raise InvalidArgument("KVM_CREATE_PIT2", None, "the VM has a PIT already", errno.EEXIST)
        request: Any = ffi.new("struct kvm_pit_config *")
        request.flags = c.KVM_PIT_SPEAKER_DUMMY if speaker else 0
        self.ioctl("KVM_CREATE_PIT2", request)
        self._pit = True

    def get_pit2(self) -> PitState:
        """The state of the in-kernel PIT."""
        self._need_pit("KVM_GET_PIT2")
        state: Any = ffi.new("struct kvm_pit_state2 *")
        self.ioctl("KVM_GET_PIT2", state)
        first, second, third = (PitChannel.from_c(channel) for channel in state.channels)
        return PitState(channels=(first, second, third), flags=state.flags)

    def set_pit2(self, state: PitState) -> None:
        """Sets the state of the in-kernel PIT."""
        self._need_pit("KVM_SET_PIT2")
        request: Any = ffi.new("struct kvm_pit_state2 *")
        for channel, wanted in zip(request.channels, state.channels, strict=True):
            wanted.to_c(channel)
        request.flags = state.flags
        self.ioctl("KVM_SET_PIT2", request)

    def set_pit_reinject(self, enabled: bool) -> None:
        """Whether PIT ticks that the guest missed are delivered late or dropped."""
        self._need_pit("KVM_REINJECT_CONTROL")
        request: Any = ffi.new("struct kvm_reinject_control *")
        request.pit_reinject = enabled
        self.ioctl("KVM_REINJECT_CONTROL", request)

    def _need_pit(self, ioctl: str) -> None:
        if not self._pit:
            raise InvalidArgument(
                ioctl, None, "the VM has no PIT; call create_pit2() first", errno.ENXIO
            )

    # -- interrupts ----------------------------------------------------------------------------

    def irq_line(self, gsi: int, level: bool) -> None:
        """Sets the level of an interrupt line: GSI 0-15 reach PIC and IOAPIC, 16-23 the IOAPIC."""
        if gsi not in self._routed:
            raise self._no_line("KVM_IRQ_LINE", gsi)
        request: Any = ffi.new("struct kvm_irq_level *", {"irq": gsi, "level": level})
        self.ioctl("KVM_IRQ_LINE", request)

    def irq_line_status(self, gsi: int, level: bool) -> int:
        """As `irq_line`; returns how many chips took the interrupt, 0 if it merged with one that
        was pending, -1 if the line is masked (4.25)."""
        if gsi not in self._routed:
            raise self._no_line("KVM_IRQ_LINE_STATUS", gsi)
        request: Any = ffi.new("struct kvm_irq_level *", {"irq": gsi, "level": level})
        self.ioctl("KVM_IRQ_LINE_STATUS", request)
        return int(request.status)

    def _no_line(self, ioctl: str, gsi: int) -> InvalidArgument:
        # The kernel itself swallows interrupts that lead nowhere.
        hint = _NO_CHIP
        if self._irqchip != "none":
            hint = "no route leads from this GSI; see set_gsi_routing"
        return InvalidArgument(ioctl, f"gsi={gsi}", hint, errno.ENXIO)

    def _route(self, routes: list[Route]) -> None:
        self._routes = routes
        self._routed = {route.gsi for route in routes}

    def signal_msi(self, address: int, data: int, devid: int | None = None) -> int:
        """Delivers a message-signalled interrupt; returns 1 if a LAPIC took it, 0 if none did.

        `address` (64 bits) and `data` (32 bits) are as a device writes them (SDM vol. 3, 11.11).
        """
        what = f"address={address:#x} data={data:#x}"
        self._need_chip("KVM_SIGNAL_MSI", what, full=False)
        request: Any = ffi.new("struct kvm_msi *")
        request.address_lo = check_int(address, 64, "address", "KVM_SIGNAL_MSI") & 0xFFFFFFFF
        request.address_hi = address >> 32
        request.data = check_int(data, 32, "data", "KVM_SIGNAL_MSI")
        if devid is not None:
            request.flags = c.KVM_MSI_VALID_DEVID
            request.devid = devid
        try:
            return self.ioctl("KVM_SIGNAL_MSI", request)
        except KvmError as error:
            raise error.explained(what, "the address is not one that a LAPIC answers to") from None

    # -- routes --------------------------------------------------------------------------------

    @property
    def gsi_routes(self) -> list[Route]:
        """The routes in force; the kernel cannot be asked, so these are the last ones set."""
        return list(self._routes)

    def set_gsi_routing(self, routes: Iterable[Route]) -> None:
        """Replaces all routes from GSIs to chips' pins and messages, at once.

        A GSI may lead to several pins, or to one message. Raises `InvalidArgument`, `KvmError`.
        """
        name = "KVM_SET_GSI_ROUTING"
        wanted = list(routes)
        self._need_chip(name, f"{len(wanted)} routes", full=False)
        limit = self.check_extension("KVM_CAP_IRQ_ROUTING")
        table: Any = ffi.new(
            "struct kvm_irq_routing *", {"nr": len(wanted), "entries": len(wanted)}
        )
        for entry, route in zip(table.entries, wanted, strict=True):
            if not 0 <= route.gsi < limit:
                raise InvalidArgument(name, f"gsi={route.gsi}", f"it must be below {limit}")
            entry.gsi = route.gsi
            entry.type = route.kind
            route._to_entry(entry.u)
        try:
            self.ioctl(name, table)
        except KvmError as error:
            raise error.explained(f"{len(wanted)} routes", self._explain_routes(wanted)) from None
        self._route(wanted)

    def _explain_routes(self, routes: list[Route]) -> str:
        from pykvm.kvm.irqchip import IrqchipRoute, MsiRoute

        pins = {0: 8, 1: 8, 2: c.KVM_IOAPIC_NUM_PINS}
        used: dict[int, Route] = {}
        for route in routes:
            if isinstance(route, IrqchipRoute):
                if route.irqchip not in pins or not 0 <= route.pin < pins[route.irqchip]:
                    return f"GSI {route.gsi}: chip {route.irqchip} has no pin {route.pin}"
                if self._irqchip == "split":
                    return f"GSI {route.gsi}: with a split irqchip only messages can be routed"
            before = used.setdefault(route.gsi, route)
            if before is not route and (
                isinstance(route, MsiRoute) or isinstance(before, MsiRoute)
            ):
                return f"GSI {route.gsi} leads to a message and to something else"
        return ""
