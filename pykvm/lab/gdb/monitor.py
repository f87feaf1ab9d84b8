"""`monitor` commands: what the lab knows and GDB has no packet for."""

from __future__ import annotations

from collections.abc import Callable

from pykvm.arch import registers as named
from pykvm.arch.paging import mappings, paging_registers, walk
from pykvm.errors import PykvmError
from pykvm.lab.gdb.descriptions import Arch
from pykvm.lab.gdb.target import GdbError
from pykvm.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pykvm.lab.gdb.labtarget import LabTarget

_MAX_ROWS = 60
_MAX_SNAPSHOTS = 16


class Command(NamedTuple):
    """One command: what it takes, what it does in a line, and the function."""

    usage: str
    help: str
    run: Callable[[LabTarget, int, list[str]], str]


def run(target: LabTarget, cpu: int, line: str) -> str:
    """The text that a command line gives; errors are text, too."""
    words = line.split()
    if not words:
        return _help(target, cpu, [])
    name, arguments = words[0], words[1:]
    if name == "info" and arguments:
        name, arguments = f"info {arguments[0]}", arguments[1:]
    command = COMMANDS.get(_ALIASES.get(name, name))
    if command is None:
        return f"there is no monitor command {name!r}; `monitor help` lists them"
    try:
        return command.run(target, cpu, arguments)
    except PykvmError as error:
        return f"{line}: {error}"


def _help(target: LabTarget, cpu: int, words: list[str]) -> str:
    width = max(len(command.usage) for command in COMMANDS.values())
    lines = [f"{command.usage:<{width}}  {command.help}" for command in COMMANDS.values()]
    return "\n".join([*lines, f"{'why':<{width}}  why GDB's last request was refused"])


def address(target: LabTarget, cpu: int, text: str) -> int:
    """A number, a register or a symbol. Raises `PykvmError`."""
    try:
        return int(text, 0) % (1 << 64)
    except ValueError:
        pass
    if text.startswith("$"):
        return named.get(target.machine.vcpus[cpu], text[1:])
    return int(target.lab.symbols.resolve(text))


def _exits(target: LabTarget, cpu: int, words: list[str]) -> str:
    rows = sorted(target.machine.exit_counts().items(), key=lambda row: -row[1])
    return "\n".join(f"{count:>12}  {name}" for name, count in rows) or "no exit so far"


def _recent(target: LabTarget, cpu: int, words: list[str]) -> str:
    from pykvm.machine.report import describe

    count = 16
    if words:
        try:
            count = int(words[0], 0)
        except ValueError:
            raise GdbError(f"{words[0]!r} is no number of exits") from None
    records = target.machine.vcpus[cpu].last_exits(max(1, min(count, _MAX_ROWS)))
    return "\n".join(describe(target.machine, r) for r in records) or "no exit so far"


def _registers(target: LabTarget, cpu: int, words: list[str]) -> str:
    from pykvm.machine.report import registers

    return "\n".join(registers(target.machine, target.machine.vcpus[cpu]))


def _cpus(target: LabTarget, cpu: int, words: list[str]) -> str:
    vcpus = target.machine.vcpus
    return "\n".join(
        f"{'*' if i == cpu else ' '} {target.cpu_text(i)}, rip {vcpus[i].regs.rip:#x}"
        for i in range(target.cpus)
    )


def _memory(target: LabTarget, cpu: int, words: list[str]) -> str:
    rows = [
        f"{start:#014x}-{start + size - 1:#014x}  RAM" for start, size in target.machine.memory.ram
    ]
    return "guest-physical memory:\n" + "\n".join(rows)


def _walk(target: LabTarget, cpu: int, words: list[str]) -> str:
    if len(words) != 1:
        raise GdbError("say which address: monitor walk ADDR")
    sregs = target.machine.vcpus[cpu].sregs
    where = address(target, cpu, words[0])
    found = walk(
        target.machine.memory, where,
        cr0=sregs.cr0, cr3=sregs.cr3, cr4=sregs.cr4, efer=sregs.efer,
    )  # fmt: skip
    return found.describe()


