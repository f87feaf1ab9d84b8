"""The A20 gate, system control port A (0x92) and the reset control register (0xcf9).

Sources: IBM PS/2 Hardware Interface Technical Reference (system control port A); Intel I/O
Controller Hub 9 (ICH9) data sheet, sections 13.7.5 (RST_CNT) and 13.7.3 (PORT92).
"""

from __future__ import annotations

from pykvm.devices.base import Device, StateReader
from pykvm.devices.pc.window import PortRange

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class A20Gate:
    """Whether address line 20 is let through; the keyboard controller and port 0x92 share it.

    KVM has no way to mask the line for a guest, so this is what the two ports read back, and
    `on_change(enabled)` is for whoever wants to know. It is enabled at power-on, as boot
    protocols and modern firmware expect.
    """

    def __init__(self, on_change: Callable[[bool], object] | None = None) -> None:
        self.enabled = True
        self.on_change = on_change

    def set(self, enabled: bool) -> None:
        """Open or close the gate."""
        if enabled != self.enabled:
            self.enabled = enabled
            if self.on_change is not None:
                self.on_change(enabled)


class Port92(Device):
    """System control port A: bit 0 resets the CPU on a 0→1 write, bit 1 is the fast A20 gate."""

    name = "port92"
    LENGTH = 1
    ADDRESS = 0x92

    def __init__(
        self, a20: A20Gate | None = None, reset: Callable[[], object] | None = None
    ) -> None:
        self.a20 = a20 or A20Gate()
        self._reset = reset
        self._kept = 0  # every bit but A20, which lives in the gate

    def ranges(self) -> list[PortRange]:
        """Port 0x92."""
        return [PortRange("pio", self.ADDRESS, self.LENGTH, self)]

    def read(self, offset: int, size: int) -> int:
        """The bits as written; bit 1 follows the gate, whoever moved it."""
        return self._kept | self.a20.enabled << 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Set the gate; reset the machine where bit 0 rises."""
        rising = value & 1 and not self._kept & 1
        self._kept = value & 0xFD
        self.a20.set(value & 2 != 0)
        if rising and self._reset is not None:
            self._reset()

    def reset(self) -> None:
        """A20 enabled, the other bits 0."""
        self._kept = 0
        self.a20.set(True)

    def save(self) -> dict[str, object]:
        """The register and the gate."""
        return {"kept": self._kept, "a20": self.a20.enabled}

    def load(self, state: dict[str, object]) -> None:
        """Take over both."""
        take = StateReader(self.name, state)
        kept = take.integer("kept", 0xFF) & 0xFD
        a20 = take.boolean("a20")
        take.finish()
        self._kept = kept
        self.a20.set(a20)


class ResetControl(Device):
    """RST_CNT at port 0xcf9: the machine resets when bit 2 goes from 0 to 1.

    Bit 1 chooses a hard reset, bit 3 a full power cycle; both are kept and read back, and lead to
    the same reset here.

    The port is one byte inside the dword of PCI's CONFIG_ADDRESS (0xcf8), which takes 4-byte
    accesses only (PCI Local Bus 3.0, 3.2.2.3.2). A board with PCI gives this device to its
    `PciHost`, which claims 0xcf8-0xcff and hands byte accesses to 0xcf9 on; one without puts it
    on the bus by `ranges()`.
    """

    name = "reset-control"
    LENGTH = 1
    ADDRESS = 0xCF9

    def __init__(self, reset: Callable[[], object] | None = None) -> None:
        self._reset = reset
        self._value = 0

    def ranges(self) -> list[PortRange]:
        """Port 0xcf9."""
        return [PortRange("pio", self.ADDRESS, self.LENGTH, self)]

    def read(self, offset: int, size: int) -> int:
        """Bits 1 to 3 as written."""
        return self._value

    def write(self, offset: int, size: int, value: int) -> None:
        """Bit 2 rising resets the machine."""
        rising = value & 4 and not self._value & 4
        self._value = value & 0x0E
        if rising and self._reset is not None:
            self._reset()

    def reset(self) -> None:
        """All bits 0."""
        self._value = 0

    def save(self) -> dict[str, object]:
        """The register."""
        return {"value": self._value}

    def load(self, state: dict[str, object]) -> None:
        """Take it over; no reset comes of it."""
        take = StateReader(self.name, state)
        value = take.integer("value", 0xFF) & 0x0E
        take.finish()
        self._value = value
