"""The state of KVM's in-kernel interrupt controllers and timer, and interrupt routes."""

from __future__ import annotations

from pykvm.kvm import constants as c
from pykvm.kvm.record import Record
from pykvm.typed import Any, ClassVar


class PicState(Record):
    """One 8259A (`struct kvm_pic_state`). `chip`: 0 is the master, 1 the slave."""

    chip: int
    last_irr: int = 0
    irr: int = 0
    imr: int = 0
    isr: int = 0
    priority_add: int = 0
    irq_base: int = 0
    read_reg_select: int = 0
    poll: int = 0
    special_mask: int = 0
    init_state: int = 0
    auto_eoi: int = 0
    rotate_on_auto_eoi: int = 0
    special_fully_nested_mode: int = 0
    init4: int = 0
    elcr: int = 0
    elcr_mask: int = 0

    @classmethod
    def _from_chip(cls, chip: Any) -> PicState:
        pic = chip.chip.pic
        fields = {name: getattr(pic, name) for name in cls._fields[1:]}
        return cls(chip=chip.chip_id, **fields)

    def _to_chip(self, chip: Any) -> None:
        for name in self._fields[1:]:
            setattr(chip.chip.pic, name, getattr(self, name))


class IoapicState(Record):
    """The IOAPIC (`struct kvm_ioapic_state`).

    `redirtbl`: the 24 redirection entries as 64-bit values (82093AA data sheet, 3.2.4).
    """

    base_address: int
    ioregsel: int
    id: int
    irr: int
    redirtbl: tuple[int, ...]
    chip: ClassVar[int] = c.KVM_IRQCHIP_IOAPIC

    @classmethod
    def _from_chip(cls, chip: Any) -> IoapicState:
        ioapic = chip.chip.ioapic
        return cls(
            base_address=ioapic.base_address,
            ioregsel=ioapic.ioregsel,
            id=ioapic.id,
            irr=ioapic.irr,
            redirtbl=tuple(int(entry.bits) for entry in ioapic.redirtbl),
        )

    def _to_chip(self, chip: Any) -> None:
        ioapic = chip.chip.ioapic
        if len(self.redirtbl) != c.KVM_IOAPIC_NUM_PINS:
            raise ValueError(
                f"IoapicState.redirtbl needs {c.KVM_IOAPIC_NUM_PINS} entries, "
                f"not {len(self.redirtbl)}"
            )
        ioapic.base_address = self.base_address
        ioapic.ioregsel = self.ioregsel
        ioapic.id = self.id
        ioapic.irr = self.irr
        for entry, bits in zip(ioapic.redirtbl, self.redirtbl, strict=True):
            entry.bits = bits


class PitChannel(Record):
    """One of the 8254's three counters (`struct kvm_pit_channel_state`).

    `count_load_time` is in ns on the host's monotonic clock.
    """

    count: int
    latched_count: int
    count_latched: int
    status_latched: int
    status: int
    read_state: int
    write_state: int
    write_latch: int
    rw_mode: int
    mode: int
    bcd: int
    gate: int
    count_load_time: int


class PitState(Record):
    """The 8254 timer (`struct kvm_pit_state2`). `flags`: `constants.KVM_PIT_FLAGS_*`."""

    channels: tuple[PitChannel, PitChannel, PitChannel]
    flags: int = 0
    _nested: ClassVar[dict[str, type[Record]]] = {"channels": PitChannel}


class IrqchipRoute(Record):
    """GSI to a pin of an in-kernel chip: 0 master PIC, 1 slave PIC, 2 IOAPIC."""

    gsi: int
    irqchip: int
    pin: int
    kind: ClassVar[int] = c.KVM_IRQ_ROUTING_IRQCHIP

    def _to_entry(self, u: Any) -> None:
        u.irqchip.irqchip = self.irqchip
        u.irqchip.pin = self.pin


class MsiRoute(Record):
    """GSI to a message-signalled interrupt: 64-bit address, 32-bit data (SDM vol. 3, 11.11)."""

    gsi: int
    address: int
    data: int
    kind: ClassVar[int] = c.KVM_IRQ_ROUTING_MSI

    def _to_entry(self, u: Any) -> None:
        u.msi.address_lo = self.address & 0xFFFFFFFF
        u.msi.address_hi = self.address >> 32
        u.msi.data = self.data


class HvSintRoute(Record):
    """GSI to a Hyper-V synthetic interrupt source of a vCPU."""

    gsi: int
    vcpu: int
    sint: int
    kind: ClassVar[int] = c.KVM_IRQ_ROUTING_HV_SINT

    def _to_entry(self, u: Any) -> None:
        u.hv_sint.vcpu = self.vcpu
        u.hv_sint.sint = self.sint


class XenEvtchnRoute(Record):
    """GSI to a Xen event channel."""

    gsi: int
    port: int
    vcpu: int
    priority: int
    kind: ClassVar[int] = c.KVM_IRQ_ROUTING_XEN_EVTCHN

    def _to_entry(self, u: Any) -> None:
        u.xen_evtchn.port = self.port
        u.xen_evtchn.vcpu = self.vcpu
        u.xen_evtchn.priority = self.priority


Route = IrqchipRoute | MsiRoute | HvSintRoute | XenEvtchnRoute


def default_routes() -> list[Route]:
    """The routes of a new in-kernel irqchip: GSI 0-15 to PIC and IOAPIC, 16-23 to the IOAPIC."""
    routes: list[Route] = []
    for gsi in range(c.KVM_IOAPIC_NUM_PINS):
        if gsi < 16:
            routes.append(IrqchipRoute(gsi, gsi // 8, gsi % 8))
        routes.append(IrqchipRoute(gsi, c.KVM_IRQCHIP_IOAPIC, gsi))
    return routes
