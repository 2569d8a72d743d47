"""The sections of the configuration file. Each field's comment is its manual."""

import grp
import json
import os
import pwd
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from app.access.peers import PeerRule
from app.access.rights import Grant, Ranges, Role
from app.bpf.uapi import MAX_INDEX
from app.service.objects.source import ById, Pinned, checked_name

_MAX_SOCKET_PATH = 107  # sun_path of unix(7), without the closing NUL


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        message = "must be an absolute path"
        raise ValueError(message)
    return path


def _short(path: Path) -> Path:
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
        message = f"a unix socket's path has at most {_MAX_SOCKET_PATH} bytes; choose a shorter one"
        raise ValueError(message)
    return path


def _index_range(text: str) -> str:
    Ranges.of([text])
    return text


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
IndexRange = Annotated[str, AfterValidator(_index_range)]
Name = Annotated[str, AfterValidator(checked_name)]
Id = Annotated[int, Field(ge=1, le=MAX_INDEX, strict=True)]
SocketPath = Annotated[AbsolutePath, AfterValidator(_short)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Server(_Section):
    """[server]"""

    # The unix socket to listen on: mode 0660; a stale one is replaced.
    socket: SocketPath = Path("/run/jumptable/api.sock")
    # The group that may connect, beside root and the service's own user. Left out: that user's own group.
    socket_group: str | None = None
    # An address to listen on instead of the socket: needs [tokens].
    host: str | None = None
    port: int | None = Field(default=None, ge=0, le=65535)
    # Nothing can be changed, held or released.
    read_only: bool = False
    # The journal's folder. Only one service at a time may hold it.
    state_dir: AbsolutePath = Path("/var/lib/jumptable")
    # "linux"; or "memory": a kernel in the service's own memory, to try things out without any privilege.
    kernel: Literal["linux", "memory"] = "linux"
    # Requests may name pins only below these folders.
    pin_dirs: list[AbsolutePath] = [Path("/sys/fs/bpf")]
    # The folder in bpffs where the service pins programs that the undo of a change will need. It is made, and for this
    # service alone.
    keep_dir: AbsolutePath | None = None
    # Seconds between two looks for entries that somebody else has changed.
    drift_interval: float = Field(default=5.0, ge=0.1, le=86_400)
    # What a journalled change survives: "power" cuts too, or only the end of the "process", which is faster.
    durability: Literal["power", "process"] = "power"
    # Started as root, the service becomes this user; "nobody" where there is no such user.
    user: str = "jumptable"

    @property
    def address(self) -> tuple[str, int] | None:
        """(host, port) to listen on; None: it is the unix socket."""
        return None if self.host is None and self.port is None else (self.host or "127.0.0.1", self.port or 0)

    @model_validator(mode="after")
    def _keep_dir_is_its_own(self) -> Self:
        keep_dir = self.keep_dir
        if keep_dir is not None and any(keep_dir in {each, *each.parents} for each in self.pin_dirs):
            message = "keep_dir is for this service alone: it cannot be one of pin_dirs, nor have one of them in it"
            raise ValueError(message)
        return self


class Create(_Section):
    """create = { max_entries = 64 }"""

    max_entries: int = Field(ge=1, le=1 << 20, strict=True)


class _Held(_Section):
    # Where it is pinned in bpffs; or:
    pinned: AbsolutePath | None = None
    # its number, which only lives as long as the object itself.
    id: Id | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.pinned is None) == (self.id is None):
            message = 'needs exactly one of pinned = "/sys/fs/bpf/…" and id = …'
            raise ValueError(message)
        return self

    def source(self) -> Pinned | ById:
        """Where to open it."""
        return ById(self.id) if self.id is not None else Pinned(str(self.pinned))


class Map(_Held):
    """[maps.NAME]"""

    # If the pin does not exist: make an array of so many entries, and pin it there.
    create: Create | None = None
    # Entries that only the role admin may change.
    protected: list[IndexRange] = []
    # What to do at the start with entries that are not as the journal says: tell, or put back what it says.
    on_start: Literal["report", "restore"] = "report"

    @model_validator(mode="after")
    def _created_at_a_pin(self) -> Self:
        if self.create is not None and self.pinned is None:
            message = "create goes with pinned: that is where the new array is pinned"
            raise ValueError(message)
        return self


