"""Bearer tokens. Their hashes are stored in one file; a running service sees each change of it at once."""

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from app.access.rights import Actor, Grant, Ranges, Role

_PREFIX: Final = "jt_"  # lets secret scanners recognize one
_SECRET_BYTES: Final = 32


class TokensUnusable(Exception):
    """The file cannot be used, or has no token of that name, or has one already. The text says which."""


class KeeperUnavailable(TokensUnusable):
    """The keeper, which reads the file for this process, cannot be asked."""


@dataclass(frozen=True, slots=True)
class Token:
    """What is stored of a token. `hash`: SHA-256 of the secret, in hex; `created`, `expires`: seconds since 1970."""

    name: str
    hash: str
    role: Role
    created: float
    maps: list[str] | None = None
    entries: list[str] | None = None
    programs: list[str] | None = None
    expires: float | None = None
    labels: dict[str, str] | None = None

    def actor(self) -> Actor:
        """Who sends a request with this token."""
        maps, programs = (None if names is None else frozenset(names) for names in (self.maps, self.programs))
        entries = None if self.entries is None else Ranges.of(self.entries)
        labels = None if self.labels is None else frozenset(self.labels.items())
        return Actor(f"token:{self.name}", Grant(self.role, maps, entries, programs, labels), self.expires)


_FILE: Final = TypeAdapter(list[Token])
_TOKEN: Final = TypeAdapter(Token)


