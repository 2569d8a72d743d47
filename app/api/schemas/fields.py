"""Types of single fields: names, indexes, numbers, paths."""

import functools
import re
from datetime import datetime
from typing import Annotated, Any, Final

from pydantic import AfterValidator, Field, PlainValidator, WithJsonSchema

from app.bpf.uapi import MAX_INDEX
from app.service.objects.source import NAME_PATTERN, checked_name

_DECIMAL: Final = re.compile(r"0|[1-9][0-9]{0,9}")
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_NAME: Final = rf"^(?!\.\.?$){NAME_PATTERN.removeprefix('^')}"  # neither . nor ..
MAX_ENTRIES: Final = 1 << 20  # the largest array that a request may create; the kernel needs 8 MiB for it


@functools.lru_cache(maxsize=4096)  # most requests name few entries
def decimal(text: Any) -> int:
    """Return the u32 that a text stands for.

    Args:
        text: Decimal digits, without sign or leading zeros.

    Raises:
        ValueError: It is not such a text, or the number is above 2^32 - 1.
    """
    if not isinstance(text, str) or not _DECIMAL.fullmatch(text) or int(text) > MAX_INDEX:
        message = f"must be a decimal number from 0 to {MAX_INDEX}, without sign or leading zeros"
        raise ValueError(message)
    return int(text)


def time_of(text: Any) -> float:
    """Return the seconds since 1970 that a text stands for.

    Args:
        text: A time of RFC 3339.

    Raises:
        ValueError: It is no such text.
    """
    try:
        if isinstance(text, str) and _TIME.fullmatch(text):
            return datetime.fromisoformat(text.upper()).timestamp()
    except (ValueError, OverflowError):
        pass  # such as the 30th of February
    raise ValueError(
        "must be a time of RFC 3339, such as 2026-11-22T15:04:05Z, or 2026-11-22T16:04:05%2B01:00 (%2B: the + in a URL)"
    )


NAME_SCHEMA: Final = WithJsonSchema({"type": "string", "pattern": _NAME})
Name = Annotated[str, AfterValidator(checked_name), NAME_SCHEMA]
U32 = Annotated[int, Field(ge=0, le=MAX_INDEX)]
Decimal = Annotated[
    int,
    PlainValidator(decimal),
    WithJsonSchema({"type": "integer", "minimum": 0, "maximum": MAX_INDEX}),
]
Time = Annotated[float, PlainValidator(time_of), WithJsonSchema({"type": "string", "format": "date-time"})]
Positive = Annotated[Decimal, Field(gt=0), WithJsonSchema({"type": "integer", "minimum": 1, "maximum": MAX_INDEX})]
PinPath = Annotated[
    str,
    Field(
        min_length=1, max_length=4095, description="The absolute path of a pin in bpffs.", examples=["/sys/fs/bpf/drop"]
    ),
]
