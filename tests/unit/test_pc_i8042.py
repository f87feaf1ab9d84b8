"""The keyboard controller, driven as drivers drive it; a keyboard that types; a mouse."""

from __future__ import annotations

import threading

import pytest

from pykvm.devices import ManualClock, MonotonicClock, RecordingIrqLine
from pykvm.devices.pc import I8042, A20Gate
from pykvm.devices.pc.ps2keyboard import TYPED_LIMIT, KeyQueueFull
from pykvm.devices.pc.ps2keys import KEYS, KeyNameError, to_set1

PACE = 20_000_000


class Driver:
    """Ports 0x60 and 0x64 as a polling driver uses them."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.irq1, self.irq12 = RecordingIrqLine(), RecordingIrqLine()
        self.resets = 0
        self.a20 = A20Gate()
        self.chip = I8042(self.irq1, self.irq12, self.clock, a20=self.a20, reset=self.reset)

    def reset(self) -> None:
        self.resets += 1

    @property
    def status(self) -> int:
        return self.chip.read(4, 1)

    def bytes(self) -> list[int]:
        """Everything that waits to be read."""
        found = []
        while self.status & 1:
            found.append(self.chip.read(0, 1))
        return found

    def command(self, command: int, *data: int) -> list[int]:
        self.chip.write(4, 1, command)
        for value in data:
            self.chip.write(0, 1, value)
        return self.bytes()

    def keyboard(self, *values: int) -> list[int]:
        found = []
        for value in values:
            self.chip.write(0, 1, value)
            found += self.bytes()
        return found

    def mouse(self, *values: int) -> list[int]:
        found = []
        for value in values:
            found += self.command(0xD4, value)
        return found

    def typed(self) -> list[int]:
        """All scan codes of what is typed, read as soon as they come."""
        found = self.bytes()
        while self.chip.typed_left:
            self.clock.advance(PACE)
            found += self.bytes()
        return found


@pytest.fixture
def driver() -> Driver:
    return Driver()


def test_self_tests(driver: Driver) -> None:
    assert driver.command(0xAA) == [0x55]
    assert driver.command(0xAB) == [0x00]
    assert driver.command(0xA9) == [0x00]
    assert driver.command(0xA4) == [0xF1]
    assert driver.status & 0x0C == 0x0C  # system flag; a command came last
    driver.keyboard(0xEE)
    assert not driver.status & 0x08


def test_the_command_byte_and_the_ram(driver: Driver) -> None:
    assert driver.command(0x20) == [0x45]
    driver.command(0x60, 0x74)
    assert driver.command(0x20) == [0x74]
    driver.command(0x7F, 0x99)
    assert driver.command(0x3F) == [0x99]
    driver.command(0xAE)
    driver.command(0xA8)
    assert driver.command(0x20) == [0x44]
    driver.command(0xA7)
    driver.command(0xAD)
    assert driver.command(0x20) == [0x74]


def test_keyboard_commands(driver: Driver) -> None:
    driver.command(0x60, 0x00)  # no translation, no interrupts
    assert driver.keyboard(0xFF) == [0xFA, 0xAA]
    assert driver.keyboard(0xF2) == [0xFA, 0xAB, 0x83]
    assert driver.keyboard(0xED, 0x07) == [0xFA, 0xFA]
    assert driver.chip.keyboard.leds == 7
    assert driver.keyboard(0xED, 0xF4) == [0xFA, 0xFA], "a command ends the wait for an argument"
    assert driver.chip.keyboard.leds == 7
    assert driver.keyboard(0xF3, 0x20) == [0xFA, 0xFA]
    assert driver.keyboard(0xF0, 0x00) == [0xFA, 0xFA, 0x02]
    assert driver.keyboard(0xF0, 0x01) == [0xFA, 0xFA]
    assert driver.keyboard(0xF0, 0x00) == [0xFA, 0xFA, 0x01]
    assert driver.keyboard(0xF0, 0x03) == [0xFA, 0xFE]
    assert driver.keyboard(0xEE) == [0xEE]
    assert driver.keyboard(0xFE) == [0xEE]
    assert driver.keyboard(0x00) == [0xFE]
    assert driver.keyboard(0xF5) == [0xFA]
    driver.chip.tap("a")
    assert driver.bytes() == [], "keys wait while scanning is disabled"
    driver.chip.write(0, 1, 0xF4)
    assert driver.typed() == [0xFA, 0x1C, 0xF0, 0x1C]


def test_translated_identity(driver: Driver) -> None:
    assert driver.keyboard(0xF2) == [0xFA, 0xAB, 0x41]


def test_typing(driver: Driver) -> None:
    driver.chip.type_text("ls -L\n")
    assert driver.typed() == [
        0x26, 0xA6, 0x1F, 0x9F, 0x39, 0xB9, 0x0C, 0x8C, 0x2A, 0x26, 0xA6, 0xAA, 0x1C, 0x9C,
    ]  # fmt: skip


def test_every_printable_character_can_be_typed(driver: Driver) -> None:
    for code in range(0x20, 0x7F):
        driver.chip.type_text(chr(code))
        assert driver.typed()
    driver.chip.type_text("\t\r\n\b\x1b")
    assert driver.typed()[::2] == [0x0F, 0x1C, 0x0E, 0x01]
    with pytest.raises(KeyNameError, match="'é'"):
        driver.chip.type_text("aé")
    assert driver.typed() == [], "all or nothing is typed"


def test_chords_and_names(driver: Driver) -> None:
    driver.chip.tap("ctrl-alt-delete")
    assert driver.typed() == [0x1D, 0x38, 0xE0, 0x53, 0xE0, 0xD3, 0xB8, 0x9D]
    driver.chip.press("F12")
    assert driver.typed() == [0x58]
    driver.chip.release("f12")
    assert driver.typed() == [0xD8]
    driver.chip.tap("pause")
    assert driver.typed() == [0xE1, 0x1D, 0x45, 0xE1, 0x9D, 0xC5]
    driver.chip.tap("print")
    assert driver.typed() == [0xE0, 0x2A, 0xE0, 0x37, 0xE0, 0xB7, 0xE0, 0xAA]
    driver.chip.tap("-")
    assert driver.typed() == [0x0C, 0x8C]
    with pytest.raises(KeyNameError, match="no key 'hyper'"):
        driver.chip.press("ctrl-hyper")
    assert driver.chip.typed_left == 0


def test_scan_codes_differ() -> None:
    downs = [to_set1(down)[0] for down, _ in KEYS.values()]
    assert len(set(downs)) == len(KEYS)
    for name, (down, up) in KEYS.items():
        if name not in ("pause", "sysrq"):
            made, broken = to_set1(down)[0], to_set1(up)[0]
            assert broken == made[:-1] + bytes([made[-1] | 0x80]), name


def test_the_pace(driver: Driver) -> None:
    """The next key comes when the former was read, and not too soon after it."""
    driver.chip.type_text("ab")
    assert driver.chip.typed_left == 3
    driver.clock.advance(100 * PACE)
    assert driver.chip.typed_left == 3, "nobody has read the first one"
    driver.clock.advance(1)
    assert driver.chip.read(0, 1) == 0x1E
    assert driver.chip.read(0, 1) == 0x9E, "the pace counts from one key to the next"
    assert driver.status & 1 == 0
    driver.clock.advance(PACE - 1)
    assert driver.status & 1 == 0
    driver.clock.advance(1)
    assert driver.bytes() == [0x30]


def test_typing_against_real_time() -> None:
    """A clock's thread feeds the keys while another polls."""
    clock = MonotonicClock()
    chip = I8042(clock=clock, pace_ms=1)
    chip.type_text("x" * 20)
    found: list[int] = []
    done = threading.Event()

    def poll() -> None:
        while len(found) < 40 and not done.is_set():
            if chip.read(4, 1) & 1:
                found.append(chip.read(0, 1))

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    thread.join(30)
    done.set()
    chip.close()
    clock.close()
    assert found == [0x2D, 0xAD] * 20


