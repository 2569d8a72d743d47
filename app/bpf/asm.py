"""Hand-assembled eBPF: one function an instruction, each returning its bytes.

Encoding: Documentation/bpf/standardization/instruction-set.rst. Registers are numbers: r0 the result, r1 to r5 the
arguments, r6 to r9 kept over calls, r10 the frame pointer. Little-endian machines.
"""

import struct
from typing import Final

from app.bpf.uapi import BPF_FUNC_TAIL_CALL, BPF_PSEUDO_MAP_FD, BPF_PSEUDO_MAP_VALUE

INSN: Final = struct.Struct("<BBhi")  # opcode, src << 4 | dst, offset, immediate

BYTE: Final = 0x10
WORD: Final = 0x00
DWORD: Final = 0x18


def _insn(opcode: int, dst: int = 0, src: int = 0, offset: int = 0, imm: int = 0) -> bytes:
    return INSN.pack(opcode, src << 4 | dst, offset, imm)


def mov(dst: int, imm: int) -> bytes:
    """`dst = imm` (signed 32 bits, extended)."""
    return _insn(0xB7, dst, imm=imm)


def mov_reg(dst: int, src: int) -> bytes:
    """`dst = src`."""
    return _insn(0xBF, dst, src)


def add(dst: int, imm: int) -> bytes:
    """`dst += imm`."""
    return _insn(0x07, dst, imm=imm)


def load(size: int, dst: int, src: int, offset: int = 0) -> bytes:
    """`dst = *(size *)(src + offset)`."""
    return _insn(0x61 | size, dst, src, offset)


def jump_gt(dst: int, src: int, offset: int) -> bytes:
    """`if dst > src` (unsigned) skip `offset` instructions."""
    return _insn(0x2D, dst, src, offset)


def atomic_add(dst: int, src: int, offset: int = 0) -> bytes:
    """`lock *(u64 *)(dst + offset) += src`."""
    return _insn(0xDB, dst, src, offset)


def map_fd(dst: int, fd: int) -> bytes:
    """`dst = ` the map behind fd (two instructions)."""
    return _insn(0x18, dst, BPF_PSEUDO_MAP_FD, imm=fd) + _insn(0)


def map_value(dst: int, fd: int) -> bytes:
    """`dst = ` the address of an array's first value (two instructions; Linux 5.2)."""
    return _insn(0x18, dst, BPF_PSEUDO_MAP_VALUE, imm=fd) + _insn(0)


def tail_call() -> bytes:
    """`bpf_tail_call(r1 context, r2 program array, r3 index)`: goes on behind it only if it failed."""
    return _insn(0x85, imm=BPF_FUNC_TAIL_CALL)


def exit_() -> bytes:
    """Return r0."""
    return _insn(0x95)


def returns(value: int) -> bytes:
    """A whole program that only returns `value`."""
    return mov(0, value) + exit_()
