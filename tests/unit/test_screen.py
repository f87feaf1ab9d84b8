"""What a screen shows: text, ANSI, PNG files read back, the view in a terminal."""

from __future__ import annotations

import io
import pathlib
import re
from collections.abc import Iterator

import pytest
from PIL import Image

from pykvm.devices.display import (
    Picture,
    PictureError,
    Screen,
    SimpleFramebuffer,
    TerminalView,
    TextFrame,
    Vga,
)
from pykvm.devices.display.picture import fallback_font
from pykvm.devices.display.textframe import sgr

TEXT = 0x18000


@pytest.fixture
def vga() -> Iterator[Vga]:
    device = Vga(vram_size=4 << 20)
    yield device
    device.close()


@pytest.fixture
def screen(vga: Vga) -> Screen:
    return Screen(vga)


def put(vga: Vga, row: int, column: int, text: str, attribute: int = 7) -> None:
    for i, code in enumerate(text.encode("cp437")):
        vga.window.write(TEXT + 2 * (80 * row + column + i), 2, attribute << 8 | code)


def crtc(vga: Vga, index: int, value: int) -> None:
    vga.registers.crtc[index] = value


def set_mode(vga: Vga, width: int, height: int, bpp: int) -> None:
    for index, value in ((4, 0), (1, width), (2, height), (3, bpp), (4, 0x41)):
        vga.dispi.write(index, value)


def saved(screen: Screen | SimpleFramebuffer, tmp_path: pathlib.Path) -> Image.Image:
    screen.save_png(tmp_path / "screen.png")
    image = Image.open(tmp_path / "screen.png")
    assert image.format == "PNG"
    return image


# -- text ------------------------------------------------------------------------------------


def test_text_has_no_blanks_at_the_ends(vga: Vga, screen: Screen) -> None:
    put(vga, 0, 0, "first")
    put(vga, 2, 3, "third é ╔═╗")
    assert screen.mode == "text"
    assert screen.size == (80, 25)
    assert screen.text() == "first\n\n   third é ╔═╗"
    assert len(screen.lines()) == 25


def test_control_codes_have_glyphs(vga: Vga, screen: Screen) -> None:
    for i, code in enumerate((1, 0x10, 0x7F, 0xFF, 0)):
        vga.window.write(TEXT + 2 * i, 2, 0x0700 | code)
    vga.window.write(TEXT + 10, 2, 0x0700 | ord("."))
    assert screen.lines()[0] == "☺►⌂  ."


def test_start_address_scrolls(vga: Vga, screen: Screen) -> None:
    put(vga, 3, 0, "now the first")
    crtc(vga, 0x0C, 0)
    crtc(vga, 0x0D, 240)
    assert screen.text() == "now the first"


def test_cursor(vga: Vga, screen: Screen) -> None:
    crtc(vga, 0x0E, (80 * 4 + 7) >> 8)
    crtc(vga, 0x0F, (80 * 4 + 7) & 0xFF)
    assert screen.frame().cursor == (4, 7)
    crtc(vga, 0x0A, 0x20)
    assert screen.frame().cursor is None
    crtc(vga, 0x0A, 0)
    crtc(vga, 0x0E, 0xFF)
    assert screen.frame().cursor is None


def test_fifty_rows(vga: Vga, screen: Screen) -> None:
    crtc(vga, 9, 0x47)
    assert screen.size == (80, 50)
    put(vga, 49, 70, "end")
    assert screen.lines()[49] == " " * 70 + "end"


def test_ansi_colours() -> None:
    frame = TextFrame(3, 1, b"abc", bytes([0x07, 0x07, 0x9C]))
    assert frame.ansi() == "\x1b[0;37;40mab\x1b[0;91;44;5mc\x1b[0m"
    assert sgr(0x01) == "\x1b[0;34;40m"  # VGA's blue is ANSI's 4


@pytest.mark.parametrize("seed", range(8))
def test_any_register_contents_can_be_shown(
    vga: Vga, screen: Screen, tmp_path: pathlib.Path, seed: int
) -> None:
    import random

    chance = random.Random(seed)
    for offset in [*range(0x10, 0x20), 0x24, 0x25] * 40:
        vga.write(offset, 1, chance.randrange(256))
    screen.text()
    screen.ansi()
    width, height = screen.size
    assert width > 0
    assert height > 0
    if seed < 3:
        saved(screen, tmp_path)


# -- pixels ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bpp", "pixel", "colour"),
    [
        (32, b"\x10\x20\x30\xff", (0x30, 0x20, 0x10)),
        (24, b"\x10\x20\x30", (0x30, 0x20, 0x10)),
        (16, b"\xe0\x07", (0, 255, 0)),
        (15, b"\x00\x7c", (255, 0, 0)),
    ],
)
def test_vbe_pixels(
    vga: Vga, screen: Screen, tmp_path: pathlib.Path, bpp: int, pixel: bytes,
    colour: tuple[int, int, int],
) -> None:  # fmt: skip
    set_mode(vga, 640, 480, bpp)
    vga.dispi.write(6, 800)  # lines are longer than what is shown
    at = (2 * 800 + 5) * len(pixel)
    vga.vram[at : at + len(pixel)] = pixel
    image = saved(screen, tmp_path)
    assert image.size == (640, 480)
    assert image.getpixel((5, 2)) == colour
    assert image.getpixel((6, 2)) == (0, 0, 0)


def test_vbe_palette_and_panning(vga: Vga, screen: Screen, tmp_path: pathlib.Path) -> None:
    set_mode(vga, 320, 200, 8)
    vga.dispi.write(6, 640)
    vga.dispi.write(8, 100)
    vga.dispi.write(9, 50)
    vga.vram[51 * 640 + 103] = 4
    image = saved(screen, tmp_path)
    assert image.getpixel((3, 1)) == (170, 0, 0)


