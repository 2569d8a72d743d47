"""The configuration file. Each field's comment is its manual."""

import json
import os
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

from app.bpf.uapi import MAX_INDEX
from app.service.held import ById, Pinned, checked_name

_PREFIX = "JUMPTABLE_SERVER__"
_MAX_SOCKET_PATH = 107  # sun_path of unix(7), without the closing NUL


class ConfigurationError(Exception):
    """What is wrong with the configuration, in one line: where, what, and the remedy."""


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
    first, dash, last = text.partition("-")
    numbers = [first, last if dash else first]
    if not all(each.isascii() and each.isdigit() and int(each) <= MAX_INDEX for each in numbers):
        message = 'is neither an index like "60" nor a range like "0-3"'
        raise ValueError(message)
    if int(numbers[0]) > int(numbers[1]):
        message = "is a range that ends before it begins"
        raise ValueError(message)
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
    # The group that may connect, beside root and the service's own user. Left out: the group the service starts with.
    socket_group: str | None = None
    # An address to listen on instead of the socket: needs authentication, so not in this version.
    host: str | None = None
    port: int | None = Field(default=None, ge=0, le=65535)
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
    # Entries that only an admin may change. Of no effect yet: whoever may connect is admin.
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


class Settings(BaseSettings):
    """The whole file, with what the environment overrides in [server] (JUMPTABLE_SERVER__PORT=9000)."""

    model_config = SettingsConfigDict(extra="forbid", env_prefix="JUMPTABLE_", env_nested_delimiter="__")

    server: Server = Server()
    maps: dict[Name, Map] = {}
    programs: dict[Name, Program] = {}

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

    def without_effect(self) -> list[str]:
        """The keys that are set, yet do nothing in this version."""
        return [f"maps.{name}.protected" for name, held in self.maps.items() if "protected" in held.model_fields_set]


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
    if settings.server.host is not None or settings.server.port is not None:
        key = "host" if settings.server.host is not None else "port"
        message = (
            f"{_where(file, ('server', key))}: serving on TCP needs authentication, which this version does not have; "
            "remove host and port, and set socket"
        )
        raise ConfigurationError(message)
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
    models: dict[str, type[BaseModel]] = {"server": Server, "maps": Map, "programs": Program}
    if len(location) == 1:
        return list(models)
    return list(Create.model_fields if "create" in location else models[str(location[0])].model_fields)
