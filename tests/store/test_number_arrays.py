"""Arrays of numbers: the same as number by number."""

import random
from array import array

import pytest

from app.store.number_arrays import NUMBERS, as_array, as_range, distinct, is_among, mapped

FEW = [70_001, 70_002, 0, (1 << 32) - 1]
ALIKE = [0x01010000, 0x01000001, 0x00010001, 0x00000000, 0x01010101]  # no byte tells all of them apart
MANY = list(range(1, 2000))


def _array(choices: list[int], count: int) -> "array[int]":
    return array(NUMBERS, random.Random(count).choices(choices, k=count))


@pytest.mark.parametrize("numbers", [range(0), range(3, 7), range(65_536), range(65_530, 65_600), range(9, 9)])
def test_consecutive_numbers(numbers: range) -> None:
    found = as_array(numbers)
    assert found == array(NUMBERS, numbers)
    found.append(5)  # it is the caller's
    assert as_array(numbers) == array(NUMBERS, numbers)


@pytest.mark.parametrize("count", [0, 1, 256, 257, 5000])
@pytest.mark.parametrize("choices", [FEW, ALIKE, MANY, [7]], ids=["few", "alike", "many", "one"])
class TestWholeArrays:
    def test_distinct_numbers(self, choices: list[int], count: int) -> None:
        numbers = _array(choices, count)
        assert distinct(numbers) == set(numbers)

    def test_number_that_comes_once_late_is_distinct(self, choices: list[int], count: int) -> None:
        for late in (70_003, 70_001 + (1 << 24), 7 << 8, 0, 0x09090909):
            assert distinct(_array(choices, count) + array(NUMBERS, [late])) == {*_array(choices, count), late}

    @pytest.mark.parametrize("type_code", [NUMBERS, "i"])
    def test_mapped_numbers(self, choices: list[int], count: int, type_code: str) -> None:
        to = {each: place * 1_000_003 % (1 << 31) for place, each in enumerate(choices)}
        if type_code == "i":
            to[choices[0]] = -1
        numbers = _array(choices, count)
        assert mapped(numbers, to, type_code) == array(type_code, [to[each] for each in numbers])


@pytest.mark.parametrize(
    ("numbers", "is_there"),
    [
        ([], False),
        ([5, 0], True),
        ([0], True),
        ([1, 1 << 24], False),
        ([1, 1 << 24, 7, 0], True),
        ([1 << 24, 1], False),
    ],
)
def test_number_is_among_others(numbers: list[int], is_there: bool) -> None:
    """Bytes of two numbers that look like the one that is sought are not it."""
    assert is_among(0, array(NUMBERS, numbers)) == is_there


@pytest.mark.parametrize(
    ("numbers", "found"),
    [([3, 4, 5], range(3, 6)), ([7], range(7, 8)), ([], None), ([1, 3, 2, 4], None), ([5, 4, 3], None), ([1, 3], None)],
)
def test_consecutive_numbers_are_a_range(numbers: list[int], found: range | None) -> None:
    assert as_range(array(NUMBERS, numbers)) == found


def test_ranges_with_step_1_are_ranges() -> None:
    assert as_range(range(3, 9)) == range(3, 9)
    assert as_range(range(3, 9, 2)) is None
