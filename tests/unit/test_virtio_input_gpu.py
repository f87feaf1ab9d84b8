"""virtio-input and virtio-gpu by a driver without a guest."""

from __future__ import annotations

import pathlib
import struct

import pytest
from virtio_small import DATA, RAM, Driver

from pykvm.devices.pc.ps2keyboard import KeyQueueFull
from pykvm.devices.virtio import gpu as g
from pykvm.devices.virtio.edid import edid
from pykvm.devices.virtio.gpu import VirtioGpu
from pykvm.devices.virtio.input import (
    CFG_ABS_INFO,
    CFG_EV_BITS,
    CFG_ID_DEVIDS,
    CFG_ID_NAME,
    CFG_ID_SERIAL,
    EVENTS,
    STATUS,
    VirtioInput,
    VirtioKeyboard,
    VirtioMouse,
    VirtioTablet,
)
from pykvm.devices.virtio.input_codes import EV_ABS, EV_KEY, EV_LED, EV_REL, EV_REP

CONFIG = 0xFEB0_0100
SYN = (0, 0, 0)


def selected(driver: Driver, select: int, subsel: int = 0) -> bytes:
    """What the configuration says of a selection."""
    driver.board.mmio.write(CONFIG, 1, select)
    driver.board.mmio.write(CONFIG + 1, 1, subsel)
    size = driver.transport.config(2, 1)
    return bytes(driver.transport.config(8 + n, 1) for n in range(size))


def bits(raw: bytes) -> set[int]:
    number = int.from_bytes(raw, "little")
    return {n for n in range(number.bit_length()) if number >> n & 1}


def events(driver: Driver, rooms: int = 64) -> list[tuple[int, ...]]:
    for _ in range(rooms):
        driver.give(EVENTS, room=8, kick=False)
    driver.transport.kick(EVENTS)
    return [struct.unpack("<HHI", raw) for raw in driver.answers(EVENTS)]


def started(device: VirtioInput) -> Driver:
    return Driver(device, size=64)


def test_a_keyboard_says_what_it_is() -> None:
    driver = started(VirtioKeyboard(serial="42"))
    assert selected(driver, CFG_ID_NAME) == b"pykvm virtio keyboard"
    assert selected(driver, CFG_ID_SERIAL) == b"42"
    assert selected(driver, CFG_ID_DEVIDS) == struct.pack("<4H", 6, 0x1AF4, 1, 1)
    keys = bits(selected(driver, CFG_EV_BITS, EV_KEY))
    assert {1, 14, 28, 30, 57, 88, 119, 125} <= keys  # esc … meta
    assert bits(selected(driver, CFG_EV_BITS, EV_LED)) == {0, 1, 2}
    assert bits(selected(driver, CFG_EV_BITS, EV_REP)) == {0}
    for select, subsel in ((CFG_EV_BITS, EV_ABS), (CFG_ID_NAME, 1), (0, 0), (0xFF, 0xFF)):
        assert selected(driver, select, subsel) == b""


def test_typing_is_the_same_as_on_the_ps2_keyboard() -> None:
    keyboard = VirtioKeyboard()
    driver = started(keyboard)
    keyboard.type_text("a\n")
    assert events(driver, 8) == [
        (EV_KEY, 30, 1), SYN, (EV_KEY, 30, 0), SYN, (EV_KEY, 28, 1), SYN, (EV_KEY, 28, 0), SYN,
    ]  # fmt: skip
    keyboard.tap("ctrl-alt-delete")
    found = [event for event in events(driver, 12) if event != SYN]
    assert found == [(1, 29, 1), (1, 56, 1), (1, 111, 1), (1, 111, 0), (1, 56, 0), (1, 29, 0)]
    keyboard.press("A")
    keyboard.release("pause")
    assert [e for e in events(driver, 4) if e != SYN] == [(1, 30, 1), (1, 119, 0)]


def test_events_wait_for_room_and_stay_in_order() -> None:
    keyboard = VirtioKeyboard()
    driver = started(keyboard)
    keyboard.type_text("hello")
    assert keyboard.waiting == 10
    assert len(events(driver, 3)) == 3
    copy = VirtioKeyboard()
    other = started(copy)
    other.memory.write(0, driver.memory.read(0, RAM))
    other.outer.load(driver.outer.save())
    assert copy.state() == keyboard.state()
    rest = events(driver, 17)
    assert rest[0] == SYN
    assert keyboard.waiting == 0
    with pytest.raises(KeyQueueFull):
        keyboard.type_text("x" * 10000)
    assert keyboard.waiting == 0
    driver.transport.set_status(0)
    keyboard.type_text("nobody there")
    assert (keyboard.waiting, keyboard.dropped) == (0, 24)


