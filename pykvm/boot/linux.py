"""Linux: a bzImage by its 64-bit, 32-bit or 16-bit entry, and a vmlinux by its 64-bit entry
(Documentation/arch/x86/boot.rst).

Placement, all addresses guest-physical:

- The protected-mode part of a bzImage goes to the address it prefers. Where that is not free for
  all of its `init_size`, a relocatable kernel goes to the next aligned address that is (below the
  preferred one it would not unpack itself).
- The initrd goes as high as it can: below the kernel's `initrd_addr_max`, in RAM by the memory
  map, clear of everything else. Only where there is no room, and the kernel can take it, does it
  go above 4 GiB.
- `boot_params`, the command line and the tables for the entry go to conventional memory, as
  `pykvm.boot.layout` says.

KASLR is the kernel's own affair: pykvm passes no flag for or against it, and the decompressor that
runs in the guest obeys `nokaslr`. With fast boot there is no decompressor, so the kernel runs where
it was linked.
"""

from __future__ import annotations

from pykvm.boot.bios_data import bios_data_area
from pykvm.boot.environment import PROTOCOLS, BootEnvironment
from pykvm.boot.errors import ImageError, human_size, printable
from pykvm.boot.image import LoadedImage, Segment
from pykvm.boot.layout import FOUR_GIB, Layout
from pykvm.boot.linux_entry import linux_state
from pykvm.boot.linux_header import SetupHeader
from pykvm.boot.linux_params import SIZE as PARAMS_SIZE
from pykvm.boot.linux_params import BootParams, e820_extension
from pykvm.boot.memmap import MemoryMap, check_in_ram, keep_to, memory_map, usable
from pykvm.boot.modules import open_initrd
from pykvm.boot.source import Source
from pykvm.boot.strings import check_string
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.boot.elf import ElfImage

ENTRY_64 = 0x200
"""Bytes from the start of the protected-mode part to its 64-bit entry."""
BARE_CMDLINE_SIZE = 2047
"""Longest command line of a vmlinux, which does not say its own (COMMAND_LINE_SIZE less one)."""
BARE_INITRD_MAX = 0x7FFFFFFF

NO_KASLR = (
    "the kernel was unpacked on the host, so no decompressor runs in the guest: the kernel stays "
    "at the address it was linked at (no KASLR of the kernel's text)"
)


class Placed:
    """What all Linux entries share: the other things that go into memory beside the kernel."""

    def __init__(self, layout: Layout, environment: BootEnvironment, entries: MemoryMap) -> None:
        self.layout = layout
        self.environment = environment
        self.entries = entries
        self.segments: list[Segment] = []
        self.sources: list[Source] = []
        self.notes: list[str] = []

    def add(self, segment: Segment) -> Segment:
        """Remember a piece whose place has been taken."""
        self.segments.append(segment)
        return segment

    def initrd(self, ceiling: int, above_4g: bool = False) -> Segment | None:
        """Place the initrd below `ceiling`, or above 4 GiB where it must and may be."""
        source = open_initrd(self.environment)
        if source is None:
            return None
        self.sources.append(source)
        size = len(source.data)
        gpa = self.layout.add_top(size, "the initrd", ceiling=min(ceiling, FOUR_GIB))
        if gpa is None and above_4g:
            gpa = self.layout.add_top(size, "the initrd", ceiling=1 << 52, floor=FOUR_GIB)
        if gpa is None:
            raise ImageError(
                f"{source.name}: the initrd of {human_size(size)} does not fit into the guest's "
                f"memory below {min(ceiling, FOUR_GIB):#x} beside the kernel "
                f"({self.layout.describe()}): give the guest more memory, or a smaller initrd"
            )
        self.notes.append(f"initrd: {gpa:#x}-{gpa + size:#x}")
        return self.add(Segment(gpa, source.data, size, "the initrd"))

    def cmdline(self, longest: int) -> Segment:
        """Place the command line of at most `longest` bytes."""
        raw = encode_cmdline(self.layout.name, self.environment.cmdline, longest)
        gpa = self.layout.add(len(raw), "the command line", align=16)
        return self.add(Segment(gpa, raw, len(raw), "the command line"))

    def params(self, params: BootParams, cmdline_size: int) -> int:
        """Fill in what every entry tells the kernel, and place the page; returns its address."""
        self.segments += bios_data_area(self.layout, self.entries)
        cmdline = self.cmdline(cmdline_size)
        params.set_cmdline(cmdline.gpa, cmdline_size)
        params.set_memory(self.entries)
        params.set_rsdp(self.environment.rsdp)
        params.set_screen(self.environment.framebuffer)
        rest = e820_extension(self.layout, self.entries)
        if rest is not None:
            gpa, node = rest
            params.set_setup_data(gpa)
            self.add(Segment(gpa, node, len(node), "the rest of the memory map"))
        gpa = self.layout.add(PARAMS_SIZE, "boot_params")
        self.add(Segment(gpa, params.to_bytes(), PARAMS_SIZE, "boot_params"))
        return gpa


