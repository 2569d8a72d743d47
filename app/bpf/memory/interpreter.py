"""Runs the instructions of `asm` that the programs of the demo and the tests consist of, for the memory kernel.

There are no addresses: a pointer is a pair of a memory and an offset into it, and a map is itself.
"""

import errno
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from app.bpf.asm import BYTE, DWORD, INSN, WORD
from app.bpf.uapi import BPF_FUNC_TAIL_CALL, BPF_PSEUDO_MAP_FD, BPF_PSEUDO_MAP_VALUE, MAX_TAIL_CALL_CNT

_SIZES: Final = {0x61 | BYTE: 1, 0x61 | WORD: 4, 0x61 | DWORD: 8}
_LOAD_64: Final = 0x18
_CALL: Final = 0x85
_EXIT: Final = 0x95
_KNOWN: Final = {0xB7, 0xBF, 0x07, 0x2D, 0xDB, _LOAD_64, _CALL, _EXIT, *_SIZES}


class Instruction(NamedTuple):
    """One instruction; `map` is what a load of a map stands for."""

    opcode: int
    dst: int
    src: int
    offset: int
    imm: int
    map: Any = None


class Pointer(NamedTuple):
    """An address: what it leads into, and how far."""

    memory: bytearray | Mapping[int, Any]
    offset: int


def decode(instructions: bytes, map_of: Callable[[int], Any]) -> list[Instruction]:
    """Take assembled bytes apart; `map_of` gives the map behind an fd. EINVAL for others."""
    if len(instructions) < INSN.size:
        raise OSError(errno.E2BIG, "PROG_LOAD: no instructions")
    code: list[Instruction] = []
    for opcode, registers, offset, imm in INSN.iter_unpack(instructions[: len(instructions) // 8 * 8]):
        dst, src = registers & 15, registers >> 4
        second_half = bool(code) and code[-1].opcode == _LOAD_64
        if second_half:
            code.append(Instruction(0, 0, 0, 0, 0))
            continue
        if opcode not in _KNOWN or (opcode == _CALL and imm != BPF_FUNC_TAIL_CALL):
            raise OSError(errno.EINVAL, f"PROG_LOAD: instruction {opcode:#x} is not known here")
        pseudo = opcode == _LOAD_64 and src in {BPF_PSEUDO_MAP_FD, BPF_PSEUDO_MAP_VALUE}
        code.append(Instruction(opcode, dst, src, offset, imm, map_of(imm) if pseudo else None))
    if code[-1].opcode != _EXIT:
        raise OSError(errno.EINVAL, "PROG_LOAD: falls off its end")
    return code


def run(
    code: Sequence[Instruction],
    context: Mapping[int, Any],
    tail_call: Callable[[Any, int], Sequence[Instruction] | None],
    first_value: Callable[[Any], bytearray],
) -> int:
    """Run to the exit, and return r0 as u32.

    `context`: field by offset; `tail_call(map, index)`: the code to go on with, None where the jump falls through;
    `first_value(map)`: an array's first value.
    """
    registers: list[Any] = [0] * 11
    registers[1] = Pointer(context, 0)
    at, jumps = 0, 0
    while True:
        opcode, dst, src, offset, imm, map_ = code[at]
        at += 1
        if opcode == 0xB7:
            registers[dst] = imm
        elif opcode == 0xBF:
            registers[dst] = registers[src]
        elif opcode == 0x07:
            registers[dst] = _plus(registers[dst], imm)
        elif opcode == 0x2D:
            at += offset if _number(registers[dst]) > _number(registers[src]) else 0
        elif opcode in _SIZES:
            registers[dst] = _load(registers[src], offset, _SIZES[opcode])
        elif opcode == 0xDB:
            _atomic_add(registers[dst], offset, registers[src])
        elif opcode == _LOAD_64:
            registers[dst] = Pointer(first_value(map_), 0) if src == BPF_PSEUDO_MAP_VALUE else map_
            at += 1
        elif opcode == _CALL:
            target = tail_call(registers[2], registers[3]) if jumps < MAX_TAIL_CALL_CNT else None
            if target is not None:
                code, at, jumps = target, 0, jumps + 1
        else:
            return int(registers[0]) & 0xFFFFFFFF


def _plus(value: Any, imm: int) -> Any:
    return value._replace(offset=value.offset + imm) if isinstance(value, Pointer) else value + imm


def _number(value: Any) -> int:
    return value.offset if isinstance(value, Pointer) else int(value)


def _load(pointer: Pointer, offset: int, size: int) -> Any:
    start = pointer.offset + offset
    if isinstance(pointer.memory, bytearray):
        return int.from_bytes(pointer.memory[start : start + size], "little")
    return pointer.memory[start]


def _atomic_add(pointer: Pointer, offset: int, value: int) -> None:
    start = pointer.offset + offset
    assert isinstance(pointer.memory, bytearray)
    total = int.from_bytes(pointer.memory[start : start + 8], "little") + value
    pointer.memory[start : start + 8] = (total % (1 << 64)).to_bytes(8, "little")


def xdp_md(data: bytearray) -> dict[int, Any]:
    """The context of an XDP program, by offset: data, data_end."""
    return {0: Pointer(data, 0), 4: Pointer(data, len(data))}


def sk_buff(data: bytearray) -> dict[int, Any]:
    """That of a program on packets of the stack: len, data, data_end."""
    return {0: len(data), 76: Pointer(data, 0), 80: Pointer(data, len(data))}