def test_lights() -> None:
    keyboard = VirtioKeyboard()
    driver = started(keyboard)
    driver.ask(STATUS, struct.pack("<HHI", EV_LED, 1, 1) + struct.pack("<HHI", EV_LED, 0, 1))
    assert keyboard.leds == {"num": True, "caps": True, "scroll": False}
    driver.ask(STATUS, struct.pack("<HHI", EV_LED, 1, 0) + b"odd")
    assert keyboard.leds["caps"] is False
    driver.ask(STATUS, struct.pack("<HHI", EV_LED, 500, 1))
    assert not driver.broken


def test_mouse_and_tablet() -> None:
    mouse = VirtioMouse()
    driver = started(mouse)
    assert bits(selected(driver, CFG_EV_BITS, EV_REL)) == {0, 1, 8}
    mouse.move_mouse(5, -3)
    mouse.press_mouse(1)
    mouse.press_mouse(6)
    mouse.press_mouse(6)
    assert events(driver, 8) == [
        (EV_REL, 0, 5), (EV_REL, 1, 3), SYN, (EV_KEY, 0x110, 1), SYN,
        (EV_KEY, 0x110, 0), (EV_KEY, 0x111, 1), (EV_KEY, 0x112, 1),
    ]  # fmt: skip
    tablet = VirtioTablet()
    driver = started(tablet)
    assert bits(selected(driver, CFG_EV_BITS, EV_ABS)) == {0, 1}
    assert selected(driver, CFG_ABS_INFO, 1) == struct.pack("<5i", 0, 32767, 0, 0, 0)
    assert selected(driver, CFG_ABS_INFO, 2) == b""
    tablet.point(100, 32767)
    assert events(driver, 3) == [(EV_ABS, 0, 100), (EV_ABS, 1, 32767), SYN]
    with pytest.raises(ValueError, match="coordinate"):
        tablet.point(-1, 0)


def test_a_buffer_too_small_for_an_event() -> None:
    keyboard = VirtioKeyboard()
    driver = started(keyboard)
    keyboard.type_text("x")
    driver.give(EVENTS, room=7)
    assert driver.broken


# -- the display ---------------------------------------------------------------------------------


class Display:
    """A display adapter and its driver; commands as tuples of 32-bit words."""

    def __init__(self, **options: object) -> None:
        self.gpu = VirtioGpu(64, 48, **options)  # type: ignore[arg-type]
        self.driver = Driver(self.gpu)

    def command(self, kind: int, body: bytes | tuple[int, ...] = (), room: int = 1100) -> bytes:
        """The answer to a command, without the header; raises unless it is OK."""
        self.driver.forget()
        if isinstance(body, tuple):
            body = struct.pack(f"<{len(body)}I", *body)
        raw = self.driver.ask(0, struct.pack("<IIQII", kind, 1, 77, 3, 0) + body, room)
        answer, flags, fence, context, _ = struct.unpack_from("<IIQII", raw)
        assert (flags, fence, context) == (1, 77, 3)
        assert answer < 0x1200, hex(answer)
        return raw[24:]

    def refused(self, kind: int, body: bytes | tuple[int, ...] = ()) -> int:
        with pytest.raises(AssertionError) as caught:
            self.command(kind, body)
        return int(str(caught.value).partition("\n")[0], 16)

    def create(
        self, index: int = 1, width: int = 64, height: int = 48, pixel_format: int = 2
    ) -> None:
        self.command(g.CREATE_2D, (index, pixel_format, width, height))

    def attach(self, index: int, *entries: tuple[int, int]) -> None:
        body = struct.pack("<II", index, len(entries))
        self.command(g.ATTACH, body + b"".join(struct.pack("<QII", *e, 0) for e in entries))

    def transfer(self, index: int, rect: tuple[int, int, int, int], offset: int = 0) -> None:
        self.command(g.TRANSFER, struct.pack("<4IQII", *rect, offset, index, 0))

    def show(self) -> bytes:
        return self.gpu.screen().picture().data


PIXELS = 0xC0000  # guest-physical


def pattern(width: int, height: int) -> bytes:
    return b"".join(
        bytes((x & 0xFF, y & 0xFF, x ^ y, 0)) for y in range(height) for x in range(width)
    )


