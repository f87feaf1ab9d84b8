"""What firmware looks for in fw_cfg: the well-known keys and files, from plain values.

Sources: QEMU's include/standard-headers/linux/qemu_fw_cfg.h (key numbers); SeaBIOS,
docs/Runtime_config.md (files); the Linux/x86 boot protocol (Documentation/arch/x86/boot.rst) for
`add_linux`. Numbers are little-endian unless said otherwise.
"""

from __future__ import annotations

import struct

from pykvm.devices.pc.fwcfg import FwCfg, FwCfgError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pykvm.typed import Any

UUID, RAM_SIZE, NOGRAPHIC, CPU_COUNT = 0x02, 0x03, 0x04, 0x05
KERNEL_ADDR, KERNEL_SIZE, KERNEL_CMDLINE = 0x07, 0x08, 0x09
INITRD_ADDR, INITRD_SIZE = 0x0A, 0x0B
BOOT_DEVICE, NUMA, BOOT_MENU, MAX_CPUS = 0x0C, 0x0D, 0x0E, 0x0F
KERNEL_ENTRY, KERNEL_DATA, INITRD_DATA = 0x10, 0x11, 0x12
CMDLINE_ADDR, CMDLINE_SIZE, CMDLINE_DATA = 0x13, 0x14, 0x15
SETUP_ADDR, SETUP_SIZE, SETUP_DATA = 0x16, 0x17, 0x18
IRQ0_OVERRIDE = 0x8002  # of the x86 keys: the PIT is on IOAPIC pin 2

# Where linuxboot option ROMs put the parts of a bzImage (guest-physical addresses).
SETUP_AT, CMDLINE_AT, KERNEL_AT = 0x1_0000, 0x2_0000, 0x10_0000
_SECTOR = 512


def add_standard_items(
    fw: FwCfg,
    *,
    cpus: int,
    ram_size: int,
    max_cpus: int | None = None,
    graphic: bool = True,
    boot_menu: bool = False,
    uuid: bytes = bytes(16),
) -> None:
    """The keys that SeaBIOS and OVMF read on every machine. `ram_size` in bytes.

    `max_cpus` is one more than the largest APIC ID there can be; `cpus` unless given.
    """
    fw.add_item(UUID, uuid)
    fw.add_item(RAM_SIZE, struct.pack("<Q", ram_size))
    fw.add_item(NOGRAPHIC, struct.pack("<H", not graphic))
    fw.add_item(CPU_COUNT, struct.pack("<H", cpus))
    fw.add_item(MAX_CPUS, struct.pack("<H", max_cpus or cpus))
    fw.add_item(BOOT_MENU, struct.pack("<H", boot_menu))
    fw.add_item(IRQ0_OVERRIDE, struct.pack("<I", 1))
    fw.add_item(NUMA, struct.pack("<Q", 0))
    for key in (KERNEL_SIZE, INITRD_SIZE, CMDLINE_SIZE, SETUP_SIZE):
        fw.add_item(key, struct.pack("<I", 0))


def add_numa(fw: FwCfg, node_of_cpu: Sequence[int], node_sizes: Sequence[int]) -> None:
    """Key NUMA: how many nodes, the node of each CPU, the RAM of each node in bytes."""
    fields = (len(node_sizes), *node_of_cpu, *node_sizes)
    fw.add_item(NUMA, struct.pack(f"<{len(fields)}Q", *fields))


def add_e820(fw: FwCfg, entries: Iterable[tuple[int, int, int]]) -> None:
    """`etc/e820`: (guest-physical base, size, type) of RAM and of reserved ranges."""
    fw.add_file("etc/e820", b"".join(struct.pack("<QQI", *entry[:3]) for entry in entries))


def add_boot_order(fw: FwCfg, paths: Iterable[str], *, strict: bool = False) -> None:
    """`bootorder`: Open Firmware device paths, best first; `strict` ends the list with HALT."""
    lines = [*paths, *(["HALT"] if strict else [])]
    fw.add_file("bootorder", "\n".join(lines).encode("ascii") + b"\0")


