"""The configuration file, read."""

import json
import os
import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from app.config import Audit, Client, Create, Limits, Map, Name, Peer, Program, Server, Tls, Tokens

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
