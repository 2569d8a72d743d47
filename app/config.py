"""The configuration: the sections of the TOML file, how it is read, and the messages about mistakes in it.

The comment above each field is its manual.
"""

import grp
import json
import os
import pwd
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Self, TypeVar, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from app.access.peers import PeerRule
from app.access.rights import Grant, Ranges, Role
from app.bpf.uapi import MAX_INDEX, PROG_TYPE_NAMES
from app.loader.messages import ObjectLimits
from app.service.objects.source import ById, Pinned, checked_name

# JUMPTABLE_SERVER__PORT=9000 sets server.port. Other variables that begin with JUMPTABLE_ do not count: Kubernetes
# makes variables like JUMPTABLE_PORT for a service named jumptable.
_VARIABLE_PREFIX: Final = "JUMPTABLE_SERVER__"
_MAX_MISTAKES: Final = 20  # that are told at once
_MAX_SOCKET_PATH_BYTES: Final = 107  # sun_path of unix(7), without the closing NUL


class ConfigurationError(Exception):
    """Mistakes in the configuration.

    Attributes:
        messages: One line for each mistake: where it is, what it is, and the remedy. The text has all of these lines.
    """

    def __init__(self, *messages: str) -> None:
        super().__init__("\n".join(messages))
        self.messages = messages


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError("must be an absolute path")
    return path


def _fits_in_sun_path(path: Path) -> Path:
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH_BYTES:
        message = f"a unix socket's path has at most {_MAX_SOCKET_PATH_BYTES} bytes; choose a shorter one"
        raise ValueError(message)
    return path


def _index_range(text: str) -> str:
    Ranges.of([text])
    return text


def _program_type(name: str) -> str:
    if name not in PROG_TYPE_NAMES[1:]:
        message = f"is no type of programs; there are: {', '.join(PROG_TYPE_NAMES[1:])}"
        raise ValueError(message)
    return name


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
IndexRange = Annotated[str, AfterValidator(_index_range)]
Name = Annotated[str, AfterValidator(checked_name)]
ProgramType = Annotated[str, AfterValidator(_program_type)]
Id = Annotated[int, Field(ge=1, le=MAX_INDEX, strict=True)]
SocketPath = Annotated[AbsolutePath, AfterValidator(_fits_in_sun_path)]


class Section(BaseModel):
    """A section of the file. A key that it does not know is a mistake."""

    model_config = ConfigDict(extra="forbid")


class Listening(Section):
    """Where to listen: the keys of [server] that all services have."""

    # The unix socket to listen on. It gets mode 0660. A socket file that nobody listens on is replaced.
    socket: SocketPath = Path("/run/jumptable/api.sock")
    # The group whose members may connect, beside root and the service's own user. Default: that user's own group.
    socket_group: str | None = None
    # The address to listen on instead of the unix socket. Needs [tokens] or tls.client_ca.
    host: str | None = None
    port: int | None = Field(default=None, ge=0, le=65535)
    # True: requests cannot change, hold or release anything.
    read_only: bool = False
    # The folder of the journal. Only one service at a time can use it.
    state_dir: AbsolutePath = Path("/var/lib/jumptable")

    @property
    def address(self) -> tuple[str, int] | None:
        """The TCP address to listen on: (host, port). None: listen on the unix socket."""
        return None if self.host is None and self.port is None else (self.host or "127.0.0.1", self.port or 0)


class Server(Listening):
    """[server]"""

    # "linux": the kernel of this machine. "memory": a simulated kernel, to try things out without privileges.
    kernel: Literal["linux", "memory"] = "linux"
    # Requests can name only pins below these folders.
    pin_dirs: list[AbsolutePath] = [Path("/sys/fs/bpf")]
    # A folder in bpffs for this service alone; it is made where it is missing. The service pins programs there that
    # the undo of an unconfirmed change needs.
    keep_dir: AbsolutePath | None = None
    # Seconds between two checks for entries that another tool has changed.
    drift_interval: float = Field(default=5.0, ge=0.1, le=86_400)
    # What a journalled change survives: "power" (a power cut), or "process" (the end of the process), which is faster.
    durability: Literal["power", "process"] = "power"
    # If started as root, the service switches to this user, or to nobody where this user does not exist.
    user: str = "jumptable"

    @model_validator(mode="after")
    def _keep_dir_is_apart(self) -> Self:
        keep_dir = self.keep_dir
        if keep_dir is not None and any(keep_dir in {each, *each.parents} for each in self.pin_dirs):
            raise ValueError("keep_dir is for this service alone: it can neither be one of pin_dirs nor contain one")
        return self


