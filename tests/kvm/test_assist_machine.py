"""The assist as part of a machine: statistics, reset, debuggers, several vCPUs, its engine."""

from __future__ import annotations

import threading

import pytest
from assist_oracle import CODE_GPA, DONE, DONE_PORT, STUBS

from pykvm import Machine
from pykvm.arch import presets
from pykvm.kvm import Kvm
from pykvm.lab.totals import exit_totals, totals_text
from pykvm.machine.assist.decode import Instruction, relocated
from pykvm.machine.assist.engine import CODE, GENERAL, WINDOW, Engine, Frame
from pykvm.machine.result import MachineError, StopReason

POPCNT = bytes.fromhex("f30fb8c1")  # popcnt eax, ecx


def ring0(machine: Machine, code: bytes) -> None:
    machine.memory.write(CODE_GPA, code)
    state = presets.long64(
        CODE_GPA, stack=0x48000, tables=0x10000, identity=1 << 20, page_size=4096,
        handlers={n: STUBS + 4 * n for n in range(256)},
    )  # fmt: skip
    state.apply(machine.vcpus[0], machine.memory)


def bare(assist: str = "auto") -> Machine:
    machine = Machine("1M", board="bare", devices=False, irqchip="none", assist=assist)  # type: ignore[arg-type]
    machine.on_pio(DONE_PORT)(lambda access: machine.stop())
    return machine


@pytest.fixture(scope="module", autouse=True)
def _refusing_host() -> None:
    with bare("off") as machine:
        ring0(machine, POPCNT + DONE)
        if machine.run(timeout=5).reason is not StopReason.INTERNAL_ERROR:
            pytest.skip("this host's KVM refuses no instruction: there is nothing to assist")


def test_counts_are_in_the_result_and_the_totals() -> None:
    with bare() as machine:
        assert machine.assist is None
        ring0(machine, POPCNT * 3 + b"\x9b" + DONE)
        result = machine.run(timeout=5)
        assert result.reason is StopReason.STOPPED
        assert result.assisted == {"popcnt": 3, "wait": 1}
        assert "4 instructions assisted" in str(result)
        assert totals_text(exit_totals(machine), result).endswith("assist: popcnt 3, wait 1")


def test_a_run_without_one_says_nothing() -> None:
    with bare() as machine:
        ring0(machine, DONE)
        result = machine.run(timeout=5)
        assert machine.assist is None
        assert result.assisted == {}
        assert "assist" not in totals_text(exit_totals(machine), result) + str(result)


def test_reset_forgets_counts_and_breakpoints() -> None:
    with bare() as machine:
        machine.load(POPCNT + DONE, load=CODE_GPA, entry=CODE_GPA, mode="long")
        ring0(machine, POPCNT + DONE)
        machine.run(timeout=5)
        assert machine.assist is not None
        assert machine.vcpus[0].guest_debug.breakpoints
        machine.reset()
        assert machine.assist.counts == {}
        assert not machine.vcpus[0].guest_debug.breakpoints
        assert machine.run(timeout=5).assisted == {"popcnt": 1}


def test_a_debuggers_breakpoints_come_first() -> None:
    with bare() as machine:
        vcpu = machine.vcpus[0]
        ring0(machine, POPCNT + b"\xcc" + DONE)
        vcpu.set_guest_debug(software_breakpoints=True)
        result = machine.run(timeout=5)
        assert result.assisted == {"popcnt": 1}
        assert vcpu.guest_debug.software_breakpoints
        # Its INT3 is not given to the guest: as without the assist, the run ends there.
        assert vcpu.regs.rip == CODE_GPA + 4
        assert result.reason in (StopReason.INTERNAL_ERROR, StopReason.STOPPED)


def test_modes() -> None:
    with bare("on") as machine:
        assert machine.assist is not None
    with pytest.raises(MachineError, match="assist='maybe' is not auto, on or off"):
        bare("maybe")


def test_locked_operations_of_two_engines_are_atomic() -> None:
    """Two vCPUs' engines add to one 16-byte counter with LOCK CMPXCHG16B; no addition is lost."""
    rounds = 60
    with Kvm() as kvm, kvm.create_vm() as vm:
        memory = vm.add_memory(0, 1 << 20)
        insn = Instruction(bytes.fromhex("f0480fc70f"), 64)
        code = relocated(insn, WINDOW - CODE)
        failures = []

        def add(engine: Engine) -> None:
            try:
                regs = dict.fromkeys(GENERAL, 0)
                engine.map([Frame(0x5000, True)])
                done = 0
                while done < rounds:
                    regs["rbx"] = (regs["rax"] + 1) & (1 << 64) - 1
                    regs["rcx"] = regs["rdx"]
                    flags, trap = engine.execute(code, regs, 2)
                    assert trap is None
                    done += flags >> 6 & 1
            except BaseException as error:
                failures.append(error)

        engines = [Engine(kvm, vm) for _ in range(2)]
        threads = [threading.Thread(target=add, args=(engine,)) for engine in engines]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert int.from_bytes(memory.read(0x5000, 16), "little") == 2 * rounds
        for engine in engines:
            engine.close()


def test_the_engine_follows_new_memory() -> None:
    with Kvm() as kvm, kvm.create_vm() as vm:
        vm.add_memory(0, 1 << 20)
        engine = Engine(kvm, vm)
        code = relocated(Instruction(bytes.fromhex("f3480fb807"), 64), WINDOW - CODE)
        for gpa in (0x10_0000, 0x1_0000_0000):
            region = vm.add_memory(gpa, 1 << 16)
            region.write(gpa + 0x3000, b"\xff" * 6)
            engine.map([Frame(gpa + 0x3000, False)])
            regs = dict.fromkeys(GENERAL, 0)
            assert engine.execute(code, regs, 2)[1] is None
            assert regs["rax"] == 48
        engine.close()
