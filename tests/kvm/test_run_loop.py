"""The C loop as `Vcpu` offers it: exits, answers, kicks, native rules, statistics, traces."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import asm64
import pytest

from pykvm.arch.presets import long64, real_mode
from pykvm.kvm import ClosedError, Kvm, KvmError, Vcpu
from pykvm.kvm.exits import HltExit, IntrExit, IoExit, MmioExit
from pykvm.kvm.rules import RuleError


@pytest.fixture
def vcpu() -> Iterator[Vcpu]:
    with Kvm() as kvm, kvm.create_vm() as vm:
        vm.add_memory(0, 1 << 20)
        yield vm.create_vcpu(0)


def put(vcpu: Vcpu, code: bytes, *, long: bool = False) -> None:
    region = vcpu.vm.regions[0]
    region.write(0x1000, code)
    if long:
        vcpu.set_cpuid(vcpu.vm.kvm.supported_cpuid())
        long64(0x1000, identity=1 << 30, tables=0x8_0000).apply(vcpu, region)
    else:
        real_mode(0x1000).apply(vcpu)


def test_the_driver_example_of_the_readme(vcpu: Vcpu) -> None:
    put(vcpu, b"\xb0\x42\xe6\x10\xf4")
    exit_ = vcpu.run()
    assert isinstance(exit_, IoExit)
    assert (exit_.port, exit_.value, exit_.size, exit_.is_write) == (0x10, 0x42, 1, True)
    assert str(exit_) == "out 0x10 ← 'B' (1 byte) at 0x1002: out 0x10, al"
    assert isinstance(vcpu.run(), HltExit)


def test_a_read_is_answered_through_the_exit(vcpu: Vcpu) -> None:
    put(vcpu, b"\xe4\x10\xe6\x11\xf4")
    exit_ = vcpu.run()
    exit_.value = 0x5A
    assert vcpu.run().value == 0x5A


def test_an_exit_that_is_kept_does_not_change(vcpu: Vcpu) -> None:
    put(vcpu, b"\xb0\x01\xe6\x10\xb0\x02\xe6\x20\xf4")
    first = vcpu.run()
    second = vcpu.run()
    vcpu.run()
    assert (first.port, first.value) == (0x10, 1)
    assert (second.port, second.value) == (0x20, 2)
    assert "0x10" in str(first)


def test_registers_written_during_a_read_exit_are_merged(vcpu: Vcpu) -> None:
    # in al, 0x10; out 0x11, al; hlt: BX and AX both arrive.
    put(vcpu, b"\xe4\x10\xe6\x11\xf4")
    exit_ = vcpu.run()
    exit_.value = 0x77
    vcpu.regs.rbx = 0x1234
    out = vcpu.run()
    assert out.value == 0x77
    assert vcpu.regs.rbx == 0x1234


def test_rip_written_during_a_read_exit_wins(vcpu: Vcpu) -> None:
    put(vcpu, b"\xe4\x10\xf4" + bytes(13) + b"\xe6\x33\xf4")
    vcpu.run().value = 9
    vcpu.regs.rip = 0x1010
    out = vcpu.run()
    assert (out.port, out.value) == (0x33, 9)


def test_complete_finishes_the_instruction_and_nothing_else(vcpu: Vcpu) -> None:
    put(vcpu, b"\xe4\x10\xe6\x11\xf4")
    vcpu.run().value = 0x66
    assert vcpu.pending
    assert vcpu.regs.rip == 0x1000
    assert vcpu.complete() is None
    assert not vcpu.pending
    assert vcpu.regs.rip == 0x1002
    assert vcpu.regs.rax & 0xFF == 0x66


def test_complete_hands_over_the_second_half_of_a_straddling_access(vcpu: Vcpu) -> None:
    put(vcpu, asm64.load(0x2000_0FFE, 4, 0x2000) + asm64.HALT, long=True)
    first = vcpu.run()
    assert isinstance(first, MmioExit)
    assert (first.gpa, first.size) == (0x2000_0FFE, 2)
    first.value = 0x2211
    second = vcpu.complete()
    assert isinstance(second, MmioExit)
    assert (second.gpa, second.size) == (0x2000_1000, 2)
    second.value = 0x4433
    assert isinstance(vcpu.run(), HltExit)
    assert vcpu.vm.regions[0].read(0x2000, 4) == bytes.fromhex("11223344")


def test_ioctls_see_registers_that_were_just_written(vcpu: Vcpu) -> None:
    put(vcpu, b"\xf4")
    vcpu.regs.rax = 0xABCD
    assert vcpu.get_regs().rax == 0xABCD
    state = vcpu.get_regs()
    state.rbx = 0x99
    vcpu.set_regs(state)
    assert vcpu.regs.rbx == 0x99


def test_a_refused_state_names_the_field(vcpu: Vcpu) -> None:
    put(vcpu, b"\xf4")
    vcpu.flush()
    vcpu.sregs.cr0 = 0x8000_0000  # PG without PE
    with pytest.raises(KvmError) as caught:
        vcpu.run()
    assert caught.value.ioctl == "KVM_SET_SREGS"
    assert "cr0" in str(caught.value).lower()
    assert isinstance(vcpu.run(), HltExit)  # the state before is still there


def test_values_that_do_not_fit_are_refused(vcpu: Vcpu) -> None:
    with pytest.raises(ValueError, match="rax"):
        vcpu.regs.rax = 1 << 64
    with pytest.raises(ValueError, match=r"cs\.selector"):
        vcpu.sregs.cs.selector = 0x10000


def test_kick_before_and_during_a_run(vcpu: Vcpu) -> None:
    put(vcpu, b"\xeb\xfe")
    vcpu.kick()
    assert isinstance(vcpu.run(), IntrExit)
    for _ in range(20):
        timer = threading.Timer(0.005, vcpu.kick)
        timer.start()
        assert isinstance(vcpu.run(), IntrExit)
        timer.join()


def test_kicks_reach_only_their_own_vcpu() -> None:
    with Kvm() as kvm, kvm.create_vm() as vm:
        vm.add_memory(0, 1 << 20).write(0x1000, b"\xeb\xfe")
        vcpus = [vm.create_vcpu(i) for i in range(2)]
        ended: list[int] = []

        def body(vcpu: Vcpu) -> None:
            real_mode(0x1000).apply(vcpu)
            vcpu.run()
            ended.append(vcpu.id)

        threads = [threading.Thread(target=body, args=(v,)) for v in vcpus]
        for t in threads:
            t.start()
        time.sleep(0.05)
        vcpus[1].kick()
        threads[1].join(5)
        assert ended == [1]
        vcpus[0].kick()
        threads[0].join(5)
        assert ended == [1, 0]


def test_no_kick_is_lost(vcpu: Vcpu) -> None:
    """Kicks at random moments of short runs: each one ends the run it was meant for."""
    put(vcpu, b"\xeb\xfe")
    for n in range(300):
        thread = threading.Thread(target=vcpu.kick)
        thread.start()
        if n % 3 == 0:
            time.sleep(0)
        assert isinstance(vcpu.run(), IntrExit)
        thread.join()


def test_rules_drop_answer_and_collect(vcpu: Vcpu) -> None:
    drop = vcpu.vm.rules.pio(0x80, write="drop")
    const = vcpu.vm.rules.pio(0x90, 4, read=0x11223344)
    ring = vcpu.vm.rules.pio(0xE9, write="ring")
    # mov al,'A'; out 0xe9,al; out 0x80,al; inc al; out 0xe9,al; in eax,0x90; hlt
    put(vcpu, b"\xb0A\xe6\xe9\xe6\x80\xfe\xc0\xe6\xe9\x66\xe5\x90\xf4")
    assert isinstance(vcpu.run(), HltExit)
    assert vcpu.regs.rax == 0x11223344
    assert ring.drain() == b"AB"
    assert ring.drain() == b""
    assert (drop.count, const.reads, ring.writes) == (1, 1, 2)
    stats = vcpu.stats()
    assert stats.native == 4
    assert stats.ports[0xE9].count == 2
    assert stats.reasons["KVM_EXIT_IO"].count == 4
    assert stats.reasons["KVM_EXIT_HLT"].count == 1
    drop.remove()
    vcpu.regs.rip = 0x1004
    assert vcpu.run().port == 0x80


def test_a_full_ring_comes_to_python(vcpu: Vcpu) -> None:
    ring = vcpu.vm.rules.pio(0xE9, write="ring", ring_size=4096)
    # mov cx, 5000; rep outsb
    put(vcpu, b"\xba\xe9\x00\xb9\x88\x13\xbe\x00\x20\xf3\x6e\xf4")
    got = b""
    while not isinstance(exit_ := vcpu.run(), HltExit):
        got += ring.drain() + bytes(exit_.data)
    got += ring.drain()
    assert len(got) == 5000


def test_an_access_past_the_rule_comes_to_python(vcpu: Vcpu) -> None:
    vcpu.vm.rules.pio(0x80, write="drop")
    put(vcpu, b"\xe7\x80\xf4")  # out 0x80, ax
    exit_ = vcpu.run()
    assert (exit_.port, exit_.size) == (0x80, 2)


def test_mmio_rules(vcpu: Vcpu) -> None:
    rule = vcpu.vm.rules.mmio(0x2000_0000, 16, read=0x8877665544332211, write="drop")
    put(
        vcpu,
        asm64.store(0x2000_0008, 8, 1) + asm64.load(0x2000_0000, 8, 0x2000)
        + asm64.store(0x2000_000C, 8, 1) + asm64.HALT,
        long=True,
    )  # fmt: skip
    straddling = vcpu.run()
    assert isinstance(straddling, MmioExit)
    assert straddling.gpa == 0x2000_000C
    assert isinstance(vcpu.run(), HltExit)
    assert vcpu.vm.regions[0].read(0x2000, 8) == bytes.fromhex("1122334455667788")
    assert (rule.reads, rule.writes) == (1, 1)
    rule.remove()
    vcpu.vm.rules.mmio(0x2000_0000, 16, write="drop")


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda r: r.pio(0x10), "needs"),
        (lambda r: r.pio(0x10, write="eat"), "eat"),
        (lambda r: r.pio(0xFFFF, 2, write="drop"), "0xffff"),
        (lambda r: (r.pio(0x10, write="drop"), r.pio(0x10, read=1)), "another rule"),
        (lambda r: r.mmio(0, 0, write="drop"), "empty"),
        (lambda r: r.pio(0x10, write="ring", ring_size=1000), "Invalid"),
    ],
)
def test_bad_rules(vcpu: Vcpu, make: object, match: str) -> None:
    with pytest.raises(RuleError, match=match):
        make(vcpu.vm.rules)


def test_trace_records(vcpu: Vcpu) -> None:
    vcpu.enable_trace(64)
    put(vcpu, b"\xb0\x41\xe6\x10\xe4\x11\xf4")
    vcpu.run()
    vcpu.run().value = 0x99
    vcpu.run()
    out, in_, hlt = vcpu.trace_records()
    assert (out.name, out.address, out.value, out.is_write, out.size) == (
        "KVM_EXIT_IO", 0x10, 0x41, True, 1,
    )  # fmt: skip
    assert (in_.address, in_.value, in_.is_write) == (0x11, 0x99, False)
    assert hlt.name == "KVM_EXIT_HLT"
    assert out.sequence == 0
    assert out.time_ns <= in_.time_ns <= hlt.time_ns
    assert out.run_ns > 0
    assert out.handle_ns > 0
    assert vcpu.trace_records() == []


def test_an_overwriting_ring_keeps_the_newest(vcpu: Vcpu) -> None:
    vcpu.enable_trace(8)
    put(vcpu, b"\xe6\x10\xeb\xfc")
    for _ in range(20):
        vcpu.run()
    assert [r.sequence for r in vcpu.trace_records()] == list(range(12, 20))


def test_a_lossless_ring_stops_until_it_is_drained(vcpu: Vcpu) -> None:
    vcpu.enable_trace(8, lossless=True)
    put(vcpu, b"\xe6\x10\xeb\xfc")
    for _ in range(8):
        vcpu.run()
    with pytest.raises(KvmError, match="trace_records"):
        vcpu.run()
    assert len(vcpu.trace_records()) == 8
    vcpu.run()


def test_coalesced_writes_come_before_the_exit_after_them() -> None:
    with Kvm() as kvm, kvm.create_vm() as vm:
        vm.add_memory(0, 1 << 20)
        vcpu = vm.create_vcpu(0)
        vm.register_coalesced(0x10, 1, pio=True)
        put(vcpu, b"\xb0\x01\xe6\x10\xb0\x02\xe6\x10\xe6\x20\xf4")
        exit_ = vcpu.run()
        assert exit_.port == 0x20
        assert [(w.address, w.value) for w in vm.drain_coalesced()] == [(0x10, 1), (0x10, 2)]


def test_closed_objects_say_so(vcpu: Vcpu) -> None:
    vcpu.close()
    for use in (lambda: vcpu.regs.rip, vcpu.run, vcpu.flush, vcpu.complete):
        with pytest.raises(ClosedError, match="vCPU 0"):
            use()
    vcpu.kick()  # harmless


def test_stats_can_be_cleared(vcpu: Vcpu) -> None:
    put(vcpu, b"\xe6\x10\xf4")
    vcpu.run()
    assert vcpu.exit_counts() == {"KVM_EXIT_IO": 1}
    vcpu.reset_stats()
    assert vcpu.exit_counts() == {}
    assert vcpu.stats().entries == 0


def test_a_running_vcpu_is_not_closed_from_under_its_loop(vcpu: Vcpu) -> None:
    put(vcpu, b"\xeb\xfe")
    thread = threading.Thread(target=vcpu.run)
    thread.start()
    while not vcpu._native.tid:
        time.sleep(0.001)
    with pytest.raises(KvmError, match="kick"):
        vcpu.close()
    vcpu.kick()
    thread.join(5)
    vcpu.close()


def test_the_registers_of_the_last_entry_are_kept(vcpu: Vcpu) -> None:
    put(vcpu, b"\xe6\x10\x48\xe6\x10\xf4")  # out; dec ax; out
    vcpu.regs.rax = 5
    vcpu.run()
    assert vcpu.entry_regs is not None
    assert (vcpu.entry_regs["rip"], vcpu.entry_regs["rax"]) == (0x1000, 5)
    vcpu.run()
    assert vcpu.entry_regs["rip"] in (0x1000, 0x1002)  # hosts differ in where OUT leaves RIP
    assert vcpu.regs.rax & 0xFFFF == 4
