"""The ACPI fixed hardware: power management events, control, timer, general-purpose events.

Sources: ACPI 6.5, section 4.8 (fixed hardware registers); the layout is the PMBASE block of the
Intel I/O Controller Hub 9 (ICH9) data sheet, section 13.8.3:

    0x00 PM1_STS (16 bits)   0x02 PM1_EN (16)    0x04 PM1_CNT (32)    0x08 PM1_TMR (32)
    0x20 GPE0_STS (64)       0x28 GPE0_EN (64)   0x30 SMI_EN (32)     0x34 SMI_STS (32)

and, apart, APM_CNT and APM_STS at ports 0xb2 and 0xb3. There is no system management mode: APM_CNT
does at once what firmware's handler would do for the ACPI enable and disable values. SMI_EN
reads with APMC_EN set, from which firmware concludes that nothing is left to be set up there.

Registers take accesses of any width; one that covers several registers reaches each.
"""

from __future__ import annotations

from _thread import allocate_lock

from pykvm.devices.base import Clock, Device, IrqLine, MonotonicClock, NullIrqLine, StateReader
from pykvm.devices.pc.window import PortRange, Window

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

PM1_STS, PM1_EN, PM1_CNT, PM_TMR = 0x00, 0x02, 0x04, 0x08
GPE0_STS, GPE0_EN, SMI_EN, SMI_STS = 0x20, 0x28, 0x30, 0x34
APM_CNT = 0x80  # in the device's register space; port 0xb2
APM_STS = 0x81
APM_CNT_PORT = 0xB2

TMR, BM, GBL, PWRBTN, SLPBTN, RTC = 1 << 0, 1 << 4, 1 << 5, 1 << 8, 1 << 9, 1 << 10
PCIEXP_WAKE, WAK = 1 << 14, 1 << 15  # status only
STATUS_BITS = TMR | BM | GBL | PWRBTN | SLPBTN | RTC | PCIEXP_WAKE | WAK
ENABLE_BITS = TMR | GBL | PWRBTN | SLPBTN | RTC
SCI_EN, BM_RLD, GBL_RLS, SLP_EN = 1 << 0, 1 << 1, 1 << 2, 1 << 13
SLP_TYP_SHIFT, SLP_TYP_MASK = 10, 7 << 10
APMC_EN = 1 << 5

#: SLP_TYP for each sleep state (ICH9: PM1_CNT); the DSDT's `_Sx` objects must say the same.
SLEEP_TYPES = {1: 1, 3: 5, 4: 6, 5: 7}
ACPI_ENABLE, ACPI_DISABLE = 0x02, 0x03  # APM_CNT values; the FADT must say the same

PM_TIMER_HZ = 3_579_545
_SECOND = 1_000_000_000
_LONGEST_NS = 1 << 62


