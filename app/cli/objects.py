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
from app.cli.output import Cell, ago, entries_text, say, show, show_difference, table
from app.client import Client, Refused
from app.client.answers import LoadedObjectFile

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
            say("No object file is loaded: `jumptable load NAME FILE.o` loads one.")
            return
        rows = [
            (
                Cell(each["name"], "bold"),
                str(each["version"]),
                ago(each["loaded_at"]),
                ", ".join(program["program"] for program in each["programs"]),
                _state(each),
            )
            for each in objects
        ]
        table(("object", "version", "loaded", "programs", "state"), rows)

    show(output, {"objects": objects}, lambda: [each["name"] for each in objects], people)


def _state(loaded: Mapping[str, Any]) -> Cell:
    if loaded["state"] == "unavailable":
        return Cell(f"unavailable: {loaded['reason']}", "red")
    return Cell(loaded["state"], "green")


def _show_object(loaded: Mapping[str, Any]) -> None:
    previous = loaded["previous"]
    facts = {
        "object": f"{loaded['name']}, version {loaded['version']}",
        "state": _state(loaded).text,
        "loaded": ago(loaded["loaded_at"]),
        "file": loaded["file"] or "sent by a request",
        "sha256": loaded["sha256"],
        "before": "" if previous is None else f"version {previous['version']}, loaded {ago(previous['loaded_at'])}",
    }
    for name, value in facts.items():
        say(Cell(f"{name:8} ", "bold"), value)
    for warning in loaded["warnings"]:
        say(Cell(f"warning  {warning}", "yellow"))
    if loaded["programs"]:
        click.echo()
        programs = loaded["programs"]
        rows = [(Cell(each["name"], "bold"), each["type"], _id(each), str(each["instructions"])) for each in programs]
        table(("program", "type", "id", "instructions"), rows)
    if loaded["maps"]:
        click.echo()
        rows = [
            (Cell(each["name"] or each["map"], "bold"), each["type"], _id(each), f"{each['max_entries']:,}")
            for each in loaded["maps"]
        ]
        table(("map", "type", "id", "entries"), rows)


def _id(member: Mapping[str, Any]) -> str:
    return "" if member["id"] is None else str(member["id"])


@click.command("load", epilog="Example: jumptable load parser parser.o --dry-run")
@click.argument("name", type=OBJECT)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--options",
    "how",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="How to load an object file that is sent: YAML or JSON with variables, maps, programs and so on.",
)
@NOTE
@CONFIRM_WITHIN
@DRY_RUN
@connects
@outputs("json", "yaml", "name")
def load_command(client: Client, name: str, file: Path, how: Path | None, output: str | None, **options: Any) -> None:
    """Load an object file, or a new version of it.

    FILE is the object file itself, or YAML or JSON that names one of the service's machine and says how to load it.
    Programs are held as NAME.PROGRAM, arrays as NAME.MAP.
    """
    content, made_at = _content(file), time.monotonic()
    if how is not None:
        if not isinstance(content, bytes):
            fail(f"--options is for an object file that is sent; put them into {file}", 2)
        options["options"] = _document(how, _read(how), "the options of an object file are a mapping")
    try:
        loaded = client.load_object(name, content, **options)
    except Refused as error:
        if error.code != "object-refused":
            raise
        _show_refusal(error)
        sys.exit(1)
    show(output, loaded, lambda: [name], lambda: _show_loaded(loaded, is_dry=options["dry_run"]))
    if output is None:
        settle(client, [change["id"] for change in loaded["changes"]], options["confirm_within"], made_at)


def _show_loaded(loaded: LoadedObjectFile, *, is_dry: bool) -> None:
    about = f"object {loaded['object']['name']}, version {loaded['object']['version']}"
    say(f"{about}, can be loaded; nothing was" if is_dry else f"{about}, is loaded")
    for each in loaded.get("entries", []):
        say(Cell(each["map"], "bold"), " would change:")
        show_difference(each["entries"])
    for change in loaded["changes"]:
        say(f"change {change['id']}: {change['map']} {entries_text(change['entries'])}")
    for warning in loaded["object"]["warnings"]:
        say(f"warning: {warning}", err=True)


def _content(file: Path) -> bytes | Mapping[str, Any]:
    content = _read(file)
    if content.startswith(_ELF):
        return content
    expected = "it is neither an object file (ELF) nor a mapping that names one; compile it: clang -target bpf -c"
    return _document(file, content, expected)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        fail(f"cannot read {file}: {error.strerror}", 2)


def _document(file: Path, content: bytes, expected: str) -> Mapping[str, Any]:
    import yaml  # noqa: PLC0415 - takes 15 ms

    try:
        document = yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        fail(f"{file} is not YAML ({' '.join(str(error).split())}); {expected}", 2)
    if not isinstance(document, dict):
        fail(f"{file}: {expected}", 2)
    return document


def _show_refusal(error: Refused) -> None:
    """Show what the verifier says. The detail has its reason, and the line of the source."""
    instruction = error.problem.get("instruction")
    say(Cell(f"jumptable: {error.detail}", "red"), err=True)
    if instruction is not None:
        say(f"instruction {instruction['index']}: {instruction['text']}", err=True)
    for line in error.problem.get("log_tail", []):
        say(Cell(f"  {line}", "dim"), err=True)
