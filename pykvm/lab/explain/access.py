"""Explaining port and memory-mapped I/O: who was asked, why the CPU could not answer itself."""

from __future__ import annotations

from pykvm.lab.explain.explanation import Explanation
from pykvm.lab.explain.host import SOFTWARE, SOFTWARE_NOTE
from pykvm.typed import NamedTuple


class Access(NamedTuple):
    """A port or MMIO access, as an exit or a trace record has it.

    `address` is a port, or a guest-physical address if `mmio`; `value` None where it is not known
    yet or is meant to be left out; `place` device and register ("COM1 THR"), "" if not known,
    "unclaimed…" if nobody answers there; `native`: finished in C without Python; `backed`: there
    is memory at the address (it is read-only then); `host`: as `host_kind()` says.
    """

    mmio: bool
    address: int
    is_write: bool
    size: int
    count: int  # type: ignore[assignment]  # shadows tuple.count
    value: int | None
    place: str
    instruction: str
    native: bool = False
    backed: bool = False
    host: str = ""


def explain_access(access: Access) -> Explanation:
    """A port or MMIO exit in words."""
    return _memory(access) if access.mmio else _port(access)


def _port(a: Access) -> Explanation:
    verb = "OUT" if a.is_write else "IN"
    direction = "to" if a.is_write else "from"
    where = f"port {a.address:#x}"
    code = a.instruction.rpartition(": ")[2]
    repeated = a.count > 1 or code.startswith("rep")
    string = repeated or code.startswith(("outs", "ins"))
    moved = f"{a.count} elements of {_bytes(a.size)}" if a.count > 1 else _bytes(a.size)
    name = f"{verb}S with a REP prefix" if repeated else f"{verb}S" if string else verb
    why = (
        f"{name} moves {moved} {direction} {where}. A guest must not reach the host's ports, so "
        "KVM lets every port instruction leave the guest: on Intel by unconditional I/O exiting "
        "(basic exit reason 30), on AMD by an I/O permission map with all bits set (VMEXIT_IOIO, "
        "7Bh). "
        "The processor gives KVM the port, size and direction together with the exit."
    )
    kernel = (
        f"KVM looked for {where} among the devices that it emulates itself (PIC, PIT, ioeventfds), "
        "found none, and filled kvm_run->io (direction, port, size, count); the data lie at "
        "data_offset in the same mapping. "
    )
    if a.is_write:
        kernel += (
            "Whether RIP is on the OUT or behind it at this moment depends on the path in KVM; "
            "the instruction is finished at the latest when the vCPU is entered again."
        )
    else:
        kernel += "The IN is only half done: it is completed by the next KVM_RUN with the answer."
    if repeated:
        kernel += (
            " A long REP comes as several exits: some KVMs give many elements at once, the "
            "instruction emulator may give OUTS one by one."
        )
    if a.is_write:
        after = "The instruction behind it, with all registers as they were."
        if string:
            after = (
                "The next elements, or the instruction behind: RSI has moved on, and with REP RCX."
            )
    else:
        part = {1: "AL", 2: "AX", 4: "EAX"}.get(a.size, "the accumulator")
        after = f"{_answer(a)} in {part}; the other registers and the flags do not change."
        if string:
            after = "The answer in memory at ES:RDI; RDI has moved on, and with REP RCX."
    return Explanation(
        f"{verb} {direction} {where}{_title(a)}",
        a.instruction,
        _on_host(why, a.host),
        kernel,
        _user(a, where),
        after,
        (
            "KVM API, section 5 (struct kvm_run), KVM_EXIT_IO",
            'Intel SDM vol. 1, "Input/Output"; vol. 3C, appendix C, reason 30 (I/O instruction)',
            "AMD APM vol. 2, 15.10 (IOIO intercepts)",
        ),
    )


