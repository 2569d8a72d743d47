"""Files of tables: which entry of which map is to point to which program. In YAML, TOML or JSON.

    maps:
      jump_table:
        0: parse_v2                      # the name of a held program,
        3: {pinned: /sys/fs/bpf/drop}    # or one by its pin, or by its id
        7: null                          # empty

What `jumptable get MAP -o yaml` or `-o json` prints is such a file too.
"""

import json
import re
import tomllib
from collections.abc import Iterable
from typing import Any, ClassVar, Final

from app.client.client import Ref

Table = dict[int, Ref | None]
_INDEX: Final = re.compile(r"0|[1-9][0-9]{0,9}", re.ASCII)
_FORM: Final = "a file of tables looks like this: maps: {jump_table: {0: pass, 3: drop}}"
_REFERENCE: Final = ("name", "id", "pinned")


class TableFileError(Exception):
    """The file has a mistake. The text is one line: where, what, and what belongs there."""


def read_tables(text: str, name: str) -> dict[str, Table]:
    """Read tables by the names of their maps, in the order in which they are written.

    Args:
        text: The content of the file.
        name: Its name, for messages. Its ending tells the format; without one that is known, the content does.

    Raises:
        TableFileError: It has a mistake.
    """
    try:
        tables: dict[str, Table] = {}
        for document in read_documents(text, name):
            for map_name, table in _tables(document):
                if map_name in tables:
                    message = f"map {map_name!r} is listed twice; list it once"
                    raise TableFileError(message)
                tables[map_name] = table
    except TableFileError as error:
        message = f"{name}: {error}"
        raise TableFileError(message) from error
    if not tables:
        message = f"{name}: it has no table; {_FORM}"
        raise TableFileError(message)
    return tables


def read_documents(text: str, name: str) -> list[Any]:
    """Return the documents of a file in JSON, TOML or YAML, without empty ones. In YAML, all values are texts or null.

    Args:
        text: The content of the file.
        name: Its name, whose ending tells the format; without one that is known, the content does.

    Raises:
        TableFileError: It is malformed.
    """
    return [each for each in _documents(text, name.rpartition(".")[2].lower()) if each]


def _documents(text: str, ending: str) -> list[Any]:
    if ending == "json" or text.lstrip().startswith("{"):
        try:
            return [json.loads(text, object_pairs_hook=_pairs)]
        except json.JSONDecodeError as error:
            message = f"line {error.lineno}, column {error.colno}: it is no JSON: {error.msg}"
            raise TableFileError(message) from error
    try:
        return [tomllib.loads(text)]
    except tomllib.TOMLDecodeError as error:
        if ending == "toml":
            message = f"it is no TOML: {error}"
            raise TableFileError(message) from error
    return _yaml(text)


def _yaml(text: str) -> list[Any]:
    import yaml  # noqa: PLC0415 - takes 15 ms

    base: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    null = "tag:yaml.org,2002:null"
    resolvers = base.yaml_implicit_resolvers.items()

    class Loader(base):  # type: ignore[valid-type, misc]  # chosen while it runs
        """Takes every value for text, but null: neither is `no` false, nor 010 eight. A key may come once."""

        yaml_implicit_resolvers: ClassVar[Any] = {
            first: [each for each in found if each[0] == null] for first, found in resolvers
        }

        def construct_mapping(self, node: yaml.MappingNode, *, deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in seen:
                    message = f"{key.value!r} is listed twice"
                    raise yaml.MarkedYAMLError(problem=message, problem_mark=key.start_mark)
                seen.add(key.value if isinstance(key, yaml.ScalarNode) else "")
            return super().construct_mapping(node, deep)  # type: ignore[no-any-return]

    try:
        return [each for each in yaml.load_all(text, Loader) if each is not None]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        message = f"{where}it is no YAML: {' '.join(str(error.problem or error.context).split())}"
        raise TableFileError(message) from error
    except yaml.YAMLError as error:
        message = f"it is no YAML: {' '.join(str(error).split())}"
        raise TableFileError(message) from error


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        message = f"{twice!r} is listed twice; list it once"
        raise TableFileError(message)
    return found


def _tables(document: Any) -> Iterable[tuple[str, Table]]:
    if not isinstance(document, dict):
        message = f"it is no mapping; {_FORM}"
        raise TableFileError(message)
    if "entries" in document and "map" in document:  # as GET answers
        if document.get("next") is not None:
            raise TableFileError("it is a page of a table, as next is not null; get the whole table")
        yield str(document["map"]), _listed(document["entries"])
        return
    if set(document) != {"maps"} or not isinstance(document["maps"], dict):
        unknown = ", ".join(repr(key) for key in document if key != "maps")
        message = f"{f'unknown: {unknown}' if unknown else 'maps is no mapping'}; {_FORM}"
        raise TableFileError(message)
    for name, entries in document["maps"].items():
        if entries is not None and not isinstance(entries, dict):
            message = f"map {name!r}: it is no mapping from index to program; {_FORM}"
            raise TableFileError(message)
        yield str(name), {_index(name, key): _reference(name, key, value) for key, value in (entries or {}).items()}


def _listed(entries: Any) -> Table:
    table: Table = {}
    for entry in entries if isinstance(entries, list) else [entries]:
        if not isinstance(entry, dict) or not {"index", "program"} <= set(entry):
            raise TableFileError("entries: each is a mapping with index and program")
        index = _index("entries", entry["index"])
        if index in table:
            message = f"entries: index {index} is listed twice; list it once"
            raise TableFileError(message)
        table[index] = _reference("entries", index, entry["program"])
    return table


def _index(where: str, key: Any) -> int:
    if isinstance(key, bool) or not _INDEX.fullmatch(str(key)):
        message = f"{where}: {key!r} is no index; write a decimal number, 0 or more"
        raise TableFileError(message)
    return int(key)


def _reference(where: str, index: Any, value: Any) -> Ref | None:
    """Return a program as the service takes it."""
    if value is None or (isinstance(value, str) and value):
        return value
    if isinstance(value, dict):
        given = {key: value[key] for key in _REFERENCE if value.get(key) is not None}
        if given and isinstance(given.get("id", 0), int | str) and _INDEX.fullmatch(str(given.get("id", 0))):
            if "name" in given:
                return str(given["name"])
            return {"id": int(given["id"])} if "id" in given else {"pinned": str(given["pinned"])}
    message = f"{where}, entry {index}: {value!r} is no program; write its name, {{id: 812}}, {{pinned: /PATH}} or null"
    raise TableFileError(message)