def add_number(fw: FwCfg, name: str, value: int, size: int = 8) -> None:
    """A file that holds one number of `size` bytes, such as `etc/sercon-port`."""
    fw.add_file(name, value.to_bytes(size, "little"))


def add_boot_menu(fw: FwCfg, *, wait_ms: int | None = None, show: bool = True) -> None:
    """Whether SeaBIOS offers its boot menu, and for how long in milliseconds."""
    fw.add_item(BOOT_MENU, struct.pack("<H", show))
    if wait_ms is not None:
        add_number(fw, "etc/boot-menu-wait", wait_ms, 2)


def add_serial_console(fw: FwCfg, port: int = 0x3F8) -> None:
    """`etc/sercon-port`: SeaBIOS shows its screen on this serial port as well."""
    add_number(fw, "etc/sercon-port", port, 2)


def add_linux(
    fw: FwCfg,
    bzimage: bytes,
    *,
    cmdline: str = "",
    initrd: Any = b"",
    ram_below_4g: int,
) -> None:
    """A Linux bzImage for firmware that boots kernels from fw_cfg (linuxboot ROMs, OVMF).

    The header's loader fields are filled in as the boot protocol says. The initrd goes as high as
    the header allows below `ram_below_4g` (bytes). Raises `FwCfgError` for what cannot work.
    """
    if len(bzimage) < 0x264 or bzimage[0x202:0x206] != b"HdrS":
        raise FwCfgError("this is not a bzImage (no HdrS at 0x202); fw_cfg boots only those")
    version = int.from_bytes(bzimage[0x206:0x208], "little")
    if version < 0x203 or not bzimage[0x211] & 1:
        raise FwCfgError(
            f"the kernel's boot protocol {version >> 8}.{version & 0xFF:02} is older than 2.03, or "
            "the kernel is not a bzImage loaded high; use a newer kernel"
        )
    command = cmdline.encode() + b"\0"
    limit = int.from_bytes(bzimage[0x238:0x23C], "little") if version >= 0x206 else 255
    if len(command) - 1 > limit:
        raise FwCfgError(f"the command line has {len(command) - 1} bytes; the kernel takes {limit}")
    setup_size = ((bzimage[0x1F1] or 4) + 1) * _SECTOR
    if setup_size >= min(len(bzimage), CMDLINE_AT - SETUP_AT):
        raise FwCfgError(f"the kernel's setup part of {setup_size} bytes reaches past its end")
    setup = bytearray(bzimage[:setup_size])
    setup[0x210] = 0xB0  # type_of_loader: Qemu's number, for what its ROMs load
    setup[0x211] |= 0x80  # CAN_USE_HEAP
    struct.pack_into("<H", setup, 0x224, CMDLINE_AT - SETUP_AT - 0x200)  # heap_end_ptr
    struct.pack_into("<I", setup, 0x228, CMDLINE_AT)  # cmd_line_ptr
    size, address = len(memoryview(initrd).cast("B")), 0
    if size:
        highest = min(int.from_bytes(bzimage[0x22C:0x230], "little") + 1, ram_below_4g)
        address = highest - size & ~0xFFF
        init_size = int.from_bytes(bzimage[0x260:0x264], "little") if version >= 0x20A else 0
        if address < KERNEL_AT + max(len(bzimage) - setup_size, init_size):
            raise FwCfgError(
                f"the initrd of {size} bytes does not fit between the kernel and {highest:#x}; "
                "give the machine more memory"
            )
        struct.pack_into("<II", setup, 0x218, address, size)
    for key, value in (
        (KERNEL_ADDR, KERNEL_AT), (KERNEL_SIZE, len(bzimage) - setup_size),
        (INITRD_ADDR, address), (INITRD_SIZE, size),
        (CMDLINE_ADDR, CMDLINE_AT), (CMDLINE_SIZE, len(command)),
        (SETUP_ADDR, SETUP_AT), (SETUP_SIZE, setup_size),
    ):  # fmt: skip
        fw.add_item(key, struct.pack("<I", value))
    fw.add_item(KERNEL_DATA, memoryview(bzimage)[setup_size:])
    fw.add_item(INITRD_DATA, initrd)
    fw.add_item(CMDLINE_DATA, command)
    fw.add_item(SETUP_DATA, setup)