def test_what_is_drawn_is_shown(tmp_path: pathlib.Path) -> None:
    display = Display()
    assert display.show() == bytes(64 * 48 * 4)
    data = pattern(64, 48)
    display.driver.memory.write(PIXELS, data)
    display.create()
    # The pages are scattered: the second half comes first, cut in the middle of a line.
    half = 64 * 4 * 24 + 100
    display.driver.memory.write(PIXELS + 0x10000, data[:half])
    display.driver.memory.write(PIXELS + 0x20000, data[half:])
    display.attach(1, (PIXELS + 0x10000, half), (PIXELS + 0x20000, len(data) - half))
    display.transfer(1, (0, 0, 64, 48))
    display.command(g.SET_SCANOUT, (0, 0, 64, 48, 0, 1))
    display.command(g.FLUSH, (0, 0, 64, 48, 1, 0))
    assert display.show() == data
    assert display.gpu.scanouts[0].frames == 1
    display.gpu.screen().save_png(tmp_path / "shown.png")
    from PIL import Image

    with Image.open(tmp_path / "shown.png") as image:
        assert image.size == (64, 48)
        assert image.getpixel((10, 20)) == (10 ^ 20, 20, 10)


def test_a_part_of_a_resource() -> None:
    display = Display()
    data = pattern(64, 48)
    display.driver.memory.write(PIXELS, data)
    display.create()
    display.attach(1, (PIXELS, len(data)))
    rect = (8, 4, 16, 10)
    display.transfer(1, rect, 4 * (4 * 64 + 8))
    display.command(g.SET_SCANOUT, (*rect, 0, 1))
    rows = [data[4 * (64 * y + 8) : 4 * (64 * y + 24)] for y in range(4, 14)]
    assert display.show() == b"".join(rows)
    assert display.gpu.screen().size == (16, 10)
    display.command(g.SET_SCANOUT, (0, 0, 64, 48, 0, 1))
    assert display.show()[:4] == bytes(4)  # outside of what was transferred


@pytest.mark.parametrize(
    ("pixel_format", "pixel"),
    [(1, b"BGRA"), (2, b"BGRx"), (3, b"ARGB"), (4, b"xRGB"), (67, b"RGBA"), (134, b"RGBx"),
     (68, b"xBGR"), (121, b"ABGR")],
)  # fmt: skip
def test_formats(pixel_format: int, pixel: bytes) -> None:
    display = Display()
    display.driver.memory.write(PIXELS, pixel)
    display.create(1, 1, 1, pixel_format)
    display.attach(1, (PIXELS, 4))
    display.transfer(1, (0, 0, 1, 1))
    display.command(g.SET_SCANOUT, (0, 0, 1, 1, 0, 1))
    assert display.show()[:3] == b"BGR"


def test_the_cursor_is_drawn_over_the_picture() -> None:
    display = Display()
    display.create(1)
    display.command(g.SET_SCANOUT, (0, 0, 64, 48, 0, 1))
    display.driver.memory.write(PIXELS, bytes((10, 20, 30, 255)) * 16)
    display.create(2, 4, 4, 1)
    display.attach(2, (PIXELS, 64))
    display.transfer(2, (0, 0, 4, 4))

    def cursor(kind: int, x: int, y: int, index: int) -> None:
        body = struct.pack("<8I", 0, x, y, 0, index, 1, 1, 0)
        display.driver.forget()
        display.driver.give(1, struct.pack("<IIQII", kind, 0, 0, 0, 0) + body)
        assert display.driver.answers(1) == [b""]

    cursor(g.UPDATE_CURSOR, 5, 5, 2)
    shown = display.show()
    assert shown[4 * (64 * 4 + 4) :][:3] == bytes((10, 20, 30))  # the hot spot is at 1, 1
    assert shown[4 * (64 * 3 + 4) :][:3] == bytes(3)
    cursor(g.MOVE_CURSOR, 63, 47, 2)  # half of it is off the screen
    assert display.show()[-4:][:3] == bytes((10, 20, 30))
    assert display.gpu.screen().picture(cursor=False).data == bytes(64 * 48 * 4)
    display.command(g.UNREF, (2, 0))
    assert display.show() == bytes(64 * 48 * 4)


def test_display_info_edid_and_another_size() -> None:
    display = Display(outputs=2)
    raw = display.command(g.GET_DISPLAY_INFO)
    assert len(raw) == 16 * 24
    assert struct.unpack_from("<6I", raw) == (0, 0, 64, 48, 1, 0)
    assert struct.unpack_from("<6I", raw, 24) == (64, 0, 64, 48, 1, 0)
    assert display.driver.transport.config(8, 4) == 2
    display.driver.interrupts()
    display.gpu.resize(1280, 800)
    assert display.driver.interrupts() & 2
    assert display.driver.transport.config(0, 4) == 1
    display.driver.board.mmio.write(CONFIG + 4, 4, 1)
    assert display.driver.transport.config(0, 4) == 0
    assert struct.unpack_from("<6I", display.command(g.GET_DISPLAY_INFO))[2:4] == (1280, 800)
    raw = display.command(g.GET_EDID, (0, 0))
    size = struct.unpack_from("<I", raw)[0]
    assert raw[8 : 8 + size] == edid(1280, 800)
    assert len(raw) == 8 + 1024
    assert display.refused(g.GET_EDID, (2, 0)) == g.BAD_SCANOUT


