"""Expected tables from, and as, dictionaries of programs by index."""

from array import array

from app.store.expected import Table
from app.store.number_arrays import NUMBERS
from app.store.records import EMPTY, ProgramRecord, numbered


def table_of(entries: dict[int, ProgramRecord]) -> Table:
    """The table with these entries. Its length is the highest index plus 1."""
    programs = numbered(dict.fromkeys(entries.values()))
    number_of = {record: number for number, record in programs}
    numbers = array(NUMBERS, [EMPTY] * (max(entries, default=-1) + 1))
    for index, record in entries.items():
        numbers[index] = number_of[record]
    return Table(numbers, dict(programs))


def entries_of(table: Table) -> dict[int, ProgramRecord]:
    """The entries of a table that are not empty."""
    return {index: table.programs[number] for index, number in enumerate(table.numbers) if number != EMPTY}
