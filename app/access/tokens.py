"""Bearer tokens: made, kept as hashes in one file, found again, revoked while the service runs."""

import contextlib
import fcntl
import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from app.access.rights import Actor, Grant, Ranges, Role

_PREFIX: Final = "jt_"  # so that secret scanners can tell one


class TokensUnusable(Exception):
    """The file cannot be read or written, or a name is there already, or not; the text says which."""


@dataclass(frozen=True, slots=True)
class Token:
    """What is kept of a token. `hash`: SHA-256 of 256 random bits; `created`, `expires`: seconds since 1970."""

    name: str
    hash: str
    role: Role
    created: float
    maps: list[str] | None = None
    entries: list[str] | None = None
    programs: list[str] | None = None
    expires: float | None = None

    def actor(self) -> Actor:
        """Whose it is."""
        bounds = [None if names is None else frozenset(names) for names in (self.maps, self.programs)]
        entries = None if self.entries is None else Ranges.of(self.entries)
        return Actor(f"token:{self.name}", Grant(self.role, bounds[0], entries, bounds[1]))


_FILE: Final = TypeAdapter(list[Token])


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


class TokenFile:
    """The tokens by name. Writers take turns; a reader finds the old file or the new one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Token]:
        """All of them; none where there is no file. TokensUnusable."""
        try:
            if self.path.stat().st_mode & 0o022:
                message = f"{self.path} can be written by others: chmod 600 it, and look what is in it"
                raise TokensUnusable(message)
            return {token.name: token for token in _FILE.validate_json(self.path.read_bytes())}
        except FileNotFoundError:
            return {}
        except OSError as error:
            message = f"{self.path}: {error.strerror}"
            raise TokensUnusable(message) from error
        except ValidationError as error:
            message = f"{self.path} is no file of tokens: move it away, and make the tokens anew"
            raise TokensUnusable(message) from error

    def add(self, token: Token) -> str:
        """Keep a new token; what comes back is its secret, which is kept nowhere. TokensUnusable."""
        with self._changing() as tokens:
            if token.name in tokens:
                message = f"there is a token {token.name!r} already: revoke or rotate it, or choose another name"
                raise TokensUnusable(message)
            secret = _PREFIX + secrets.token_urlsafe(32)
            tokens[token.name] = replace(token, hash=_hash(secret))
        return secret

    def rotate(self, name: str) -> str:
        """Another secret for the same; the old one is worth nothing from now on. TokensUnusable."""
        with self._changing() as tokens:
            secret = _PREFIX + secrets.token_urlsafe(32)
            tokens[name] = replace(_known(tokens, name), hash=_hash(secret), created=time.time())
        return secret

    def revoke(self, name: str) -> None:
        """It is worth nothing from now on. TokensUnusable."""
        with self._changing() as tokens:
            del tokens[_known(tokens, name).name]

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, Token]]:
        try:
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            message = f"{self.path.parent}: {error.strerror}"
            raise TokensUnusable(message) from error
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            tokens = self.read()
            yield tokens
            self._replace(tokens, folder)
        finally:
            os.close(folder)

    def _replace(self, tokens: dict[str, Token], folder: int) -> None:
        """The new file beside the old one, then in its place; it belongs to whom the folder belongs to."""
        new = self.path.with_name(f".{self.path.name}.new")
        try:
            with contextlib.suppress(FileNotFoundError):
                new.unlink()
            with open(new, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
                owner = os.fstat(folder)
                if os.geteuid() == 0:
                    os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
                file.write(_FILE.dump_json(list(tokens.values()), indent=1) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            new.rename(self.path)
            os.fsync(folder)
        except OSError as error:
            message = f"{self.path}: {error.strerror}"
            raise TokensUnusable(message) from error


def _known(tokens: dict[str, Token], name: str) -> Token:
    if name not in tokens:
        message = f"there is no token {name!r}; jumptable token list tells them"
        raise TokensUnusable(message)
    return tokens[name]


class Tokens:
    """Finds whose a secret is, by the file as it is now. Thread rule: one event loop."""

    def __init__(self, file: TokenFile) -> None:
        self._file = file
        self._seen: tuple[int, int, int] | None = None
        self._actors: list[tuple[str, float | None, Actor]] = []

    def actor(self, secret: str) -> Actor | None:
        """Whose it is; None: nobody's, or it is over. TokensUnusable."""
        self._reload()
        hashed, found = _hash(secret), None
        for kept, expires, actor in self._actors:
            # All are compared, each in constant time: how long it takes tells nothing.
            if hmac.compare_digest(kept, hashed) and (expires is None or time.time() < expires):
                found = actor
        return found

    def _reload(self) -> None:
        try:
            stat = self._file.path.stat()
            seen = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
        except FileNotFoundError:
            seen = (0, 0, 0)
        except OSError as error:
            message = f"{self._file.path}: {error.strerror}"
            raise TokensUnusable(message) from error
        if seen != self._seen:
            self._actors = []  # where the new file cannot be read, the old one counts no more
            try:
                self._actors = [(token.hash, token.expires, token.actor()) for token in self._file.read().values()]
            except ValueError as error:
                message = f"{self._file.path}: {error}"
                raise TokensUnusable(message) from error
            self._seen = seen