def _memory(a: Access) -> Explanation:
    verb = "write" if a.is_write else "read"
    where = f"guest-physical address {a.address:#x}"
    if a.backed:
        why = (
            f"{where[0].upper()}{where[1:]} lies in a memory slot that is read-only "
            "(KVM_MEM_READONLY), as ROM is: reads go to memory, a write leaves the guest, because "
            "the second-level page table has no write permission there"
        )
    else:
        why = (
            f"{where[0].upper()}{where[1:]} belongs to no memory slot, so the second-level page "
            "table (guest-physical to host-physical) has no page for it"
        )
    why += (
        ": Intel's processor reports an EPT violation (reason 48), or an EPT misconfiguration "
        "(reason 49) once KVM has marked the page as MMIO; AMD's a nested page fault (VMEXIT_NPF, "
        "400h). The guest's own page tables allowed the access: this is not a #PF for the guest."
    )
    kernel = (
        "The processor says the address, but not which register is involved. So KVM fetched the "
        "instruction and ran it in its emulator. No device in the kernel (local APIC, IOAPIC, "
        "ioeventfd, coalesced MMIO) owns the address: KVM filled kvm_run->mmio (phys_addr, len, "
        "is_write, data) and returned. An access that crosses a page, or is wider than 8 bytes, "
        "comes as several exits."
    )
    if a.is_write:
        after = "The instruction behind it; the guest cannot tell whether the write had an effect."
    else:
        after = (
            f"{_answer(a)} in the instruction's destination. The next KVM_RUN puts it there, sets "
            "the flags if the instruction computes, and moves RIP on."
        )
    return Explanation(
        f"MMIO {verb} at {a.address:#x}{_title(a)}",
        a.instruction,
        _on_host(why, a.host),
        kernel,
        _user(a, f"address {a.address:#x}"),
        after,
        (
            "KVM API, section 5 (struct kvm_run), KVM_EXIT_MMIO; KVM_SET_USER_MEMORY_REGION",
            'Intel SDM vol. 3C, "VMX Support for Address Translation" (EPT); appendix C, '
            "reasons 48 and 49",
            "AMD APM vol. 2, 15.25 (nested paging)",
        ),
    )


def _title(a: Access) -> str:
    place = f" ({a.place})" if a.place else ""
    if a.value is None:
        return place
    return f"{place}: {_shown(a)}"


def _answer(a: Access) -> str:
    return "The answer" if a.value is None else f"The answer {_shown(a)}"


def _user(a: Access, where: str) -> str:
    told = "" if a.value is None else f" {_shown(a)}"
    if a.native:
        return (
            f"A native rule finished it in pykvm's C loop: "
            f"{'it took the value' if a.is_write else 'it answered'}{told} without Python."
        )
    if a.place.startswith("unclaimed"):
        known = a.place.partition("(")[2].rstrip(")")
        pc = f" A PC has its {known} there; this machine has none." if known else ""
        default = "the write was dropped" if a.is_write else "a read gives all ones"
        return (
            f"No device of the machine claims {where}.{pc} As on a real bus, {default}, unless "
            "the machine was told otherwise (--unclaimed)."
        )
    if not a.place:
        return f"Whoever runs the vCPU has to find out who owns {where}, and answer."
    device, _, register = a.place.partition(" ")
    target = f"its register {register}" if register else "it"
    if a.is_write:
        return (
            f"pykvm's bus found the device {device} at {where} and wrote{told or ' the value'} to "
            f"{target}."
        )
    given = f"it answered{told}" if told else "its answer goes back with the next KVM_RUN"
    return f"pykvm's bus found the device {device} at {where} and read {target}; {given}."


def _on_host(why: str, host: str) -> str:
    return f"{why}\n{SOFTWARE_NOTE}" if host == SOFTWARE else why


def _shown(a: Access) -> str:
    value = a.value or 0
    text = f"{value:#0{2 + 2 * a.size}x}"
    if not a.mmio and a.size == 1 and 0x20 < value < 0x7F:
        text += f" ({chr(value)!r})"
    return text + (", …" if a.count > 1 else "")


def _bytes(size: int) -> str:
    return f"{size} byte" if size == 1 else f"{size} bytes"