def test_too_much_typing_is_refused(driver: Driver) -> None:
    with pytest.raises(KeyQueueFull, match=str(TYPED_LIMIT)):
        driver.chip.type_text("a" * TYPED_LIMIT)
    assert driver.chip.typed_left == 0


def test_interrupts(driver: Driver) -> None:
    driver.chip.tap("up")
    assert driver.irq1.level
    assert driver.chip.read(0, 1) == 0xE0
    assert driver.irq1.edges == 2, "the second byte makes an edge of its own"
    assert driver.chip.read(0, 1) == 0x48
    assert not driver.irq1.level
    assert driver.chip.read(0, 1) == 0x48, "the last byte can be read again"
    driver.command(0x60, 0x44)
    driver.clock.advance(PACE)
    assert not driver.irq1.level
    assert driver.bytes() == [0xE0, 0xC8]


def test_a_disabled_keyboard_waits(driver: Driver) -> None:
    driver.command(0xAD)
    driver.chip.tap("a")
    assert driver.bytes() == []
    driver.chip.write(4, 1, 0xAE)
    assert driver.typed() == [0x1E, 0x9E]


def test_bytes_put_by_the_guest(driver: Driver) -> None:
    driver.command(0x60, 0x47)
    driver.chip.write(4, 1, 0xD2)
    driver.chip.write(0, 1, 0x77)
    assert driver.irq1.level
    assert driver.status & 0x21 == 0x01
    assert driver.bytes() == [0x77]
    driver.chip.write(4, 1, 0xD3)
    driver.chip.write(0, 1, 0x78)
    assert driver.irq12.level
    assert driver.status & 0x21 == 0x21
    assert driver.bytes() == [0x78]