class Create(Section):
    """create = { max_entries = 64 }"""

    max_entries: int = Field(ge=1, le=1 << 20, strict=True)


class _Held(Section):
    # The path of its pin in bpffs; or:
    pinned: AbsolutePath | None = None
    # its id. An id is valid only as long as the object exists.
    id: Id | None = None
    # True: when another object is pinned there, the service opens that one by itself.
    follow: bool = False

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if (self.pinned is None) == (self.id is None):
            raise ValueError('needs exactly one of pinned = "/sys/fs/bpf/…" and id = …')
        if self.follow and self.pinned is None:
            raise ValueError("follow goes with pinned: it is the pin that is followed")
        return self

    def source(self) -> Pinned | ById:
        """Where the kernel object is opened."""
        return ById(self.id) if self.id is not None else Pinned(str(self.pinned))


class Map(_Held):
    """[maps.NAME]"""

    # If the pin does not exist: create an array with this many entries, and pin it there.
    create: Create | None = None
    # Entries that only the role admin may change: "60" or "0-3".
    protected: list[IndexRange] = []
    # What to do at the start with entries that differ from the journal: "report" them as drift, or "restore" them.
    on_start: Literal["report", "restore"] = "report"

    @model_validator(mode="after")
    def _is_created_at_a_pin(self) -> Self:
        if self.create is not None and self.pinned is None:
            raise ValueError("create goes with pinned: that is where the new array is pinned")
        return self


class Program(_Held):
    """[programs.NAME]"""


class GrantSection(Section):
    """A role, and what it is restricted to."""

    # "reader"; "writer": also entries and test runs; "admin": everything; "metrics": /metrics alone.
    role: Role
    # Restrict the role to these maps, entries and programs. Default: no restriction.
    maps: list[Name] | None = None
    entries: list[IndexRange] | None = None
    programs: list[Name] | None = None

    def grant(self) -> Grant:
        """The rights that this section gives."""
        return Grant(
            self.role,
            None if self.maps is None else frozenset(self.maps),
            None if self.entries is None else Ranges.of(self.entries),
            None if self.programs is None else frozenset(self.programs),
        )


class PeerSection(GrantSection):
    """A user or group on the unix socket."""

    # A user or a group, by name or number: exactly one of the two.
    user: str | int | None = None
    group: str | int | None = None

    @model_validator(mode="after")
    def _is_a_user_or_a_group(self) -> Self:
        if (self.user is None) == (self.group is None):
            raise ValueError("needs exactly one of user and group")
        self.rule("")  # there is such a user or group
        return self

    def rule(self, name: str) -> PeerRule:
        """This section with the uid or gid instead of a name.

        Raises:
            ValueError: There is no such user or group.
        """
        try:
            uid = pwd.getpwnam(self.user).pw_uid if isinstance(self.user, str) else self.user
            gid = grp.getgrnam(self.group).gr_gid if isinstance(self.group, str) else self.group
        except KeyError as error:
            kind = "user" if self.user is not None else "group"
            message = f"there is no {kind} {self.user or self.group!r}: create it, or name another"
            raise ValueError(message) from error
        return PeerRule(name, self.grant(), uid, gid)


class Peer(PeerSection):
    """[peers.NAME]: a user or group on the unix socket, beside root and the service's own user."""

    # True: for the agent of a fleet. It names who has asked the fleet for a change, in the header Jumptable-Actor.
    on_behalf: bool = False

    def rule(self, name: str) -> PeerRule:
        """This section with the uid or gid instead of a name.

        Raises:
            ValueError: There is no such user or group.
        """
        return replace(super().rule(name), on_behalf=self.on_behalf)


class Tokens(Section):
    """[tokens]: accept bearer tokens, on TCP and on the unix socket. `jumptable token new` makes them."""

    # The file with the tokens' hashes. Default: tokens.json in state_dir.
    file: AbsolutePath | None = None


class Client(GrantSection):
    """[tls.clients.NAME]: a client that shows a certificate of client_ca."""

    # A subject alternative name of the certificate: DNS name, URI or e-mail address.
    san: str = Field(min_length=1)


