"""Snapshots in files: back on the same machine, on another, in another process; damaged ones."""

from __future__ import annotations

import json
import pathlib
import random
import struct
import subprocess
import sys
import zlib
from typing import Any

import pytest

from pykvm import Machine, images
from pykvm.errors import PykvmError
from pykvm.machine.snapshot import Snapshot, SnapshotError

HEADER = struct.Struct("<8sIIQQI")


def machine_for(name: str, **options: Any) -> Machine:
    image = images.find(name)
    machine = Machine(**{"cpus": image.cpus, "irqchip": image.irqchip, **options})
    machine.load(name)
    return machine


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A small machine with a disk, stopped in mid-run."""
    path = tmp_path_factory.mktemp("snapshot") / "machine.snap"
    with machine_for("interrupts", memory="4M") as m:
        m.add_disk(b"disk" * 4096)
        m.start(timeout=30)
        snapshot = m.snapshot()
        m.wait(30)
        snapshot.save(path)
    return path


def fresh() -> Machine:
    m = machine_for("interrupts", memory="4M")
    m.add_disk(bytes(4 * 4096))
    return m


@pytest.mark.parametrize("lazy", [False, True])
def test_a_file_is_restored_on_a_fresh_machine(saved: pathlib.Path, lazy: bool) -> None:
    with machine_for("interrupts") as m:
        whole = m.run(timeout=30).serial
    with fresh() as m:
        snapshot = Snapshot.load(saved, lazy=lazy)
        m.restore(snapshot, verify=True)
        assert m.virtio[0].backend.read(0, 8) == b"diskdisk"  # type: ignore[attr-defined]
        result = m.run(timeout=30)
        assert whole.endswith(result.serial)
        assert not result.reason.is_crash
        m.restore(snapshot, verify=True)
        assert m.run(timeout=30).serial == result.serial


@pytest.mark.parametrize(("name", "options"), [
    ("hello64", {"board": "pc"}), ("smp", {}), ("smp", {"irqchip": "split", "cpu": "portable"}),
    ("modes", {"memory": "32M", "board": "bare"}),
])  # fmt: skip
def test_a_machine_is_made_from_a_file(
    tmp_path: pathlib.Path, name: str, options: dict[str, Any]
) -> None:
    path = tmp_path / "machine.snap"
    with machine_for(name, **options) as m:
        m.snapshot().save(path)
        first = m.run(timeout=30)
        end = m.snapshot()
        end.save(tmp_path / "end.snap")
    with Machine.from_snapshot(path) as m:
        assert m.board.name == options.get("board", "microvm")
        again = m.run(timeout=30)
        assert (again.reason, again.value, again.serial) == (
            first.reason, first.value, first.serial,
        )  # fmt: skip
    with Machine.from_snapshot(tmp_path / "end.snap", lazy=True) as m:
        assert m.snapshot().memory_size == m.memory.size


def test_another_process_goes_on(saved: pathlib.Path) -> None:
    code = (
        "import sys; from pykvm import Machine\n"
        "m = Machine.from_snapshot(sys.argv[1], lambda m: m.add_disk(bytes(16384)))\n"
        "print(m.run(timeout=30).reason)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, saved], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "crash" not in done.stdout


def test_overlays_are_in_the_file(tmp_path: pathlib.Path) -> None:
    base, path = tmp_path / "disk.img", tmp_path / "machine.snap"
    base.write_bytes(b"base" * (1 << 18))
    with Machine() as m:
        disk = m.add_disk(base, snapshot=True)
        m.load("hello64")
        disk.backend.write(5 << 10, b"x" * 512)
        m.snapshot()
        disk.backend.write(700 << 10, b"y" * 512)
        snapshot = m.snapshot()
        disk.backend.write(0, b"z" * 4096)
        snapshot.save(path)
        m.restore(snapshot)
        contents = disk.backend.read(0, 1 << 20)
    assert path.stat().st_size < 400 << 10

    def add(m: Machine) -> None:
        m.add_disk(base, snapshot=True)

    with Machine.from_snapshot(path, add) as m:
        assert m.virtio[0].backend.read(0, 1 << 20) == contents  # type: ignore[attr-defined]


def test_pages_of_zeros_are_left_out(tmp_path: pathlib.Path) -> None:
    with machine_for("hello64", memory="1G") as m:
        m.memory.fill(0x1000000, 64 << 20, 0xAA)
        m.memory.write(0x1000000, bytes(64 << 20))
        m.snapshot().save(tmp_path / "machine.snap")
    assert (tmp_path / "machine.snap").stat().st_size < 1 << 20


@pytest.mark.parametrize(("options", "why"), [
    ({"memory": "8M"}, "memory size in bytes is 4194304 there and 8388608 here"),
    ({"irqchip": "split"}, "interrupt controller is kernel there and split here"),
    ({"cpus": 2}, "number of vCPUs is 1 there and 2 here"),
    ({"board": "pc"}, "board is microvm there and pc here"),
    ({"cpu": "minimal"}, "CPUID leaf"),
])  # fmt: skip
def test_another_machine_is_refused(saved: pathlib.Path, options: dict[str, Any], why: str) -> None:
    with machine_for("interrupts", **{"memory": "4M", **options}) as m:
        with pytest.raises(SnapshotError, match=why):
            Snapshot.load(saved, m)
        with pytest.raises(SnapshotError, match=why):
            m.restore(Snapshot.load(saved))
        assert not m.run(timeout=30).reason.is_crash  # nothing has changed


def test_other_devices_are_refused(saved: pathlib.Path) -> None:
    with machine_for("interrupts", memory="4M") as m, pytest.raises(SnapshotError, match="disk"):
        m.restore(Snapshot.load(saved))


def test_damage_is_named(saved: pathlib.Path, tmp_path: pathlib.Path) -> None:
    whole, path = saved.read_bytes(), tmp_path / "bad.snap"
    start = 4096 + -(-HEADER.unpack_from(whole)[3] // 4096) * 4096

    def refused(data: bytes) -> str:
        path.write_bytes(data)
        with pytest.raises(SnapshotError) as error:
            Snapshot.load(path)
        return str(error.value)

    def flipped(at: int) -> bytes:
        return whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]

    assert "does not begin as one" in refused(b"")
    assert "does not begin as one" in refused(flipped(0))
    assert "version" in refused(flipped(8))
    assert "checksum of its header" in refused(flipped(20))
    assert "checksum of its description" in refused(flipped(5000))
    assert "checksum of" in refused(flipped(start + 100))
    assert "truncated" in refused(whole[:-1])
    assert "truncated" in refused(whole[:20])
    assert "follow its end" in refused(whole + b"x")
    with pytest.raises(SnapshotError, match="regular file"):
        Snapshot.load(tmp_path)
    with pytest.raises(SnapshotError, match="No such file"):
        Snapshot.load(tmp_path / "none")


def sealed(text: bytes, data: bytes) -> bytes:
    """A file with right checksums around any description."""
    start = 4096 + -(-len(text) // 4096) * 4096
    head = HEADER.pack(b"pykvmsnp", 1, zlib.crc32(text), len(text), start + len(data), 0)[:-4]
    head += struct.pack("<I", zlib.crc32(head))
    return head.ljust(4096, b"\0") + text.ljust(start - 4096, b"\0") + data


def mutate(value: Any, rng: random.Random) -> Any:
    """One change somewhere in plain values."""
    if isinstance(value, dict) and value:
        key = rng.choice(sorted(value))
        if rng.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: mutate(value[key], rng)}
    if isinstance(value, list) and value:
        at = rng.randrange(len(value))
        if rng.random() < 0.15:
            return value[:at] + value[at + 1 :]
        if rng.random() < 0.1:
            return [*value, value[at]]
        return [*value[:at], mutate(value[at], rng), *value[at + 1 :]]
    odd = [0, -1, 1, 2**31, 2**63, 2**64, 2**200, None, True, "", "x" * 50, [], {}, 1.5, [[[]]]]
    if isinstance(value, int) and rng.random() < 0.6:
        return value ^ 1 << rng.randrange(64)
    if isinstance(value, str) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        return value[:at] + rng.choice("AQgz/+09=") + value[at + 1 :]
    return rng.choice(odd)


def try_mutations(saved: pathlib.Path, folder: pathlib.Path, count: int, seed: int) -> None:
    """Whatever a file says, it is refused in a sentence, or the machine is one that can be used."""
    whole = saved.read_bytes()
    _, _, _, length, _, _ = HEADER.unpack_from(whole)
    description = json.loads(whole[4096 : 4096 + length])
    data = whole[4096 + -(-length // 4096) * 4096 :]
    rng = random.Random(seed)
    path = folder / "mutant.snap"
    refused = taken = 0
    with fresh() as m:
        good = m.snapshot()
        for _ in range(count):
            if rng.random() < 0.3:
                raw = bytearray(whole)
                for _ in range(rng.randrange(1, 4)):
                    raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
                path.write_bytes(raw[: rng.randrange(len(raw))] if rng.random() < 0.3 else raw)
            else:
                text = json.dumps(mutate(description, rng)).encode()
                path.write_bytes(sealed(text, data))
            try:
                m.restore(Snapshot.load(path, lazy=rng.random() < 0.2))
            except SnapshotError:
                refused += 1
            else:
                taken += 1
                if rng.random() < 0.1:
                    try:
                        m.run(timeout=0.02)
                    except PykvmError:
                        pass
        m.restore(good, verify=True)
        assert not m.run(timeout=30).reason.is_crash
    assert refused > count // 5
    assert taken


def test_mutated_files(saved: pathlib.Path, tmp_path: pathlib.Path) -> None:
    try_mutations(saved, tmp_path, 400, 5)


@pytest.mark.slow
def test_ten_thousand_mutated_files(saved: pathlib.Path, tmp_path: pathlib.Path) -> None:
    try_mutations(saved, tmp_path, 10_000, 6)
