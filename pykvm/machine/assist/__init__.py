"""Finishing instructions that KVM's emulator refuses.

Where KVM runs some or all of a guest in software (see docs/architecture.md, "Kinds of host"), an
instruction that its emulator lacks ends in KVM_EXIT_INTERNAL_ERROR, suberror 1. `Assist` decodes
it, completes it in user space, and the guest goes on: software interrupts through the vCPU's event
interface, system instructions in Python, everything that computes on the real CPU, in ring 3 of a
second, tiny VM (`engine.py`). Each is counted by its name.
"""

from pykvm.machine.assist.assist import Assist, finish

__all__ = ["Assist", "finish"]