class Program(_Held):
    """[programs.NAME]"""


class _Grant(_Section):
    # reader, writer (entries, test runs), admin (everything), or metrics (those alone)
    role: Role
    # To these maps, entries and programs alone. Left out: to all.
    maps: list[Name] | None = None
    entries: list[IndexRange] | None = None
    programs: list[Name] | None = None

    def grant(self) -> Grant:
        """What this section gives."""
        return Grant(
            self.role,
            None if self.maps is None else frozenset(self.maps),
            None if self.entries is None else Ranges.of(self.entries),
            None if self.programs is None else frozenset(self.programs),
        )


class Peer(_Grant):
    """[peers.NAME]: who comes over the unix socket, beside root and the service's own user."""

    # A user or a group, by name or number: one of the two.
    user: str | int | None = None
    group: str | int | None = None

    @model_validator(mode="after")
    def _one_of_the_two(self) -> Self:
        if (self.user is None) == (self.group is None):
            message = "needs exactly one of user and group"
            raise ValueError(message)
        return self

    def rule(self, name: str) -> PeerRule:
        """The same with numbers. ValueError where there is no such user or group."""
        try:
            uid = pwd.getpwnam(self.user).pw_uid if isinstance(self.user, str) else self.user
            gid = grp.getgrnam(self.group).gr_gid if isinstance(self.group, str) else self.group
        except KeyError as error:
            kind = "user" if self.user is not None else "group"
            message = f"there is no {kind} {self.user or self.group!r}: make it, or name another"
            raise ValueError(message) from error
        return PeerRule(name, self.grant(), uid, gid)


class Tokens(_Section):
    """[tokens]: bearer tokens are taken, on TCP and on the unix socket; `jumptable token` makes them."""

    # Where their hashes are. Left out: tokens.json in state_dir.
    file: AbsolutePath | None = None


class Client(_Grant):
    """[tls.clients.NAME]: who shows a certificate of client_ca."""

    # A subject alternative name of the certificate: DNS, URI or e-mail.
    san: str = Field(min_length=1)


class Tls(_Section):
    """[tls]: HTTPS on host and port. All files are loaded anew when they change."""

    # In PEM: the certificate with its chain, and its key, without a password.
    certificate: AbsolutePath
    key: AbsolutePath
    # In PEM: the CA of the certificates that clients may show.
    client_ca: AbsolutePath | None = None
    clients: dict[Name, Client] = {}

    @model_validator(mode="after")
    def _clients_have_a_ca(self) -> Self:
        if self.clients and self.client_ca is None:
            message = "clients need client_ca, the CA of their certificates"
            raise ValueError(message)
        return self


class Audit(_Section):
    """[audit]: a line for each attempt to change anything, and for whatever is denied."""

    # A file of its own, JSON lines, opened anew on SIGHUP. Left out: the log.
    file: AbsolutePath | None = None
    # Each line is on the disk before the request is over.
    fsync: bool = False


class Limits(_Section):
    """[limits]"""

    # Connections at a time; one more is closed at once.
    connections: int = Field(default=4096, ge=1)
    # Bytes of a request's line and headers, and seconds until they are there.
    header_bytes: int = Field(default=32_768, ge=1024)
    header_seconds: float = Field(default=10.0, gt=0)
    # Readers of /events at a time; half of them for one actor.
    event_readers: int = Field(default=2048, ge=1)
    # Maps and programs that are held at a time, those of the configuration among them.
    held: int = Field(default=4096, ge=1)
    # Requests a second of one actor, in the mean and at once. Left out: any number.
    requests_per_second: float | None = Field(default=None, gt=0)
    burst: int = Field(default=100, ge=1)


_PREFIX = "JUMPTABLE_SERVER__"


class ConfigurationError(Exception):
    """What is wrong with the configuration, in one line: where, what, and the remedy."""


