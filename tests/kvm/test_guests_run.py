"""Every shipped guest runs on /dev/kvm and ends as its manifest says; its parameters work."""

from __future__ import annotations

import re
import struct
import time

import pytest
from guestlib import lcg_after, run_guest

from pykvm import Machine, StopReason, images
from pykvm.devices.chardev import BufferChardev


@pytest.mark.parametrize("name", images.names())
def test_guest_ends_as_its_manifest_says(name: str) -> None:
    timeout = images.find(name).expect.timeout or 20
    run = run_guest(name, timeout=timeout, on_sync=lambda sync: sync.stage + 1)
    assert run.image.expect.problems(run.result.exit_code, run.result.serial) == []


def test_a_crash_is_found_at_its_instruction() -> None:
    run = run_guest("triplefault")
    assert run.result.reason is StopReason.SHUTDOWN
    report = run.result.report
    if "resets the vCPU" in report:  # SVM hosts: only where it was entered is left
        assert f"rip={run.image.entry:016x}" in report
        return
    for value in ("11111111", "22222222", "33333333", f"{run.image.symbols['crash']:x}"):
        assert value in report


def test_idle_costs_no_cpu_time() -> None:
    before = time.process_time()
    run = run_guest("idle", timeout=0.5)
    assert run.result.reason is StopReason.TIMEOUT
    assert time.process_time() - before < 0.25


@pytest.mark.parametrize(
    ("guest", "counted"), [("pio-loop", "KVM_EXIT_IO"), ("mmio-loop", "KVM_EXIT_MMIO")]
)
@pytest.mark.parametrize("direction", [0, 1])
@pytest.mark.parametrize("count", [0, 1, 15, 16, 100])
def test_loop_guests_make_exactly_count_accesses(
    guest: str, counted: str, direction: int, count: int
) -> None:
    seen: list[tuple[bool, int]] = []

    def prepare(m: Machine) -> None:
        hook = m.on_pio(0x123, size=1) if guest == "pio-loop" else m.on_mmio(0xE000_0040, 4)
        hook(lambda access: seen.append((access.is_write, access.size)))

    where = {"port": 0x123} if guest == "pio-loop" else {"address": 0xE000_0040}
    run = run_guest(guest, prepare=prepare, count=count, direction=direction, **where)
    assert run.result.value == 0
    assert seen == [(direction == 0, 1 if guest == "pio-loop" else 4)] * count
    assert run.result.exits["KVM_EXIT_IO"] + run.result.exits.get("KVM_EXIT_MMIO", 0) == count + 1
    assert run.result.exits.get(counted, 0) >= count


@pytest.mark.parametrize(("turns", "seed"), [(0, 5), (1, 0), (12345, 99), (3_000_000, 1 << 63)])
def test_compute_gives_the_right_number(turns: int, seed: int) -> None:
    run = run_guest("compute", turns=turns, seed=seed)
    start, end, number = struct.unpack("<3Q", run.areas["results"])
    assert number == lcg_after(turns, seed)
    assert end >= start
    assert f"result 0x{number:016x}" in run.text


def test_compute2_computes_on_both_cpus_at_once() -> None:
    run = run_guest("compute2", turns=20_000_000)
    first, second = struct.iter_unpack("<3Q", run.areas["results"])
    assert first[2] == lcg_after(20_000_000, 1)
    assert second[2] == lcg_after(20_000_000, 2)
    assert max(first[0], second[0]) < min(first[1], second[1]), "they did not overlap"


def test_compute2_on_one_cpu() -> None:
    run = run_guest("compute2", machine={"cpus": 1}, cpus=1, turns=1000)
    assert run.result.exit_code == 0
    number = struct.unpack("<3Q", run.areas["results"][:24])[2]
    assert number == lcg_after(1000, 1)
    assert "cpu 1" not in run.text


def test_smp_says_so_when_there_is_no_second_cpu() -> None:
    run = run_guest("smp", machine={"cpus": 1}, timeout=30)
    assert run.result.value == 2
    assert "the second CPU did not start" in run.text