def encode_cmdline(name: str, cmdline: str, longest: int) -> bytes:
    """The command line with its terminating zero; `ImageError` if the kernel would cut it."""
    raw = check_string("command line", cmdline)
    if len(raw) - 1 > longest:
        raise ImageError(
            f"{name}: the command line of {len(raw) - 1} bytes is longer than the {longest} that "
            "this kernel takes: shorten it"
        )
    return raw


def refuse_modules(name: str, environment: BootEnvironment) -> None:
    """Linux has no modules in the sense of multiboot."""
    if environment.modules:
        raise ImageError(
            f"{name}: modules can only be given to a multiboot or PVH kernel and this is Linux: "
            "give an initrd"
        )


def choose_protocol(header: SetupHeader, wanted: str) -> str:
    """ "64", "32" or "16": the entry that is used. Raises `ImageError` if there is none such."""
    name = header.name
    if wanted not in PROTOCOLS:
        raise ImageError(
            f"the boot protocol {printable(repr(wanted))} is not known: choose one of "
            f"{', '.join(PROTOCOLS)}"
        )
    if wanted == "auto":
        return "64" if header.has_entry64 else "32" if header.has_entry32 else "16"
    if wanted == "64" and not header.has_entry64:
        raise ImageError(
            f"{name}: this kernel has no 64-bit entry point: choose boot protocol 32 or 16, or "
            "leave the protocol out"
        )
    if wanted == "pvh":
        raise ImageError(
            f"{name}: a bzImage has no PVH entry point before it is unpacked: ask for fast boot "
            "too, or give its vmlinux"
        )
    return wanted


def load_bzimage(source: Source, layout: Layout, environment: BootEnvironment) -> LoadedImage:
    """A bzImage. Raises `ImageError`."""
    header = SetupHeader(source)
    refuse_modules(source.name, environment)
    if environment.fast_boot and header.payload is not None:
        from pykvm.boot.linux_payload import load_payload

        return load_payload(header, source, layout, environment)
    protocol = choose_protocol(header, environment.protocol)
    entries = memory_map(layout, environment)
    if protocol == "16":
        from pykvm.boot.linux16 import load_setup

        return load_setup(header, source, layout, environment, entries)
    placed = Placed(layout, environment, entries)
    if environment.fast_boot:
        placed.notes.append("this kernel holds no compressed vmlinux, so fast boot changes nothing")
    keep_to(layout, entries)
    kernel = placed.add(place_kernel(header, layout, entries))
    initrd = placed.initrd(header.initrd_addr_max + 1, header.above_4g and protocol == "64")
    params = BootParams(header.raw)
    params.set_kernel(kernel.gpa)
    if initrd is not None:
        params.set_initrd(initrd.gpa, initrd.mem_size)
    params_at = placed.params(params, header.cmdline_size)
    entry = kernel.gpa + (ENTRY_64 if protocol == "64" else 0)
    note_kernel(placed, header, kernel)
    return LoadedImage(
        name=source.name,
        format="bzimage",
        segments=placed.segments,
        entry=entry,
        mode="long" if protocol == "64" else "protected",
        state=linux_state(layout, int(protocol), entry, params_at),
        notes=placed.notes,
        sources=(source, *placed.sources),
        framebuffer=environment.framebuffer,
    )


