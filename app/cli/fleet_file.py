"""Files of a fleet: which entries of which tables are to point to which program, and on which nodes.

    tables:
      jump_table:
        selector: {role: edge}           # labels that a node must have
        range: 8-63                      # the entries that the fleet cares for
        entries: {8: parse_v2, 9: drop}  # the others of the range are empty; or programs: [...], or runs: [...]
        strategy: {waves: [1, "10%", "100%"], bake_seconds: 30}

What `jumptable fleet status TABLE -o yaml` or `-o json` prints is such a file too. In YAML, TOML or JSON.
"""

import re
from typing import Any, Final

from app.cli.table_file import TableFileError, read_documents

_NUMBER: Final = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?", re.ASCII)
_INDEX: Final = re.compile(r"0|[1-9][0-9]{0,9}", re.ASCII)
_TEXTS: Final = frozenset({"packet", "program", "metric", "on_failure"})  # members of a strategy that are no numbers
_KEYS: Final = ("selector", "range", "entries", "programs", "runs", "strategy")
# Members of what the server answers, which are left out.
_ANSWERED: Final = frozenset({"table", "revision", "etag", "by", "at", "note", "same_as", "rollout"})
_FORM: Final = "it looks like this: tables: {jump_table: {selector: {role: edge}, range: 0-15, entries: {0: pass}}}"


def read_fleet_tables(text: str, name: str) -> dict[str, dict[str, Any]]:
    """Read tables by name, as the server takes them, in the order in which they are written.

    Args:
        text: The content of the file.
        name: Its name, for messages. Its ending tells the format; without one that is known, the content does.

    Raises:
        TableFileError: It has a mistake.
    """
    tables: dict[str, dict[str, Any]] = {}
    try:
        for document in read_documents(text, name):
            for table, content in _tables(document):
                if table in tables:
                    message = f"table {table!r} is listed twice; list it once"
                    raise TableFileError(message)
                tables[table] = _table(table, content)
    except TableFileError as error:
        message = f"{name}: {error}"
        raise TableFileError(message) from error
    if not tables:
        message = f"{name}: it has no table; {_FORM}"
        raise TableFileError(message)
    return tables


def _tables(document: Any) -> list[tuple[str, Any]]:
    if isinstance(document, dict) and isinstance(document.get("table"), str):  # as GET answers
        return [(document["table"], document)]
    if not isinstance(document, dict) or set(document) != {"tables"} or not isinstance(document["tables"], dict):
        message = f"it is no mapping of tables; {_FORM}"
        raise TableFileError(message)
    return [(str(name), content) for name, content in document["tables"].items()]


def _table(name: str, content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        message = f"table {name!r}: it is no mapping; {_FORM}"
        raise TableFileError(message)
    unknown = [key for key in content if key not in _KEYS and key not in _ANSWERED]
    if unknown:
        message = f"table {name!r}: there is no key {unknown[0]!r}; there are: {', '.join(_KEYS)}"
        raise TableFileError(message)
    for key in ("selector", "range"):
        if key not in content:
            message = f"table {name!r}: {key} is missing; {_FORM}"
            raise TableFileError(message)
    body = {key: value for key, value in content.items() if key in _KEYS and value is not None}
    selector = body["selector"]
    if isinstance(selector, dict) and not isinstance(selector.get("match"), dict):
        body["selector"] = {"match": selector}
    body["range"] = str(body["range"])
    if "strategy" in body:
        body["strategy"] = _numbers(body["strategy"])
    if "runs" in body and isinstance(body["runs"], list):
        body["runs"] = [
            {key: _numbers(value) if key in {"first", "last"} else value for key, value in run.items()}
            if isinstance(run, dict)
            else run
            for run in body["runs"]
        ]
    if "entries" in body:
        body["runs"] = _runs(name, body.pop("entries"))
    if ("runs" in body) == ("programs" in body):
        message = f"table {name!r}: give one of entries, programs and runs"
        raise TableFileError(message)
    return body


def _runs(name: str, entries: Any) -> list[dict[str, Any]]:
    """Return entries by index as runs of one entry each. The server joins them."""
    if not isinstance(entries, dict):
        message = f"table {name!r}: entries is no mapping from index to program; {_FORM}"
        raise TableFileError(message)
    runs = []
    for index, program in entries.items():
        if isinstance(index, bool) or not _INDEX.fullmatch(str(index)):
            message = f"table {name!r}: {index!r} is no index; write a decimal number, 0 or more"
            raise TableFileError(message)
        runs.append({"first": int(index), "last": int(index), "program": program})
    return runs


def _numbers(value: Any, key: str = "") -> Any:
    """Return a part of a strategy, in which YAML has only texts, with numbers where numbers belong."""
    if isinstance(value, dict):
        return {name: _numbers(each, str(name)) for name, each in value.items()}
    if isinstance(value, list):
        return [_numbers(each, key) for each in value]
    if isinstance(value, str) and key not in _TEXTS and _NUMBER.fullmatch(value):
        return float(value) if "." in value else int(value)
    return value
