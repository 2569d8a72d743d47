"""An assembler for eBPF, so that programs can be made without a compiler.

Each function returns the bytes of one instruction. A program without jumps is their sum; `assemble` joins a program
with jumps to labels. Registers are numbers: r0 holds results, r1 to r5 arguments, r6 to r9 survive calls, r10 is the
frame pointer. For little-endian machines. Encoding: Documentation/bpf/standardization/instruction-set.rst.
"""

import struct
from typing import Final, NamedTuple, TypeAlias

from app.bpf.uapi import BPF_FUNC_TAIL_CALL, BPF_PSEUDO_KFUNC_CALL, BPF_PSEUDO_MAP_FD, BPF_PSEUDO_MAP_VALUE

INSN: Final = struct.Struct("<BBhi")  # 8 bytes: opcode, src << 4 | dst, offset, immediate

# Sizes of loads and stores.
BYTE: Final = 0x10
WORD: Final = 0x00
DWORD: Final = 0x18


def _insn(opcode: int, dst: int = 0, src: int = 0, offset: int = 0, imm: int = 0) -> bytes:
    return INSN.pack(opcode, src << 4 | dst, offset, imm)


def mov(dst: int, imm: int) -> bytes:
    """`dst = imm` (signed, 32 bits, extended to 64)."""
    return _insn(0xB7, dst, imm=imm)


def mov_reg(dst: int, src: int) -> bytes:
    """`dst = src`."""
    return _insn(0xBF, dst, src)


def add(dst: int, imm: int) -> bytes:
    """`dst += imm`."""
    return _insn(0x07, dst, imm=imm)


def stack(dst: int, offset: int) -> tuple[bytes, bytes]:
    """`dst = r10 + offset`: the address of a place on the stack; `offset` is negative. Two instructions."""
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
    """`dst = ` the map behind `fd`. Counts as two instructions."""
    return _insn(0x18, dst, BPF_PSEUDO_MAP_FD, imm=fd) + _insn(0)


def map_value(dst: int, fd: int) -> bytes:
    """`dst = ` the address of the first value of the array behind `fd` (Linux 5.2). Counts as two instructions."""
    return _insn(0x18, dst, BPF_PSEUDO_MAP_VALUE, imm=fd) + _insn(0)


def tail_call() -> bytes:
    """`bpf_tail_call(r1 context, r2 program array, r3 index)`. The next instruction runs only if the call fails."""
    return _insn(0x85, imm=BPF_FUNC_TAIL_CALL)


def exit_() -> bytes:
    """Return r0."""
    return _insn(0x95)


def mov_u64(dst: int, value: int) -> bytes:
    """`dst = value` (unsigned, 64 bits). Counts as two instructions."""
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
    """`r0 = function(r1, …, r5)`: a helper function of enum bpf_func_id. r1 to r5 are undefined afterwards."""
    return _insn(0x85, imm=function)


def call_kernel(btf_id: int) -> bytes:
    """`r0 = function(r1, …, r5)`: a kernel function by its id in the kernel's BTF (kfunc, Linux 5.13)."""
    return _insn(0x85, src=BPF_PSEUDO_KFUNC_CALL, imm=btf_id)


class Jump(NamedTuple):
    """A jump to a label. `assemble` fills in the offset."""

    instruction: bytes
    label: str


# Parts of a program for `assemble`: instructions, jumps, and labels (text).
Parts: TypeAlias = tuple[bytes | Jump | str, ...]


def jump(label: str) -> Jump:
    """Go to the label."""
    return Jump(_insn(0x05), label)


def jump_if(dst: int, comparison: str, imm: int, label: str) -> Jump:
    """Go to the label if `dst` (64 bits) is `==` or `!=` `imm` (signed, 32 bits)."""
    return Jump(_insn({"==": 0x15, "!=": 0x55}[comparison], dst, imm=imm), label)


def jump_if_reg(dst: int, comparison: str, src: int, label: str) -> Jump:
    """Go to the label if `dst` is `==`, `!=`, `>`, `>=` or `<` `src` (unsigned, 64 bits)."""
    return Jump(_insn({"==": 0x1D, "!=": 0x5D, ">": 0x2D, ">=": 0x3D, "<": 0xAD}[comparison], dst, src), label)


def may_goto(label: str) -> Jump:
    """Go to the label after about 8 million executions, so that the verifier accepts an unbounded loop (Linux 6.9)."""
    return Jump(_insn(0xE5), label)


def assemble(*parts: bytes | Jump | str) -> bytes:
    """Join parts into one program.

    Args:
        parts: Instructions, jumps, and labels. A label (text) names the place of the part behind it.

    Raises:
        KeyError: A jump goes to a label that does not exist.
    """
    places, position = {}, 0
    for part in parts:
        if isinstance(part, str):
            places[part] = position
        else:
            position += len(part.instruction if isinstance(part, Jump) else part)
    code = b""
    for part in parts:
        if isinstance(part, Jump):
            opcode, registers, _, imm = INSN.unpack(part.instruction)
            code += INSN.pack(opcode, registers, (places[part.label] - len(code)) // INSN.size - 1, imm)
        elif not isinstance(part, str):
            code += part
    return code


def returns(value: int) -> bytes:
    """A whole program that returns `value` and does nothing else."""
    return mov(0, value) + exit_()