class Settings(BaseSettings):
    """The whole file, with what the environment overrides in [server] (JUMPTABLE_SERVER__PORT=9000)."""

    model_config = SettingsConfigDict(extra="forbid", env_prefix="JUMPTABLE_", env_nested_delimiter="__")

    server: Server = Server()
    maps: dict[Name, Map] = {}
    programs: dict[Name, Program] = {}
    peers: dict[Name, Peer] = {}
    tokens: Tokens | None = None
    tls: Tls | None = None
    limits: Limits = Limits()
    audit: Audit = Audit()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment before the file; of the environment only what is meant for [server].

        Kubernetes makes variables like JUMPTABLE_PORT for a service of that name.
        """
        assert isinstance(env_settings, EnvSettingsSource)
        prefix = _PREFIX.lower()
        env_settings.env_vars = {name: text for name, text in env_settings.env_vars.items() if name.startswith(prefix)}
        return env_settings, init_settings

    def authenticates(self) -> bool:
        """Whether it can be known who comes over TCP."""
        return self.tokens is not None or (self.tls is not None and self.tls.client_ca is not None)

    def token_file(self) -> Path:
        """Where the hashes of tokens are."""
        given = None if self.tokens is None else self.tokens.file
        return given or self.server.state_dir / "tokens.json"


def load(file: Path) -> Settings:
    """Read the configuration. ConfigurationError says in one line what is wrong."""
    try:
        content = tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        message = f"{file}: cannot be read: {error.strerror}; name another with --config FILE"
        raise ConfigurationError(message) from error
    except ValueError as error:
        message = f"{file}: is not TOML: {error}"
        raise ConfigurationError(message) from error
    try:
        settings = Settings(**content)
    except SettingsError as error:
        # The only key that is no plain text or number, so the only one that cannot be taken as it is.
        message = f"environment {_PREFIX}PIN_DIRS: must be a list in JSON, as in '[\"/sys/fs/bpf\"]'"
        raise ConfigurationError(message) from error
    except ValidationError as error:
        raise ConfigurationError(_told(file, error.errors())) from error
    if settings.server.address is not None and not settings.authenticates():
        key = "host" if settings.server.host is not None else "port"
        message = (
            f"{_where(file, ('server', key))}: serving on TCP needs authentication: add a section [tokens], and make "
            "one with jumptable token new, or set tls.client_ca; or remove host and port, and set socket"
        )
        raise ConfigurationError(message)
    if settings.tls is not None and settings.server.address is None:
        message = f"{_where(file, ('tls',))}: TLS is for TCP: set server.host and server.port"
        raise ConfigurationError(message)
    for name, peer in settings.peers.items():
        try:
            peer.rule(name)
        except ValueError as error:
            message = f"{_where(file, ('peers', name))}: {error}"
            raise ConfigurationError(message) from error
    return settings


def _told(file: Path, errors: list[ErrorDetails]) -> str:
    error = min(errors, key=lambda each: each["type"] != "extra_forbidden")  # a slip in a key explains the rest
    location = error["loc"]
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "list_type":
        message = f"must be a list, as in [{json.dumps(error['input'])}]"
    if error["type"] == "extra_forbidden":
        message = f"there is no such key; there are: {', '.join(_keys(location))}"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{_where(file, location)}: {message[:1].lower() + message[1:]}{more}"


def _where(file: Path, location: tuple[int | str, ...]) -> str:
    variable = f"{_PREFIX}{location[1]}".upper() if len(location) > 1 and location[0] == "server" else ""
    if variable and any(variable == name.upper() for name in os.environ):
        return f"environment {variable}"
    return f"{file}: {'.'.join(str(part) for part in location if part != '[key]')}"


def _keys(location: tuple[Any, ...]) -> list[str]:
    models: dict[str, type[BaseModel]] = {
        "server": Server, "maps": Map, "programs": Program, "peers": Peer, "tokens": Tokens, "limits": Limits,
        "tls": Tls,
        "audit": Audit,
    }  # fmt: skip
    if len(location) == 1:
        return list(models)
    if location[:2] == ("tls", "clients"):
        return list(Client.model_fields)
    return list(Create.model_fields if "create" in location else models[str(location[0])].model_fields)