class Tls(Section):
    """[tls]: HTTPS on host and port. A file that changes is loaded again."""

    # In PEM: the certificate with its chain, and its key without a password.
    certificate: AbsolutePath
    key: AbsolutePath
    # In PEM: the CA of the clients' certificates.
    client_ca: AbsolutePath | None = None
    clients: dict[Name, Client] = {}

    @model_validator(mode="after")
    def _clients_have_a_ca(self) -> Self:
        if self.clients and self.client_ca is None:
            raise ValueError("clients need client_ca, the CA of their certificates")
        return self


class Audit(Section):
    """[audit]: one line for each attempt to change something, and for each request that is denied."""

    # A file of its own, as JSON lines. It is opened again on SIGHUP. Default: the log.
    file: AbsolutePath | None = None
    # True: each line is on the disk before the request is answered.
    fsync: bool = False


class Objects(Section):
    """[objects]: object files that requests may have loaded. Without object_dirs and upload, none can be."""

    # Files may be named only below these folders.
    object_dirs: list[AbsolutePath] = []
    # True: a request may bring the file itself.
    upload: bool = False
    # The largest file, in bytes.
    max_bytes: int = Field(default=8 << 20, ge=1, le=64 << 20)
    # The memory that all maps of one file may take, in bytes, and the entries that one map may have.
    map_bytes: int = Field(default=64 << 20, ge=4096)
    max_map_entries: int = Field(default=1 << 20, ge=1, le=MAX_INDEX)
    # The types of programs that may be loaded.
    program_types: list[ProgramType] = ["xdp", "sched_cls", "socket_filter"]
    # Seconds after which a load is given up.
    timeout: float = Field(default=30.0, gt=0, le=300)

    def limits(self) -> ObjectLimits:
        """What object files may ask for."""
        return ObjectLimits(
            object_dirs=[str(each) for each in self.object_dirs],
            upload=self.upload,
            max_bytes=self.max_bytes,
            map_bytes=self.map_bytes,
            max_map_entries=self.max_map_entries,
            program_types=[PROG_TYPE_NAMES.index(each) for each in self.program_types],
            timeout=self.timeout,
        )


class Limits(Section):
    """[limits]"""

    # Connections at the same time. One more is closed at once.
    connections: int = Field(default=4096, ge=1)
    # The size of a request's first line and headers in bytes, and the seconds that a client has to send them.
    header_bytes: int = Field(default=32_768, ge=1024)
    header_seconds: float = Field(default=10.0, gt=0)
    # Seconds between two requests after which a connection is closed.
    idle_seconds: float = Field(default=75.0, gt=0)
    # Readers of /events at the same time. One actor can have half of them.
    event_readers: int = Field(default=2048, ge=1)
    # Maps and programs held at the same time, those of the configuration included.
    held: int = Field(default=4096, ge=1)
    # Requests of one actor: per second on average (default: no limit), and in one burst.
    requests_per_second: float | None = Field(default=None, gt=0)
    burst: int = Field(default=100, ge=1)


class ServiceSettings(Section):
    """What the configuration of every service has."""

    server: Listening
    peers: Mapping[Name, PeerSection] = {}
    tokens: Tokens | None = None
    tls: Tls | None = None
    limits: Limits = Limits()
    audit: Audit = Audit()

    def token_file(self) -> Path:
        """The file with the tokens' hashes, also where [tokens] is missing."""
        given = None if self.tokens is None else self.tokens.file
        return given or self.server.state_dir / "tokens.json"

    def authenticates(self) -> bool:
        """Whether clients over TCP can prove who they are, by a token or a certificate."""
        return self.tokens is not None or (self.tls is not None and self.tls.client_ca is not None)


class Settings(ServiceSettings):
    """The whole configuration of the service of a node."""

    server: Server = Server()
    peers: dict[Name, Peer] = {}
    maps: dict[Name, Map] = {}
    programs: dict[Name, Program] = {}
    objects: Objects = Objects()


S = TypeVar("S", bound=ServiceSettings)


def load(file: Path, text: str | None = None) -> Settings:
    """Read the configuration of the service of a node: see `read`."""
    return read(Settings, file, text)


