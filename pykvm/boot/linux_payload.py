"""Kernels inside kernels: the vmlinux of a bzImage, unpacked on the host, and the image inside an
EFI zboot file."""

from __future__ import annotations

import struct

from pykvm.boot.detect import ELF_MAGIC
from pykvm.boot.elf import ElfImage
from pykvm.boot.elf_notes import pvh_entry
from pykvm.boot.environment import BootEnvironment
from pykvm.boot.errors import ImageError, printable
from pykvm.boot.image import LoadedImage
from pykvm.boot.layout import Layout
from pykvm.boot.linux import NO_KASLR, load_vmlinux
from pykvm.boot.linux_header import SetupHeader
from pykvm.boot.source import Source
from pykvm.boot.unpack import compression_of, unpack


def extract_vmlinux(header: SetupHeader) -> memoryview:
    """The vmlinux that a bzImage holds. Raises `ImageError`.

    Relocations and whatever else follows the ELF file's own parts are left at its end: at its link
    address the kernel needs none of them.
    """
    payload, name = header.payload, header.name
    if payload is None:
        raise ImageError(f"{name}: there is no compressed kernel in it: leave fast boot out")
    if bytes(payload[:4]) == ELF_MAGIC:
        return payload
    kind = compression_of(payload)
    if kind is None:
        raise ImageError(
            f"{name}: the kernel in it is packed in an unknown way (it starts with "
            f"{bytes(payload[:4]).hex(' ')}): leave fast boot out"
        )
    # The last four bytes are the unpacked size, by convention of arch/x86/boot/compressed.
    vmlinux = memoryview(unpack(name, payload, kind))
    if bytes(vmlinux[:4]) != ELF_MAGIC:
        raise ImageError(
            f"{name}: the kernel in it unpacks to something that is no ELF file: leave fast boot "
            "out"
        )
    return vmlinux


def load_payload(
    header: SetupHeader, source: Source, layout: Layout, environment: BootEnvironment
) -> LoadedImage:
    """A bzImage without its decompressor: the vmlinux in it, by the entry asked for."""
    name = source.name
    source.check_unchanged()
    inner = Source(name, extract_vmlinux(header))
    elf = ElfImage(name, inner.data)
    wanted = environment.protocol
    if wanted == "pvh":
        from pykvm.boot.pvh import load_pvh

        if pvh_entry(elf) is None:
            raise ImageError(
                f"{name}: the kernel in it has no PVH entry point: leave the protocol out"
            )
        image = load_pvh(inner, elf, layout, environment, header)
    elif wanted in ("auto", str(elf.bits)):
        image = load_vmlinux(inner, elf, layout, environment, header)
    else:
        raise ImageError(
            f"{name}: fast boot starts this kernel by its {elf.bits}-bit or PVH entry, not by "
            f"boot protocol {printable(wanted)}: leave the protocol or fast boot out"
        )
    image.notes.insert(0, NO_KASLR)
    image.sources = (source, *image.sources)
    return image


def zboot_payload(name: str, data: memoryview) -> memoryview | None:
    """The compressed image in an EFI zboot file (drivers/firmware/efi/libstub/zboot-header.S);
    None if it is no such file. Raises `ImageError`."""
    if bytes(data[:2]) != b"MZ" or bytes(data[4:8]) != b"zimg" or len(data) < 0x38:
        return None
    offset, size = struct.unpack_from("<II", data, 8)
    if not size or offset + size > len(data):
        raise ImageError(
            f"{name}: its EFI zboot header puts {size} bytes of compressed image at offset "
            f"{offset:#x} of a file of {len(data)}: the file is truncated, copy it again"
        )
    return data[offset : offset + size]
