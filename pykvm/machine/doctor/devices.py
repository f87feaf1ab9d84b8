"""Interrupt controllers and eventfds, tried with guests that wait for an interrupt."""

from __future__ import annotations

import os
import select

from pykvm.kvm import Kvm, Vm
from pykvm.kvm.errors import KvmError
from pykvm.machine.doctor.probe import DONE, STACK, End, Probe, Watch
from pykvm.machine.doctor.result import Section

_FIRST_VECTOR = 0x20  # where the code below puts IRQ 0
_IRQ = 4
# out 0x20/0x21: ICW1..ICW4 of the master PIC (8259A data sheet), all lines open
_PIC = b"".join(
    bytes((0xB0, value, 0xE6, port))  # mov al, value; out port, al
    for port, value in ((0x20, 0x11), (0x21, _FIRST_VECTOR), (0x21, 4), (0x21, 1), (0x21, 0))
)
_WAIT = b"\xfb\xf4" + DONE  # sti; hlt
_PORT = 0xE3
_APIC = 0xFEE0_0000
_MSI_VECTOR = 0x41
# mov dword ptr [0xfee000f0], 0x1ff: software-enable the local APIC (SDM vol. 3A 10.9)
_ENABLE_APIC = b"\xc7\x05\xf0\x00\xe0\xfe\xff\x01\x00\x00"


def examine(kvm: Kvm, section: Section) -> None:
    """The in-kernel and the split irqchip, PIT, MSI, ioeventfd and irqfd."""
    _irqchip(kvm, section)
    _pit(kvm, section)
    _split(kvm, section)
    _irqfd(kvm, section)
    _ioeventfd(kvm, section)


def _add(section: Section, key: str, title: str, end: End | KvmError, want: int, good: str) -> None:
    """A finding about a guest that was to see an interrupt of vector `want`."""
    if isinstance(end, KvmError):
        section.add(key, title, False, str(end), value=False)
        return
    works = end.vector == want
    section.add(key, title, works, good if works else f"no interrupt: {end.text}", value=works)


def _irqchip(kvm: Kvm, section: Section) -> None:
    end: End | KvmError
    try:
        with Probe(kvm, setup=Vm.create_irqchip) as probe:
            _until_pic_ready(probe)
            probe.vm.irq_line(_IRQ, True)
            end = probe.go()
            probe.vm.irq_line(_IRQ, False)
    except KvmError as error:
        end = error
    good = "PIC, IOAPIC and local APIC in the kernel wake a halted guest"
    _add(section, "irqchip", "irqchip", end, _FIRST_VECTOR + _IRQ, good)


def _until_pic_ready(probe: Probe) -> None:
    """Runs a guest that sets up the PIC, up to where an edge is latched: then it would wait."""
    probe.prepare("real", _PIC + b"\xe6" + bytes((_PORT,)) + _WAIT)
    with Watch(probe.vcpu, 0.5) as watch:
        while not watch.expired:
            exit_ = probe.vcpu.run()
            if exit_.name != "KVM_EXIT_IO" or getattr(exit_, "port", None) == _PORT:
                break


def _pit(kvm: Kvm, section: Section) -> None:
    def setup(vm: Vm) -> None:
        vm.create_irqchip()
        vm.create_pit2()

    # channel 0, rate generator, 0x1000 / 1.19 MHz = 3.4 ms
    timer = b"\xb0\x34\xe6\x43\xb0\x00\xe6\x40\xb0\x10\xe6\x40"
    end: End | KvmError
    try:
        with Probe(kvm, setup=setup) as probe:
            probe.prepare("real", _PIC + timer + _WAIT)
            end = probe.go()
    except KvmError as error:
        end = error
    _add(section, "pit", "PIT", end, _FIRST_VECTOR, "its timer interrupt arrives")


def _split(kvm: Kvm, section: Section) -> None:
    key, title = "split_irqchip", "split irqchip, MSI"
    end: End | KvmError
    try:
        with Probe(kvm, setup=Vm.create_split_irqchip) as probe:
            probe.prepare("protected", _ENABLE_APIC + b"\xfb\xeb\xfe", rsp=STACK)
            # The APIC must be on before a message comes: step over the store first.
            probe.vcpu.set_guest_debug(singlestep=True)
            probe.go()
            probe.vcpu.clear_guest_debug()
            probe.vm.signal_msi(_APIC, _MSI_VECTOR)
            end = probe.go()
    except KvmError as error:
        end = error
    good = "local APIC in the kernel, the rest in user space; messages arrive"
    _add(section, key, title, end, _MSI_VECTOR, good)


def _irqfd(kvm: Kvm, section: Section) -> None:
    event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    end: End | KvmError
    try:
        with Probe(kvm, setup=Vm.create_irqchip) as probe:
            probe.vm.assign_irqfd(event, _IRQ)
            _until_pic_ready(probe)
            os.eventfd_write(event, 1)
            end = probe.go()
    except KvmError as error:
        end = error
    finally:
        os.close(event)
    good = "a write to an eventfd interrupts the guest"
    _add(section, "irqfd", "irqfd", end, _FIRST_VECTOR + _IRQ, good)


def _ioeventfd(kvm: Kvm, section: Section) -> None:
    event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        with Probe(kvm) as probe:
            probe.vm.assign_ioeventfd(event, _PORT, 1, pio=True)
            probe.prepare("long", b"\xe6" + bytes((_PORT,)) + DONE)
            end = probe.go()
            signalled = bool(select.select([event], [], [], 0)[0])
    except KvmError as error:
        section.add("ioeventfd", "ioeventfd", False, str(error), value=False)
        return
    finally:
        os.close(event)
    works = signalled and end.kind == "done"
    text = "a guest's write signals an eventfd, without an exit"
    if not works:
        was = "was" if signalled else "was not"
        text = f"the eventfd {was} signalled; the guest ended as: {end.text}"
    section.add("ioeventfd", "ioeventfd", works, text, value=works)
