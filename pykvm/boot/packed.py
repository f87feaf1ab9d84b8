"""Images in a wrapping: a compressed kernel file (vmlinux.gz, xen.gz), or an EFI zboot file."""

from __future__ import annotations

from pykvm.boot.detect import Format, detect
from pykvm.boot.errors import ImageError
from pykvm.boot.source import Source
from pykvm.boot.unpack import compression_of, unpack

MAX_LAYERS = 3


def unwrap(source: Source, wanted: str) -> tuple[Source, Format]:
    """What is inside, and its format; `wanted` is the format asked for, or `auto`.

    Raises `ImageError` if it is damaged, or holds no kernel.
    """
    name, data = source.name, source.data
    source.check_unchanged()
    for _ in range(MAX_LAYERS):
        data = _unwrap_once(name, data)
        kind = detect(name, data)
        if kind != "packed":
            break
    else:
        raise ImageError(f"{name}: it is packed more than {MAX_LAYERS} times over: unpack it first")
    if kind == "flat" and wanted == "auto":
        raise ImageError(
            f"{name}: what it unpacks to is no kernel that pykvm knows: give a kernel image, or "
            "unpack it first if it is raw code"
        )
    return Source(name, data), kind


def _unwrap_once(name: str, data: memoryview) -> memoryview:
    if bytes(data[:2]) == b"MZ":
        from pykvm.boot.linux_payload import zboot_payload

        payload = zboot_payload(name, data)
        if payload is None:
            raise ImageError(f"{name}: its EFI zboot header is damaged: copy the file again")
        data = payload
    kind = compression_of(data)
    if kind is None:
        raise ImageError(
            f"{name}: it is packed in an unknown way (it starts with "
            f"{bytes(data[:4]).hex(' ')}): unpack it first"
        )
    return memoryview(unpack(name, data, kind))
