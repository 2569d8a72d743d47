"""The command `jumptable man`: the manual page, made of the same texts as --help."""

import re
import time
from collections.abc import Iterator
from typing import Final

import click

from app.cli.main import COMMANDS

_STATUSES: Final = {
    "0": "done",
    "1": "refused; status: not ready; diff: something would change; not agreed, not confirmed, or rolled back",
    "2": "usage: an argument or a file is wrong",
    "3": "no connection to the service",
    "130": "Ctrl-C",
    "141": "nobody reads the output any more",
}
_VARIABLES: Final = {
    "JUMPTABLE_URL": "Where the service is, as --url.",
    "JUMPTABLE_TOKEN": "The bearer token.",
    "JUMPTABLE_FLEET_URL": "Where a server of the fleet is, for the commands of jumptable fleet.",
    "JUMPTABLE_FLEET_TOKEN": "The bearer token for it.",
    "SSL_CERT_FILE": "The certificates to trust, for https.",
    "NO_COLOR": "Show no colours.",
}


@click.command("man", epilog="Example: jumptable man > /usr/local/share/man/man1/jumptable.1")
@click.pass_context
def man_command(ctx: click.Context) -> None:
    """Print the manual page, in the format of man."""
    click.echo("\n".join(_page(ctx.find_root())))


def _page(root: click.Context) -> Iterator[str]:
    group = root.command
    assert isinstance(group, click.Group)
    yield f'.TH JUMPTABLE 1 "{time.strftime("%Y-%m-%d")}"'
    yield from (".SH NAME", r"jumptable \- program arrays of eBPF over HTTP: the service and its client")
    yield from (".SH SYNOPSIS", r".B jumptable", r"\fICOMMAND\fR [\fIARGUMENTS\fR] [\fIOPTIONS\fR]")
    yield from (".SH DESCRIPTION", *_paragraphs(group.help))
    for section, names in COMMANDS.items():
        yield f".SH {section.upper()}"
        for name in names:
            command = group.get_command(root, name)
            assert command is not None
            yield from _command(command, click.Context(command, root, name))
    yield from (".SH ENVIRONMENT", *_items(_VARIABLES), ".SH EXIT STATUS", *_items(_STATUSES))


def _command(command: click.Command, ctx: click.Context) -> Iterator[str]:
    """Describe a command, or those of a group."""
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            try:
                each = command.get_command(ctx, name)
            except click.UsageError as error:  # it needs what is not installed
                yield from (f".SS {_escaped(f'{ctx.command_path} {name}')}", _escaped(error.format_message()))
                continue
            assert each is not None  # it was listed
            yield from _command(each, click.Context(each, ctx, name))
        return
    yield f".SS {_escaped(' '.join((ctx.command_path, *command.collect_usage_pieces(ctx))))}"
    yield from _paragraphs(command.help)
    records = [record for each in command.get_params(ctx) if (record := each.get_help_record(ctx)) is not None]
    yield from _items({name: text for name, text in records if text and "--help" not in name})
    if command.epilog:
        yield from (".PP", *_paragraphs(command.epilog))


def _paragraphs(text: str | None) -> Iterator[str]:
    for number, paragraph in enumerate(re.split(r"\n\s*\n", (text or "").replace("\b\n", "").strip())):
        if number:
            yield ".PP"
        yield _escaped(" ".join(paragraph.split()))


def _items(texts: dict[str, str]) -> Iterator[str]:
    for name, text in texts.items():
        yield from (".TP", rf"\fB{_escaped(name)}\fR", _escaped(text))


def _escaped(text: str) -> str:
    """Return text as roff wants it: neither its own characters nor a line that begins with a control character."""
    escaped = (
        text.replace("\\", r"\e").replace("-", r"\-").replace("~", r"\(ti").replace("^", r"\(ha").replace("`", r"\(ga")
    )
    return rf"\&{escaped}" if escaped.startswith((".", "'")) else escaped