class AcpiPm(Device):
    """The PM block; `irq` is the SCI, a level that is high while an enabled event is pending.

    `power_off()` is called for S5. `on_sleep(state)` is called for S1, S3 and S4; whoever puts the
    machine to sleep calls `wake` later. Without it such a request wakes up at once.
    """

    name = "acpi-pm"
    access_sizes = (1, 2, 4, 8)
    max_access = 8
    ADDRESS = 0x600
    LENGTH = 0x80

    def __init__(
        self,
        irq: IrqLine | None = None,
        clock: Clock | None = None,
        *,
        power_off: Callable[[], object] | None = None,
        on_sleep: Callable[[int], object] | None = None,
        timer_bits: int = 32,
    ) -> None:
        if timer_bits not in (24, 32):
            raise ValueError(f"a PM timer of {timer_bits} bits does not exist; use 24 or 32")
        self.irq: IrqLine = irq or NullIrqLine()
        self.power_off = power_off
        self.on_sleep = on_sleep
        self.timer_bits = timer_bits
        self._own_clock = None if clock is not None else MonotonicClock()
        self._clock: Clock = clock or self._own_clock  # type: ignore[assignment]
        self._lock = allocate_lock()
        self._timer = self._clock.timer(self._on_timer)
        self._level = False
        self._closed = False
        self._power_on()

    def _power_on(self) -> None:
        self._epoch = self._clock.now_ns()
        self._status = self._enabled = self._control = 0
        self._gpe_status = self._gpe_enabled = self._gpe_levels = 0
        self._smi_enabled = APMC_EN
        self._apm_control = self._apm_status = 0
        self._toggle = self._half  # the count at which the timer's top bit changes next

    def ranges(self, base: int = ADDRESS) -> list[PortRange]:
        """The PM block at `base`, and APM_CNT/APM_STS."""
        return [
            PortRange("pio", base, self.LENGTH, self),
            PortRange("pio", APM_CNT_PORT, 2, Window(self, APM_CNT, "apm-control")),
        ]

    # -- registers -----------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """Any part of the block; what is reserved reads 0."""
        if offset == PM_TMR and size == 4:  # a clock source: read often, and without a lock
            return self._ticks() & (1 << self.timer_bits) - 1
        value = 0
        with self._lock:
            self._follow_timer()
            for start, width, content in self._contents():
                if start < offset + size and offset < start + width:
                    shift = 8 * (start - offset)
                    value |= content << shift if shift >= 0 else content >> -shift
        return value & (1 << 8 * size) - 1

    def _contents(self) -> tuple[tuple[int, int, int], ...]:
        """All registers: (offset, bytes, value)."""
        return (
            (PM1_STS, 2, self._status),
            (PM1_EN, 2, self._enabled),
            (PM1_CNT, 4, self._control),
            (PM_TMR, 4, self._ticks() & (1 << self.timer_bits) - 1),
            (GPE0_STS, 8, self._gpe_status),
            (GPE0_EN, 8, self._gpe_enabled),
            (SMI_EN, 4, self._smi_enabled),
            (APM_CNT, 1, self._apm_control),
            (APM_STS, 1, self._apm_status),
        )

    def write(self, offset: int, size: int, value: int) -> None:
        """Store, clear status bits by writing 1, go to sleep."""
        sleep: int | None = None
        with self._lock:
            self._follow_timer()
            for i in range(size):
                at, byte = offset + i, value >> 8 * i & 0xFF
                if at == PM1_CNT + 1:
                    sleep = self._write_sleep(byte)
                else:
                    self._write_byte(at, byte)
            self._update()
        if sleep is not None:
            self._sleep(sleep)

    def _write_byte(self, at: int, byte: int) -> None:
        if at < PM1_EN:
            self._status &= ~(byte << 8 * at)
        elif at < PM1_CNT:
            self._enabled = _merged(self._enabled, at - PM1_EN, byte) & ENABLE_BITS
        elif at == PM1_CNT:
            # SCI_EN is firmware's to set through APM_CNT, but the bit is writable on the chip.
            self._control = self._control & SLP_TYP_MASK | byte & (SCI_EN | BM_RLD)
        elif GPE0_STS <= at < GPE0_EN:
            self._gpe_status &= ~(byte << 8 * (at - GPE0_STS))
            self._gpe_status |= self._gpe_levels
        elif GPE0_EN <= at < SMI_EN:
            self._gpe_enabled = _merged(self._gpe_enabled, at - GPE0_EN, byte)
        elif SMI_EN <= at < SMI_STS:
            self._smi_enabled = _merged(self._smi_enabled, at - SMI_EN, byte) | APMC_EN
        elif at == APM_CNT:
            self._apm_control = byte
            if byte == ACPI_ENABLE:
                self._control |= SCI_EN
            elif byte == ACPI_DISABLE:
                self._control &= ~SCI_EN
        elif at == APM_STS:
            self._apm_status = byte

    def _write_sleep(self, byte: int) -> int | None:
        """The high byte of PM1_CNT; gives the sleep state if SLP_EN was written."""
        self._control = self._control & ~SLP_TYP_MASK | byte << 8 & SLP_TYP_MASK
        if not byte << 8 & SLP_EN:
            return None
        wanted = self._control >> SLP_TYP_SHIFT & 7
        return next((state for state, code in SLEEP_TYPES.items() if code == wanted), None)

    def _sleep(self, state: int) -> None:
        if state == 5:
            if self.power_off is not None:
                self.power_off()
        elif self.on_sleep is not None:
            self.on_sleep(state)
        else:
            self.wake()

    # -- events --------------------------------------------------------------------------------

    def press_power_button(self) -> bool:
        """The power button; gives whether the guest has asked to hear of it (ACPI on, enabled)."""
        return self._event(PWRBTN)

    def press_sleep_button(self) -> bool:
        """The sleep button; gives whether the guest has asked to hear of it."""
        return self._event(SLPBTN)

    def rtc_alarm(self) -> bool:
        """The RTC's alarm, as a wake-up event."""
        return self._event(RTC)

    def wake(self) -> None:
        """The machine comes back from a sleep state."""
        self._event(WAK)

    def _event(self, bit: int) -> bool:
        with self._lock:
            self._status |= bit
            self._update()
            return bool(self._enabled & bit and self._control & SCI_EN)

    def raise_gpe(self, n: int) -> None:
        """General-purpose event `n` (0 to 63), an edge."""
        with self._lock:
            self._gpe_status |= 1 << (n & 63)
            self._update()

    def set_gpe(self, n: int, level: bool) -> None:
        """General-purpose event `n` as a level: its status cannot be cleared while it is high."""
        bit = 1 << (n & 63)
        with self._lock:
            self._gpe_levels = self._gpe_levels | bit if level else self._gpe_levels & ~bit
            self._gpe_status |= self._gpe_levels
            self._update()

    def _update(self) -> None:
        pending = self._status & self._enabled or self._gpe_status & self._gpe_enabled
        level = bool(pending and self._control & SCI_EN)
        if level != self._level and not self._closed:
            self._level = level
            self.irq.set(level)
        waits = self._enabled & TMR and self._control & SCI_EN and not self._status & TMR
        if waits and not self._closed:
            self._timer.arm(self._epoch - (-self._toggle * _SECOND // PM_TIMER_HZ))  # rounded up
        else:
            self._timer.cancel()

    # -- the PM timer --------------------------------------------------------------------------

    @property
    def _half(self) -> int:
        return 1 << (self.timer_bits - 1)

    def _ticks(self) -> int:
        return (self._clock.now_ns() - self._epoch) * PM_TIMER_HZ // _SECOND

    def _follow_timer(self) -> None:
        """TMR_STS is set whenever the top bit of the timer changes (ACPI 4.8.3.1)."""
        ticks = self._ticks()
        if ticks >= self._toggle:
            self._status |= TMR
            self._toggle = (ticks // self._half + 1) * self._half

    def _on_timer(self) -> None:
        with self._lock:
            if not self._closed:
                self._follow_timer()
                self._update()

    # -- life ----------------------------------------------------------------------------------

    def reset(self) -> None:
        """Power-on values; the timer counts from 0; the SCI is low."""
        with self._lock:
            self._power_on()
            self._update()

    def save(self) -> dict[str, object]:
        """All registers, and the time since the timer was 0."""
        with self._lock:
            self._follow_timer()
            return {
                "elapsed_ns": self._clock.now_ns() - self._epoch,
                "status": self._status,
                "enabled": self._enabled,
                "control": self._control,
                "gpe_status": self._gpe_status,
                "gpe_enabled": self._gpe_enabled,
                "gpe_levels": self._gpe_levels,
                "smi_enabled": self._smi_enabled,
                "apm": [self._apm_control, self._apm_status],
            }

    def load(self, state: dict[str, object]) -> None:
        """Take over a saved state; the SCI follows."""
        take = StateReader(self.name, state)
        elapsed = take.integer("elapsed_ns", _LONGEST_NS)
        status = take.integer("status", 0xFFFF) & STATUS_BITS
        enabled = take.integer("enabled", 0xFFFF) & ENABLE_BITS
        control = take.integer("control", 0xFFFF) & (SCI_EN | BM_RLD | SLP_TYP_MASK)
        gpe = [take.integer(f"gpe_{name}", (1 << 64) - 1) for name in ("status", "enabled")]
        levels = take.integer("gpe_levels", (1 << 64) - 1)
        smi = take.integer("smi_enabled", 0xFFFF_FFFF) | APMC_EN
        apm = take.integers("apm", 2, 0xFF, least=2)
        take.finish()
        with self._lock:
            self._epoch = self._clock.now_ns() - elapsed
            self._status, self._enabled, self._control = status, enabled, control
            self._gpe_status, self._gpe_enabled, self._gpe_levels = gpe[0] | levels, gpe[1], levels
            self._smi_enabled = smi
            self._apm_control, self._apm_status = apm
            self._toggle = (self._ticks() // self._half + 1) * self._half
            self._update()

    def close(self) -> None:
        """Stop the timer and leave the SCI alone from now on."""
        with self._lock:
            self._closed = True
            self._timer.cancel()
        if self._own_clock is not None:
            self._own_clock.close()


def _merged(old: int, index: int, byte: int) -> int:
    """`old` with one of its bytes replaced."""
    return old & ~(0xFF << 8 * index) | byte << 8 * index
