"""The command line `jumptable`, with its commands.

A command is imported when it is used. Those of the client need neither FastAPI nor the service, so they start at once.
"""

import difflib
import io
import sys
from importlib import import_module
from typing import Any, Final, NamedTuple, NoReturn

import click

from app.cli.common import INTERRUPTED, fail, stop_writing

# httpx has a command line of its own, which it imports where it can: 40 ms for what nobody needs here. None in this
# place makes Python say that there is no such module.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]


class Entry(NamedTuple):
    """A command of the table: where it is, and what it is for in a few words."""

    place: str
    help: str


# By section, in the order of --help.
COMMANDS: Final[dict[str, dict[str, Entry]]] = {
    "See": {
        "status": Entry("status:status_command", "the node on one screen"),
        "maps": Entry("maps:maps_command", "the held maps, or one in full"),
        "get": Entry("maps:get_command", "the entries of a map, or one of them"),
        "programs": Entry("programs:programs_command", "the held programs, or one in full"),
        "objects": Entry("objects:objects_command", "the loaded object files, or one in full"),
        "graph": Entry("graph:graph_command", "which programs jump where"),
        "log": Entry("journal:log_command", "who changed what, when and why"),
        "watch": Entry("watch:watch_command", "what happens, as it happens"),
        "diff": Entry("tables:diff_command", "what apply would change"),
    },
    "Change": {
        "set": Entry("entries:set_command", "point an entry to a program"),
        "clear": Entry("entries:clear_command", "clear an entry"),
        "apply": Entry("tables:apply_command", "make tables what a file says"),
        "confirm": Entry("journal:confirm_command", "let a change stand that waits for it"),
        "revert": Entry("journal:revert_command", "undo a change"),
        "reconcile": Entry("journal:reconcile_command", "end the drift of a map"),
        "run": Entry("programs:run_command", "run a program on a packet"),
    },
    "Hold": {
        "hold": Entry("holds:hold_command", "hold a map or a program under a name"),
        "release": Entry("holds:release_command", "let go of it"),
        "load": Entry("objects:load_command", "load an object file, with its programs and arrays"),
    },
    "Serve": {
        "demo": Entry("demo:demo_command", "a jump table to try, with nothing prepared"),
        "serve": Entry("serve:serve_command", "the service"),
        "check": Entry("check:check_command", "check a configuration"),
        "token": Entry("token:token_group", "make and revoke tokens"),
        "fleet": Entry("fleet:fleet_group", "one table on many nodes"),
        "completion": Entry("completion:completion_command", "completion for bash, zsh and fish"),
        "man": Entry("man:man_command", "the manual page"),
    },
}


class LazyGroup(click.Group):
    """A group that imports its commands when they are used. `sections`: a table like `COMMANDS`."""

    def __init__(self, *args: Any, sections: dict[str, dict[str, Entry]], **options: Any) -> None:
        super().__init__(*args, **options)
        self._sections = sections
        self._every = {name: entry for section in sections.values() for name, entry in section.items()}

    def list_commands(self, _: click.Context) -> list[str]:
        """Return the names, in the order of --help."""
        return list(self._every)

    def get_command(self, _: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        entry = self._every.get(cmd_name)
        if entry is None:
            return None
        module, name = entry.place.split(":")
        command: click.Command = getattr(import_module(f"app.cli.{module}"), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that was typed. A slip is corrected."""
        close = difflib.get_close_matches(args[0], self._every, n=1)
        if args[0] not in self._every and close:
            ctx.fail(f"there is no command {args[0]!r}; did you mean {close[0]!r}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, _: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections, without importing the commands."""
        for section, commands in self._sections.items():
            with formatter.section(section):
                formatter.write_dl([(name, entry.help) for name, entry in commands.items()])


@click.group(
    cls=LazyGroup,
    sections=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Each command has a --help with an example. Begin with jumptable demo, and jumptable status beside it.",
)
@click.version_option(package_name="jumptable", prog_name="jumptable")
def cli() -> None:
    """Program arrays of eBPF, the jump tables of bpf_tail_call(), over HTTP: the service and its client.

    The client looks for the service at unix:///run/jumptable/api.sock, else at http://127.0.0.1:8080; --url or
    JUMPTABLE_URL say otherwise.
    """


def run() -> NoReturn:
    """Run the command line, and exit. An error of usage is one line, and status 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not closed
            stream.reconfigure(errors="backslashreplace")  # a terminal in ISO 8859-1 has no arrows
    try:
        sys.exit(cli(prog_name="jumptable", standalone_mode=False))
    except click.UsageError as error:
        command = "jumptable" if error.ctx is None else error.ctx.command_path
        if isinstance(error, click.NoSuchOption) and command == "jumptable":
            fail(f"there is no option {error.option_name} before the command; write it after the command", 2)
        fail(f"{error.format_message().rstrip('.')}; see {command} --help", error.exit_code)
    except click.Abort:  # Ctrl-C
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        stop_writing()
