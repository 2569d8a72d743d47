"""Hand-assembled eBPF: one function an instruction, each returning its bytes; `assembled` joins those that jump about.

Encoding: Documentation/bpf/standardization/instruction-set.rst. Registers are numbers: r0 the result, r1 to r5 the
arguments, r6 to r9 kept over calls, r10 the frame pointer. Little-endian machines.
"""

import struct
from typing import Final, NamedTuple, TypeAlias

from app.bpf.uapi import BPF_FUNC_TAIL_CALL, BPF_PSEUDO_KFUNC_CALL, BPF_PSEUDO_MAP_FD, BPF_PSEUDO_MAP_VALUE

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


def stack(dst: int, offset: int) -> tuple[bytes, bytes]:
    """`dst = r10 + offset`: an address on the stack, which lies below r10."""
    return mov_reg(dst, 10), add(dst, offset)


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


def mov_u64(dst: int, value: int) -> bytes:
    """`dst = value` (64 bits, two instructions)."""
    return INSN.pack(0x18, dst, 0, _signed(value & 0xFFFFFFFF)) + INSN.pack(0, 0, 0, _signed(value >> 32))


def _signed(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word


def add_reg(dst: int, src: int) -> bytes:
    """`dst += src`."""
    return _insn(0x0F, dst, src)


def sub_reg(dst: int, src: int) -> bytes:
    """`dst -= src`."""
    return _insn(0x1F, dst, src)


def or_reg(dst: int, src: int) -> bytes:
    """`dst |= src`."""
    return _insn(0x4F, dst, src)


def and_(dst: int, imm: int) -> bytes:
    """`dst &= imm`."""
    return _insn(0x57, dst, imm=imm)


def shift_left(dst: int, bits: int) -> bytes:
    """`dst <<= bits`."""
    return _insn(0x67, dst, imm=bits)


def shift_right(dst: int, bits: int) -> bytes:
    """`dst >>= bits` (unsigned)."""
    return _insn(0x77, dst, imm=bits)


def negate(dst: int) -> bytes:
    """`dst = -dst`."""
    return _insn(0x87, dst)


def store(size: int, dst: int, offset: int, src: int) -> bytes:
    """`*(size *)(dst + offset) = src`."""
    return _insn(0x63 | size, dst, src, offset)


def store_zero(dst: int, offset: int) -> bytes:
    """`*(u64 *)(dst + offset) = 0`."""
    return _insn(0x62 | DWORD, dst, offset=offset)


def call(function: int) -> bytes:
    """`r0 = ` a helper function of enum bpf_func_id, with r1 to r5; those are lost."""
    return _insn(0x85, imm=function)


def call_kernel(number: int) -> bytes:
    """`r0 = ` a function of the kernel itself, by its number in the kernel's BTF (kfunc, Linux 5.13)."""
    return _insn(0x85, src=BPF_PSEUDO_KFUNC_CALL, imm=number)


class Jump(NamedTuple):
    """A jump to a place that has a name in `assembled`."""

    instruction: bytes
    place: str


Parts: TypeAlias = tuple[bytes | Jump | str, ...]


def jump(place: str) -> Jump:
    """Go there."""
    return Jump(_insn(0x05), place)


def jump_if(dst: int, is_: str, other: int, place: str) -> Jump:
    """Go there if `dst` (64 bits) == or != `other` (signed 32 bits)."""
    return Jump(_insn({"==": 0x15, "!=": 0x55}[is_], dst, imm=other), place)


def jump_if_reg(dst: int, is_: str, src: int, place: str) -> Jump:
    """Go there if `dst` ==, !=, >, >= or < `src` (unsigned, 64 bits)."""
    return Jump(_insn({"==": 0x1D, "!=": 0x5D, ">": 0x2D, ">=": 0x3D, "<": 0xAD}[is_], dst, src), place)


def may_goto(place: str) -> Jump:
    """Go there once the loop that this is in has gone round 8 million times: so no loop is without end (Linux 6.9)."""
    return Jump(_insn(0xE5), place)


def assembled(*parts: bytes | Jump | str) -> bytes:
    """One program: instructions, jumps, and texts that name the place of what comes behind them.

    KeyError where a place has no name.
    """
    places, at = {}, 0
    for part in parts:
        if isinstance(part, str):
            places[part] = at
        else:
            at += len(part.instruction if isinstance(part, Jump) else part)
    code = b""
    for part in parts:
        if isinstance(part, Jump):
            opcode, registers, _, imm = INSN.unpack(part.instruction)
            code += INSN.pack(opcode, registers, (places[part.place] - len(code)) // INSN.size - 1, imm)
        elif not isinstance(part, str):
            code += part
    return code


def returns(value: int) -> bytes:
    """A whole program that only returns `value`."""
    return mov(0, value) + exit_()
