"""Where things are for a ring-3 target. `runtime/pykvm_fuzz.h` says the same to C."""

from __future__ import annotations

PAGE = 4096

# Guest-physical. All but the shared region is put back after each run.
FAULTS = 0x1000
"""Ring-0 code: what a fault runs."""
RING0_STACK_TOP = 0x3000
TABLES = 0x10000
"""GDT, IDT, TSS and page tables."""
USER = 1 << 20
"""Pages of the target: its segments, its stack, its heap."""
SHARED = 1 << 32
"""What is not put back: control page, coverage, comparisons, input."""

# Guest-virtual.
SHARED_GVA = 0x7E00_0000_0000
STUB_GVA = 0x7E10_0000_0000
HEAP_GVA = 0x7E20_0000_0000
STACK_TOP_GVA = 0x7FFF_F000_0000
PIE_GVA = 0x5555_5555_4000

# Offsets in the shared region.
CONTROL = 0
INPUT_AT, INPUT_LENGTH, HEAP_AT, HEAP_SIZE, MXCSR = 0x00, 0x08, 0x10, 0x18, 0x38
COVERAGE = 0x1000
COVERAGE_SIZE = 1 << 16
COMPARISONS = COVERAGE + COVERAGE_SIZE
COMPARISONS_SIZE = 1 << 16
INPUT = COMPARISONS + COMPARISONS_SIZE

# Ports, written with OUT imm8, AL.
PORT_FAULT, PORT_DONE, PORT_FAILED, PORT_READY = 0xE0, 0xE1, 0xE2, 0xE3
PORTS = (PORT_FAULT, PORT_DONE, PORT_FAILED, PORT_READY)
