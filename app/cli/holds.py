"""The commands `jumptable hold` and `jumptable release`."""

from typing import Any, Literal

import click

from app.cli.options import DRY_RUN, HELD, connects, outputs
from app.cli.output import say, show
from app.client import Client
from app.client.answers import HeldMap, Program


@click.command("hold", epilog="Example: jumptable hold program parse_v2 --pinned /sys/fs/bpf/parse_v2")
@click.argument("kind", type=click.Choice(["map", "program"]))
@click.argument("name", type=HELD)
@click.option("--pinned", metavar="PATH", help="Where it is pinned.")
@click.option("--id", type=int, metavar="ID", help="Or the kernel's id of it: gone after a reboot.")
@click.option("--create", type=int, metavar="N", help="Make a map of N entries if the pin does not exist.")
@click.option("--force", is_flag=True, help="Also if the array that was held may then be emptied.")
@DRY_RUN
@connects
@outputs("json", "yaml", "name")
def hold_command(
    client: Client, kind: Literal["map", "program"], name: str, output: str | None, *, dry_run: bool, **source: Any
) -> None:
    """Hold a map or a program under a name, or open it again.

    It outlives its loader then, also over restarts of the service.
    """
    if (source["pinned"] is None) == (source["id"] is None):
        raise click.UsageError("give one of --pinned PATH and --id ID")
    held: HeldMap | Program
    if kind == "map":
        held = client.hold_map(name, dry_run=dry_run, **source)
    elif source.pop("create") is not None or source.pop("force"):
        raise click.UsageError("--create and --force are for maps")
    else:
        held = client.hold_program(name, dry_run=dry_run, **source)

    def people() -> None:
        would = "would be held" if dry_run else "is held"
        say(f"{kind} {held['name']} {would}: id {held['id']}, {', '.join(held['pins']) or 'pinned nowhere'}")
        for warning in held["warnings"]:
            say(f"warning: {warning}", err=True)

    show(output, held, lambda: [held["name"]], people)


@click.command("release", epilog="Example: jumptable release program parse_v1")
@click.argument("kind", type=click.Choice(["map", "program", "object"]))
@click.argument("name", type=HELD)
@click.option("--force", is_flag=True, help="Also if the kernel may then empty the array for good.")
@DRY_RUN
@connects
def release_command(
    client: Client, kind: Literal["map", "program", "object"], name: str, *, force: bool, dry_run: bool
) -> None:
    """Let go of a map, a program, or a loaded object.

    Entries keep the program that they point to.
    """
    if kind == "map":
        client.release_map(name, force=force, dry_run=dry_run)
    elif force:
        raise click.UsageError("--force is for maps")
    elif kind == "program":
        client.release_program(name, dry_run=dry_run)
    else:
        client.unload_object(name, dry_run=dry_run)
    say(f"{kind} {name} {'would be' if dry_run else 'is'} released")
