"""The machine as its users type it: handlers, results, status, time-outs, stops, resets, leaks."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time

import asm64
import pytest

from pykvm import Machine, PykvmError, Status, StopReason
from pykvm.machine import MachineError

SPIN = b"\xeb\xfe"  # jmp $
HALT16 = b"\xfa\xf4"
OUT_10 = b"\xe6\x10"


@pytest.fixture
def machine() -> Machine:
    with Machine("4M") as m:
        yield m


def test_the_example_of_the_readme(machine: Machine) -> None:
    # mov al, 7; out 0x10, al; in al, 0x10; out 0xf4, al
    machine.load(b"\xb0\x07\xe6\x10\xe4\x10\xe6\xf4", load=0x1000, entry=0x1000, mode="real")
    seen = []

    @machine.on_pio(0x10, size=1)
    def port(access: object) -> None:
        if access.is_write:
            seen.append(access.value)
        else:
            access.value = 0x42

    result = machine.run(timeout=5)
    assert seen == [7]
    assert result.reason is StopReason.DEBUG_EXIT
    assert result.value == 0x42
    assert result.exit_code == (0x42 << 1) | 1
    assert result.exits == {"KVM_EXIT_IO": 3}


def test_serial_output_is_captured_and_forwarded() -> None:
    got = bytearray()
    with Machine("1M", serial=got.extend) as m:
        m.load(b"\xba\xf8\x03\xb0H\xee\xb0i\xee" + HALT16)
        result = m.run(timeout=5)
        assert result.serial == b"Hi"
        assert result.text == "Hi"
        assert result.exit_code == 0
    assert bytes(got) == b"Hi"


def test_a_handlers_exception_surfaces_with_its_exit(machine: Machine) -> None:
    machine.load(OUT_10 + HALT16)

    @machine.on_pio(0x10)
    def broken(access: object) -> None:
        raise ZeroDivisionError("handler")

    with pytest.raises(ZeroDivisionError, match="handler") as caught:
        machine.run(timeout=5)
    assert caught.value.exit.port == 0x10
    assert "out 0x10" in str(caught.value.exit)
    assert machine.status is Status.CRASHED
    with pytest.raises(MachineError, match="ZeroDivisionError"):
        machine.run()
    broken.remove()
    machine.reset()
    assert machine.status is Status.READY
    assert machine.run(timeout=5).reason is StopReason.HALTED


def test_triple_fault_is_reported_and_refuses_to_go_on(machine: Machine) -> None:
    machine.load(b"\x0f\x0b", mode="long")  # ud2 and no handlers: fault, double, triple
    result = machine.run(timeout=5)
    assert result.reason is StopReason.SHUTDOWN
    assert result.exit_code == 126
    assert "triple fault" in result.report
    assert "rip=0000000000001000" in result.report
    if "resets the vCPU" not in result.report:  # SVM hosts do: there is no instruction to show
        assert "ud2" in result.report
        assert "efer=00000500" in result.report
    assert machine.status is Status.CRASHED
    with pytest.raises(MachineError, match="crashed"):
        machine.run()
    machine.reset()
    assert machine.run(timeout=5).reason is StopReason.SHUTDOWN


@pytest.mark.parametrize("cpus", [1, 2])
@pytest.mark.parametrize("irqchip", ["kernel", "none"])
def test_timeout_is_kept(cpus: int, irqchip: str) -> None:
    if cpus > 1 and irqchip == "none":
        with pytest.raises(MachineError, match="interrupt controller"):
            Machine("1M", cpus=cpus, irqchip=irqchip)
        return
    with Machine("1M", cpus=cpus, irqchip=irqchip) as m:
        m.load(SPIN)
        started = time.monotonic()
        result = m.run(timeout=0.3)
        elapsed = time.monotonic() - started
        assert result.reason is StopReason.TIMEOUT
        assert result.exit_code == 124
        assert 0.3 <= elapsed < 0.8  # the end is prompt; how prompt is for the benchmarks
        assert m.status is Status.READY
        assert m.run(timeout=0.05).reason is StopReason.TIMEOUT  # and it can go on


@pytest.mark.parametrize("irqchip", ["kernel", "split", "none"])
@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_halted_for_good(irqchip: str, cpus: int) -> None:
    if irqchip == "none" and cpus > 1:
        return
    with Machine("1M", cpus=cpus, irqchip=irqchip) as m:
        m.load(HALT16)
        result = m.run(timeout=10)
        assert result.reason is StopReason.HALTED
        assert m.status is Status.HALTED


def test_stop_from_another_thread(machine: Machine) -> None:
    machine.load(SPIN)
    threading.Timer(0.1, machine.stop).start()
    assert machine.run(timeout=10).reason is StopReason.STOPPED


def test_stop_from_a_handler(machine: Machine) -> None:
    machine.load(OUT_10 + SPIN)
    machine.on_pio(0x10)(lambda access: machine.stop())
    result = machine.run(timeout=10)
    assert result.reason is StopReason.STOPPED
    assert result.exits["KVM_EXIT_IO"] == 1


@pytest.mark.parametrize("cpus", [1, 2])
def test_pause_and_resume(cpus: int) -> None:
    with Machine("1M", cpus=cpus) as m:
        m.load(b"\xe6\x10\xeb\xfc")  # out 0x10, al in a loop
        count = [0]

        @m.on_pio(0x10)
        def tick(access: object) -> None:
            count[0] += 1

        m.start()
        while count[0] < 10:
            time.sleep(0.001)
        m.pause()
        assert m.status is Status.PAUSED
        frozen = count[0]
        time.sleep(0.05)
        assert count[0] == frozen
        m.resume()
        while count[0] < frozen + 10:
            time.sleep(0.001)
        assert m.status is Status.RUNNING
        m.stop()
        assert m.wait(timeout=10).reason is StopReason.STOPPED


def test_start_then_close_leaves_nothing_running() -> None:
    m = Machine("1M")
    m.load(SPIN)
    m.start()
    m.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("pykvm")]


@pytest.mark.parametrize("cpus", [1, 2])
def test_ctrl_c_ends_the_run_and_leaves_the_machine_usable(cpus: int) -> None:
    with Machine("1M", cpus=cpus) as m:
        m.load(SPIN)
        threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            m.run(timeout=10)
        assert m.run(timeout=0.05).reason is StopReason.TIMEOUT


def test_unclaimed_policies() -> None:
    in_then_exit = b"\xe4\x99\xe6\xf4"  # in al, 0x99; out 0xf4, al
    for policy, value in (("ones", 0xFF), ("log", 0xFF), ("ignore", 0)):
        with Machine("1M", unclaimed=policy) as m:
            m.load(in_then_exit)
            assert m.run(timeout=5).value == value
            assert m.unclaimed_counts == {("pio", 0x99): 1}
    with Machine("1M", unclaimed="stop") as m:
        m.load(in_then_exit)
        result = m.run(timeout=5)
        assert result.reason is StopReason.UNCLAIMED
        assert "0x99" in result.detail


def test_hooks_cover_devices_and_come_off(machine: Machine) -> None:
    machine.load(b"\xe4\x80\xe6\xf4")  # in al, 0x80; out 0xf4, al
    hook = machine.on_pio(0x80)(lambda access: setattr(access, "value", 0x33))
    assert machine.run(timeout=5).value == 0x33
    hook.remove()
    machine.reset()
    assert machine.run(timeout=5).value == 0
    machine.on_pio(0x90, size=2)(lambda a: None)
    with pytest.raises(PykvmError, match="overlaps"):
        machine.on_pio(0x91)(lambda a: None)


def test_mmio_in_ram_is_refused(machine: Machine) -> None:
    with pytest.raises(MachineError, match="guest RAM"):
        machine.on_mmio(0x1000, 8)(lambda access: None)


def test_devices_and_memory_are_as_after_load_again(machine: Machine) -> None:
    # inc byte [0x2000]; mov al, [0x2000]; out 0xf4, al
    machine.load(b"\xfe\x06\x00\x20\xa0\x00\x20\xe6\xf4")
    assert machine.run(timeout=5).value == 1
    assert machine.memory.read_u8(0x2000) == 1
    machine.reset()
    assert machine.memory.read_u8(0x2000) == 0
    assert machine.run(timeout=5).value == 1


def test_memory_above_the_hole() -> None:
    with Machine("4G") as m:
        assert [(r.gpa, r.size) for r in m.memory.regions] == [
            (0, 0xC000_0000), (1 << 32, 0x4000_0000)
        ]  # fmt: skip
        top = (1 << 32) + 0x4000_0000 - 8
        m.memory.write_u64(top, 0x1234)
        m.load(asm64.mov_imm("rbx", 1) + asm64.HALT, load=0x1000, mode="long")
        assert m.run(timeout=5).reason is StopReason.HALTED


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"memory": "12 parsecs"}, "not a size"),
        ({"memory": 100}, "not possible"),
        ({"cpus": 0}, "vCPUs"),
        ({"cpus": 65}, "64"),
        ({"irqchip": "acme"}, "irqchip"),
        ({"unclaimed": "maybe"}, "policy"),
    ],
)
def test_impossible_arguments_are_one_sentence(arguments: dict, match: str) -> None:
    with pytest.raises(MachineError, match=match) as caught:
        Machine(**arguments)
    assert "\n" not in str(caught.value)


def test_use_after_close_is_a_clear_error() -> None:
    m = Machine("1M")
    m.close()
    m.close()
    assert m.status is Status.CLOSED
    for call in (m.run, m.pause, m.reset, lambda: m.load(b"\xf4")):
        with pytest.raises(MachineError, match="closed"):
            call()


def resources() -> tuple[int, int, int]:
    gc.collect()
    with open("/proc/self/maps") as maps:
        mappings = sum("kvm" in line or "memfd" in line for line in maps)
    return len(os.listdir("/proc/self/fd")), threading.active_count(), mappings


def test_a_thousand_rounds_leave_nothing() -> None:
    def once(n: int) -> None:
        with Machine("1M", cpus=1 + n % 2, irqchip="kernel") as m:
            m.load(OUT_10 + HALT16)
            if n % 10 == 0:

                @m.on_pio(0x10)
                def broken(access: object) -> None:
                    raise ValueError

                with pytest.raises(ValueError):
                    m.run(timeout=5)
            else:
                assert m.run(timeout=5).reason is StopReason.HALTED

    for n in range(20):
        once(n)
    before = resources()
    for n in range(1000):
        once(n)
    assert resources() == before


def test_dropped_machines_are_finalized() -> None:
    before = resources()
    for _ in range(10):
        m = Machine("1M")
        m.load(HALT16)
        m.run(timeout=5)
        del m
    assert resources() == before


def test_a_stop_before_the_run_is_not_lost(machine: Machine) -> None:
    machine.load(SPIN)
    machine.stop()
    assert machine.run(timeout=10).reason is StopReason.STOPPED
    assert machine.run(timeout=0.05).reason is StopReason.TIMEOUT


def test_post_codes_have_times(machine: Machine) -> None:
    machine.load(b"\xb0\x11\xe6\x80\xb0\x22\xe6\x80" + HALT16)
    machine.run(timeout=5)
    (first, one), (second, two) = machine.post_codes
    assert (one, two) == (0x11, 0x22)
    assert 0 < first <= second
