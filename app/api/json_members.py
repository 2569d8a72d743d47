"""Members that a JSON object gives more than once. A parser keeps the last one of them, without a word."""

import json
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any, Final

MESSAGE: Final = "given more than once; send it once"
_MAX_ERRORS: Final = 20
_MAX_NAME_CHARS: Final = 64  # of a name in an error
_SPACED_COLONS: Final = (b" :", b"\t:", b"\n:", b"\r:")
_CONTAINERS: Final = frozenset({dict, list})


class RepeatedMembers(Exception):
    """An object gives a member more than once.

    Attributes:
        errors: As pydantic gives them: `loc` is a place in the JSON.
    """

    def __init__(self, errors: list[dict[str, Any]]) -> None:
        super().__init__(errors)
        self.errors = errors


def check_members(text: bytes | bytearray, value: Any) -> None:
    """Check that no object gives a member more than once, at any depth.

    Args:
        text: JSON.
        value: What it was parsed to.

    Raises:
        RepeatedMembers: One does.
    """
    # Each member has a colon behind its name, so there are at least as many as members. Strings may have more of them,
    # but few have one behind a quotation mark.
    colons = text.count(b":")
    if not colons or colons == (members := _count_members(value)):
        return
    is_spaced = any(colon[:1] in text and colon in text for colon in _SPACED_COLONS)
    if not is_spaced and text.count(b'":') == members:
        return
    parsed = json.loads(text, object_pairs_hook=_Members, parse_int=str)
    errors = [{"loc": place, "msg": MESSAGE} for place in islice(_repeated_below(parsed, ()), _MAX_ERRORS)]
    if errors:
        raise RepeatedMembers(errors)


def _count_members(value: Any) -> int:
    """Return how many members all objects have together. A table has many: level by level is the fastest."""
    count, level = 0, [value]
    while level:
        objects = [each for each in level if type(each) is dict]
        lists = [each for each in level if type(each) is list]
        count += sum(map(len, objects))
        below = list(chain(chain.from_iterable(map(dict.values, objects)), chain.from_iterable(lists)))
        if _CONTAINERS.isdisjoint(map(type, below)):
            break
        level = [each for each in below if type(each) in _CONTAINERS]
    return count


class _Members(list[tuple[str, Any]]):
    """The members of an object, each as often as it is given."""


def _repeated_below(value: Any, place: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    if not isinstance(value, list):
        return
    is_object = isinstance(value, _Members)
    if is_object:
        counts = Counter(name for name, _ in value)
        yield from ((*place, name[:_MAX_NAME_CHARS]) for name, count in counts.items() if count > 1)
    for name, each in value if is_object else enumerate(value):
        yield from _repeated_below(each, (*place, name[:_MAX_NAME_CHARS] if isinstance(name, str) else name))