def read(kind: type[S], file: Path, text: str | None = None) -> S:
    """Read a configuration: the file, then the environment, which overrides keys of [server].

    Args:
        kind: What it is a configuration of.
        file: The file.
        text: Its content; None: it is read here.

    Raises:
        ConfigurationError: The file cannot be read, or something in it or in the environment is wrong. It has all
            mistakes that can be found at once.
    """
    try:
        content = tomllib.loads(file.read_text("utf-8") if text is None else text)
    except OSError as error:
        message = f"{file}: cannot be read: {error.strerror}; name another with --config FILE"
        raise ConfigurationError(message) from error
    except ValueError as error:
        message = f"{file}: is not TOML: {error}"
        raise ConfigurationError(message) from error
    server, messages = content.setdefault("server", {}), list[str]()
    for key, given in _server_environment().items():
        try:
            value = json.loads(given) if key == "pin_dirs" else given
        except ValueError:
            messages.append(f"{_where(file, ('server', key))}: must be a list in JSON, as in '[\"/sys/fs/bpf\"]'")
        else:
            if isinstance(server, dict):
                server[key] = value
    errors: list[ErrorDetails] = []
    settings: S | None = None
    try:
        settings = kind.model_validate(content)
    except ValidationError as error:
        errors = _own_mistakes(error.errors())
        messages += [_message(kind, file, each) for each in errors]
    if not any(error["loc"][0] in {"server", "tokens", "tls"} or len(error["loc"]) == 1 for error in errors):
        messages += _mistakes_across_sections(file, content)
    if messages:
        more = len(messages) - _MAX_MISTAKES
        raise ConfigurationError(*messages[:_MAX_MISTAKES], *([f"{file}: and {more} more"] if more > 0 else []))
    assert settings is not None  # else there is a message
    return settings


def _server_environment() -> dict[str, str]:
    """The keys of [server] that the environment sets, and their texts. Lists are in JSON."""
    return {
        variable[len(_VARIABLE_PREFIX) :].lower(): text
        for variable, text in os.environ.items()
        if variable.upper().startswith(_VARIABLE_PREFIX)
    }


def _mistakes_across_sections(file: Path, content: dict[str, Any]) -> list[str]:
    """Return what is wrong that one section alone does not show.

    Args:
        file: The configuration file.
        content: What it has. The sections [server], [tokens] and [tls] have no mistake of their own.
    """
    # The other keys of [server] are those of one service or the other.
    where = {key: content["server"][key] for key in Listening.model_fields if key in content["server"]}
    server, messages = Listening.model_validate(where), list[str]()
    tls = content.get("tls")
    authenticates = content.get("tokens") is not None or (tls is not None and tls.get("client_ca") is not None)
    if server.address is not None and not authenticates:
        key = "host" if server.host is not None else "port"
        messages.append(
            f"{_where(file, ('server', key))}: serving on TCP needs authentication: add a section [tokens] and make a "
            "token with jumptable token new, or set tls.client_ca; or remove host and port to serve on the unix socket"
        )
    if tls is not None and server.address is None:
        messages.append(f"{_where(file, ('tls',))}: TLS is for TCP: set server.host and server.port")
    return messages


def _own_mistakes(errors: list[ErrorDetails]) -> list[ErrorDetails]:
    """Leave out the keys that are missing because they are mistyped: their section has an unknown key."""
    mistyped = {error["loc"][:-1] for error in errors if error["type"] == "extra_forbidden"}
    return [error for error in errors if error["type"] != "missing" or error["loc"][:-1] not in mistyped]


def _message(kind: type[BaseModel], file: Path, error: ErrorDetails) -> str:
    """The line for one mistake."""
    location = error["loc"]
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "list_type":
        message = f"must be a list, as in [{json.dumps(error['input'])}]"
    if error["type"] in {"model_type", "dict_type"}:
        message = "must be a TOML table"
    if error["type"] == "extra_forbidden":
        message = f"there is no such key; there are: {', '.join(_known_keys(kind, location))}"
    return f"{_where(file, location)}: {message[:1].lower() + message[1:]}"


def _where(file: Path, location: tuple[int | str, ...]) -> str:
    """The environment variable, or the file and the key in it."""
    section, *keys = location
    if section == "server" and keys and keys[0] in _server_environment():
        return f"environment {_VARIABLE_PREFIX}{str(keys[0]).upper()}"
    return f"{file}: {'.'.join(str(part) for part in location if part != '[key]')}"


def _known_keys(kind: Any, location: tuple[int | str, ...]) -> list[str]:
    """The keys that are possible where an unknown one was found.

    Args:
        kind: The model of the whole configuration.
        location: The unknown key, with the keys that lead there.
    """
    for key in location[:-1]:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            kind = kind.model_fields[str(key)].annotation
        else:
            kind = get_args(kind)[-1]  # of a dict: the model of its values
        if get_origin(kind) is UnionType:
            kind = next(each for each in get_args(kind) if each is not NoneType)
    return list(kind.model_fields)
