"""The commands `jumptable objects` and `jumptable load`: object files, made by clang for example."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from app.cli.common import fail
from app.cli.confirmation import settle
from app.cli.options import CONFIRM_WITHIN, DRY_RUN, NOTE, OBJECT, connects, outputs
from app.cli.output import Cell, as_json, say, show, table
from app.client import Client, Refused

_ELF: Final = b"\x7fELF"


@click.command("objects", epilog="Example: jumptable objects parser")
@click.argument("name", type=OBJECT, required=False)
@connects
@outputs("json", "yaml", "name")
def objects_command(client: Client, name: str | None, output: str | None) -> None:
    """List the loaded object files, or show one in full."""
    if name is not None:
        loaded = client.get_object(name)
        show(output, loaded, lambda: [name], lambda: _show_object(loaded))
        return
    objects = client.list_objects()

    def people() -> None:
        if not objects:
            say("No object is loaded: `jumptable load NAME FILE.o` loads one.")
            return
        rows = [
            (Cell(each["name"], "bold"), _names(each.get("programs")), _names(each.get("maps"))) for each in objects
        ]
        table(("object", "programs", "maps"), rows)

    show(output, {"objects": objects}, lambda: [each["name"] for each in objects], people)


def _names(members: Any) -> str:
    """Return the names of the programs or maps of an object: keys of an object, or names in a list."""
    if isinstance(members, Mapping):
        return ", ".join(members)
    return ", ".join(each["name"] if isinstance(each, Mapping) else str(each) for each in members or ())


def _show_object(loaded: Mapping[str, Any]) -> None:
    for name, value in loaded.items():
        text = _names(value) if name in {"programs", "maps"} else value if isinstance(value, str) else as_json(value)
        say(Cell(f"{name:12} ", "bold"), text)


@click.command("load", epilog="Example: jumptable load parser parser.o --dry-run")
@click.argument("name", type=OBJECT)
@click.argument("file", type=click.Path(path_type=Path))
@NOTE
@CONFIRM_WITHIN
@DRY_RUN
@connects
@outputs("json", "yaml", "name")
def load_command(client: Client, name: str, file: Path, output: str | None, **options: Any) -> None:
    """Load an object file, or a new version of it.

    FILE is the object file itself, or YAML or JSON that names one and says how to load it. Programs are held as
    NAME.PROGRAM, arrays as NAME.MAP.
    """
    content, made_at = _content(file), time.monotonic()
    try:
        loaded = client.put_object(name, content, **options)
    except Refused as error:
        if error.code != "object-refused":
            raise
        _show_refusal(error)
        sys.exit(1)
    say_it = "can be loaded; nothing was" if options["dry_run"] else "is loaded"
    change = "" if loaded.change is None else f", with change {loaded.change}"
    show(output, loaded.object, lambda: [name], lambda: say(f"object {name} {say_it}{change}"))
    if loaded.change is not None and output is None:
        settle(client, [loaded.change], options["confirm_within"], made_at)


def _content(file: Path) -> bytes | Mapping[str, Any]:
    try:
        content = file.read_bytes()
    except OSError as error:
        fail(f"cannot read {file}: {error.strerror}", 2)
    if content.startswith(_ELF):
        return content
    import yaml  # noqa: PLC0415 - takes 15 ms

    try:
        document = yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        fail(f"{file} is neither an object file (ELF) nor YAML: {' '.join(str(error).split())}", 2)
    if not isinstance(document, dict):
        fail(
            f"{file} is neither an object file (ELF) nor a mapping that names one; compile it: clang -target bpf -c", 2
        )
    return document


def _show_refusal(error: Refused) -> None:
    """Show what the verifier says, beside the line of the source that it is about."""
    problem = error.problem
    say(Cell(f"jumptable: {error.detail}", "red"), err=True)
    source = problem.get("source")
    if isinstance(source, Mapping):
        say(Cell(f"{source.get('file')}:{source.get('line')}: ", "bold"), str(source.get("text", "")).strip(), err=True)
    instruction = problem.get("instruction")
    if isinstance(instruction, Mapping):
        say(f"instruction {instruction.get('index')}: {instruction.get('text')}", err=True)
    for line in str(problem.get("log_tail", "")).splitlines():
        say(Cell(f"  {line}", "dim"), err=True)
