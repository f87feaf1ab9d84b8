"""The two chipset functions that software looks for: Q35 host bridge and ICH9 LPC bridge.

Sources: Intel 3 Series Express Chipset data sheet (316966), 5.1; Intel I/O Controller Hub 9 data
sheet (316972), 13.1. What is not named here reads as zero.
"""

from __future__ import annotations

from collections.abc import Callable

from pykvm.devices.pci.bar import Log
from pykvm.devices.pci.config import PciError
from pykvm.devices.pci.device import PciDevice
from pykvm.devices.pci.host import PciHost
from pykvm.devices.pci.intx import PIRQS, IntxRouter
from pykvm.errors import PykvmError

INTEL = 0x8086
PCIEXBAR = 0x60
_PAM, _SMRAM, _ESMRAMC = 0x90, 0x9D, 0x9E
_ECAM_BUSES = {0: 256, 1: 128, 2: 64}
PMBASE, ACPI_CNTL = 0x40, 0x44
PIRQ_ROUTES = (0x60, 0x61, 0x62, 0x63, 0x68, 0x69, 0x6A, 0x6B)  # PIRQA to PIRQH
_RCBA = 0xF0
_ISA_ROUTABLE = frozenset({3, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15})
_ACPI_ENABLE = 0x80


class Q35HostBridge(PciDevice):
    """8086:29c0, for 00:00.0.

    PCIEXBAR moves and resizes the ECAM window of `host`; `ecam_base` (guest-physical, a multiple
    of 256 MiB) is where it is at power-on, None for off. The PAM and SMRAM registers are storage.
    """

    def __init__(self, host: PciHost, ecam_base: int | None = 0xE000_0000) -> None:
        super().__init__(INTEL, 0x29C0, 0x060000, revision=2, name="q35-host-bridge")
        if ecam_base is not None and ecam_base & 0xFFF_FFFF:
            raise PciError(f"ECAM at {ecam_base:#x} is not aligned to 256 MiB; round it")
        self._host = host
        value = 0xE000_0000 if ecam_base is None else ecam_base | 1
        self.define(PCIEXBAR, 8, value, writable=0x0F_FC00_0007)
        self.define(_PAM, 7, 0, writable=0x33_3333_3333_3330)
        self.define(_SMRAM, 1, 0x02, writable=0x70)
        self.define(_ESMRAMC, 1, 0x38, writable=0x87)
        self._place()

    def config_written(self, offset: int, size: int) -> None:
        """PCIEXBAR may have changed."""
        if offset < PCIEXBAR + 8 and offset + size > PCIEXBAR:
            self._place()

    def _place(self) -> None:
        value = self.config.get(PCIEXBAR, 8)
        buses = _ECAM_BUSES.get(value >> 1 & 3)
        if not value & 1 or buses is None:
            self._host.place_ecam(None)
        else:
            size = buses << 20
            self._host.place_ecam(value & 0x0F_FFFF_FFFF & ~(size - 1), buses)

    def _decode(self) -> None:  # after reset and load
        super()._decode()
        self._place()


class Ich9Lpc(PciDevice):
    """8086:2918, for 00:1f.0: PIRQ routing, and where the ACPI power-management block is.

    - `router`: gets the ISA interrupts that the PIRQ route registers choose.
    - `pm_moved`: called with the block's port, or None when it is not decoded, on every change and
      once now. A `PykvmError` from it (a place that cannot be) is logged.
    - `pm_base`: the port at power-on; ACPI is enabled then.
    """

    def __init__(
        self, router: IntxRouter | None = None,
        pm_moved: Callable[[int | None], None] | None = None, pm_base: int = 0x600,
    ) -> None:  # fmt: skip
        super().__init__(INTEL, 0x2918, 0x060100, revision=2, name="ich9-lpc")
        self._router = router
        self._pm_moved = pm_moved
        if pm_base & 0x7F or not 0 < pm_base <= 0xFF80:
            raise PciError(f"the ACPI block at port {pm_base:#x} is not aligned to 128 ports")
        self.define(PMBASE, 4, pm_base | 1, writable=0xFF80)
        self.define(ACPI_CNTL, 1, _ACPI_ENABLE, writable=0x87)
        for offset in PIRQ_ROUTES:
            self.define(offset, 1, 0x80, writable=0x8F)
        self.define(0x64, 1, 0x10, writable=0xF0)  # SIRQ_CNTL
        self.define(0x80, 4, 0, writable=0x3F0F_1377)  # LPC I/O decode ranges and enables
        self.define(0xA0, 8, 0, writable=0x0000_0000_0000_FFFF)  # GEN_PMCON
        self.define(0xDC, 1, 0, writable=0x01)  # BIOS_CNTL
        self.define(_RCBA, 4, 0, writable=0xFFFF_C001)
        self._pm_place: int | None = -1
        self._log = Log()
        self._apply()

    @property
    def pm_base(self) -> int | None:
        """The port of the ACPI block, None while it is not decoded."""
        if not self.config.data[ACPI_CNTL] & _ACPI_ENABLE:
            return None
        return self.config.get(PMBASE, 4) & 0xFF80 or None

    def config_written(self, offset: int, size: int) -> None:
        """Routes or the ACPI block may have changed."""
        if offset < 0x6C and offset + size > 0x40:
            self._apply()

    def _apply(self) -> None:
        if self._router is not None:
            for pirq, offset in enumerate(PIRQ_ROUTES[:PIRQS]):
                route = self.config.data[offset]
                irq = route & 0x0F
                on = not route & 0x80 and irq in _ISA_ROUTABLE
                self._router.route(pirq, irq if on else None)
        place = self.pm_base
        if place != self._pm_place and self._pm_moved is not None:
            self._pm_place = place
            try:
                self._pm_moved(place)
            except PykvmError as error:
                self._log.warn(f"{self.name}: the ACPI block is not decoded: {error}")

    def _decode(self) -> None:  # after reset and load
        super()._decode()
        self._apply()
