"""Many vCPUs, the interrupt controllers of each kind, CPU models and MSRs, and how runs end."""

from __future__ import annotations

import struct
import threading
import time

import pytest

from pykvm import Machine, Status, StopReason
from pykvm.arch.cpumodel import CpuModelError
from pykvm.kvm.vcpu_lapic import MpState
from pykvm.machine import MachineError

HALT = b"\xfa\xf4"
SPIN = b"\xeb\xfe"
SLEEP_FOR_EVER = b"\xfa\xf4\xeb\xfd"  # cli; hlt; and again after an NMI
SAY = 0x10
TRIPLE_FAULT = b"\x0f\x0b"  # ud2, with no IDT in long mode


def print16(text: bytes) -> bytes:
    """16-bit code that prints on COM1."""
    return b"\xba\xf8\x03" + b"".join(b"\xb0" + bytes([c]) + b"\xee" for c in text)


def print64(text: bytes) -> bytes:
    """64-bit code that does."""
    return b"\x66\xba\xf8\x03" + b"".join(b"\xb0" + bytes([c]) + b"\xee" for c in text)


# -- many vCPUs --------------------------------------------------------------------------------


@pytest.mark.parametrize("irqchip", ["kernel", "split"])
def test_64_vcpus_that_spin_are_stopped(irqchip: str) -> None:
    with Machine("4M", cpus=64, irqchip=irqchip) as m:
        m.load(SPIN)
        # INIT-SIPI is the guest's part; here all are let loose at the same instruction.
        for vcpu in m.vcpus[1:]:
            m.image.state.apply(vcpu, None)  # type: ignore[union-attr]
            vcpu.set_mp_state(MpState.RUNNABLE)
        m.start()
        assert m.wait(0.3) is None
        m.pause()
        assert m.status is Status.PAUSED
        assert {vcpu.get_mp_state() for vcpu in m.vcpus} == {MpState.RUNNABLE}
        m.resume()
        m.stop()
        result = m.wait(60)
        assert result is not None
        assert result.reason is StopReason.STOPPED


def test_64_vcpus_that_wait_for_their_start_are_stopped() -> None:
    with Machine("4M", cpus=64) as m:
        m.load(SPIN)
        assert m.run(timeout=0.3).reason is StopReason.TIMEOUT
        assert [v.get_mp_state() for v in m.vcpus[1:]] == [MpState.UNINITIALIZED] * 63


def test_a_halted_guest_with_other_cpus_asleep_is_over() -> None:
    with Machine("4M", cpus=16) as m:
        m.load(SLEEP_FOR_EVER)
        assert m.run(timeout=60).reason is StopReason.HALTED


