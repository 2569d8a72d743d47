"""The command line `jumptable`, with its commands."""

import click

from app import __version__
from app.cli.check import check_command
from app.cli.demo import demo_command
from app.cli.serve import serve_command
from app.cli.token import token_group


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="jumptable")
def cli() -> None:
    """An HTTP API for eBPF program arrays: the jump tables of bpf_tail_call()."""


for command in (demo_command, serve_command, check_command, token_group):
    cli.add_command(command)
