"""Where programs jump, by their instructions. What clang makes of C is in tests/system/test_graph.py."""

import contextlib
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from app.bpf import asm, jumps
from app.bpf.asm import DWORD, WORD
from app.bpf.inventory import Jump, ProgramCode
from app.bpf.jumps import Uninterpretable, find_jumps
from app.bpf.kernel import Kernel
from app.bpf.linux import LinuxKernel
from app.bpf.uapi import BPF_FUNC_KTIME_GET_NS, MapType, ProgType
from tests.probes import examples

ARRAY = 77


def found(*parts: asm.Jump | bytes | str) -> tuple[Jump, ...]:
    """The jumps of a program, of which no memory is known."""
    return find_jumps(asm.assemble(*parts), lambda *_: None)


def call(index: asm.Parts) -> asm.Parts:
    """A tail call through ARRAY, with the index that these instructions leave in r3."""
    return (*index, asm.map_fd(2, ARRAY), asm.tail_call(), asm.returns(0))


RANDOM = (asm.mov_reg(6, 1), asm.call(BPF_FUNC_KTIME_GET_NS), asm.mov_reg(1, 6))


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ((asm.mov(3, 5),), (5,)),
        ((asm.mov(3, 4), asm.add(3, 3)), (7,)),
        ((asm.mov(3, -1), asm.shift_right(3, 60)), (15,)),
        ((asm.mov_u64(3, 1 << 32 | 6),), (6,)),  # the index is u32
        ((*RANDOM, asm.mov_reg(3, 0)), None),
        ((*RANDOM, asm.mov_reg(3, 0), asm.and_(3, 5)), (0, 1, 4, 5)),
        ((*RANDOM, asm.mov_reg(3, 0), asm.and_(3, 0xFF)), None),  # too many
        ((asm.mov(3, 2), asm.jump_if(1, "==", 0, "one"), asm.mov(3, 9), "one"), (2, 9)),
        ((asm.mov(3, 2), asm.store(DWORD, 10, -8, 3), asm.load(DWORD, 3, 10, -8)), (2,)),
        ((asm.mov(3, 2), asm.store(WORD, 10, -4, 3), asm.store_zero(10, -8), asm.load(WORD, 3, 10, -4)), None),
        # r7 may be an address on the stack: a store there may change what is at -8.
        (
            (
                asm.mov(3, 2), asm.store(DWORD, 10, -8, 3), asm.mov_reg(7, 10), *RANDOM, asm.add_reg(7, 0),
                asm.store_zero(7, 0), asm.load(DWORD, 3, 10, -8),
            ),
            None,
        ),
        # A helper gets an address on the stack, and may write behind it; what is below stays known.
        (
            (
                asm.mov(3, 2), asm.store(DWORD, 10, -16, 3), asm.store(DWORD, 10, -8, 3), *asm.stack(1, -8),
                asm.call(BPF_FUNC_KTIME_GET_NS), asm.load(DWORD, 3, 10, -16),
            ),
            (2,),
        ),
        (
            (
                asm.mov(3, 2), asm.store(DWORD, 10, -8, 3), *asm.stack(1, -8), asm.call(BPF_FUNC_KTIME_GET_NS),
                asm.load(DWORD, 3, 10, -8),
            ),
            None,
        ),
    ],
)  # fmt: skip
def test_index_is_what_the_instructions_compute(index: asm.Parts, expected: tuple[int, ...] | None) -> None:
    assert found(*call(index)) == (Jump(ARRAY, expected, certain=expected is not None and len(expected) == 1),)


def test_array_that_depends_on_the_path_is_uncertain() -> None:
    code = (
        asm.map_fd(2, ARRAY), asm.jump_if(1, "==", 0, "other"), asm.mov(3, 1), asm.jump("call"),
        "other", asm.map_fd(2, ARRAY + 1), asm.mov(3, 2), "call", asm.tail_call(), asm.returns(0),
    )  # fmt: skip
    assert found(*code) == (Jump(ARRAY, (1, 2), certain=False), Jump(ARRAY + 1, (1, 2), certain=False))