def test_pause_and_resume_from_several_threads() -> None:
    with Machine("4M", cpus=4) as m:
        m.load(b"\xe6\x10" + SPIN[:1] + b"\xfc")  # out SAY, al; jump back
        count = 0

        @m.on_pio(SAY)
        def say(access: object) -> None:
            nonlocal count
            count += 1

        m.start(timeout=60)
        before = 0
        for _ in range(20):
            while count == before and m.status is Status.RUNNING:
                time.sleep(0.001)
            m.pause()
            before = count
            assert m.status is Status.PAUSED
            time.sleep(0.001)
            assert count == before
            m.resume()
        threads = [threading.Thread(target=m.pause) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        m.resume()
        m.stop()
        assert m.wait(60) is not None
        assert count


# 64-bit: INIT and SIPI (vector 8, so 0x8000) to all others through the LAPIC's ICR; then it waits
# until [0x8100] is what is asked for.
START_OTHERS = bytes.fromhex("bb0003e0fe" "c70300450c00" "c70308460c00")  # fmt: skip
OTHERS = bytes.fromhex("f0fe060081faf4ebfd")  # 16-bit: lock inc byte [0x8100]; sleep for ever


@pytest.mark.parametrize(
    ("cpus", "irqchip", "board"),
    [(64, "kernel", "pc"), (64, "split", "microvm"), (5, "split", "pc"), (2, "kernel", "microvm")],
)
def test_processors_start_by_init_and_sipi(cpus: int, irqchip: str, board: str) -> None:
    # cmp byte [0x8100], cpus - 1; jne -10
    wait = b"\x80\x3c\x25\x00\x81\x00\x00" + bytes([cpus - 1]) + b"\x75\xf6"
    with Machine("4M", cpus=cpus, irqchip=irqchip, board=board) as m:
        m.load(START_OTHERS + wait + SLEEP_FOR_EVER, load=0x1000, entry=0x1000, mode="long")
        for _ in range(2):  # and again after a reset
            m.memory.write(0x8000, OTHERS)
            result = m.run(timeout=60)
            assert result.reason is StopReason.HALTED, result
            assert m.memory.read_u8(0x8100) == cpus - 1
            m.reset()


def test_topology_gives_the_apic_ids() -> None:
    with Machine("4M", cpus=6, topology="sockets=2,cores=3,threads=1") as m:
        assert [vcpu.id for vcpu in m.vcpus] == [0, 1, 2, 4, 5, 6]
        m.load(SPIN)
        assert m.run(timeout=0.1).reason is StopReason.TIMEOUT
    with pytest.raises(CpuModelError, match="has 6 CPUs"):
        Machine("4M", cpus=4, topology="sockets=2,cores=3,threads=1")


# -- user-space interrupt controllers ------------------------------------------------------------

# 16-bit: IVT entry 0x20 := handler; ICW1-4 of the master PIC (vectors from 0x20), all but IRQ 0
# masked; PIT counter 0 mode 2 at 1 kHz; sti; hlt; loop. The handler counts, says so, ends it.
TIMER_GUEST = bytes.fromhex(
    "fa31c08ed8c7068000"  # cli; xor ax,ax; mov ds,ax; mov word [0x80],
    "4010c70682000000"  # 0x1040; mov word [0x82], 0
    "b011e620b020e621b004e621b001e621b0fee621"  # PIC
    "b034e643b0a9e640b004e640"  # PIT: 0x4a9 ticks
    "fbf4ebfd"  # sti; hlt; jmp
)
TIMER_HANDLER = bytes.fromhex("50b020e620e61058cf")  # push ax; EOI; out SAY, al; pop ax; iret


@pytest.mark.parametrize("irqchip", ["kernel", "split"])
@pytest.mark.parametrize("cpus", [1, 2])
def test_timer_interrupts_through_the_pic(irqchip: str, cpus: int) -> None:
    ticks = 0
    with Machine("1M", irqchip=irqchip, cpus=cpus) as m:
        code = TIMER_GUEST.ljust(0x40, b"\x90") + TIMER_HANDLER
        m.load(code, load=0x1000, entry=0x1000, mode="real")

        @m.on_pio(SAY)
        def say(access: object) -> None:
            nonlocal ticks
            ticks += 1
            if ticks == 20:
                m.stop()

        assert m.run(timeout=20).reason is StopReason.STOPPED
    assert ticks >= 20


def test_a_split_machine_is_reset_with_its_chips() -> None:
    with Machine("1M", irqchip="split") as m:
        assert m.chips is not None
        m.load(b"\xb0\x11\xe6\x20\xb0\x48\xe6\x21" + HALT)
        m.run(timeout=10)
        m.reset()
        assert not m.chips.pic.pending
        assert all(entry.masked for entry in m.chips.ioapic.entries())


# -- CPU models and MSRs -------------------------------------------------------------------------


def features(m: Machine) -> int:
    """What CPUID leaf 1 says in ECX to the guest."""
    # mov eax, 1; cpuid; mov [0x8000], ecx; hlt
    m.load(b"\xb8\x01\x00\x00\x00\x0f\xa2\x89\x0c\x25\x00\x80\x00\x00" + HALT, mode="long")
    assert m.run(timeout=10).reason is StopReason.HALTED
    return m.memory.read_u32(0x8000)


def test_a_model_and_wishes_reach_the_guest() -> None:
    with Machine("2M", cpu="minimal") as m:
        assert m.cpus is not None
        assert "sse3" not in m.cpus.model.features
        seen = features(m)
        m.reset()
        assert features(m) == seen
        # What a host forces upon its guests is in what KVM gives back; OSXSAVE follows CR4.
        told = next(e.ecx for e in m.vcpus[0].get_cpuid() if e.function == 1)
        assert (seen ^ told) & ~(1 << 27) == 0
        assert seen >> 31
    with Machine("2M", cpu="host,-sse3") as m:
        assert m.cpus is not None
        assert "sse3" not in m.cpus.model.features
        assert "sse2" in m.cpus.model.features
    with pytest.raises(CpuModelError, match="minimal"):
        Machine("2M", cpu="mininal")


def test_msrs_that_kvm_does_not_know() -> None:
    # mov ecx, 0x1b0; rdmsr; mov [0x8000], eax; mov ecx, 0x13371337; rdmsr -> #GP, triple fault
    read = b"\xb9\xb0\x01\x00\x00\x83\xc8\xff\x0f\x32\x89\x04\x25\x00\x80\x00\x00"
    wrong = b"\xb9\x37\x13\x37\x13\x0f\x32"
    with Machine("2M", cpu="host") as m:
        m.memory.write_u32(0x8000, 7)
        m.load(read + HALT, mode="long")
        assert m.run(timeout=10).reason is StopReason.HALTED
        assert m.memory.read_u32(0x8000) == 0
        m.load(wrong + HALT, mode="long")
        assert m.run(timeout=10).reason is StopReason.SHUTDOWN
        assert m.cpus is not None
        assert (0x13371337, False) in m.cpus.accesses


# -- how runs end --------------------------------------------------------------------------------

PANIC = b"Kernel panic - not syncing: no init found\n"


def test_a_triple_fault_can_be_a_reset() -> None:
    with Machine("2M", triple_fault="reset") as m:
        m.load(TRIPLE_FAULT, mode="long")
        result = m.run(timeout=10)
        assert (result.reason, result.exit_code) == (StopReason.RESET, 0)
        assert m.run(timeout=0.5, reboot=True).resets
    with Machine("2M", triple_fault="stop") as m:
        m.load(TRIPLE_FAULT, mode="long")
        assert m.run(timeout=10).exit_code == 126
    with pytest.raises(MachineError, match="auto, stop or reset"):
        Machine("2M", triple_fault="explode")


@pytest.mark.parametrize("end", ["reset", "halt"])
def test_a_panic_on_the_console_is_reported(end: str) -> None:
    stamp = print16(b"[    1.234567] " + PANIC + b"\r\n")
    reset = b"\xba\xf9\x0c\xb0\x06\xee" + SPIN
    with Machine("4M", board="pc") as m:
        m.load(stamp + (reset if end == "reset" else HALT))
        result = m.run(timeout=10, reboot=True)
    assert result.reason is StopReason.PANIC
    assert result.exit_code == 126
    assert result.detail == PANIC.decode().strip()
    assert "no init found" in result.report


def test_a_panic_that_spins_is_told_with_the_timeout() -> None:
    with Machine("2M") as m:
        m.load(print16(PANIC) + SPIN)
        result = m.run(timeout=0.5)
    assert result.exit_code == 124
    assert "no init found" in result.detail


def test_a_panic_by_triple_fault_is_a_panic() -> None:
    with Machine("2M") as m:
        m.load(print64(PANIC) + TRIPLE_FAULT, mode="long")
        assert m.run(timeout=10).reason is StopReason.PANIC


def test_the_kernels_own_way_to_reset_counts() -> None:
    from kernel_images import pvh_elf

    # 32-bit: lidt [0] with a limit of 0 (RAM is empty there); int3
    code = b"\x0f\x01\x1d" + struct.pack("<I", 0) + b"\x0f\x0b"
    for cmdline, reason in (
        ("quiet reboot=t panic=-1", StopReason.RESET),
        ("reboot=w,t", StopReason.RESET),
        ("reboot=k", StopReason.SHUTDOWN),
    ):
        with Machine("32M") as m:
            m.load(pvh_elf(code=code), cmdline=cmdline)
            assert m.run(timeout=10).reason is reason


def test_a_bare_board_has_nothing() -> None:
    with Machine("1M", board="bare") as m:
        assert m.irqchip == "none"
        assert not m.devices
        with pytest.raises(MachineError, match="no serial port"):
            m.serial  # noqa: B018
        m.load(print16(b"x") + HALT)
        result = m.run(timeout=10)
        assert (result.reason, result.serial) == (StopReason.HALTED, b"")
        assert m.unclaimed_counts == {("pio", 0x3F8): 1}
    with pytest.raises(MachineError, match='use board="bare"'):
        Machine("1M", board="pc", devices=False)


@pytest.mark.parametrize("irqchip", ["kernel", "split", "none"])
def test_machines_leave_nothing_behind(irqchip: str) -> None:
    import gc
    import os

    def one() -> None:
        with Machine("4M", board="pc", irqchip=irqchip) as m:
            m.add_disk(bytes(1 << 20))
            m.add_disk(bytes(1 << 20), interface="ide")
            m.load(HALT)
            m.run(timeout=10)
            m.reset()

    def held() -> tuple[int, int]:
        gc.collect()
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    one()
    before = held()
    for _ in range(3):
        one()
    assert held() == before
