"""Disk images that qemu-img makes are read right, and those that are written are right to it."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import struct
import subprocess
import time
from typing import Any

import pytest
from debian_tools import need
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nbd_fake import pattern

from pykvm.devices.block import BlockBackend, BlockError, ImageDisk, Overlay, open_image
from pykvm.devices.block.images_chain import reason
from pykvm.devices.block.images_detect import detect, driver_of, looks_like
from pykvm.devices.block.images_raw import ProbedRaw

SIZE = 3 << 20

# name -> (our format, qemu-img's options)
KINDS: dict[str, tuple[str, list[str]]] = {
    "qcow2": ("qcow2", ["-O", "qcow2"]),
    "qcow2 of old": ("qcow2", ["-O", "qcow2", "-o", "compat=0.10"]),
    "qcow2 compressed": ("qcow2", ["-O", "qcow2", "-c"]),
    "qcow2 preallocated": ("qcow2", ["-O", "qcow2", "-o", "preallocation=metadata"]),
    "qcow2 subclusters": ("qcow2", ["-O", "qcow2", "-o", "extended_l2=on,cluster_size=128k"]),
    "vmdk": ("vmdk", ["-O", "vmdk", "-o", "subformat=monolithicSparse"]),
    "vmdk stream": ("vmdk", ["-O", "vmdk", "-o", "subformat=streamOptimized"]),
    "vmdk flat": ("vmdk", ["-O", "vmdk", "-o", "subformat=monolithicFlat"]),
    "vdi": ("vdi", ["-O", "vdi"]),
    "vdi static": ("vdi", ["-O", "vdi", "-o", "static=on"]),
    "vhd dynamic": ("vhd", ["-O", "vpc", "-o", "subformat=dynamic,force_size=on"]),
    "vhd fixed": ("vhd", ["-O", "vpc", "-o", "subformat=fixed,force_size=on"]),
    "vhdx": ("vhdx", ["-O", "vhdx", "-o", "subformat=dynamic"]),
    "vhdx fixed": ("vhdx", ["-O", "vhdx", "-o", "subformat=fixed"]),
}


def qemu_img(*words: Any) -> str:
    tool = need("qemu-img", package="qemu-utils")
    need("qemu-storage-daemon", package="qemu-system-common")
    done = subprocess.run(
        [tool, *map(str, words)], capture_output=True, text=True, stdin=subprocess.DEVNULL,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def contents() -> bytes:
    """Data with holes in it."""
    data = bytearray(pattern(SIZE))
    data[300_000:1_500_000] = bytes(1_200_000)
    return bytes(data)


@pytest.fixture
def raw(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(contents())
    return path


def blocks(disk: BlockBackend) -> bytes:
    """The whole disk, in pieces of an odd number of sectors."""
    step = 97 * 512
    return b"".join(disk.read(at, min(step, disk.size - at)) for at in range(0, disk.size, step))


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_qemu_img(kind: str, raw: pathlib.Path, tmp_path: pathlib.Path) -> None:
    format, options = KINDS[kind]
    path = tmp_path / "disk.image"
    qemu_img("convert", "-f", "raw", *options, raw, path)
    expected = bytearray(contents())
    assert detect(str(path)) == format
    before = path.read_bytes()
    disk = open_image(path, read_only=True)
    assert disk.size == SIZE
    assert blocks(disk) == expected
    with pytest.raises(BlockError, match="read-only"):
        disk.write(0, bytes(512))
    disk.close()
    assert path.read_bytes() == before
    if kind == "vmdk stream":  # written once, from the beginning to the end
        return
    disk = open_image(path)
    for at, length in ((0, 512), (299_520, 2048), (1 << 20, 200_000), (SIZE - 512, 512)):
        data = os.urandom(length)
        disk.write(at, data)
        expected[at : at + length] = data
    disk.write_zeroes(512, 100 * 512)
    expected[512 : 101 * 512] = bytes(100 * 512)
    disk.flush()
    assert blocks(disk) == expected
    disk.close()
    raw.write_bytes(expected)
    driver = driver_of(format)
    qemu_img("compare", "-f", "raw", "-F", driver, raw, path)
    if format in ("qcow2", "vdi", "vhdx"):
        qemu_img("check", "-f", driver, path)
    info = json.loads(qemu_img("info", "--output=json", path if "fixed" not in kind else raw))
    assert info["virtual-size"] == SIZE


def test_a_chain_of_backing_files(raw: pathlib.Path, tmp_path: pathlib.Path) -> None:
    expected = bytearray(contents())
    below: tuple[pathlib.Path, str] = (raw, "raw")
    for n, name in enumerate(("one,two.qcow2", "b:c.qcow2", "top.qcow2")):
        path = tmp_path / name
        target = below[0] if n % 2 else os.path.relpath(below[0], tmp_path)
        if ":" in str(target):
            target = f"./{target}"
        qemu_img("create", "-q", "-f", "qcow2", "-F", below[1], "-b", target, path)
        disk = open_image(path)
        disk.write(n * 100_000, bytes([n]) * 70_000)
        expected[n * 100_000 : n * 100_000 + 70_000] = bytes([n]) * 70_000
        assert blocks(disk) == expected
        with pytest.raises(BlockError, match="in use"):
            open_image(below[0])
        disk.close()
        qemu_img("check", path)
        below = (path, "qcow2")
    assert raw.read_bytes() == contents()


def test_internal_snapshots_are_left_alone(raw: pathlib.Path, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.qcow2"
    qemu_img("convert", "-O", "qcow2", raw, path)
    qemu_img("snapshot", "-c", "before", path)
    disk = open_image(path)
    disk.write(0, b"n" * 100_000)
    assert disk.read(0, 100_000) == b"n" * 100_000
    disk.close()
    qemu_img("check", path)
    qemu_img("snapshot", "-a", "before", path)
    qemu_img("compare", path, raw)


def test_snapshots_and_overlays(raw: pathlib.Path, tmp_path: pathlib.Path) -> None:
    base, kept = tmp_path / "base.vdi", tmp_path / "kept.qcow2"
    qemu_img("convert", "-O", "vdi", raw, base)
    before = base.read_bytes()
    disk = open_image(base, snapshot=True)
    assert isinstance(disk, Overlay)
    disk.write(1000, b"x" * 5000)
    assert disk.read(1000, 5000) == b"x" * 5000
    disk.close()
    for n in range(2):
        disk = open_image(base, overlay=kept)
        assert disk.read(0, 100) == (b"o" * 100 if n else contents()[:100])
        disk.write(0, b"o" * 512)
        disk.close()
    assert base.read_bytes() == before
    qemu_img("check", kept)
    assert sorted(os.listdir(tmp_path)) == ["base.vdi", "disk.raw", "kept.qcow2"]
    with pytest.raises(BlockError, match=r"stands on .*base\.vdi, not on .*disk\.raw"):
        open_image(raw, overlay=kept)
    with pytest.raises(BlockError, match="is there and no qcow2 image"):
        open_image(base, overlay=raw)
    with pytest.raises(BlockError, match="making the overlay"):
        open_image(base, overlay=tmp_path / "no" / "where")


@pytest.mark.parametrize("cache", ["none", "writethrough", "directsync", "unsafe"])
def test_cache_modes(cache: Any, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    disk = open_image(path, cache=cache)
    disk.write(512, b"c" * 4096)
    disk.flush()
    assert disk.read(512, 4096) == b"c" * 4096
    disk.close()
    qemu_img("check", path)


def test_another_size(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    disk = open_image(path)
    disk.write(0, b"first")
    disk.resize(2 << 20)
    assert disk.size == 2 << 20
    disk.write((2 << 20) - 4, b"last")
    assert disk.read(0, 5) == b"first"
    for size in (0, -512, 1000, 1 << 70):
        with pytest.raises(BlockError, match="no positive multiple"):
            disk.resize(size)
    disk.close()
    assert json.loads(qemu_img("info", "--output=json", path))["virtual-size"] == 2 << 20


def test_a_raw_disk_stays_raw(tmp_path: pathlib.Path) -> None:
    path, other = tmp_path / "disk.img", tmp_path / "evil.qcow2"
    path.write_bytes(pattern(1 << 20))
    qemu_img("create", "-q", "-f", "qcow2", other, "1M")
    header = other.read_bytes()[:512]
    disk = open_image(path)
    assert isinstance(disk, ProbedRaw)
    assert disk.native_fd().guarded  # type: ignore[union-attr]
    disk.write(0, b"\xebfirst sector")
    disk.write(0, bytes(4096))
    disk.write((1 << 20) - 512, bytes(512))
    for data, at in ((header, 0), (header + bytes(5000), 0), (header[:8], 0), (b"COWD", 0)):
        with pytest.raises(BlockError, match='format="raw" to allow'):
            disk.write(at, data)
    disk.write(0, b"QF")
    with pytest.raises(BlockError, match="qcow2 image of this raw disk"):
        disk.write(2, header[2:])
    disk.write(512, header)
    disk.close()
    assert detect(str(path)) == "raw"
    disk = open_image(path, format="raw")
    disk.write(0, header)
    disk.close()
    assert detect(str(path)) == "qcow2"
    assert open_image(path, format="raw").read(0, 512) == header


HEADS = [
    b"QFI\xfb\0\0\0\1", b"QFI\xfb\0\0\0\2", b"QFI\xfb\0\0\0\3", b"QFI\xfb\0\0\0\4",
    b"KDMV", b"COWD",
    b"# Disk DescriptorFile\nversion=1\n", b"\n# x\r\nversion=3 \r\n", b"version=4\n", b"version=1",
    b"x\nversion=1\n", b"vhdxfile", b"conectix", b"QED\0", b"QED1", b"WithoutFreeSpace",
    b"WithouFreSpacExt", bytes(0x40) + b"\x7f\x10\xda\xbe", b"", b"#" * 512, b"\n" * 512,
]  # fmt: skip


@given(st.sampled_from(HEADS), st.binary(max_size=40), st.integers(0, 80))
def test_the_engine_knows_the_same_signs(head: bytes, more: bytes, at: int) -> None:
    from pykvm._native import lib

    sector = bytearray(head.ljust(512, b"\0"))
    for data in (bytes(sector), bytes(sector[:at]) + more + bytes(sector[at + len(more) :])):
        data = data[:512]
        assert bool(lib.pykvm_blk_looks_foreign(data, 0)) == (looks_like(data) != "raw")
        footer = bytearray(data)
        footer[:8], footer[60:64], footer[64:68] = b"conectix", b"\0\0\0\2", b"\0\0\0\0"
        footer[64:68] = struct.pack(">I", ~sum(footer) & 0xFFFFFFFF)
        assert lib.pykvm_blk_looks_foreign(bytes(footer), 1)
        assert looks_like(bytes(512), bytes(footer)) == "vhd"
        footer[100] ^= 1
        assert not lib.pykvm_blk_looks_foreign(bytes(footer), 1)
        assert looks_like(bytes(512), bytes(footer)) == "raw"


# -- trouble -------------------------------------------------------------------------------------


def test_the_child_ends_and_is_ended(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    disk = ImageDisk(path, "qcow2")
    with pytest.raises(BlockError, match="in use by another"):
        ImageDisk(path, "qcow2")
    os.kill(disk.pid, signal.SIGKILL)
    for attempt in (lambda: disk.read(0, 512), disk.flush, lambda: disk.resize(2 << 20)):
        with pytest.raises(BlockError, match="qemu-storage-daemon was ended by signal 9"):
            attempt()
    disk.close()
    disk = ImageDisk(path, "qcow2")
    pid = disk.pid
    disk.close()
    disk.close()
    assert not os.path.exists(f"/proc/{pid}")


def running(pid: int) -> bool:
    try:
        return " Z " not in pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


@pytest.mark.parametrize("how", ["kill", "thread"])
def test_the_child_lives_as_long_as_its_machine(how: str, tmp_path: pathlib.Path) -> None:
    """Killed with the process; but not with the thread that opened the disk."""
    import sys

    path = tmp_path / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    code = f"""
