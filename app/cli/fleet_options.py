"""What the commands of the fleet share: where its server is, and types of arguments."""

import re
from typing import Final

import click
from click.shell_completion import CompletionItem

from app.cli.options import Service, Type, completed, connects_to
from app.client import Refused
from app.client.fleet import FleetClient

_NAME: Final = re.compile(r"(?!\.\.?$)[A-Za-z0-9_.-]{1,64}", re.ASCII)
_ROLLOUT: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}-[1-9][0-9]{0,7}", re.ASCII)
_MOST: Final = 5  # nodes that one line names

# By the code of a problem: what to do, in terms of the command line. The server says it in terms of HTTP.
_REMEDIES: Final = {
    "node-unknown": "`jumptable fleet nodes` lists them",
    "no-node-matches": "`jumptable fleet nodes` shows the labels of all",
    "revision-unknown": "`jumptable fleet history --table {table}` lists them",
    "rollout-finished": "`jumptable fleet rollout TABLE REVISION` starts another one",
    "rollout-in-progress": "wait for it, or `jumptable fleet abort {rollout}`",
    "rollout-unknown": "`jumptable fleet status` lists them",
    "table-unknown": "`jumptable fleet status` lists them",
    "unauthenticated": "give a valid token: --token-file FILE or JUMPTABLE_FLEET_TOKEN",
}


def explained(error: Refused, _: FleetClient) -> str:
    """Return one line for a problem: what is wrong, and what to do on the command line."""
    if error.code == "nodes-not-ready":
        listed = "; ".join(f"{each['node']}: {each['reason']}" for each in error.problem["nodes"][:_MOST])
        more = error.problem["count"] - _MOST
        return f"nodes are not ready: {listed}{f'; and {more} more' if more > 0 else ''}"
    if error.code not in _REMEDIES:
        return error.detail
    return f"{error.detail.partition('; ')[0]}; {_REMEDIES[error.code].format_map(error.problem)}"


FLEET: Final = Service(
    FleetClient,
    "JUMPTABLE_FLEET_URL",
    "JUMPTABLE_FLEET_TOKEN",
    "systemctl status jumptable-fleet, or jumptable fleet serve",
    "`jumptable fleet status`",
    explained,
)
connects: Final = connects_to(FLEET)


class _Named(Type):
    """The name of a table or a node, completed by asking the server."""

    name = "name"

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def read(self, text: str) -> str:
        if not _NAME.fullmatch(text):
            message = f"{text!r} is no name: write 1 to 64 of A-Z a-z 0-9 _ . -"
            raise ValueError(message)
        return text

    def shell_complete(self, ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
        def names(client: FleetClient) -> list[str]:
            if self.kind == "table":
                return [each["table"] for each in client.list_tables()]
            return [each["node"] for each in client.list_nodes()["nodes"]]

        return completed(FLEET, ctx, incomplete, names)


class _Rollout(Type):
    """The id of a rollout. Those that have not ended are completed."""

    name = "rollout"

    @staticmethod
    def is_one(text: str) -> bool:
        """Whether a text has the form of such an id."""
        return _ROLLOUT.fullmatch(text) is not None

    def read(self, text: str) -> str:
        if not self.is_one(text):
            message = f"{text!r} is no rollout: write its table and revision, such as jump_table-3"
            raise ValueError(message)
        return text

    def shell_complete(self, ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
        def ids(client: FleetClient) -> list[str]:
            return [each["rollout"] for each in client.list_tables() if each["rollout"] is not None]

        return completed(FLEET, ctx, incomplete, ids)


class _Label(Type):
    """A label, as a name and a value: role=edge."""

    name = "label"

    def read(self, text: str) -> tuple[str, str]:
        name, equals, value = text.partition("=")
        if not equals or not 1 <= len(name) <= 63 or len(value) > 63:
            message = f"{text!r} is no label: write NAME=VALUE, such as role=edge"
            raise ValueError(message)
        return name, value


TABLE: Final = _Named("table")
NODE: Final = _Named("node")
ROLLOUT: Final = _Rollout()
LABEL: Final = _Label()

NOTE: Final = click.option("--note", metavar="TEXT", help="Why; kept in the history.")
LABELS: Final = click.option(
    "-l", "--label", "labels", type=LABEL, multiple=True, metavar="NAME=VALUE", help="Can be repeated."
)


def labels_text(labels: dict[str, str]) -> str:
    """Return labels as they are written: role=edge,site=fra."""
    return ",".join(f"{name}={value}" for name, value in sorted(labels.items()))
