"""The machine code around a ring-3 target: what calls it, and what a fault runs.

The calling stub runs in ring 3, where every host is fast, and comes back to its beginning by
itself: a round costs one exit. Registers, flags, FPU and vectors start the same each time.
"""

from __future__ import annotations

import struct

from pykvm.fuzz import layout as at

_VECTORS = 32
_WITH_ERROR_CODE = {8, 10, 11, 12, 13, 14, 17, 21, 29, 30}  # SDM vol. 3A, table 7-1


def call_stub(gva: int, function: int, stack: int, *, avx: bool, port: int) -> bytes:
    """Code for `gva` that calls `function(input, length)` on `stack`, writes `port`, and again."""
    zero_vectors = b"\xc5\xfc\x77" if avx else _no_sse()
    code = b"\xdb\xe3"  # fninit
    code += zero_vectors  # vzeroall, or pxor of each
    code += b"\x48\xbb" + struct.pack("<Q", at.SHARED_GVA + at.CONTROL)  # mov rbx, control
    code += b"\x0f\xae\x53" + bytes([at.MXCSR])  # ldmxcsr [rbx + MXCSR]
    code += b"\x48\xbc" + struct.pack("<Q", stack)  # mov rsp, stack
    code += b"\x6a\x02\x9d"  # push 2; popfq
    code += b"\x48\x8b\x7b" + bytes([at.INPUT_AT])  # mov rdi, [rbx + INPUT_AT]
    code += b"\x48\x8b\x73" + bytes([at.INPUT_LENGTH])  # mov rsi, [rbx + INPUT_LENGTH]
    code += b"\x31\xc9\x31\xd2\x31\xed\x31\xdb"  # xor ecx, edx, ebp, ebx
    code += bytes.fromhex("4531c0 4531c9 4531d2 4531db 4531e4 4531ed 4531f6 4531ff")  # r8d-r15d
    code += b"\x48\xb8" + struct.pack("<Q", function) + b"\xff\xd0"  # mov rax, function; call rax
    code += b"\xe6" + bytes([port])  # out port, al
    return code + b"\xe9" + struct.pack("<i", -(len(code) + 5))  # jmp to the beginning


def _no_sse() -> bytes:
    low = b"".join(bytes([0x66, 0x0F, 0xEF, 0xC0 | n << 3 | n]) for n in range(8))
    return low + b"".join(bytes([0x66, 0x45, 0x0F, 0xEF, 0xC0 | n << 3 | n]) for n in range(8))


def fault_stubs(base: int) -> tuple[bytes, dict[int, int]]:
    """Ring-0 code for `base`, and the entry of each vector.

    Each pushes 0 where the CPU pushes no error code, its vector, and writes `PORT_FAULT`; the
    host finds (vector, error code, rip, cs, rflags, rsp, ss) at RSP and the registers untouched.
    """
    code = b"\xe6" + bytes([at.PORT_FAULT]) + b"\xf4\xeb\xfd"  # out; hlt; jmp to the hlt
    entries: dict[int, int] = {}
    for vector in range(_VECTORS):
        entries[vector] = base + len(code)
        if vector not in _WITH_ERROR_CODE:
            code += b"\x6a\x00"  # push 0
        code += bytes([0x6A, vector])  # push vector
        code += b"\xe9" + struct.pack("<i", -(len(code) + 5))  # jmp to the OUT
    return code, entries