def test_smp_loses_no_update() -> None:
    run = run_guest("smp", rounds=2000, timeout=30)
    assert "counter 4000, atomic counter 4000, expected 4000" in run.text


def test_memory_touch_writes_every_word_and_no_other() -> None:
    start, length, stride, rounds = 0x20_0040, 0x8000, 0x208, 3
    image = images.find("memory")
    with Machine(irqchip="none") as m:
        m.load("memory")
        image.patch(m.memory, start=start, length=length, stride=stride, rounds=rounds)
        m.memory.fill(0x20_0000, 0x10_0000, 0xAA)
        assert m.run(timeout=10).exit_code == 0
        expected = bytearray(b"\xaa" * 0x10_0000)
        for address in range(start, start + length - 7, stride):
            at = address - 0x20_0000
            expected[at : at + 8] = (address + rounds).to_bytes(8, "little")
        assert m.memory.read(0x20_0000, 0x10_0000) == expected


def test_memory_read_copy_and_fill() -> None:
    image = images.find("memory")
    with Machine(irqchip="none") as m:
        m.load("memory")
        pattern = bytes(range(256)) * 256
        m.memory.write(0x20_0000, pattern)
        image.patch(m.memory, operation=2, length=len(pattern), destination=0x28_0000)
        assert m.run(timeout=10).exit_code == 0
        assert m.memory.read(0x28_0000, len(pattern) + 1) == pattern + b"\0"

        m.load("memory")
        image.patch(m.memory, operation=1, length=len(pattern), stride=8)
        words = struct.unpack(f"<{len(pattern) // 8}Q", pattern)
        assert f"sum 0x{sum(words) & (1 << 64) - 1:x}," in m.run(timeout=10).text

        m.load("memory")
        image.patch(m.memory, operation=3, length=0x1000, rounds=7)
        assert m.run(timeout=10).exit_code == 0
        assert m.memory.read(0x20_0000, 0x1001) == b"\x07" * 0x1000 + b"\0"

        m.load("memory")
        image.patch(m.memory, operation=4)
        assert m.run(timeout=10).exit_code == 3


@pytest.mark.parametrize("name", ["echo", "echo-polled"])
def test_echo_loses_no_byte_of_a_long_input(name: str) -> None:
    text = "".join(f"{n:03} all work and no play\n" for n in range(30))
    image = images.find(name)
    serial = BufferChardev()
    with Machine(irqchip=image.irqchip, serial=serial) as m:
        m.load(name)
        serial.feed(text + "\x04")
        result = m.run(timeout=20)
    assert result.exit_code == 0
    assert result.text == f"{name}: Ctrl-D ends\n{text}\nbye\n"


def test_multiboot_kernel_sees_command_line_modules_and_memory() -> None:
    with Machine("32M", irqchip="none") as m:
        m.load(
            "hello-multiboot",
            cmdline="console=ttyS0 answer=42",
            modules=[(b"first module", "one a b"), (b"\x01\x02second", "two")],
        )
        result = m.run(timeout=5)
    assert result.exit_code == 0
    assert re.search(r"^command line: .*console=ttyS0 answer=42$", result.text, re.M)
    assert re.search(
        r'^module: 0x[0-9a-f]+000 to 0x[0-9a-f]+, "one a b": first module$', result.text, re.M
    )
    assert re.search(
        r'^module: 0x[0-9a-f]+000 to 0x[0-9a-f]+, "two": \.\.second$', result.text, re.M
    )
    assert re.search(r"^map: 0x100000 \+ 0x1f00000 free$", result.text, re.M)


def test_a_broken_exception_handler_shows_in_the_exit_code() -> None:
    """The runtime's report of an exception that nobody expected: 0x40 | vector."""
    image = images.find("memory")
    with Machine(irqchip="none") as m:
        m.load("memory")
        image.patch(m.memory, start=0x4000_0000)  # 1 GiB: not mapped
        result = m.run(timeout=5)
    assert result.value == 0x40 | 14
    assert result.text.startswith("unexpected #PF (vector 14), error code 0x6, at 0x1")
    assert "cr2=40000000" in result.text
