"""The test device of kvm-unit-tests, as QEMU's `pc-testdev` has it.

What the tests rely on (kvm-unit-tests, x86/): ports 0xe0-0xe3 are 32 bits that any width of access
reads and writes, 0xe8-0xeb the same 32 bits; a 4-byte write to 0xe4 makes the host lose its
mapping of the page with that guest-physical address; a write to port 0x2000 + n drives interrupt
line n to the level (value != 0); 64 KiB at 0xff000000 behave as memory that always exits.
"""

from __future__ import annotations

from pykvm.devices.base import Device, StateReader
from pykvm.devices.pc.window import PortRange, Window

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pykvm.devices.base import IrqLine

IO, FLUSH, IO_BYTES, IRQ, MEMORY = 0, 4, 8, 0x10, 0x1_0000  # offsets in the register space
LINES = 24
MEMORY_SIZE = 0x1_0000


class PcTestDev(Device):
    """The device. `lines` are the machine's interrupt lines 0 to 23, as many as there are;
    `flush(page)` gets the guest-physical address of a page.
    """

    name = "pc-testdev"
    access_sizes = (1, 2, 4, 8)
    max_access = 8

    def __init__(
        self,
        lines: Sequence[IrqLine] = (),
        flush: Callable[[int], object] | None = None,
    ) -> None:
        self.lines = list(lines[:LINES])
        self._flush = flush
        self._io = bytearray(4)
        self._memory = bytearray(MEMORY_SIZE)
        self._high = 0  # the lines that are driven high, as bits

    def ranges(self) -> list[PortRange]:
        """The four groups of ports, and the memory.

        Ports 0xe8-0xeb hold debugcon's 0xe9 on many machines: leave that range out there.
        """
        return [
            PortRange("pio", 0xE0, 8, self),
            PortRange("pio", 0x2000, LINES, Window(self, IRQ, "pc-testdev-irq")),
            PortRange("mmio", 0xFF00_0000, MEMORY_SIZE, Window(self, MEMORY, "pc-testdev-memory")),
            PortRange("pio", 0xE8, 4, Window(self, IO_BYTES, "pc-testdev-io")),
        ]

    def read(self, offset: int, size: int) -> int:
        """The 32 bits or the memory; 0 elsewhere."""
        if offset >= MEMORY:
            at = offset - MEMORY
            return int.from_bytes(self._memory[at : at + size], "little")
        if offset < FLUSH or IO_BYTES <= offset < IO_BYTES + 4:
            at = offset & 3
            return int.from_bytes(self._io[at : at + size], "little")
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """The 32 bits, the memory, a line, or a page to flush."""
        data = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
        if offset >= MEMORY:
            at = offset - MEMORY
            part = data[: max(0, MEMORY_SIZE - at)]
            self._memory[at : at + len(part)] = part
        elif offset < FLUSH or IO_BYTES <= offset < IO_BYTES + 4:
            at = offset & 3
            part = data[: 4 - at]
            self._io[at : at + len(part)] = part
        elif offset == FLUSH and size == 4:
            if self._flush is not None:
                self._flush(int.from_bytes(data, "little") & ~0xFFF)
        elif IRQ <= offset < IRQ + LINES and size == 1:
            self._drive(offset - IRQ, data[0] != 0)

    def _drive(self, n: int, level: bool) -> None:
        self._high = self._high & ~(1 << n) | level << n
        if n < len(self.lines):
            self.lines[n].set(level)

    def reset(self) -> None:
        """Everything 0, the lines that were driven high low again."""
        self._io[:] = bytes(4)
        self._memory[:] = bytes(MEMORY_SIZE)
        self._drive_all(0)

    def _drive_all(self, high: int) -> None:
        for n in range(LINES):
            if (self._high ^ high) >> n & 1:
                self._drive(n, high >> n & 1 != 0)

    def save(self) -> dict[str, object]:
        """The bits, the lines, and the memory without the zeros at its end."""
        return {
            "io": int.from_bytes(self._io, "little"),
            "high": self._high,
            "memory": list(self._memory.rstrip(b"\0")),
        }

    def load(self, state: dict[str, object]) -> None:
        """Take over a saved state; the lines follow."""
        take = StateReader(self.name, state)
        io = take.integer("io", 0xFFFF_FFFF)
        high = take.integer("high", (1 << LINES) - 1)
        memory = bytes(take.integers("memory", MEMORY_SIZE, 0xFF))
        take.finish()
        self._io[:] = io.to_bytes(4, "little")
        self._memory[:] = memory.ljust(MEMORY_SIZE, b"\0")
        self._drive_all(high)