import threading, sys, time
from pykvm.devices.block import ImageDisk
found = []
thread = threading.Thread(target=lambda: found.append(ImageDisk({str(path)!r}, "qcow2")))
thread.start()
thread.join()
time.sleep(0.1)
found[0].write(0, b"alive")
found[0].flush()
print(found[0].pid, flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert os.path.exists(f"/proc/{pid}")
        if how == "kill":
            parent.kill()
    for _ in range(500):
        if not running(pid):
            break
        time.sleep(0.02)
    else:
        pytest.fail("the child outlived its machine")
    disk = ImageDisk(path, "qcow2")
    assert disk.read(0, 5) == b"alive"
    disk.close()


def test_missing_programs_are_named(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    monkeypatch.setenv("PATH", "/no")
    monkeypatch.setattr("pykvm.devices.block.images_chain._DIRS", ())
    with pytest.raises(BlockError, match=r"qemu-img is not installed.*apt-get install qemu-utils"):
        open_image(path)
    from pykvm.devices.block.images_qmp import StorageDaemon

    with pytest.raises(BlockError, match=r"qemu-storage-daemon is .* qemu-system-common"):
        StorageDaemon("x")


def test_bad_images(tmp_path: pathlib.Path) -> None:
    def make(name: str, *words: str) -> pathlib.Path:
        path = tmp_path / name
        qemu_img("create", "-q", "-f", "qcow2", *words, path, "1M")
        return path

    loop, other = make("loop"), make("other")
    qemu_img("rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", other, loop)
    qemu_img("rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", loop, other)
    net = make("net")
    qemu_img("rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", "nbd://127.0.0.1/", net)
    gone = make("gone")
    qemu_img("rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", "/no/such", gone)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    device = make("device")
    qemu_img("rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", fifo, device)
    plain = tmp_path / "plain"
    plain.write_bytes(pattern(1 << 20))
    for path, format, words in (
        (loop, "auto", "go round in a loop"),
        (net, "auto", "is no plain file"),
        (gone, "auto", "stands on a backing file: .*/no/such cannot be opened: No such file"),
        (device, "auto", "not a disk"),
        (fifo, "auto", "not a disk"),
        (tmp_path, "auto", "cannot be opened|not a disk|Is a directory"),
        (tmp_path / "none", "auto", "cannot be opened: No such file"),
        (plain, "qcow2", "cannot be read as qcow2: image is not in qcow2 format"),
        (plain, "tar", "format='tar' is no disk format"),
        (plain, "vhdx", "cannot be read as vhdx"),
    ):
        with pytest.raises(BlockError, match=words) as caught:
            open_image(path, format=format)
        assert "\n" not in str(caught.value)
    with pytest.raises(BlockError, match="cache='x' is no cache mode"):
        open_image(plain, cache="x")  # type: ignore[arg-type]
    with pytest.raises(BlockError, match="no name"):
        open_image("")
    for words in ("nbd://127.0.0.1:1/", "nbd+unix:///?socket=/no/such"):
        with pytest.raises(BlockError, match="NBD server's to choose"):
            open_image(words, cache="none")
        with pytest.raises(BlockError, match="gives plain disks"):
            open_image(words, format="qcow2")


def test_reasons() -> None:
    assert reason("qemu-img: Could not open 'json:{}': Bad thing\nmore\n") == "bad thing"
    assert reason("", -9) == "the tool was ended by signal 9"
    assert reason("\n", 3) == "exit status 3"


@pytest.fixture(scope="module")
def bodies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("bodies")
    found = {}
    for name, words in (
        ("qcow2", ["-o", "cluster_size=4k"]), ("vmdk", []), ("vdi", []), ("vhdx", []), ("vpc", []),
    ):  # fmt: skip
        path = folder / name
        qemu_img("create", "-q", "-f", name, *words, path, "256k")
        found[name] = path.read_bytes()
    return found


def sentence(error: BlockError) -> None:
    """It is one."""
    assert str(error).isprintable()
    assert 0 < len(str(error)) < 800


VALUES = [b"\xff", b"\0", b"\x7f\xff\xff\xff", b"\x80", b"\0\0\0\0", b"\xff" * 8]


@settings(
    max_examples=40,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    name=st.sampled_from(["qcow2", "vmdk", "vdi", "vhdx", "vpc"]),
    changes=st.lists(
        st.tuples(st.integers(0, 1023), st.sampled_from(VALUES)), min_size=1, max_size=6
    ),
    cut=st.booleans(),
)
def test_hostile_headers(
    name: str, changes: list[tuple[int, bytes]], cut: bool, bodies: dict[str, bytes],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A sentence, or a disk that can be read, perhaps with errors, and closed.

    Some make QEMU 7.2's daemon loop for ever; then it is ended, which need not take a minute here.
    """
    monkeypatch.setattr("pykvm.devices.block.images_qmp._ANSWER_SECONDS", 2.0)
    data = bytearray(bodies[name])
    for at, change in changes:
        data[at : at + len(change)] = change
    if cut:
        data = data[: 1 + changes[0][0] * 4]
    path = tmp_path / "hostile"
    path.write_bytes(data)
    try:
        disk = open_image(path, format=name)
    except BlockError as error:
        sentence(error)
        return
    try:
        for at in {0, disk.size // 2 // 512 * 512, max(0, disk.size - 512)}:
            try:
                disk.read(at, min(512, disk.size))
                disk.write(at, bytes(min(512, disk.size)))
                disk.flush()
            except BlockError as error:
                sentence(error)
    finally:
        disk.close()
