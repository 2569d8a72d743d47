"""One line for each thing that people ran into: `.venv/bin/pytest -m field` says which tests hold it now.

A test that is marked `field` names its number in its docstring, or in that of its class: "Field 17: …".
"""

import re
from collections import defaultdict
from typing import Any, Final

import pytest

_NUMBER: Final = re.compile(r"Field (\d+)")
_KINDS: Final = {
    1: "a request sent again hides a change that waits for its confirmation",
    2: "what waits for a confirmation is invisible",
    3: "a revert undoes what later changes have written",
    4: "an expiry is recorded otherwise than it was",
    5: "a dry run tells counts, and not what it would change",
    6: "a problem in a table names neither entry nor program",
    7: "of doubled members of a JSON object the last one counts",
    8: "a program pinned anew is stale in silence",
    9: "an array pinned anew is written past in silence",
    10: "changes cannot be found: order, filters, unknown maps",
    11: "log and audit have ids and no names, no reasons, or a line at each retry",
    12: "an error sends its reader elsewhere",
    13: "/docs cannot be used where callers have tokens",
    14: "generated clients do not compile",
    15: "a log that nobody reads stops the service",
    16: "descriptors run out",
    17: "an idle connection is closed while its client asks",
    18: "an early answer is lost in a reset",
    19: "a client that ends its side gets no answer",
    20: "a journal that is removed or replaced is not noticed",
    21: "without its keeper the service answers 401 until somebody restarts it",
    22: "check and the start do not see what will fail",
    23: "mistakes in the configuration are told one at a time, and nothing is read anew",
    24: "the journal grows without bound beside a reader",
    25: "processes have no names",
    26: "without its keeper the service undoes nothing",
    27: "one body stops everybody",
    28: "lists that nobody reads take memory and time",
    29: "what a client sends fills the log, or is not answered",
    30: "a keeper that hangs stops the service, and is lost",
    31: "bounds do not hold for reading",
    32: "TLS handshakes that never end are outside the limits",
    33: "a head and a body sent apart break the connection",
    34: "a clock that is wrong for a moment erases the history",
    35: "an audit file blocks the start, and many programs slow it",
}


def _number_of(item: pytest.Item) -> int | None:
    texts = (getattr(item, "obj", None), getattr(item, "cls", None), getattr(item, "module", None))
    found = (_NUMBER.search(each.__doc__ or "") for each in texts if each is not None)
    return next((int(match[1]) for match in found if match), None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Note the number of each test, so that its report carries it from whichever process it runs in."""
    for item in items:
        number = _number_of(item) if item.get_closest_marker("field") else None
        if number is not None:
            item.user_properties.append(("field", number))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Write a line for each number, where only these tests were asked for."""
    if config.option.markexpr != "field":
        return
    outcomes: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, ()):
            for name, number in getattr(report, "user_properties", ()):
                if name == "field":
                    outcomes[number][outcome] += 1
    terminalreporter.section("what people ran into")
    for number, kind in _KINDS.items():
        counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes[number].items()) or "no test ran"
        terminalreporter.write_line(f"field {number:2}  {counts:20}  {kind}")
