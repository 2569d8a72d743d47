"""An interpreter for eBPF, which the kernel in memory uses for test runs.

It knows the instructions that the programs of the demo and the tests are made of. There are no addresses: a pointer is
a memory and an offset into it, and a map in a register is the object itself.
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
    """One instruction. `map` is the map that a 64-bit load of a map refers to."""

    opcode: int
    dst: int
    src: int
    offset: int
    imm: int
    map: Any = None


class Pointer(NamedTuple):
    """An address: a memory and an offset into it."""

    memory: bytearray | Mapping[int, Any]
    offset: int


def decode(instructions: bytes, map_of: Callable[[int], Any]) -> list[Instruction]:
    """Decode a program.

    Args:
        instructions: Assembled bytes, 8 per instruction.
        map_of: Returns the map behind an fd.

    Raises:
        OSError: E2BIG for no instruction; EINVAL for an instruction that this interpreter does not know, and for a
            program that does not end with an exit.
    """
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
            raise OSError(errno.EINVAL, f"PROG_LOAD: the kernel in memory does not know instruction {opcode:#x}")
        pseudo = opcode == _LOAD_64 and src in {BPF_PSEUDO_MAP_FD, BPF_PSEUDO_MAP_VALUE}
        code.append(Instruction(opcode, dst, src, offset, imm, map_of(imm) if pseudo else None))
    if code[-1].opcode != _EXIT:
        raise OSError(errno.EINVAL, "PROG_LOAD: the last instruction is no exit")
    return code


def run(
    code: Sequence[Instruction],
    context: Mapping[int, Any],
    tail_call: Callable[[Any, int], Sequence[Instruction] | None],
    first_value: Callable[[Any], bytearray],
) -> int:
    """Run a program up to its exit.

    Args:
        code: The decoded program.
        context: The value of each field of the context, by offset.
        tail_call: Called with (map, index); returns the program to continue with, or None where the call fails.
        first_value: Called with an array; returns the memory of its first value.

    Returns:
        r0, as u32.
    """
    registers: list[Any] = [0] * 11
    registers[1] = Pointer(context, 0)
    position, tail_calls = 0, 0
    while True:
        opcode, dst, src, offset, imm, map_ = code[position]
        position += 1
        if opcode == 0xB7:
            registers[dst] = imm
        elif opcode == 0xBF:
            registers[dst] = registers[src]
        elif opcode == 0x07:
            registers[dst] = _add(registers[dst], imm)
        elif opcode == 0x2D:
            position += offset if _number(registers[dst]) > _number(registers[src]) else 0
        elif opcode in _SIZES:
            registers[dst] = _load(registers[src], offset, _SIZES[opcode])
        elif opcode == 0xDB:
            _atomic_add(registers[dst], offset, registers[src])
        elif opcode == _LOAD_64:
            registers[dst] = Pointer(first_value(map_), 0) if src == BPF_PSEUDO_MAP_VALUE else map_
            position += 1
        elif opcode == _CALL:
            target = tail_call(registers[2], registers[3]) if tail_calls < MAX_TAIL_CALL_CNT else None
            if target is not None:
                code, position, tail_calls = target, 0, tail_calls + 1
        else:
            return int(registers[0]) & 0xFFFFFFFF


def _add(value: Any, imm: int) -> Any:
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
    """Return the context of an XDP program for a packet: data and data_end of struct xdp_md, by offset."""
    return {0: Pointer(data, 0), 4: Pointer(data, len(data))}


def sk_buff(data: bytearray) -> dict[int, Any]:
    """Return the context of sched_cls and socket_filter programs: len, data and data_end of struct __sk_buff."""
    return {0: len(data), 76: Pointer(data, 0), 80: Pointer(data, len(data))}
