"""Sets of indexes, and the indexes of unconfirmed entries."""

import random
from array import array

import pytest

from app.service.registry.index_sets import IndexSet, UnconfirmedEntries

INDEXES = [array("I", [7, 3, 70_000]), range(5, 9), array("I"), range(0)]


class TestIndexSet:
    @pytest.mark.parametrize("indexes", INDEXES)
    def test_set_contains_exactly_its_indexes(self, indexes: "array[int] | range") -> None:
        marks = IndexSet(indexes)
        assert list(marks) == sorted(indexes)
        assert len(marks) == len(indexes)
        assert all((index in marks) == (index in indexes) for index in (*range(100), 70_000, 70_001, 1 << 32))


class TestUnconfirmedEntries:
    def test_behaves_like_a_dict(self) -> None:
        unconfirmed, told, chosen = UnconfirmedEntries(), dict[int, int](), random.Random(1)
        for change in range(1, 50):
            free = [index for index in range(200) if index not in told]
            indexes = array("I", chosen.sample(free, min(len(free), 10)))
            unconfirmed.add(indexes, change, 5.0)
            told |= dict.fromkeys(indexes, change)
            if change % 3 == 0:
                over = change - chosen.randrange(3)
                unconfirmed.remove(range(200), over)
                told = {index: each for index, each in told.items() if each != over}
            assert unconfirmed == told
            assert bool(unconfirmed) == bool(told)
            assert [unconfirmed.get(index) for index in range(300)] == [told.get(index) for index in range(300)]
