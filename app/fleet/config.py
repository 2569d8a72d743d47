"""The configuration of `jumptable fleet serve`: the sections of its TOML file.

The comment above each field is its manual.
"""

import re
import socket
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import AfterValidator, Field, model_validator

from app.access.rights import Grant
from app.config import (
    AbsolutePath,
    Client,
    GrantSection,
    Listening,
    Name,
    PeerSection,
    Section,
    ServiceSettings,
    SocketPath,
    Tls,
    read,
)

FILE: Final = Path("/etc/jumptable/fleet.toml")
_ENDPOINT: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}", re.ASCII)


def _endpoint(text: str) -> str:
    if not _ENDPOINT.fullmatch(text):
        message = 'is no address of a member of etcd: write HOST:PORT, as in "10.0.0.1:2379"'
        raise ValueError(message)
    return text


Endpoint = Annotated[str, AfterValidator(_endpoint)]


class Server(Listening):
    """[server]"""

    # The unix socket to listen on. It gets mode 0660. A socket file that nobody listens on is replaced.
    socket: SocketPath = Path("/run/jumptable-fleet/api.sock")
    # The folder of the tokens.
    state_dir: AbsolutePath = Path("/var/lib/jumptable-fleet")


class Etcd(Section):
    """[etcd]: the store of the fleet."""

    # Its members.
    endpoints: list[Endpoint] = Field(min_length=1)
    # In PEM: the CA of the members' certificates; the certificate whose CommonName is the user in etcd; and its key.
    ca: AbsolutePath
    certificate: AbsolutePath
    key: AbsolutePath


class Signing(Section):
    """[signing]"""

    # In PEM: the private key (Ed25519) that signs what nodes are to hold. Nodes have the public key.
    key: AbsolutePath


class Controller(Section):
    """[controller]: one of all servers of the fleet is elected, and leads the rollouts."""

    # How the history names it.
    name: str = Field(default_factory=socket.gethostname, min_length=1, max_length=100)
    # Seconds until another one takes over when this one dies.
    lease_seconds: int = Field(default=5, ge=2, le=60)


class _FleetGrant(GrantSection):
    # Restrict the role also to nodes that have these labels, and to tables whose selector asks for all of them.
    labels: dict[str, str] | None = None

    def grant(self) -> Grant:
        """The rights that this section gives."""
        grant = super().grant()
        labels = None if self.labels is None else frozenset(self.labels.items())
        return Grant(grant.role, grant.maps, grant.entries, grant.programs, labels)


class FleetPeer(_FleetGrant, PeerSection):
    """[peers.NAME]: a user or group on the unix socket, beside root and the server's own user."""


class FleetClient(_FleetGrant, Client):
    """[tls.clients.NAME]: a client that shows a certificate of client_ca."""


class FleetTls(Tls):
    """[tls]: HTTPS on host and port. A file that changes is loaded again."""

    clients: dict[Name, FleetClient] = Field(default_factory=dict)  # type: ignore[assignment]  # with labels


class FleetSettings(ServiceSettings):
    """The whole configuration of a server of the fleet."""

    server: Server = Server()
    etcd: Etcd
    signing: Signing
    controller: Controller = Controller()
    peers: dict[Name, FleetPeer] = Field(default_factory=dict)
    tls: FleetTls | None = None

    @model_validator(mode="after")
    def _keys_are_apart(self) -> Self:
        if self.signing.key == self.etcd.key:
            raise ValueError("signing.key and etcd.key are two keys: jumptable fleet init makes both")
        return self


def load(file: Path) -> FleetSettings:
    """Read the configuration of a server of the fleet.

    Raises:
        ConfigurationError: The file cannot be read, or something in it or in the environment is wrong.
    """
    return read(FleetSettings, file)