def _pages(target: LabTarget, cpu: int, words: list[str]) -> str:
    registers = paging_registers(target.machine.vcpus[cpu].sregs)
    rows: list[str] = []
    for mapping in mappings(target.machine.memory, **registers):
        if len(rows) == _MAX_ROWS:
            rows.append("... and more")
            break
        rows.append(str(mapping))
    return "\n".join(rows) or "nothing is mapped"


def _snapshot(target: LabTarget, cpu: int, words: list[str]) -> str:
    name = words[0] if words else "default"
    if name not in target.snapshots and len(target.snapshots) >= _MAX_SNAPSHOTS:
        raise GdbError(f"{_MAX_SNAPSHOTS} snapshots are kept at most; use one of their names")
    target.take_snapshot(name)
    return f"snapshot {name!r} taken; `monitor restore {name}` goes back to it"


def _restore(target: LabTarget, cpu: int, words: list[str]) -> str:
    name = words[0] if words else "default"
    if name not in target.snapshots:
        known = ", ".join(target.snapshots) or "none yet"
        raise GdbError(f"there is no snapshot {name!r}; there are: {known}")
    target.restore_snapshot(name)
    return f"restored {name!r}; `maintenance flush register-cache` shows GDB the registers"


def _reset(target: LabTarget, cpu: int, words: list[str]) -> str:
    target.reset()
    return "the machine is as after loading; `maintenance flush register-cache` shows GDB that"


def _quit(target: LabTarget, cpu: int, words: list[str]) -> str:
    target.killed = True
    return "the machine ends when GDB has gone: `detach` or `quit`"


def _physical(target: LabTarget, cpu: int, words: list[str]) -> str:
    target.physical = _switch(words, target.physical)
    return f"addresses of memory are guest-{'physical' if target.physical else 'virtual'}"


def _linear(target: LabTarget, cpu: int, words: list[str]) -> str:
    target.linear_pc = _switch(words, target.linear_pc)
    how = "a linear address, CS.base added" if target.linear_pc else "the offset in CS"
    return f"outside 64-bit mode $pc is {how}"


def _switch(words: list[str], now: bool) -> bool:
    if not words:
        return now
    if words[0] not in ("on", "off"):
        raise GdbError(f"{words[0]!r} is neither on nor off")
    return words[0] == "on"


def _arch(target: LabTarget, cpu: int, words: list[str]) -> str:
    if words:
        if words[0] == "auto":
            target.arch = None
        else:
            try:
                target.arch = Arch(words[0])
            except ValueError:
                known = ", ".join(str(arch) for arch in Arch)
                raise GdbError(f"{words[0]!r} is none of: auto, {known}") from None
    return f"the next connection sees {target.arch or 'what fits then (auto)'}"


COMMANDS = {
    "help": Command("help", "this list", _help),
    "info registers": Command("info registers", "all registers of the thread's vCPU", _registers),
    "info cpus": Command("info cpus", "the vCPUs: state, mode, RIP", _cpus),
    "info exits": Command("info exits", "VM exits so far, by reason", _exits),
    "info recent": Command("info recent [N]", "the vCPU's last exits", _recent),
    "info memory": Command("info memory", "guest-physical memory", _memory),
    "walk": Command("walk ADDR", "an address through the page tables, level by level", _walk),
    "pages": Command("pages", "what the page tables map", _pages),
    "physical": Command("physical [on|off]", "read and write guest-physical memory", _physical),
    "linear-pc": Command("linear-pc [on|off]", "$pc with CS.base, in 16/32-bit code", _linear),
    "arch": Command("arch [NAME|auto]", "how the next connection sees the CPUs", _arch),
    "snapshot": Command("snapshot [NAME]", "keeps the machine as it is", _snapshot),
    "restore": Command("restore [NAME]", "goes back to a snapshot", _restore),
    "reset": Command("reset", "the machine as after loading", _reset),
    "quit": Command("quit", "ends the machine when GDB goes", _quit),
}
_ALIASES = {"exits": "info exits", "regs": "info registers", "tlb": "pages", "info tlb": "pages",
            "system_reset": "reset", "?": "help"}  # fmt: skip