def test_places_with_one_index_are_told_apart_from_those_that_choose() -> None:
    choice = (asm.mov(3, 2), asm.jump_if(1, "==", 0, "one"), asm.mov(3, 9), "one")
    code = (*call((asm.mov(3, 4),)), "again", *call(choice))
    assert found(asm.jump_if(6, "==", 0, "again"), *code) == (
        Jump(ARRAY, (4,), certain=True),
        Jump(ARRAY, (2, 9), certain=False),
    )


def test_array_that_the_code_hides_is_any_array() -> None:
    assert found(asm.mov(3, 1), asm.mov_reg(2, 1), asm.tail_call(), asm.returns(0)) == (
        Jump(None, (1,), certain=False),
    )


def test_path_that_no_run_takes_is_not_followed() -> None:
    code = (asm.mov(3, 1), asm.jump_if(3, "==", 1, "end"), *call((asm.mov(3, 2),)), "end", *call(()))
    assert found(*code) == (Jump(ARRAY, (1,), certain=True),)


def test_constant_memory_is_read() -> None:
    code = asm.assemble(asm.map_value(4, 9), asm.load(WORD, 3, 4, 8), *call(()))
    memory = {(9, 8, 4): 11}
    assert find_jumps(code, lambda *place: memory.get(place)) == (Jump(ARRAY, (11,), certain=True),)
    assert find_jumps(code, lambda *place: None) == (Jump(ARRAY, None, certain=False),)


def test_code_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jumps, "MAX_STEPS", 10)
    with pytest.raises(Uninterpretable):
        found(*[asm.mov(3, 1)] * 20, *call(()))


def test_loop_without_end_ends() -> None:
    assert found(asm.mov(3, 0), "again", asm.add(3, 1), asm.jump_if(1, "!=", 0, "again"), *call(())) == (
        Jump(ARRAY, None, certain=False),
    )


def test_codes_tell_the_jumps_of_loaded_programs(kernel: Kernel) -> None:
    array = kernel.map_create(MapType.PROG_ARRAY, 4, 4, 8, "table")
    id_ = kernel.map_info(array).id
    program = kernel.prog_load(ProgType.XDP, asm.mov(3, 6) + asm.map_fd(2, array) + asm.tail_call() + asm.returns(0))
    other = kernel.prog_load(ProgType.XDP, asm.returns(2))
    numbers = [kernel.prog_info(fd).id for fd in (program, other)]
    assert kernel.codes([*numbers, 0xFFFFFFF0]) == {
        numbers[0]: ProgramCode((id_,), (Jump(id_, (6,), certain=True),)),
        numbers[1]: ProgramCode((), ()),
    }
    for fd in (array, program, other):
        kernel.close(fd)


# Instructions of random programs. r6 is the context, r10 the end of the stack; the others are numbers.
_NUMBERS = st.sampled_from([0, 2, 3, 4, 5, 7, 8, 9])
_SMALL = st.sampled_from([0, 1, 2, 3, 7, 8, 31, 63, 255, -1, -8])
_OPERATIONS = st.sampled_from([0x00, 0x10, 0x20, 0x40, 0x50, 0xA0, 0xB0])  # add, sub, mul, or, and, xor, mov
_SHIFTS = st.sampled_from([0x60, 0x70])
_COMPARISONS = st.sampled_from([0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0xA0, 0xB0, 0xC0, 0xD0])
_SLOTS = st.sampled_from([-8, -16, -24, -32])


def insn(opcode: int, dst: int = 0, src: int = 0, offset: int = 0, imm: int = 0) -> bytes:
    return asm.INSN.pack(opcode, src << 4 | dst, offset, imm)


