"""Arrays of many u32 numbers, such as a table's programs by index, and what would be slow number by number.

In a table there are few different numbers, and so there is nearly always one byte in which all of them differ. Then
bytes.translate() does for a whole array what a loop does for each number, in a tenth of the time.
"""

import sys
from array import array
from collections.abc import Collection, Mapping
from functools import cache
from typing import Final

NUMBERS: Final = "I"  # type code of arrays of u32
_BYTES: Final = 4  # of each number
_PREPARED: Final = 1 << 16  # numbers that are prepared
_MASK: Final = (1 << 8 * _BYTES) - 1
_INVERTED: Final = bytes(reversed(range(256)))
# So many numbers are looked up in the time that it takes to prepare to translate them. In most tables they have every
# different one among them.
_MANY: Final = 256


def as_array(numbers: "array[int] | range") -> "array[int]":
    """Return the numbers of a range with step 1 as a new array, and an array as it is."""
    if not isinstance(numbers, range):
        return numbers
    return _first()[numbers.start : numbers.stop] if numbers.stop <= _PREPARED else array(NUMBERS, numbers)


@cache
def _first() -> "array[int]":
    return array(NUMBERS, range(_PREPARED))


def as_range(numbers: "array[int] | range") -> range | None:
    """Return the numbers as a range with step 1 if they are consecutive. None: they are not, or there are none."""
    if isinstance(numbers, range):
        return numbers if numbers and numbers.step == 1 else None
    if not numbers or numbers[-1] - numbers[0] != len(numbers) - 1:
        return None
    found = range(numbers[0], numbers[-1] + 1)
    return found if as_array(found) == numbers else None


def is_among(number: int, numbers: "array[int]") -> bool:
    """Return whether an array has a number."""
    sought, content = _bytes_of(number), numbers.tobytes()
    at = content.find(sought)
    while at % _BYTES and at > 0:  # it is made of parts of two numbers
        at = content.find(sought, at + 1)
    return at >= 0


def distinct(numbers: "array[int]") -> frozenset[int]:
    """Return each different number of an array."""
    sample = frozenset(numbers[:_MANY])
    if len(numbers) <= _MANY:
        return sample
    place = _telling_byte(sample)
    # A number that is not in the sample would not stay as it is.
    if place is not None and _translated(numbers, place, {each: each for each in sample}) == numbers.tobytes():
        return sample
    return frozenset(numbers)


def mapped(numbers: "array[int]", to: Mapping[int, int], type_code: str = NUMBERS) -> "array[int]":
    """Return what each number becomes.

    Args:
        numbers: The numbers. Each is a key of `to`; what becomes of another one is undefined.
        to: By number, what it becomes.
        type_code: Of the new array: NUMBERS, or "i" for i32.
    """
    place = _telling_byte(to) if len(numbers) > _MANY else None
    if place is None:
        return array(type_code, map(to.__getitem__, numbers))
    return array(type_code, _translated(numbers, place, to))


def _telling_byte(numbers: Collection[int]) -> int | None:
    """Return the place of a byte in which all these numbers differ. None: there is none."""
    keys = [_bytes_of(each) for each in numbers]
    return next((place for place in range(_BYTES) if len({key[place] for key in keys}) == len(keys)), None)


def _translated(numbers: "array[int]", place: int, to: Mapping[int, int]) -> bytes:
    """Return the bytes of what each number becomes. A number that is no key of `to` does not stay as it is.

    Args:
        numbers: The numbers.
        place: Of a byte in which the keys of `to` differ.
        to: By number, what it becomes.
    """
    told = numbers.tobytes()[place::_BYTES]
    keys = [_bytes_of(number)[place] for number in to]
    result = bytearray(_BYTES * len(numbers))
    for at, column in enumerate(zip(*map(_bytes_of, to.values()), strict=True)):
        table = bytearray(_INVERTED)
        for key, byte in zip(keys, column, strict=True):
            table[key] = byte
        result[at::_BYTES] = told.translate(table)
    return bytes(result)


def _bytes_of(number: int) -> bytes:
    return (number & _MASK).to_bytes(_BYTES, sys.byteorder)
