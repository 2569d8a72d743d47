"""The commands `jumptable fleet node add|label|remove`: who is in the fleet."""

import json
from pathlib import Path
from typing import Any, Final

import click

from app.cli.common import fail
from app.cli.fleet_options import LABELS, NODE, NOTE, connects, labels_text
from app.cli.options import outputs
from app.cli.output import say, show
from app.client.fleet import FleetClient
from app.config import ConfigurationError
from app.fleet.config import FleetSettings, load
from app.fleet.pki import Authority, PkiError, write_new

FOLDER: Final = Path("/etc/jumptable/fleet")
_PKI = click.option(
    "--pki",
    type=click.Path(path_type=Path, file_okay=False),
    default=FOLDER,
    show_default=True,
    metavar="DIR",
    help="The folder that jumptable fleet init has made.",
)


@click.group("node")
def node_group() -> None:
    """Add nodes, change their labels, and remove them. That takes the role admin."""


@node_group.command("add", epilog="Example: jumptable fleet node add edge-1 -l role=edge --out ./edge-1")
@click.argument("name", metavar="NODE", type=NODE)
@LABELS
@_PKI
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="For the node's files; ./NODE."
)
@click.option("--days", type=click.IntRange(1, 3650), default=365, show_default=True, help="The certificate's time.")
@NOTE
@connects
def node_add(
    client: FleetClient,
    name: str,
    labels: tuple[tuple[str, str], ...],
    pki: Path,
    out: Path | None,
    days: int,
    note: str | None,
) -> None:
    """Add a node: its certificate, its user in etcd, its labels; and write what its agent needs.

    The CommonName of the certificate is the node's user in etcd. It may read what is desired of this node and write
    its status, and nothing else. For a node that is there, it makes a new certificate and sets the labels.
    """
    settings, authority = _authority(pki)
    client.put_node(name, dict(labels), note=note, dry_run=True)  # says what is wrong, before anything is made
    folder = out or Path(name)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        there = [each.name for each in folder.iterdir()]
        if there:
            fail(f"{folder} has something in it ({min(there)}): name another with --out", 2)
        issued = authority.for_client(name, days)
        write_new(folder / "node.pem", issued.certificate)
        write_new(folder / "node.key", issued.key, is_secret=True)
        write_new(folder / "ca.pem", settings.etcd.ca.read_bytes())
        write_new(folder / "fleet.pub", (pki / "signing.pub").read_bytes())
        write_new(folder / "agent.toml", _agent_configuration(name, settings).encode())
    except OSError as error:
        fail(f"{error.filename or folder}: {error.strerror}", 1)
    client.put_node(name, dict(labels), note=note)
    say(f"node {name} is in the fleet, with the labels {labels_text(dict(labels)) or '(none)'}")
    for line in _NEXT.format(folder=folder).splitlines():
        say(line)


_NEXT: Final = """
On the node, as root:
  1. Copy {folder} to /etc/jumptable/agent, for the agent's own user alone:
       useradd --system jumptable-agent
       chown -R jumptable-agent: /etc/jumptable/agent && chmod 700 /etc/jumptable/agent
  2. Open to the fleet what it may change, in /etc/jumptable/jumptable.toml, and reload jumptable:
       [peers.fleet]
       user = "jumptable-agent"
       role = "writer"
       on_behalf = true
       maps = ["jump_table"]
       entries = ["8-63"]
  3. Start the agent as that user:
       jumptable fleet agent --config /etc/jumptable/agent/agent.toml"""


def _authority(pki: Path) -> tuple[FleetSettings, Authority]:
    """Return the fleet's configuration and authority, from the folder that `init` has made."""
    try:
        return load(pki / "fleet.toml"), Authority.read(pki / "ca.pem", pki / "ca.key")
    except ConfigurationError as error:
        fail(f"{error.messages[0]}; jumptable fleet init makes it", 2)
    except PkiError as error:
        fail(str(error), 2)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}; name the folder of jumptable fleet init with --pki", 2)


def _agent_configuration(name: str, settings: FleetSettings) -> str:
    folder = "/etc/jumptable/agent"
    return (
        f'node = "{name}"\n'
        f'public_keys = ["{folder}/fleet.pub"]\n\n'
        "[etcd]\n"
        f"endpoints = {json.dumps(settings.etcd.endpoints)}\n"
        f'ca = "{folder}/ca.pem"\ncertificate = "{folder}/node.pem"\nkey = "{folder}/node.key"\n'
    )


@node_group.command("label", epilog="Example: jumptable fleet node label edge-1 -l role=edge -l site=fra")
@click.argument("name", metavar="NODE", type=NODE)
@LABELS
@NOTE
@connects
@outputs("json", "yaml", "name")
def node_label(
    client: FleetClient, name: str, labels: tuple[tuple[str, str], ...], note: str | None, output: str | None
) -> None:
    """Set the labels of a node: exactly these.

    Tables come to it, or pass it by, from their next rollout on.
    """
    before = client.get_node(name)
    node = client.put_node(name, dict(labels), before["user"], note=note, if_match=before["etag"])
    show(output, node, lambda: [name], lambda: say(f"node {name} has the labels {labels_text(node['labels'])}"))


@node_group.command("remove", epilog="Example: jumptable fleet node remove edge-1 --note 'taken out of the rack'")
@click.argument("name", metavar="NODE", type=NODE)
@NOTE
@connects
def node_remove(client: FleetClient, name: str, **options: Any) -> None:
    """Remove a node with its user in etcd and all of its keys. The node keeps what it holds."""
    client.delete_node(name, **options)
    say(f"node {name} is out of the fleet; it keeps what it holds. Stop its agent there")
