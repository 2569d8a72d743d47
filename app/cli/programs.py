"""The commands `jumptable programs` and `jumptable run`."""

import click

from app.cli.options import PROGRAM, connects, outputs
from app.cli.output import Cell, ago, plural, say, show, table
from app.cli.status import state_cell
from app.client import Client
from app.client.answers import Program

_MAX_USES = 100  # that are named
_MIN_PACKET_BYTES = 14  # an Ethernet header; BPF_PROG_TEST_RUN refuses shorter packets


@click.command("programs", epilog="Example: jumptable programs -o json | jq '.programs[] | select(.used_by == [])'")
@click.argument("name", type=PROGRAM, required=False)
@connects
@outputs("json", "yaml", "name")
def programs_command(client: Client, name: str | None, output: str | None) -> None:
    """List the held programs, or show one in full."""
    if name is not None:
        program = client.get_program(name, uses=_MAX_USES if output is None else None)
        show(output, program, lambda: [name], lambda: _show_program(program))
        return
    programs = client.list_programs(uses=0 if output is None else None)

    def people() -> None:
        if not programs:
            say("No program is held: `jumptable hold program NAME --pinned PATH` holds one.")
            return
        rows = [
            (
                Cell(each["name"], "bold"),
                each["type"] or "",
                "" if each["id"] is None else str(each["id"]),
                each["tag"] or "",
                ago(each["loaded_at"]),
                plural(each["use_count"], "entry") if each["use_count"] else Cell("none", "dim"),
                state_cell(each),
            )
            for each in programs
        ]
        table(("program", "type", "id", "tag", "loaded", "used by", "state"), rows)

    show(output, {"programs": programs}, lambda: [each["name"] for each in programs], people)


def _show_program(program: Program) -> None:
    uses = ", ".join(f"{use['map']} {use['index']}" for use in program["used_by"])
    if program["use_count"] > len(program["used_by"]):
        uses += f", and {program['use_count'] - len(program['used_by']):,} more"
    count, nanoseconds = program["run_count"], program["run_time_ns"]
    runs = (
        f"{count:,}, {(nanoseconds or 0) / count:,.0f} ns each" if count else "not counted (kernel.bpf_stats_enabled)"
    )
    facts = {
        "program": program["name"],
        "state": program["state"] if program["reason"] is None else f"{program['state']}: {program['reason']}",
        "type": program["type"] or "",
        "id": f"{program['id']} ({program['kernel_name']})" if program["id"] is not None else "",
        "tag": program["tag"] or "",
        "loaded": f"{ago(program['loaded_at'])} by uid {program['uid']}" if program["loaded_at"] else "",
        "used by": uses or "no entry of a held map",
        "maps": ", ".join(map(str, program["map_ids"])),
        "pins": ", ".join(program["pins"]) or "none",
        "runs": runs,
    }
    for name, value in facts.items():
        say(Cell(f"{name:8} ", "bold"), value)
    for warning in program["warnings"]:
        say(Cell(f"warning  {warning}", "yellow"))


def _packet(_: click.Context, __: click.Parameter, text: str) -> bytes:
    digits = "".join(text.split()).removeprefix("0x").replace(":", "")
    try:
        packet = bytes.fromhex(digits)
    except ValueError as error:
        raise click.BadParameter("a packet is written in hex, two digits for each byte, such as 0300000000") from error
    return packet.ljust(_MIN_PACKET_BYTES, b"\0")


@click.command("run", epilog="Example: jumptable run entry --packet 03")
@click.argument("program", type=PROGRAM)
@click.option("--packet", callback=_packet, default="", metavar="HEX", help="Zeros fill it up to 14 bytes.")
@click.option("--repeat", type=click.IntRange(1, 1_000_000), default=1, metavar="N", help="How often; once by default.")
@connects
@outputs("json", "yaml")
def run_command(client: Client, program: str, packet: bytes, repeat: int, output: str | None) -> None:
    """Run a program on a packet, and show what it returns.

    It is the real program, with its side effects on maps. No packet enters or leaves the machine.
    """
    run = client.run_program(program, packet, repeat=repeat)

    def people() -> None:
        meaning = f" ({run['meaning']})" if run["meaning"] else ""
        say(Cell(f"{program} returned {run['returned']}{meaning}", "bold"), f", {run['duration_ns']:,} ns")
        if run["packet"] != packet.hex():
            say(f"packet afterwards: {run['packet']}")

    show(output, run, list, people)
