"""One 8259A interrupt controller: its registers and its priorities, without the wiring of a PC.

Source: Intel 8259A data sheet (231468), and the ICH9 data sheet, 13.4, for ELCR (level or edge
for each input). An edge stays latched when its line falls before it was acknowledged, as in the
PCs of today; a level that falls leads to the spurious interrupt 7.
"""

from __future__ import annotations

from pykvm.devices.state import StateReader

SPURIOUS = 7
_FIELDS = {  # name → largest value
    "irr": 0xFF, "imr": 0xFF, "isr": 0xFF, "levels": 0xFF, "elcr": 0xFF, "vector": 0xFF,
    "lowest": 7, "expects": 4, "wants_icw4": 1, "single": 1, "all_level": 1, "shows_isr": 1,
    "poll": 1, "special_mask": 1, "auto_eoi": 1, "rotates": 1, "nested": 1, "cascade": 0xFF,
}  # fmt: skip


class Chip:
    """An 8259A. `elcr_mask` are the inputs that ELCR can make level-triggered."""

    def __init__(self, elcr_mask: int, is_master: bool) -> None:
        self.elcr_mask = elcr_mask
        self.is_master = is_master
        self.power_on()

    def power_on(self) -> None:
        """Everything 0, inputs low; as a PC's firmware has not yet initialised it."""
        self.irr = self.imr = self.isr = 0
        self.levels = 0  # the inputs
        self.elcr = 0
        self.vector = 0
        self.lowest = 7  # the input with the lowest priority
        self.expects = 0  # which ICW is due, 0 for none
        self.wants_icw4 = self.single = self.all_level = 0
        self.shows_isr = self.poll = self.special_mask = 0
        self.auto_eoi = self.rotates = self.nested = self.cascade = 0

    # -- inputs and priorities -----------------------------------------------------------------

    def set_input(self, n: int, level: bool) -> None:
        """Drive input `n`."""
        bit = 1 << n
        if self._is_level(bit):
            self.irr = self.irr | bit if level else self.irr & ~bit
        elif level and not self.levels & bit:
            self.irr |= bit
        self.levels = self.levels | bit if level else self.levels & ~bit

    def _is_level(self, bit: int) -> bool:
        return bool(self.elcr & bit or self.all_level)

    def _first(self, bits: int) -> int | None:
        """Of some inputs, the one with the highest priority."""
        for i in range(1, 9):
            n = self.lowest + i & 7
            if bits >> n & 1:
                return n
        return None

    def _rank(self, n: int | None) -> int:
        return 8 if n is None else n - self.lowest - 1 & 7

    def pending(self) -> int | None:
        """The input whose interrupt is to be served now, None if there is none."""
        if self.expects:
            return None
        request = self._first(self.irr & ~self.imr)
        in_service = self.isr
        if self.special_mask:
            in_service &= ~self.imr
        if self.nested and self.is_master:
            in_service &= ~(1 << 2)  # the slave knows itself what it may interrupt
        if request is None or self._rank(request) >= self._rank(self._first(in_service)):
            return None
        return request

    def acknowledge(self, n: int) -> None:
        """The CPU (or a poll) takes input `n`'s interrupt."""
        bit = 1 << n
        if not self._is_level(bit):
            self.irr &= ~bit
        if not self.auto_eoi:
            self.isr |= bit
        elif self.rotates:
            self.lowest = n

    # -- registers -----------------------------------------------------------------------------

    def read(self, a0: int) -> int:
        """A poll, IRR or ISR (A0 = 0), IMR (A0 = 1)."""
        if self.poll:
            self.poll = 0
            n = self.pending()
            if n is None:
                return SPURIOUS
            self.acknowledge(n)
            return 0x80 | n
        if a0:
            return self.imr
        return self.isr if self.shows_isr else self.irr

    def write(self, a0: int, value: int) -> None:
        """An initialisation or operation command word."""
        if not a0:
            if value & 0x10:
                self._icw1(value)
            elif value & 0x08:
                self._ocw3(value)
            else:
                self._ocw2(value >> 5, value & 7)
        elif self.expects:
            self._icw(value)
        else:
            self.imr = value

    def _icw1(self, value: int) -> None:
        levels, elcr = self.levels, self.elcr
        self.power_on()
        self.levels, self.elcr = levels, elcr
        self.wants_icw4 = value & 1
        self.single = value >> 1 & 1
        self.all_level = value >> 3 & 1
        self.irr = levels & (0xFF if self.all_level else elcr)
        self.expects = 2

    def _icw(self, value: int) -> None:
        if self.expects == 2:
            self.vector = value & 0xF8
            after = 4 if self.single else 3
        elif self.expects == 3:
            self.cascade = value
            after = 4
        else:
            self.auto_eoi = value >> 1 & 1
            self.nested = value >> 4 & 1
            after = 0
        self.expects = 0 if after == 4 and not self.wants_icw4 else after

    def _ocw3(self, value: int) -> None:
        if value & 0x04:
            self.poll = 1
        if value & 0x02:
            self.shows_isr = value & 1
        if value & 0x40:
            self.special_mask = value >> 5 & 1

    def _ocw2(self, operation: int, n: int) -> None:
        # Bits: 1 end of interrupt, 2 of a specific one, 4 rotate the priorities.
        if operation == 0 or operation == 4:
            self.rotates = operation >> 2
        elif operation & 1:
            if not operation & 2:
                # In special mask mode a masked one is not found by looking for the highest.
                found = self._first(self.isr & ~self.imr if self.special_mask else self.isr)
                if found is None:
                    return
                n = found
            self.isr &= ~(1 << n)
            if operation & 4:
                self.lowest = n
        elif operation == 6:
            self.lowest = n

    def write_elcr(self, value: int) -> None:
        """Which inputs are level-triggered."""
        self.elcr = value & self.elcr_mask
        # An input that became a level shows its level.
        self.irr = self.irr & ~self.elcr | self.levels & self.elcr

    # -- life ----------------------------------------------------------------------------------

    def save(self) -> list[int]:
        """Every field."""
        return [getattr(self, name) for name in _FIELDS]

    def load(self, take: StateReader, name: str) -> None:
        """Take over the fields that `save` gave as field `name`."""
        values = take.integers(name, len(_FIELDS), 0xFF, least=len(_FIELDS))
        for value, (field, high) in zip(values, _FIELDS.items(), strict=True):
            if value > high:
                take.refuse(name, values, f"an 8259A's registers, with {field} up to {high}")
            setattr(self, field, value)
        self.elcr &= self.elcr_mask
        if self.expects == 1:
            take.refuse(name, values, "an 8259A's registers, waiting for ICW 2, 3 or 4, or none")
