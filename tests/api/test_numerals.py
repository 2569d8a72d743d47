"""Numbers as text: the same as one by one."""

from array import array

import pytest

from app.api.encoding.numerals import numerals
from app.store.number_arrays import NUMBERS


@pytest.mark.parametrize(
    "numbers",
    [
        range(1),
        range(5000),
        range(998, 1002),
        range(999, 1000),
        range(1000, 2000),
        range(255, 257),
        range(4095, 4097),
        range(65_500, 70_000),
        range((1 << 32) - 1500, 1 << 32),
        [],
        [7, 9, 8, 10],
        [3000, 2999, 2998],
    ],
    ids=str,
)
def test_numbers_as_text(numbers: "range | list[int]") -> None:
    for given in (array(NUMBERS, numbers), numbers if isinstance(numbers, range) else array(NUMBERS, numbers)):
        assert numerals(given) == [str(number) for number in numbers]
        assert numerals(given, "x", "0x") == [f"0x{number:x}" for number in numbers]
