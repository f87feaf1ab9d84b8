"""The cases: which programs run in turn, and which of their numbers are compared."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from .boot_cases import boot_cases
from .images import MODES
from .model import BenchError, Case, Comparison, Goal, Sample, Side
from .programs import instructions, peer, per_exit, worker, worker_command
from .toolchain import built, loop_file

C = "raw C loop"
NATIVE = "native rule"
DEVICE = "device in Python"
HANDLER = "handler in Python"
TYPED = "vcpu.run() in Python"

PYTHON_SIDES = {NATIVE: "native", DEVICE: "device", HANDLER: "handler", TYPED: "typed"}

NATIVE_GOAL = (Goal(">=", 0.97),)
DEVICE_GOAL = (Goal("<=", 1200.0),)
HANDLER_GOAL = (Goal("<=", 2000.0),)
CREATE_GOAL = (Goal("<=", 1.5),)


def _c_loop(kind: str, file_exits: int, counted: int, env: dict[str, str]) -> Sample:
    return per_exit(peer("exit_loop", MODES[kind], loop_file(kind, file_exits), env=env), counted)


def _py_loop(side: str, kind: str, file_exits: int, counted: int, env: dict[str, str]) -> Sample:
    path = loop_file(kind, file_exits)
    return per_exit(worker("exits", side, kind, path, env=env), counted)


def _loop_sides(kind: str, exits: int) -> tuple[Side, ...]:
    sides = [Side(C, partial(_c_loop, kind, exits, exits, {}))]
    for name, side in PYTHON_SIDES.items():
        sides.append(Side(name, partial(_py_loop, side, kind, exits, exits, {})))
    return tuple(sides)


def exit_case(kind: str, exits: int) -> Case:
    """Exits per second of one kind, on the real KVM."""
    handler = "@on_pio" if kind.startswith("pio") else "@on_mmio"
    return Case(
        name=kind,
        title=f"{kind.replace('-', ' ').upper()} exits",
        about=f"The same flat guest ({exits} exits, unrolled 16 times) on every side; time from "
        "the first KVM_RUN to the guest's write to the debug-exit port, without the start "
        "of the process. The C loop completes each exit and adds up what was written.",
        sides=_loop_sides(kind, exits),
        comparisons=(
            Comparison("rate, native rule", "rate", "per_second", NATIVE, C, "ratio", NATIVE_GOAL),
            Comparison("rate, Python device", "rate", "per_second", DEVICE, C, "ratio"),
            Comparison(f"rate, {handler} handler", "rate", "per_second", HANDLER, C, "ratio"),
            Comparison("an exit, native rule", "ns", "ns", NATIVE, C, "added"),
            Comparison("an exit, Python device", "ns", "ns", DEVICE, C, "added", DEVICE_GOAL),
            Comparison(
                f"an exit, {handler} handler", "ns", "ns", HANDLER, C, "added", HANDLER_GOAL
            ),
            Comparison("an exit, vcpu.run()", "ns", "ns", TYPED, C, "added"),
        ),
    )


def own_cost_case(kind: str, exits: int, python_exits: int) -> Case:
    """What the loop itself costs, with the kernel taken out.

    KVM_RUN returns at once with the same exit again.
    """

    def env(count: int) -> dict[str, str]:
        return {"LD_PRELOAD": built("stub_run.so"), "STUB_EXITS": str(count)}

    sides = [Side(C, partial(_c_loop, kind, 32, exits, env(exits)))]
    for name, side in PYTHON_SIDES.items():
        count = exits if name == NATIVE else python_exits
        sides.append(Side(name, partial(_py_loop, side, kind, 32, count, env(count))))
    return Case(
        name=f"{kind}-own",
        title=f"{kind.replace('-', ' ').upper()}: the loop's own cost, without the kernel",
        about="Every KVM_RUN after the first is answered by a preloaded ioctl() that repeats the "
        "exit and never enters the kernel: what is left is user space. It tells what an "
        "exit costs more on hosts where KVM itself is quicker.",
        sides=tuple(sides),
        comparisons=(
            Comparison("an exit, native rule", "ns", "ns", NATIVE, C, "added"),
            Comparison("an exit, Python device", "ns", "ns", DEVICE, C, "added", DEVICE_GOAL),
            Comparison("an exit, Python handler", "ns", "ns", HANDLER, C, "added", HANDLER_GOAL),
            Comparison("an exit, vcpu.run()", "ns", "ns", TYPED, C, "added"),
        ),
    )


def immediate_case(count: int) -> Case:
    """KVM_RUN that runs no guest instruction."""
    return Case(
        name="immediate-exit",
        title="KVM_RUN with immediate_exit",
        about=f"{count} entries that return EINTR before any guest instruction: pykvm's C loop and"
        " a raw C loop.",
        sides=(
            Side(C, lambda: per_exit(peer("immediate_exit", str(count)), count)),
            Side(NATIVE, lambda: per_exit(worker("enter", str(count)), count)),
        ),
        comparisons=(
            Comparison("entries", "rate", "per_second", NATIVE, C, "ratio"),
            Comparison("an entry", "ns", "ns", NATIVE, C, "added"),
        ),
    )


def step_case(count: int) -> Case:
    """KVM_GUESTDBG_SINGLESTEP, a debug exit an instruction."""
    return Case(
        name="single-step",
        title="Single-step",
        about=f"{count} steps over the same nop loop; each side reads the program counter of every"
        " DebugExit.",
        sides=(
            Side(C, lambda: per_exit(peer("single_step", str(count)), count)),
            Side(TYPED, lambda: per_exit(worker("step", str(count)), count)),
        ),
        comparisons=(
            Comparison("steps", "rate", "per_second", TYPED, C, "ratio"),
            Comparison("a step", "ns", "ns", TYPED, C, "added"),
        ),
    )


def _create(answer: dict[str, float]) -> Sample:
    return {"up": float(answer["up_ns"]), "down": float(answer["down_ns"])}


def create_case(count: int) -> Case:
    """From nothing to the first exit."""
    driver, machine = "pykvm.kvm", "Machine"
    bare, full = "raw C", "raw C with irqchip and PIT"
    return Case(
        name="create",
        title="Create VM and vCPU, run to the first exit",
        about=f"Median of {count} times in one process: open /dev/kvm, VM, 1 MiB of memory, vCPU, "
        "real mode, run to one OUT; then close all. pykvm.kvm is the driver alone; Machine "
        "has its default devices and in-kernel interrupt controllers.",
        sides=(
            Side(bare, lambda: _create(peer("create", str(count)))),
            Side(driver, lambda: _create(worker("create", "driver", str(count)))),
            Side(full, lambda: _create(peer("create", str(count), "irqchip"))),
            Side(machine, lambda: _create(worker("create", "machine", str(count)))),
        ),
        comparisons=(
            Comparison("driver, to first exit", "up", "ns", driver, bare, "ratio", CREATE_GOAL),
            Comparison("driver, closing", "down", "ns", driver, bare, "ratio"),
            Comparison("Machine, to first exit", "up", "ns", machine, full, "ratio", CREATE_GOAL),
            Comparison("Machine, closing", "down", "ns", machine, full, "ratio"),
        ),
        rounds=9,
    )


def _instructions_per_exit(command: Sequence[str], low: int, high: int) -> Sample:
    counts = []
    for count in (low, high):
        env = {"LD_PRELOAD": built("stub_run.so"), "STUB_EXITS": str(count)}
        counts.append(instructions(command, env=env))
    return {"instructions": (counts[1] - counts[0]) / (high - low)}


def instructions_case(kind: str = "pio-out") -> Case:
    """User-space instructions an exit: exact, where times are noise."""

    def side(name: str, command: Sequence[str]) -> Side:
        return Side(name, lambda: _instructions_per_exit(command, 2000, 22000))

    def files(side: str) -> list[str]:
        return worker_command("exits", side, kind, built(f"{kind}-32.bin"))

    return Case(
        name="instructions",
        title="User-space instructions an exit (PIO OUT, without the kernel)",
        about="Counted by valgrind: the difference between runs of 22,000 and 2,000 exits, the "
        "kernel taken out as in pio-out-own. Both sides include the same few instructions "
        "of the stand-in for KVM_RUN.",
        sides=(
            side(C, [built("exit_loop"), MODES[kind], built(f"{kind}-32.bin")]),
            *(side(name, files(key)) for name, key in PYTHON_SIDES.items()),
        ),
        comparisons=tuple(
            Comparison(f"an exit, {name}", "instructions", "count", name, C, "added")
            for name in PYTHON_SIDES
        ),
        rounds=1,
        most_rounds=1,
        warm_up=False,
    )


def all_cases(*, quick: bool) -> list[Case]:
    """Every case, at full length or shortened."""
    exits = 8_000 if quick else 40_000
    own = 100_000 if quick else 1_000_000
    cases = [exit_case(kind, exits) for kind in MODES]
    cases += [own_cost_case(kind, own, own // 5) for kind in ("pio-out", "pio-in", "mmio-write")]
    cases += [immediate_case(20_000 if quick else 100_000), instructions_case()]
    cases += [create_case(20 if quick else 50), step_case(4_000 if quick else 20_000)]
    return cases + boot_cases()


def chosen(names: Sequence[str] | None, *, quick: bool) -> list[Case]:
    """The cases with these names, or all. Raises BenchError for a name that no case has."""
    cases = all_cases(quick=quick)
    if not names:
        return cases
    known = {case.name: case for case in cases}
    for name in names:
        if name not in known:
            raise BenchError(f"no case is called {name}: one of {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)]
