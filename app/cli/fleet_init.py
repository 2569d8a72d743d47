"""The command `jumptable fleet init`: what a new fleet needs. It may be repeated."""

import asyncio
import json
import re
from pathlib import Path
from typing import Final

import click

from app.cli.common import fail
from app.cli.fleet_node import FOLDER
from app.cli.output import say
from app.fleet.pki import Authority, Issued, PkiError, write_new
from app.fleet_store import accounts
from app.fleet_store.errors import EtcdError, Unavailable, VersionRefused
from app.fleet_store.etcd import Credentials, Etcd
from app.fleet_store.signatures import Signer

_SERVER_USER: Final = "jumptable-fleet"
_ROOT: Final = "root"  # etcd's own name of who may do everything
_ENDPOINT: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}", re.ASCII)
_PATIENCE_SECONDS: Final = 3.0


@click.command(
    "init", epilog="Example: jumptable fleet init --endpoint 10.0.0.1:2379 --endpoint 10.0.0.2:2379 -e 10.0.0.3:2379"
)
@click.argument("folder", metavar="[DIR]", type=click.Path(path_type=Path, file_okay=False), default=FOLDER)
@click.option(
    "-e", "--endpoint", "endpoints", multiple=True, required=True, metavar="HOST:PORT", help="Of each member."
)
@click.option("--days", type=click.IntRange(1, 3650), default=730, show_default=True, help="The certificates' time.")
def init_command(folder: Path, endpoints: tuple[str, ...], days: int) -> None:
    """Make what a new fleet needs: an authority, certificates, the signing key, fleet.toml; then the users in etcd.

    Run it before etcd is there: it makes the certificates of the members, and says how to start them. Run it again once
    etcd answers: it turns on authentication and makes the users. What is there already stays as it is. The default for
    DIR is /etc/jumptable/fleet. Keep it safe: whoever reads ca.key or signing.key there may do everything to the fleet.
    """
    wrong = [each for each in endpoints if not _ENDPOINT.fullmatch(each)]
    if wrong:
        message = f"{wrong[0]!r} is no address of a member of etcd: write HOST:PORT, such as 10.0.0.1:2379"
        raise click.UsageError(message)
    folder = folder.absolute()
    try:
        made = _make_files(folder, endpoints, days)
    except PkiError as error:
        fail(str(error), 1)
    except OSError as error:
        fail(f"{error.filename or folder}: {error.strerror}", 1)
    say(f"{folder}: {'made ' + ', '.join(made) if made else 'everything is there already'}")
    try:
        asyncio.run(_add_users(folder, endpoints))
    except VersionRefused as error:
        fail(str(error), 1)
    except Unavailable:
        say("etcd does not answer yet. Start a member on each machine, with its own files of this folder, as in")
        for line in _member_command(folder, endpoints).splitlines():
            say(line)
        say(f"and run this again: jumptable fleet init {folder} " + " ".join(f"-e {each}" for each in endpoints))
        return
    except EtcdError as error:
        fail(f"etcd refuses the certificate of its user root: {error}", 1)
    say(f"etcd has the users of the fleet. Start a server: jumptable fleet serve --config {folder / 'fleet.toml'}")
    say("and add nodes: jumptable fleet node add NAME -l role=edge")


def _make_files(folder: Path, endpoints: tuple[str, ...], days: int) -> list[str]:
    """Make what is missing, and return the names of these files.

    Raises:
        PkiError: The authority that is there is none.
        OSError: A file cannot be written.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    made: list[str] = []

    def write(name: str, content: bytes, *, is_secret: bool = False) -> None:
        write_new(folder / name, content, is_secret=is_secret)
        made.append(name)

    def write_pair(name: str, issued: Issued) -> None:
        write(f"{name}.key", issued.key, is_secret=True)
        write(f"{name}.pem", issued.certificate)

    if not (folder / "ca.pem").exists():
        write_pair("ca", Authority.create().to_pem())
    authority = Authority.read(folder / "ca.pem", folder / "ca.key")
    if not (folder / "signing.key").exists():
        signer = Signer.generate()
        write("signing.key", signer.to_pem(), is_secret=True)
        write("signing.pub", signer.verifier().to_pem())
    for name, user in (("server", _SERVER_USER), ("root", _ROOT)):
        if not (folder / f"{name}.pem").exists():
            write_pair(name, authority.for_client(user, days))
    for endpoint in endpoints:
        host = _host(endpoint)
        if not (folder / f"{_member_file(host)}.pem").exists():
            write_pair(_member_file(host), authority.for_member([host], days))
    if not (folder / "fleet.toml").exists():
        write("fleet.toml", _configuration(folder, endpoints).encode())
    return made


def _host(endpoint: str) -> str:
    return endpoint.rpartition(":")[0].strip("[]")


def _member_file(host: str) -> str:
    return f"etcd-{host.replace(':', '_')}"


def _configuration(folder: Path, endpoints: tuple[str, ...]) -> str:
    return f"""# jumptable fleet serve --config {folder / "fleet.toml"}
[server]
socket = "/run/jumptable-fleet/api.sock"   # or host and port, with [tokens]; and [tls]

[etcd]
endpoints = {json.dumps(list(endpoints))}
ca = "{folder / "ca.pem"}"
certificate = "{folder / "server.pem"}"
key = "{folder / "server.key"}"

[signing]
key = "{folder / "signing.key"}"
"""


def _member_command(folder: Path, endpoints: tuple[str, ...]) -> str:
    """Return how to start the first member, for a shell."""
    peers = [f"https://{_peer(each)}" for each in endpoints]
    cluster = ",".join(f"member{number}={peer}" for number, peer in enumerate(peers, 1))
    file = folder / _member_file(_host(endpoints[0]))
    tls = f"--cert-file={file}.pem --key-file={file}.key --trusted-ca-file={folder / 'ca.pem'} --client-cert-auth"
    peer_tls = " ".join(f"--peer-{each.removeprefix('--')}" for each in tls.split())
    return (
        f"  etcd --name=member1 --data-dir=/var/lib/etcd \\\n"
        f"    --listen-client-urls=https://{endpoints[0]} --advertise-client-urls=https://{endpoints[0]} \\\n"
        f"    --listen-peer-urls={peers[0]} --initial-advertise-peer-urls={peers[0]} \\\n"
        f"    --initial-cluster={cluster} \\\n"
        f"    {tls} \\\n    {peer_tls} \\\n"
        "    --auto-compaction-mode=periodic --auto-compaction-retention=1h"
    )


def _peer(endpoint: str) -> str:
    """Return the address for the other members: the next port."""
    host, _, port = endpoint.rpartition(":")
    return f"{host}:{int(port) + 1}"


async def _add_users(folder: Path, endpoints: tuple[str, ...]) -> None:
    """Turn on authentication in etcd, and add the user of the fleet's servers.

    Raises:
        VersionRefused: It does not keep nodes apart.
        Unavailable: It does not answer.
        EtcdError: It refuses.
    """
    credentials = Credentials.read(folder / "ca.pem", folder / "root.pem", folder / "root.key")
    async with Etcd(endpoints, credentials, patience=_PATIENCE_SECONDS, timeout=_PATIENCE_SECONDS) as etcd:
        for warning in await etcd.check_versions():
            say(f"warning: {warning}", err=True)
        await accounts.enable(etcd)
        await accounts.add_server(etcd, _SERVER_USER)