def note_kernel(placed: Placed, header: SetupHeader, kernel: Segment) -> None:
    """Remember which kernel it is, and where."""
    version = printable(header.kernel_version.split(" ")[0])
    placed.notes.insert(
        0,
        f"{version or 'no version'}, Linux boot protocol {header.version >> 8}."
        f"{header.version & 255:02}, at {kernel.gpa:#x}",
    )


def place_kernel(header: SetupHeader, layout: Layout, entries: MemoryMap) -> Segment:
    """Take the place of the protected-mode part and of all memory it needs to unpack itself."""
    size, data = header.init_size, header.kernel
    preferred = header.preferred
    inside = any(a <= preferred and preferred + size <= b for a, b in usable(entries))
    if not inside or not layout.is_free(preferred, size):
        gpa = None
        if header.relocatable and header.loaded_high:
            for align in (header.alignment, header.min_alignment):
                gpa = layout.find_up(size, preferred, FOUR_GIB, align)
                if gpa is not None:
                    break
        if gpa is None:
            end = -(-(preferred + size) >> 20) << 20
            raise ImageError(
                f"{header.name}: the kernel needs {human_size(size)} of free RAM from "
                f"{preferred:#x} to unpack itself and the guest has {layout.describe()}: give the "
                f"guest more memory (at least {human_size(end)})"
            )
        preferred = gpa
    layout.claim(preferred, size, "the kernel")
    # What is behind the file's bytes is the kernel's to clear.
    return Segment(preferred, data, len(data), "the kernel")


def load_vmlinux(
    source: Source,
    elf: ElfImage,
    layout: Layout,
    environment: BootEnvironment,
    header: SetupHeader | None = None,
) -> LoadedImage:
    """A vmlinux by its own entry, 64-bit or 32-bit, with `boot_params` in RSI.

    `header` is the setup header of the bzImage that it was in. Raises `ImageError`.
    """
    from pykvm.boot.elf_symbols import symbol_table

    refuse_modules(source.name, environment)
    bits = elf.bits
    entries = memory_map(layout, environment)
    placed = Placed(layout, environment, entries)
    keep_to(layout, entries)
    for segment in elf.claim(layout):
        placed.add(segment)
    check_in_ram(layout, entries, placed.segments)
    entry = elf.resolve_entry().physical
    if entry >= FOUR_GIB:
        raise ImageError(
            f"{source.name}: its entry point {entry:#x} is above 4 GiB, which a kernel's own page "
            "tables do not expect: link it lower"
        )
    if header is not None:
        # Without symbols the end of the kernel's brk area is not known; its init_size covers it.
        _reserve_init_size(layout, header, min(s.gpa for s in placed.segments))
    above_4g = header.above_4g if header is not None else bits == 64
    ceiling = (header.initrd_addr_max if header is not None else BARE_INITRD_MAX) + 1
    initrd = placed.initrd(ceiling, above_4g and bits == 64)
    params = BootParams(header.raw if header is not None else None)
    params.set_kernel(entry)
    if initrd is not None:
        params.set_initrd(initrd.gpa, initrd.mem_size)
    longest = header.cmdline_size if header is not None else BARE_CMDLINE_SIZE
    params_at = placed.params(params, longest)
    return LoadedImage(
        name=source.name,
        format="linux64" if bits == 64 else "linux32",
        segments=placed.segments,
        entry=entry,
        mode="long" if bits == 64 else "protected",
        state=linux_state(layout, bits, entry, params_at),
        notes=placed.notes,
        symbol_table=symbol_table(elf),
        sources=(source, *placed.sources),
        framebuffer=environment.framebuffer,
    )


def _reserve_init_size(layout: Layout, header: SetupHeader, start: int) -> None:
    end = start + header.init_size
    layout.avoid(start, max(end - start, 0))
