"""The configuration of the agent: one TOML file. The comment above each field is its manual."""

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from app.agent.status_file import STATUS_FILE
from app.fleet_store.keys import NAME_PATTERN

FILE: Final = Path("/etc/jumptable/agent/agent.toml")  # `jumptable fleet node add` makes it

_ENDPOINT_PATTERN: Final = r"^([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}\Z"

Name = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN.replace("$", r"\Z"))]
Endpoint = Annotated[str, msgspec.Meta(pattern=_ENDPOINT_PATTERN)]


class SettingsError(Exception):
    """A mistake in the configuration. The text is one line: the file, the key, what is wrong, and the remedy."""


class Etcd(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[etcd]"""

    # The members, as "host:port".
    endpoints: Annotated[list[Endpoint], msgspec.Meta(min_length=1)]
    # In PEM: the CA of the members; this node's certificate with its chain, and its key without a password. The
    # certificate's CommonName is the node's user in etcd. `jumptable fleet node add` makes them.
    ca: Path
    certificate: Path
    key: Path


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole configuration."""

    # The name of this node in the fleet.
    node: Name
    # In PEM: the public keys of the fleet. A table counts if one of them has signed it.
    public_keys: Annotated[list[Path], msgspec.Meta(min_length=1)]
    etcd: Etcd
    # The service of this node. It has to know the agent's user: a rule in [peers] with on_behalf = true.
    service: Annotated[str, msgspec.Meta(pattern=r"^unix:///")] = "unix:///run/jumptable/api.sock"
    # The folder in which the agent remembers what it has seen. Only one agent at a time can use it.
    state_dir: Path = Path("/var/lib/jumptable-agent")
    # Where it tells `jumptable status` how it is.
    status_file: Path = STATUS_FILE
    # The address of /metrics, as "host:port". Default: none.
    metrics: Endpoint | None = None

    def __post_init__(self) -> None:
        paths = [*self.public_keys, self.etcd.ca, self.etcd.certificate, self.etcd.key, self.state_dir]
        for path in [*paths, self.status_file]:
            if not path.is_absolute():
                message = f"{str(path)!r} must be an absolute path"
                raise ValueError(message)


def load(file: Path) -> Settings:
    """Read the configuration.

    Raises:
        SettingsError: The file cannot be read, or something in it is wrong.
    """
    try:
        content = tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        message = f"{file}: cannot be read: {error.strerror}; name another with --config FILE"
        raise SettingsError(message) from error
    except ValueError as error:
        message = f"{file}: is not TOML: {error}"
        raise SettingsError(message) from error
    try:
        return msgspec.convert(content, Settings, dec_hook=_path)
    except msgspec.ValidationError as error:
        raise SettingsError(_message(file, str(error))) from error


def _path(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    message = f"expected a path, not {value!r}"
    raise ValueError(message)


def _message(file: Path, text: str) -> str:
    """Return the line for a mistake. msgspec says where it is at the end: `… - at `$.etcd.key``."""
    what, _, place = text.partition(" - at `$")
    where = place.rstrip("`").lstrip(".")
    known = "/".join(field.name for field in msgspec.structs.fields(Etcd if where == "etcd" else Settings))
    what = re.sub(r"^Object contains unknown field `(.*)`$", rf"there is no key \1; there are {known}", what)
    what = re.sub(r"^Object missing required field `(.*)`$", r"the key \1 is missing", what)
    return f"{file}: {where + ': ' if where else ''}{what[:1].lower() + what[1:]}"