class TokenFile:
    """The file of tokens. Writers lock it; a reader finds either the old content or the new one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Token]:
        """All tokens by name. Empty if the file does not exist.

        Raises:
            TokensUnusable: The file cannot be read, or others can write it.
        """
        return self._read(0)[0]

    def add(self, token: Token) -> str:
        """Store a new token.

        Args:
            token: Its `hash` is replaced.

        Returns:
            Its secret, which is stored nowhere.

        Raises:
            TokensUnusable: There is one of that name, or the file cannot be used.
        """
        with self._changing() as tokens:
            if token.name in tokens:
                message = f"there is a token {token.name!r} already: revoke or rotate it, or choose another name"
                raise TokensUnusable(message)
            secret = _new_secret()
            tokens[token.name] = replace(token, hash=_hash(secret))
        return secret

    def rotate(self, name: str) -> str:
        """Replace the secret of a token. The old secret is invalid at once.

        Returns:
            The new secret, which is stored nowhere.

        Raises:
            TokensUnusable: There is no such token, it has expired, or the file cannot be used.
        """
        with self._changing() as tokens:
            token = _existing(tokens, name)
            if token.expires is not None and token.expires <= time.time():
                message = f"token {name!r} has expired: revoke it, and make another"
                raise TokensUnusable(message)
            secret = _new_secret()
            tokens[name] = replace(token, hash=_hash(secret), created=time.time())
        return secret

    def revoke(self, name: str) -> None:
        """Remove a token. It is invalid at once.

        Raises:
            TokensUnusable: There is no such token, or the file cannot be used.
        """
        with self._changing() as tokens:
            del tokens[_existing(tokens, name).name]

    def _read(self, flags: int) -> tuple[dict[str, Token], os.stat_result | None]:
        """All tokens by name, and the status of the file that they were read from. None: there is no file."""
        try:
            fd = os.open(self.path, flags | os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(fd, "rb") as file:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o022:
                    message = f"{self.path} can be written by others: chmod 600 it, and check what is in it"
                    raise TokensUnusable(message)
                return {token.name: token for token in _FILE.validate_json(file.read())}, status
        except FileNotFoundError:
            return {}, None
        except PermissionError as error:
            message = f"{self.path} cannot be read: make tokens as the user that serves, or chown the file"
            raise TokensUnusable(message) from error
        except OSError as error:
            message = f"{self.path}: {error.strerror}"
            raise TokensUnusable(message) from error
        except ValidationError as error:
            raise TokensUnusable(_no_token_file(self.path)) from error

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, Token]]:
        """Lock the file, and write the tokens back after the block has changed them."""
        try:
            self.path.parent.mkdir(mode=0o700, exist_ok=True)
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            message = f"{self.path.parent}: {error.strerror}"
            raise TokensUnusable(message) from error
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            tokens, status = self._read(os.O_NOFOLLOW)
            yield tokens
            self._replace(tokens, folder, status)
        finally:
            os.close(folder)

    def _replace(self, tokens: dict[str, Token], folder: int, status: os.stat_result | None) -> None:
        """Write a new file beside the old one and move it there. It gets the owner that `status` names."""
        new = self.path.with_name(f".{self.path.name}.new")
        try:
            with contextlib.suppress(FileNotFoundError):
                new.unlink()
            with open(new, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
                if status is not None and os.geteuid() == 0:
                    os.fchown(file.fileno(), status.st_uid, status.st_gid)
                file.write(_FILE.dump_json(list(tokens.values()), indent=1) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            new.rename(self.path)
            os.fsync(folder)
        except OSError as error:
            message = f"{self.path}: {error.strerror}"
            raise TokensUnusable(message) from error


class Tokens:
    """Finds the actor of a secret, by the file as it is now. Thread rule: one event loop."""

    def __init__(self, file: TokenFile, look_up: Callable[[str], tuple[bytes, int | None]] | None = None) -> None:
        """Nothing is read yet.

        Args:
            file: The file of tokens.
            look_up: For a process that may not read the file. Takes the hash of a secret. Returns the stored token as
                JSON, or nothing where there is none, and an fd of the file (O_PATH), or None where there is no file.
                This object owns the fd. Raises OSError where it cannot tell. None: this process reads the file.
        """
        self._file = file
        self._look_up = look_up
        self._fd: int | None = None  # the file that the answers of `look_up` were from
        self._loaded_stamp: tuple[int, ...] | None = None
        self._by_hash: dict[str, tuple[float | None, Actor]] = {}  # when the token expires, and its actor
        self._version = 0
        self.degraded_reason: str | None = None  # why tokens cannot be checked, as of the last check

    def actor(self, secret: str) -> Actor | None:
        """The actor of a secret; None: there is no such token, or it has expired.

        Raises:
            KeeperUnavailable: The file cannot be asked for now.
            TokensUnusable: The file cannot be used.
        """
        try:
            actor = self._find(_hash(secret))
        except KeeperUnavailable:
            raise  # the keeper's own state tells it, and when it is over
        except TokensUnusable as error:
            self.degraded_reason = str(error)
            raise
        self.degraded_reason = None
        return actor

    def version(self) -> int:
        """Return a number that is another one once the file has changed. What was found before no longer counts then.

        A token that expires does not change the file: see `Actor.expires`.
        """
        try:
            self._reload_changed()
        except (OSError, ValueError, TokensUnusable):
            self._version += 1  # the next check of a token tells why
        return self._version

    def _find(self, hashed: str) -> Actor | None:
        try:
            self._reload_changed()
            if self._look_up is not None and hashed not in self._by_hash:
                self._remember(hashed, *self._look_up(hashed))
        except PermissionError as error:
            message = f"{self._file.path} has to be a file of root's that others cannot write: chown root, chmod 600"
            raise TokensUnusable(message) from error
        except (OSError, ValueError) as error:
            if getattr(error, "errno", 0) in {errno.EPIPE, errno.ETIMEDOUT}:
                message = f"{self._file.path}: the keeper has ended or does not answer"
                raise KeeperUnavailable(message) from error
            raise TokensUnusable(_no_token_file(self._file.path)) from error
        # The time that a look-up by hash takes tells nothing about stored secrets: nobody can choose the hash.
        expires, actor = self._by_hash.get(hashed, (0.0, None))
        return actor if expires is None or time.time() < expires else None

    def _reload_changed(self) -> None:
        """Forget all tokens if the file has changed, and read them where this process may."""
        stamp = self._stamp()
        if stamp is None or stamp != self._loaded_stamp:
            self._forget()  # first, so that the old tokens are invalid also where the new file cannot be read
            if self._look_up is None:
                self._by_hash = {token.hash: (token.expires, token.actor()) for token in self._file.read().values()}
                self._loaded_stamp = stamp

    def _remember(self, hashed: str, stored: bytes, fd: int | None) -> None:
        """Keep an answer of `look_up`, as long as the file stays the same."""
        stamp = None if fd is None else _stamp_of(os.fstat(fd))
        if fd is None or self._fd is None or stamp != self._loaded_stamp:
            self._forget()
            self._fd, self._loaded_stamp = fd, stamp
        else:
            os.close(fd)
        if stored:
            token = _TOKEN.validate_json(stored)
            self._by_hash[hashed] = token.expires, token.actor()

    def _forget(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
        self._by_hash, self._loaded_stamp, self._fd = {}, None, None
        self._version += 1

    def _stamp(self) -> tuple[int, ...] | None:
        """What changes when the file does; (): there is no file; None: no file is known yet."""
        if self._look_up is not None:
            return None if self._fd is None else _stamp_of(os.fstat(self._fd))
        try:
            return _stamp_of(self._file.path.stat())
        except FileNotFoundError:
            return ()


def _new_secret() -> str:
    return _PREFIX + secrets.token_urlsafe(_SECRET_BYTES)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _existing(tokens: dict[str, Token], name: str) -> Token:
    if name not in tokens:
        message = f"there is no token {name!r}; jumptable token list shows all"
        raise TokensUnusable(message)
    return tokens[name]


def _no_token_file(path: Path) -> str:
    return f"{path} is no file of tokens: move it away, and make the tokens again"


def _stamp_of(status: os.stat_result) -> tuple[int, ...]:
    """Changes when the file is written or moved away (ctime), or when another replaces it (number of links)."""
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_nlink