@pytest.mark.parametrize("size", [(640, 480), (1920, 1080), (3840, 2160), (16384, 1)])
def test_edid_is_well_formed(size: tuple[int, int]) -> None:
    block = edid(*size)
    assert len(block) == 128
    assert block[:8] == b"\x00\xff\xff\xff\xff\xff\xff\x00"
    assert sum(block) & 0xFF == 0
    width = block[56] | block[58] >> 4 << 8
    height = block[59] | block[61] >> 4 << 8
    assert (width, height) == (min(size[0], 4095), min(size[1], 4095))


def test_memory_is_limited() -> None:
    display = Display(limit="1M")
    for index in range(1, 5):
        display.create(index, 256, 256)
    assert display.refused(g.CREATE_2D, (9, 2, 1, 1)) == g.OUT_OF_MEMORY
    display.command(g.UNREF, (2, 0))
    display.create(9, 256, 256)
    for size in ((0, 5), (5, 0), (16385, 1), (1 << 31, 1 << 31), (0xFFFF_FFFF, 1)):
        assert display.refused(g.CREATE_2D, (20, 2, *size)) == g.BAD_PARAMETER
    assert display.refused(g.ATTACH, (1, 0xFFFF_FFFF)) == g.BAD_PARAMETER


def test_senseless_commands() -> None:
    display = Display()
    display.create()
    for kind, body, answer in (
        (g.CREATE_2D, (0, 2, 4, 4), g.BAD_RESOURCE),
        (g.CREATE_2D, (1, 2, 4, 4), g.BAD_RESOURCE),
        (g.CREATE_2D, (2, 99, 4, 4), g.BAD_PARAMETER),
        (g.UNREF, (7, 0), g.BAD_RESOURCE),
        (g.SET_SCANOUT, (0, 0, 64, 48, 1, 1), g.BAD_SCANOUT),
        (g.SET_SCANOUT, (0, 0, 64, 48, 0, 7), g.BAD_RESOURCE),
        (g.SET_SCANOUT, (1, 0, 64, 48, 0, 1), g.BAD_PARAMETER),
        (g.SET_SCANOUT, (0xFFFF_FFFF, 0, 64, 48, 0, 1), g.BAD_PARAMETER),
        (g.SET_SCANOUT, (0, 0, 0, 0, 0, 1), g.BAD_PARAMETER),
        (g.FLUSH, (0, 0, 65, 1, 1, 0), g.BAD_PARAMETER),
        (g.DETACH, (7, 0), g.BAD_RESOURCE),
        (g.GET_CAPSET_INFO, (0, 0), g.UNSPEC),
        (0x200, (), g.UNSPEC),
        (g.UNREF, (), g.BAD_PARAMETER),
        (g.TRANSFER, struct.pack("<4IQII", 0, 0, 1, 1, 0, 1, 0), g.BAD_PARAMETER),
    ):
        assert display.refused(kind, body) == answer  # type: ignore[arg-type]
    far = struct.pack("<IIQII", 1, 1, 1 << 40, 4096, 0)
    assert display.refused(g.ATTACH, far) == g.BAD_PARAMETER
    display.attach(1, (DATA, 64))
    for rect, offset in (((0, 0, 64, 48), 0), ((0, 0, 1, 1), 64), ((0, 0, 1, 1), (1 << 64) - 4)):
        raw = struct.pack("<4IQII", *rect, offset, 1, 0)
        assert display.refused(g.TRANSFER, raw) == g.BAD_PARAMETER
    assert not display.driver.broken
    display.driver.give(0, b"short", 100)
    assert display.driver.broken


def test_a_copy_of_the_state_shows_the_same() -> None:
    display = Display()
    data = pattern(64, 48)
    display.driver.memory.write(PIXELS, data)
    display.create()
    display.attach(1, (PIXELS, len(data)))
    display.transfer(1, (0, 0, 64, 48))
    display.command(g.SET_SCANOUT, (0, 0, 64, 48, 0, 1))
    saved = display.driver.outer.save()
    other = Display()
    other.driver.outer.load(saved)
    assert other.show() == data
    assert other.driver.outer.save() == saved
    other.gpu.limit = 100
    from pykvm.devices import DeviceStateError

    for key, value in (
        ("gpu_resources", [[2, 64, 48, [], "x"]]), ("gpu_ids", []), ("gpu_scanouts", [1] * 13),
        ("gpu_resources", saved["gpu_resources"]), ("gpu_resources", 5),
    ):  # fmt: skip
        with pytest.raises(DeviceStateError):
            other.driver.outer.load({**saved, key: value})
    assert other.show() == data