def test_mode_13h(vga: Vga, screen: Screen, tmp_path: pathlib.Path) -> None:
    vga.registers.graphics[5], vga.registers.graphics[6] = 0x40, 0x05
    vga.registers.sequencer[4] = 0x0E
    vga.registers.sequencer[2] = 0x0F
    vga.registers.changed()
    crtc(vga, 9, 0x41)
    vga.window.write(320 * 7 + 9, 1, 2)
    assert screen.mode == "linear"
    image = saved(screen, tmp_path)
    assert image.size == (320, 200)
    assert image.getpixel((9, 7)) == (0, 170, 0)
    assert screen.text() == ""
    assert screen.ansi() == "[graphics mode 320x200]"


def test_mode_12h(vga: Vga, screen: Screen, tmp_path: pathlib.Path) -> None:
    vga.registers.graphics[5], vga.registers.graphics[6] = 0x00, 0x05
    vga.registers.sequencer[4] = 0x06
    vga.registers.sequencer[2] = 0x09  # blue and bright
    vga.registers.changed()
    for index, value in ((9, 0x40), (7, 0x3E), (0x12, 0xDF)):
        crtc(vga, index, value)
    vga.window.write(80 * 3 + 2, 1, 0x40)
    assert screen.mode == "planar"
    image = saved(screen, tmp_path)
    assert image.size == (640, 480)
    assert image.getpixel((17, 3)) == (85, 85, 255)
    assert image.getpixel((16, 3)) == (0, 0, 0)


def test_text_is_drawn_with_the_guests_font(
    vga: Vga, screen: Screen, tmp_path: pathlib.Path
) -> None:
    glyph = bytes([0x81, *[0] * 14, 0xFF])
    for line, bits in enumerate(glyph):
        vga.vram[(ord("A") * 32 + line) * 4 + 2] = bits
    put(vga, 1, 2, "A", 0x1E)
    crtc(vga, 0x0A, 0x20)
    image = saved(screen, tmp_path)
    assert image.size == (720, 400)
    blue, yellow = (0, 0, 170), (255, 255, 85)
    assert [image.getpixel((18 + x, 16)) for x in range(9)] == [yellow, *[blue] * 6, yellow, blue]
    assert image.getpixel((18, 31)) == yellow


def test_text_without_a_font_is_drawn_all_the_same(
    vga: Vga, screen: Screen, tmp_path: pathlib.Path
) -> None:
    put(vga, 0, 0, "A═", 0x07)
    image = saved(screen, tmp_path).convert("L")
    assert any(image.getpixel((x, y)) for x in range(9) for y in range(16))
    assert all(image.getpixel((x, 7)) for x in range(9, 18))  # the ninth dot goes on


def test_fallback_font_tells_characters_apart() -> None:
    font = fallback_font(16)
    assert len(font) == 256
    assert len({font[code] for code in range(0x21, 0x7F)}) == 0x7F - 0x21
    assert font[0x20] == bytes(16)
    assert font[0xDB] == b"\xff" * 16


def test_simple_framebuffer(tmp_path: pathlib.Path) -> None:
    screen = SimpleFramebuffer(0xE0000000, 64, 48, 32)
    screen.ram.view[4 * (64 * 2 + 3) : 4 * (64 * 2 + 3) + 4] = b"\x01\x02\x03\x00"
    assert screen.channels["red"] == (16, 8)
    image = saved(screen, tmp_path)
    assert image.size == (64, 48)
    assert image.getpixel((3, 2)) == (3, 2, 1)
    screen.close()
    screen.close()


@pytest.mark.parametrize(
    ("gpa", "width", "height", "bpp"),
    [(0, 64, 64, 8), (1, 64, 64, 32), (0, 0, 64, 32), (0, 1 << 20, 1 << 20, 32)],
)
def test_impossible_framebuffers(gpa: int, width: int, height: int, bpp: int) -> None:
    with pytest.raises(PictureError):
        SimpleFramebuffer(gpa, width, height, bpp)


def test_a_picture_of_the_wrong_size() -> None:
    with pytest.raises(PictureError, match="need 12 bytes, not 3"):
        Picture(2, 2, b"abc", 24)


# -- terminal --------------------------------------------------------------------------------


def test_terminal_shows_only_what_changed(vga: Vga, screen: Screen) -> None:
    output = io.StringIO()
    view = TerminalView(screen, output)
    put(vga, 0, 0, "one")
    assert view.refresh()
    first = output.getvalue()
    assert first.startswith("\x1b[?25l\x1b[2J")
    assert "one" in first
    output.truncate(output.seek(0))
    assert not view.refresh()
    put(vga, 5, 0, "two")
    assert view.refresh()
    assert re.findall(r"\x1b\[(\d+);1H\x1b\[0;", output.getvalue()) == ["6"]
    output.truncate(output.seek(0))
    set_mode(vga, 320, 200, 32)
    vga.generation += 1
    view.refresh()
    assert "[graphics mode 320x200]" in output.getvalue()


def test_terminal_gets_its_cursor_back(vga: Vga, screen: Screen) -> None:
    output = io.StringIO()
    view = TerminalView(screen, output, rate=1000)
    put(vga, 0, 0, "x")
    view.start()
    view.start()
    view.stop()
    assert "x" in output.getvalue()
    assert output.getvalue().endswith("\x1b[26;1H\x1b[0m\x1b[?25h\n")
    view.stop()


def test_a_closed_terminal_ends_the_view(vga: Vga, screen: Screen) -> None:
    output = io.StringIO()
    output.close()
    view = TerminalView(screen, output, rate=1000)
    view.start()
    view.stop()
