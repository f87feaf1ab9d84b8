"""A few 64-bit instructions as bytes: enough to write test guests without an assembler."""

from __future__ import annotations

import struct


def mov_imm(register: str, value: int) -> bytes:
    """mov r64, imm64."""
    code = {"rax": 0xB8, "rcx": 0xB9, "rdx": 0xBA, "rbx": 0xBB, "rsi": 0xBE, "rdi": 0xBF}[register]
    return bytes([0x48, code]) + struct.pack("<Q", value)


HALT = b"\xfa\xf4"  # cli; hlt
CLEAR_RAX = b"\x48\x31\xc0"
STORE_RAX_AT_RDI = b"\x48\x89\x07"
OUT = {1: b"\xee", 2: b"\x66\xef", 4: b"\xef"}
IN = {1: b"\xec", 2: b"\x66\xed", 4: b"\xed"}
REP_OUTS = {1: b"\xf3\x6e", 2: b"\x66\xf3\x6f", 4: b"\xf3\x6f"}
REP_INS = {1: b"\xf3\x6c", 2: b"\x66\xf3\x6d", 4: b"\xf3\x6d"}
STORE = {1: b"\x88\x03", 2: b"\x66\x89\x03", 4: b"\x89\x03", 8: b"\x48\x89\x03"}  # [rbx] <- rax
LOAD = {1: b"\x8a\x03", 2: b"\x66\x8b\x03", 4: b"\x8b\x03", 8: b"\x48\x8b\x03"}


def out(port: int, size: int, value: int) -> bytes:
    return mov_imm("rdx", port) + mov_imm("rax", value) + OUT[size]


def in_(port: int, size: int, result: int) -> bytes:
    """Reads a port and stores RAX (upper bits clear) at linear address `result`."""
    return mov_imm("rdx", port) + CLEAR_RAX + IN[size] + mov_imm("rdi", result) + STORE_RAX_AT_RDI


def rep_outs(port: int, size: int, count: int, source: int) -> bytes:
    return mov_imm("rdx", port) + mov_imm("rsi", source) + mov_imm("rcx", count) + REP_OUTS[size]


def rep_ins(port: int, size: int, count: int, target: int) -> bytes:
    return mov_imm("rdx", port) + mov_imm("rdi", target) + mov_imm("rcx", count) + REP_INS[size]


def store(address: int, size: int, value: int) -> bytes:
    return mov_imm("rbx", address) + mov_imm("rax", value) + STORE[size]


def load(address: int, size: int, result: int) -> bytes:
    return (
        mov_imm("rbx", address) + CLEAR_RAX + LOAD[size] + mov_imm("rdi", result) + STORE_RAX_AT_RDI
    )