_STEPS = st.one_of(
    st.builds(lambda op, dst, imm, wide: insn((7 if wide else 4) | op, dst, imm=imm), _OPERATIONS, _NUMBERS, _SMALL,
              st.booleans()),
    st.builds(lambda op, dst, src, wide: insn((0xF if wide else 0xC) | op, dst, src), _OPERATIONS, _NUMBERS, _NUMBERS,
              st.booleans()),
    st.builds(lambda op, dst, imm, wide: insn((7 if wide else 4) | op, dst, imm=imm), _SHIFTS, _NUMBERS,
              st.integers(0, 31), st.booleans()),
    st.builds(lambda slot, src: insn(0x7B, 10, src, slot), _SLOTS, _NUMBERS),  # 8 bytes to the stack
    st.builds(lambda slot, src, part: insn(0x63, 10, src, slot + part), _SLOTS, _NUMBERS, st.sampled_from([0, 4])),
    st.builds(lambda slot, dst: insn(0x79, dst, 10, slot), _SLOTS, _NUMBERS),
    st.builds(lambda slot, dst, part: insn(0x61, dst, 10, slot + part), _SLOTS, _NUMBERS, st.sampled_from([0, 4])),
    st.builds(lambda op, dst, imm, wide, over: (insn((5 if wide else 6) | op, dst, imm=imm), over), _COMPARISONS,
              _NUMBERS, _SMALL, st.booleans(), st.integers(1, 4)),
)  # fmt: skip


@pytest.fixture(scope="module")
def numbered() -> Iterator[tuple[int, int]]:
    """A program array (its fd and its id) of 64 entries; the program of each returns its index."""
    kernel = LinuxKernel()
    array = kernel.map_create(MapType.PROG_ARRAY, 4, 4, 64)
    for index in range(64):
        program = kernel.prog_load(ProgType.XDP, asm.returns(index))
        kernel.map_update(array, index, program)
        kernel.close(program)
    yield array, kernel.map_info(array).id
    kernel.close(array)


@pytest.mark.kernel
@pytest.mark.slow
@settings(max_examples=examples(300), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(_STEPS, max_size=25), mask=st.booleans(), packet=st.binary(min_size=14, max_size=14))
def test_index_that_the_kernel_takes_is_among_those_that_are_found(
    numbered: tuple[int, int], steps: list[bytes | tuple[bytes, int]], packet: bytes, *, mask: bool
) -> None:
    """Random programs: what the interpreter finds is never less than what happens."""
    array, id_ = numbered
    code = [
        asm.mov_reg(6, 1), asm.load(WORD, 2, 6, 0), asm.load(WORD, 3, 6, 4), asm.mov_reg(4, 2), asm.add(4, 14),
        insn(0x3D, 3, 4, 2), asm.returns(99), asm.load(asm.BYTE, 7, 2, 0), asm.load(WORD, 8, 2, 4),
        *(asm.store_zero(10, slot) for slot in (-8, -16, -24, -32)),
        *(asm.mov(register, register) for register in (0, 2, 3, 4, 5, 9)),
    ]  # fmt: skip
    for number, step in enumerate(steps):
        if isinstance(step, bytes):
            code.append(step)
        else:
            jump, over = step
            opcode, registers, _, imm = asm.INSN.unpack(jump)
            code.append(asm.INSN.pack(opcode, registers, min(over, len(steps) - number - 1), imm))
    code += [asm.and_(3, 63)] if mask else []
    code += [asm.mov_reg(1, 6), asm.map_fd(2, array), asm.tail_call(), asm.returns(99)]
    kernel = LinuxKernel()
    try:
        program = kernel.prog_load(ProgType.XDP, b"".join(code))
    except OSError as error:
        reject()
        raise AssertionError from error
    try:
        returned = kernel.prog_test_run(program, packet).returned
        jumps = kernel.codes([kernel.prog_info(program).id])[kernel.prog_info(program).id].jumps
    finally:
        kernel.close(program)
    assert jumps is not None
    indexes = [jump.indexes for jump in jumps if jump.array == id_]
    if returned < 64:
        assert any(each is None or returned in each for each in indexes), (returned, jumps)
    if returned == 99 and indexes and None not in indexes:
        assert any(index >= 64 for each in indexes for index in each or ()), jumps


@given(code=st.binary(max_size=400).map(lambda code: code[: len(code) // 8 * 8]))
def test_any_bytes_are_interpreted_or_given_up(code: bytes) -> None:
    """Also those that no verifier would let through: nothing else is raised."""
    with contextlib.suppress(Uninterpretable):
        find_jumps(asm.mov(3, 1) + code + asm.tail_call(), lambda *_: None)
