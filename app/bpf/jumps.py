"""Where a program jumps: its tail calls, found by interpreting its code without running it.

The code is the one that the kernel has loaded, after the verifier has translated it. In it a map is an id, not an fd.
The interpreter follows every path, and knows of each register and of each place on the stack one of these:

- `None`: anything.
- `ELSEWHERE`: anything but an address on the stack of the function.
- a frozenset of int: one of these numbers, u64.
- `Maps`: one of these maps.
- `MapValue`: an address in the first value of a map.
- `OnStack`: an address on the stack of the function.

What is known is always true of every run, and possibly of more than ever happens. So a jump that is not found cannot
happen, and an index that is found may happen.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Final, NamedTuple, TypeAlias

from app.bpf.asm import INSN
from app.bpf.inventory import MAX_INDEXES, Jump
from app.bpf.uapi import (
    BPF_FUNC_TAIL_CALL,
    BPF_PSEUDO_CALL,
    BPF_PSEUDO_FUNC,
    BPF_PSEUDO_MAP_FD,
    BPF_PSEUDO_MAP_VALUE,
)


class Maps(NamedTuple):
    """One of these maps."""

    ids: frozenset[int]


class MapValue(NamedTuple):
    """An address in the first value of a map."""

    map_id: int
    offset: int


class OnStack(NamedTuple):
    """An address on the stack of the function; `offset` is from its end, and negative."""

    offset: int


class _Elsewhere(NamedTuple):
    pass


Value: TypeAlias = "frozenset[int] | Maps | MapValue | OnStack | _Elsewhere | None"
# Returns `size` bytes at an offset of the first value of a map as a number, if they never change; else None.
ReadConstant: TypeAlias = Callable[[int, int, int], int | None]

ELSEWHERE: Final = _Elsewhere()
# Instructions that are interpreted, some more than once: 50 ms. A program that needs more is given up.
MAX_STEPS: Final = 20_000
MAX_INSTRUCTIONS: Final = 100_000
_MAX_PRODUCTS: Final = 4096
_MAX_LISTED: Final = 4096  # indexes of one program

_REGISTERS: Final = 12  # r11 is where the kernel hides constants (net.core.bpf_jit_harden)
_U64: Final = (1 << 64) - 1
_U32: Final = (1 << 32) - 1
# Classes of instructions: the low three bits of the opcode.
_LD, _LDX, _ST, _STX, _ALU32, _JMP, _JMP32, _ALU64 = range(8)
_FROM_REGISTER: Final = 0x08  # the other operand is a register, not the immediate
_SIZES: Final = {0x00: 4, 0x08: 2, 0x10: 1, 0x18: 8}  # bytes of a load or store, by bits 3 and 4
_MEM, _ATOMIC = 0x60, 0xC0  # modes of a load or store: bits 5 to 7
_LOAD_64, _CALL, _EXIT = 0x18, 0x85, 0x95
_GOTO, _GOTO_32 = 0x05, 0x06  # the latter's offset is the immediate (Linux 6.6)
_CMPXCHG, _FETCH = 0xF0, 0x01  # parts of the immediate of an atomic instruction
_TAIL_CALL: Final = INSN.pack(_CALL, 0, 0, BPF_FUNC_TAIL_CALL)
_AND, _MOVE, _SUBTRACT, _ADD = 0x50, 0xB0, 0x10, 0x00

_ARITHMETIC: Final[Mapping[int, Callable[[int, int, int], int]]] = {
    _ADD: lambda a, b, _: a + b,
    _SUBTRACT: lambda a, b, _: a - b,
    0x20: lambda a, b, _: a * b,
    0x30: lambda a, b, _: a // b if b else 0,
    0x40: lambda a, b, _: a | b,
    _AND: lambda a, b, _: a & b,
    0x60: lambda a, b, bits: a << (b & bits - 1),
    0x70: lambda a, b, bits: a >> (b & bits - 1),
    0x90: lambda a, b, _: a % b if b else a,
    0xA0: lambda a, b, _: a ^ b,
}
_EQUAL, _GREATER, _AT_LEAST, _ANY_BIT, _NOT_EQUAL, _LESS, _AT_MOST = 0x10, 0x20, 0x30, 0x40, 0x50, 0xA0, 0xB0
_COMPARISONS: Final[Mapping[int, Callable[[int, int], bool]]] = {  # the unsigned ones
    _EQUAL: lambda a, b: a == b,
    _GREATER: lambda a, b: a > b,
    _AT_LEAST: lambda a, b: a >= b,
    _ANY_BIT: lambda a, b: bool(a & b),
    _NOT_EQUAL: lambda a, b: a != b,
    _LESS: lambda a, b: a < b,
    _AT_MOST: lambda a, b: a <= b,
}


class Uninterpretable(Exception):
    """The code would take too long, or is nothing that a verifier lets through."""


_Registers: TypeAlias = list[Value]
_Stack: TypeAlias = dict[tuple[int, int], Value]  # what was stored, by its offset and its size in bytes


class _State(NamedTuple):
    """What is known before an instruction."""

    registers: tuple[Value, ...]
    stack: _Stack


class _Instruction(NamedTuple):
    opcode: int
    dst: int
    src: int
    offset: int
    imm: int


def has_tail_call(code: bytes) -> bool:
    """Tell whether there is a tail call anywhere in the code."""
    at = code.find(_TAIL_CALL)
    while at >= 0:
        if at % INSN.size == 0:
            return True
        at = code.find(_TAIL_CALL, at + 1)
    return False


def find_jumps(code: bytes, read_constant: ReadConstant) -> tuple[Jump, ...]:
    """Find all tail calls.

    Args:
        code: The translated instructions, 8 bytes each.
        read_constant: Reads memory that never changes.

    Returns:
        For each array at most two: the indexes that are certain, and those that are not. Arrays come by rising id. A
        jump through an array that the code does not tell comes last.

    Raises:
        Uninterpretable: It would take more than MAX_STEPS, or has instructions that do not exist.
    """
    if not has_tail_call(code):
        return ()
    if len(code) > MAX_INSTRUCTIONS * INSN.size:
        raise Uninterpretable
    interpreter = _Interpreter(code, read_constant)
    interpreter.run()
    found: dict[tuple[int | None, bool], set[int] | None] = {}
    for maps, indexes in interpreter.tail_calls.values():
        certain = maps is not None and indexes is not None and len(maps) == len(indexes) == 1
        for array in (None,) if maps is None else maps:
            known = found.setdefault((array, certain), set())
            found[array, certain] = None if known is None or indexes is None else known | {i & _U32 for i in indexes}
    listed = sum(len(each) for each in found.values() if each is not None)
    return tuple(
        Jump(array, None if indexes is None or listed > _MAX_LISTED else tuple(sorted(indexes)), certain)
        for (array, certain), indexes in sorted(found.items(), key=_order)
    )


def _order(item: tuple[tuple[int | None, bool], object]) -> tuple[bool, int, bool]:
    (array, certain), _ = item
    return array is None, array or 0, not certain


class _Interpreter:
    """Interprets one program.

    Attributes:
        tail_calls: By the number of the instruction, the maps and the indexes. None: any.
    """

    def __init__(self, code: bytes, read_constant: ReadConstant) -> None:
        self._code = [_Instruction(op, regs & 15, regs >> 4, off, imm) for op, regs, off, imm in INSN.iter_unpack(code)]
        if any(max(each.dst, each.src) >= _REGISTERS for each in self._code) or self._code[-1].opcode == _LOAD_64:
            raise Uninterpretable
        self._read_constant = read_constant
        self._states: dict[int, _State] = {}  # before each instruction that a path may come to from elsewhere
        self._waiting: list[int] = []
        self._steps = 0
        self._has_callbacks = False  # functions that the kernel calls, with addresses on the stack of their caller
        self.tail_calls: dict[int, tuple[frozenset[int] | None, frozenset[int] | None]] = {}
        self._leaders = set(self._find_leaders())

    def _find_leaders(self) -> Iterator[int]:
        """Yield the instructions at which paths meet: targets of jumps, and the beginnings of functions."""
        for number, (opcode, _, src, offset, imm) in enumerate(self._code):
            if opcode == _GOTO_32:
                yield number + 1 + imm
            elif opcode & 7 in (_JMP, _JMP32) and opcode not in (_CALL, _EXIT):
                yield number + 1 + offset
            elif opcode == _CALL and src == BPF_PSEUDO_CALL:
                yield self._called(number)
            elif opcode == _LOAD_64 and src == BPF_PSEUDO_FUNC:
                yield number + 1 + imm

    def _called(self, number: int) -> int:
        """Return the first instruction of the function that is called. Compiled code has it in the offset."""
        instruction = self._code[number]
        return number + 1 + (instruction.offset or instruction.imm)

    def run(self) -> None:
        """Follow every path, from the beginning and from each function whose address is taken."""
        self._reach(0, _beginning([ELSEWHERE] * 5))
        for number, (opcode, _, src, _, imm) in enumerate(self._code):
            if opcode == _LOAD_64 and src == BPF_PSEUDO_FUNC:
                self._has_callbacks = True
                self._reach(number + 1 + imm, _beginning([ELSEWHERE] * 5))
        while self._waiting:
            number = self._waiting.pop()
            self._follow(number, self._states[number])

    def _reach(self, number: int, state: _State) -> None:
        """Join a state into what is known before an instruction. What is new is followed later."""
        if not 0 <= number < len(self._code):
            return
        known = self._states.get(number)
        joined = state if known is None else _joined(known, state)
        if joined != known:
            self._states[number] = joined
            self._waiting.append(number)

    def _follow(self, number: int, state: _State) -> None:
        """Interpret from an instruction up to where paths part or meet."""
        registers, stack = list(state.registers), dict(state.stack)
        while number < len(self._code):
            self._steps += 1
            if self._steps > MAX_STEPS:
                raise Uninterpretable
            instruction = self._code[number]
            opcode = instruction.opcode
            kind = opcode & 7
            if opcode == _EXIT:
                return
            if kind in (_JMP, _JMP32) and opcode != _CALL:
                self._branch(number, instruction, registers, stack)
                return
            if opcode == _CALL:
                self._call(number, instruction, registers, stack)
            elif opcode == _LOAD_64:
                registers[instruction.dst] = self._loaded_64(number)
                number += 1
            elif kind in (_ALU32, _ALU64):
                registers[instruction.dst] = _computed(instruction, registers)
            elif kind == _LDX:
                registers[instruction.dst] = self._loaded(instruction, registers[instruction.src], stack)
            elif kind in (_ST, _STX):
                _store(instruction, registers, stack)
            else:  # packet access of old: the result in r0
                registers[0:6] = [ELSEWHERE] * 6
            number += 1
            if number in self._leaders:
                self._reach(number, _State(tuple(registers), stack))
                return

    def _loaded_64(self, number: int) -> Value:
        """Return the result of a load of 64 bits, which takes two instructions."""
        instruction, second = self._code[number], self._code[number + 1].imm
        id_ = instruction.imm & _U32
        if instruction.src == BPF_PSEUDO_MAP_FD:
            return Maps(frozenset((id_,)))
        if instruction.src == BPF_PSEUDO_MAP_VALUE:
            return MapValue(id_, second)
        if instruction.src == 0:
            return frozenset((id_ | (second & _U32) << 32,))
        return ELSEWHERE

    def _loaded(self, instruction: _Instruction, address: Value, stack: _Stack) -> Value:
        """Return the result of a load from memory."""
        size = _SIZES[instruction.opcode & 0x18]
        if instruction.opcode & 0xE0 != _MEM:  # with sign extension, or from memory that may fault
            return None if address is None or isinstance(address, OnStack) else ELSEWHERE
        if isinstance(address, OnStack):
            return stack.get((address.offset + instruction.offset, size))
        if isinstance(address, MapValue):
            number = self._read_constant(address.map_id, address.offset + instruction.offset, size)
            return ELSEWHERE if number is None else frozenset((number,))
        return None if address is None else ELSEWHERE

    def _call(self, number: int, instruction: _Instruction, registers: _Registers, stack: _Stack) -> None:
        """Interpret a call: of a function of the program, of one of the kernel, or a tail call."""
        arguments = registers[1:6]
        if instruction.src == 0 and instruction.imm == BPF_FUNC_TAIL_CALL:
            map_, index = registers[2], registers[3]
            self.tail_calls[number] = (
                map_.ids if isinstance(map_, Maps) else None,
                index if isinstance(index, frozenset) else None,
            )
        else:
            if instruction.src == BPF_PSEUDO_CALL:
                # An address on the stack of the caller is not one on the stack of the function.
                passed = [ELSEWHERE if isinstance(each, OnStack) else each for each in arguments]
                self._reach(self._called(number), _beginning(passed))
            may_write_all = instruction.src == BPF_PSEUDO_CALL or self._has_callbacks
            for each in arguments:  # it may write behind an address that it gets
                if each is None or (may_write_all and isinstance(each, OnStack)):
                    stack.clear()
                elif isinstance(each, OnStack):
                    _forget(stack, each.offset, -each.offset)
        # The verifier makes sure that nobody reads r1 to r5 after a call.
        registers[0:6] = [ELSEWHERE] * 6

    def _branch(self, number: int, instruction: _Instruction, registers: _Registers, stack: _Stack) -> None:
        """Follow a jump within the program: to its target, to the next instruction, or to both."""
        opcode, dst, _, offset, imm = instruction
        if opcode in (_GOTO, _GOTO_32):
            self._reach(number + 1 + (imm if opcode == _GOTO_32 else offset), _State(tuple(registers), stack))
            return
        value = registers[dst]
        taken, not_taken = value, value
        if opcode & 0xF0 in _COMPARISONS and not opcode & _FROM_REGISTER:
            taken, not_taken = _narrowed(opcode, value, imm)
        for target, known in ((number + 1 + offset, taken), (number + 1, not_taken)):
            if known != frozenset():  # else no run comes here
                self._reach(target, _State((*registers[:dst], known, *registers[dst + 1 :]), stack))


def _beginning(arguments: Sequence[Value]) -> _State:
    """Return what is known at the beginning of a function that gets five arguments."""
    return _State((None, *arguments, None, None, None, None, OnStack(0), None), {})


def _joined(one: _State, other: _State) -> _State:
    """Return what is true of both."""
    places = one.stack.keys() & other.stack.keys()
    return _State(
        tuple(map(_join, one.registers, other.registers)),
        {place: joined for place in places if (joined := _join(one.stack[place], other.stack[place])) is not None},
    )


def _join(one: Value, other: Value) -> Value:
    if one == other:
        return one
    if isinstance(one, frozenset) and isinstance(other, frozenset):
        both = one | other
        return both if len(both) <= MAX_INDEXES else ELSEWHERE
    if isinstance(one, Maps) and isinstance(other, Maps):
        return Maps(one.ids | other.ids)
    return None if None in (one, other) or OnStack in (type(one), type(other)) else ELSEWHERE


def _computed(instruction: _Instruction, registers: _Registers) -> Value:
    """Return the result of an arithmetic instruction."""
    opcode, dst, src, offset, imm = instruction
    operation, is_64 = opcode & 0xF0, opcode & 7 == _ALU64
    mask = _U64 if is_64 else _U32
    value = registers[dst]
    other: Value = registers[src] if opcode & _FROM_REGISTER else frozenset((imm & mask,))
    if operation == _MOVE and not offset:
        return frozenset(each & mask for each in other) if isinstance(other, frozenset) else other
    if offset:  # signed division, or a move with sign extension (Linux 6.6)
        return ELSEWHERE
    if is_64 and operation in (_ADD, _SUBTRACT) and isinstance(value, MapValue | OnStack):
        return _moved(value, other, 1 if operation == _ADD else -1)
    if operation not in _ARITHMETIC or not isinstance(value, frozenset) or not isinstance(other, frozenset):
        return _bounded(operation, value, other)
    if len(value) * len(other) > _MAX_PRODUCTS:
        return ELSEWHERE
    compute, bits = _ARITHMETIC[operation], 64 if is_64 else 32
    results = frozenset(compute(a & mask, b & mask, bits) & mask for a, b in product(value, other))
    return results if len(results) <= MAX_INDEXES else ELSEWHERE


def _moved(address: MapValue | OnStack, distance: Value, sign: int) -> Value:
    """Return an address that is so far from another one."""
    if not isinstance(distance, frozenset) or len(distance) != 1:
        return None if isinstance(address, OnStack) else ELSEWHERE
    (bytes_,) = distance
    bytes_ -= (1 << 64) * (bytes_ >> 63)
    return address._replace(offset=address.offset + sign * bytes_)


def _bounded(operation: int, value: Value, other: Value) -> Value:
    """Return the result of an operation of which something is unknown. Some leave few possible results."""
    if operation == _AND:
        for each in (value, other):
            if isinstance(each, frozenset) and len(each) == 1 and 1 << min(each).bit_count() <= MAX_INDEXES:
                return frozenset(_submasks(min(each)))
    may_be_on_stack = any(each is None or isinstance(each, OnStack) for each in (value, other))
    return None if may_be_on_stack else ELSEWHERE


def _submasks(mask: int) -> Iterator[int]:
    """Yield every number that has no other bits than the mask."""
    part = mask
    while part:
        yield part
        part = part - 1 & mask
    yield 0


def _narrowed(opcode: int, value: Value, imm: int) -> tuple[Value, Value]:
    """Return what is known of a value where a comparison with a number holds, and where it does not.

    An empty set: it never holds, or always.
    """
    operation, is_32 = opcode & 0xF0, opcode & 7 == _JMP32
    number = imm & (_U32 if is_32 else _U64)
    holds = _COMPARISONS[operation]
    if isinstance(value, frozenset):
        yes = frozenset(each for each in value if holds(each & _U32 if is_32 else each, number))
        return yes, value - yes
    if operation == _EQUAL:
        return frozenset((number,)) if not is_32 else value, value
    if operation == _NOT_EQUAL:
        return value, frozenset((number,)) if not is_32 else value
    below = {_LESS: number, _AT_LEAST: number, _AT_MOST: number + 1, _GREATER: number + 1}.get(operation)
    is_number = value is None or isinstance(value, _Elsewhere)
    if is_32 or below is None or below > MAX_INDEXES or not is_number:
        return value, value
    few = frozenset(range(below))
    return (few, value) if operation in (_LESS, _AT_MOST) else (value, few)


def _store(instruction: _Instruction, registers: _Registers, stack: _Stack) -> None:
    """Interpret a store, or an atomic operation on memory."""
    opcode, dst, src, offset, imm = instruction
    size, address = _SIZES[opcode & 0x18], registers[dst]
    is_plain = opcode & 0xE0 == _MEM
    if address is None:
        stack.clear()
    elif isinstance(address, OnStack):
        place = address.offset + offset
        _forget(stack, place, size)
        value: Value = registers[src] if opcode & 7 == _STX else frozenset((imm & _U64,))
        if isinstance(value, frozenset):
            value = frozenset(each & (1 << 8 * size) - 1 for each in value)
        if is_plain and value is not None and (size == 8 or isinstance(value, frozenset)):
            stack[place, size] = value
    if opcode & 0xE0 == _ATOMIC and imm & _FETCH:
        unknown = None if address is None or isinstance(address, OnStack) else ELSEWHERE
        registers[0 if imm & 0xF0 == _CMPXCHG else src] = unknown


def _forget(stack: _Stack, start: int, size: int) -> None:
    """Forget what is in a part of the stack."""
    for place in [place for place in stack if place[0] < start + size and start < sum(place)]:
        del stack[place]