def test_mouse(driver: Driver) -> None:
    driver.command(0x60, 0x47)
    assert driver.mouse(0xFF) == [0xFA, 0xAA, 0x00]
    assert driver.mouse(0xF2) == [0xFA, 0x00]
    driver.chip.move_mouse(5, -3)
    assert driver.bytes() == [], "reporting is off"
    driver.chip.move_mouse(-5, 3)
    assert driver.mouse(0xE8, 3) == [0xFA, 0xFA]
    assert driver.mouse(0xE9) == [0xFA, 0x00, 3, 100]
    assert driver.mouse(0xF4)[0] == 0xFA
    driver.bytes()
    driver.chip.move_mouse(5, -3)
    assert driver.irq12.level
    assert driver.bytes() == [0x28, 5, 0xFD]
    driver.chip.press_mouse(5)
    assert driver.bytes() == [0x0D, 0, 0]
    driver.chip.move_mouse(300, 0)
    assert driver.bytes() == [0x0D, 255, 0, 0x0D, 45, 0], "what does not fit comes later"
    assert driver.mouse(0xF0, 0xEB)[:5] == [0xFA, 0xFA, 0x0D, 0, 0]
    assert driver.mouse(0xEE, 0x12, 0xEC) == [0xFA, 0x12, 0xFA]


def test_mouse_wheel(driver: Driver) -> None:
    driver.mouse(0xF3, 200, 0xF3, 100, 0xF3, 80)
    assert driver.mouse(0xF2) == [0xFA, 0x03]
    driver.mouse(0xF4)
    driver.chip.move_mouse(0, 0, wheel=-1)
    assert driver.bytes() == [0x08, 0, 0, 0xFF]


def test_reset_pulse_and_a20(driver: Driver) -> None:
    driver.command(0xFE)
    assert driver.resets == 1
    driver.command(0xF1)
    assert driver.resets == 1, "only bit 0 is the reset line"
    driver.command(0xD1, 0xDD)
    assert not driver.a20.enabled
    assert driver.command(0xD0)[0] & 3 == 1
    driver.command(0xDF)
    assert driver.a20.enabled
    driver.command(0xD1, 0x02)
    assert driver.resets == 2


def test_a_guest_that_never_reads(driver: Driver) -> None:
    for _ in range(1000):
        driver.chip.write(0, 1, 0xF2)
        driver.chip.write(4, 1, 0x20)
        driver.chip.write(4, 1, 0xD4)
        driver.chip.write(0, 1, 0xE9)
    assert len(driver.bytes()) < 100


def test_what_linux_does_at_start(driver: Driver) -> None:
    """As drivers/input/serio/i8042.c: flush, self-test, AUX loop, IRQ 12, no multiplexer."""
    driver.chip.tap("a")
    driver.bytes()
    assert driver.command(0xAA) == [0x55]
    mode = driver.command(0x20)
    assert driver.command(0x20) == mode
    driver.command(0x60, mode[0] & ~0x03 | 0x30)
    assert driver.command(0xD3, 0x5A) == [0x5A]
    driver.command(0xA7)
    assert driver.command(0x20)[0] & 0x20
    driver.command(0xA8)
    assert not driver.command(0x20)[0] & 0x20
    driver.command(0x60, 0x32)
    driver.chip.write(4, 1, 0xD3)
    driver.chip.write(0, 1, 0xA5)
    assert driver.irq12.level
    assert driver.status & 0x21 == 0x21
    assert driver.bytes() == [0xA5]
    for value in (0xF0, 0x56, 0xA4):
        assert driver.command(0xD3, value) == [value], "a multiplexer would answer its version"
    driver.command(0x60, 0x03)  # the driver asks for untranslated codes
    assert driver.keyboard(0xF2) == [0xFA, 0xAB, 0x83]
    assert driver.mouse(0xFF) == [0xFA, 0xAA, 0x00]
