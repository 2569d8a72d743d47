"""Bearer tokens: made, kept as hashes in one file, found again, revoked while the service runs."""

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
_TOKEN: Final = TypeAdapter(Token)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


class TokenFile:
    """The tokens by name. Writers take turns; a reader finds the old file or the new one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Token]:
        """All of them; none where there is no file. TokensUnusable."""
        return self._read(0)[0]

    def _read(self, flags: int) -> tuple[dict[str, Token], os.stat_result | None]:
        """The same, and what the file is that they were read from, whatever is at its path by now."""
        try:
            fd = os.open(self.path, flags | os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(fd, "rb") as file:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o022:
                    message = f"{self.path} can be written by others: chmod 600 it, and look what is in it"
                    raise TokensUnusable(message)
                return {token.name: token for token in _FILE.validate_json(file.read())}, status
        except FileNotFoundError:
            return {}, None
        except PermissionError as error:
            message = f"{self.path}: it may not be read: make tokens as the user that serves, or chown it"
            raise TokensUnusable(message) from error
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
            expires = _known(tokens, name).expires
            if expires is not None and expires <= time.time():
                message = f"token {name!r} is over: revoke it, and make another"
                raise TokensUnusable(message)
            tokens[name] = replace(_known(tokens, name), hash=_hash(secret), created=time.time())
        return secret

    def revoke(self, name: str) -> None:
        """It is worth nothing from now on. TokensUnusable."""
        with self._changing() as tokens:
            del tokens[_known(tokens, name).name]

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, Token]]:
        try:
            self.path.parent.mkdir(mode=0o700, exist_ok=True)
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            message = f"{self.path.parent}: {error.strerror}"
            raise TokensUnusable(message) from error
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            tokens, owner = self._read(os.O_NOFOLLOW)
            yield tokens
            self._replace(tokens, folder, owner)
        finally:
            os.close(folder)

    def _replace(self, tokens: dict[str, Token], folder: int, owner: os.stat_result | None) -> None:
        """The new file beside the old one, then in its place; it belongs to whom the old one belonged."""
        new = self.path.with_name(f".{self.path.name}.new")
        try:
            with contextlib.suppress(FileNotFoundError):
                new.unlink()
            with open(new, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
                if owner is not None and os.geteuid() == 0:
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

    def __init__(self, file: TokenFile, ask: Callable[[str], tuple[bytes, int | None]] | None = None) -> None:
        """`ask`: for a process that may not read the file: tells what is kept of the token with a hash, as JSON.

        Nothing: there is none. And the file itself (O_PATH); None: there is none. OSError: it cannot tell.
        """
        self._file = file
        self._ask = ask
        self._fd: int | None = None  # the file, of which `ask` has told
        self._seen: tuple[int, ...] | None = None
        self._known: dict[str, tuple[float | None, Actor]] = {}  # when it is over, and whose it is, by hash
        self._is_one_moment = self._is_fresh = False
        self.degraded_reason: str | None = None  # why they cannot be checked, as of the last time

    def actor(self, secret: str) -> Actor | None:
        """Whose it is; None: nobody's, or it is over. TokensUnusable."""
        try:
            found = self._actor(_hash(secret))
        except TokensUnusable as error:
            self.degraded_reason = str(error)
            raise
        self.degraded_reason = None
        return found

    def _actor(self, hashed: str) -> Actor | None:
        try:
            self._reload()
            if self._ask is not None and hashed not in self._known:
                self._learn(hashed, *self._ask(hashed))
        except PermissionError as error:
            message = f"{self._file.path} has to be a file of root's that others cannot write: chown root, chmod 600"
            raise TokensUnusable(message) from error
        except (OSError, ValueError) as error:
            reason = "the keeper has ended: restart the service" if getattr(error, "errno", 0) == errno.EPIPE else ""
            message = f"{self._file.path} {reason or 'is no file of tokens: move it away, and make the tokens anew'}"
            raise TokensUnusable(message) from error
        # Found by its hash, which whoever tries secrets cannot choose: how long it takes tells nothing of them.
        expires, actor = self._known.get(hashed, (0.0, None))
        return actor if expires is None or time.time() < expires else None

    def is_one_moment(self, *, begins: bool) -> None:
        """All that is asked until the moment ends is asked at once: the file is looked at once."""
        self._is_one_moment, self._is_fresh = begins, False

    def _reload(self) -> None:
        if self._is_one_moment and self._is_fresh:
            return
        seen = self._stamp()
        if seen is None or seen != self._seen:
            self._forget()  # where the new file cannot be read, the old one counts no more
            if self._ask is None:
                self._known = {token.hash: (token.expires, token.actor()) for token in self._file.read().values()}
                self._seen = seen
        self._is_fresh = True

    def _learn(self, hashed: str, told: bytes, fd: int | None) -> None:
        if fd is None or self._fd is None or _stamp_of(os.fstat(fd)) != self._seen:
            self._forget()
            self._fd, self._seen = fd, None if fd is None else _stamp_of(os.fstat(fd))
        else:
            os.close(fd)
        if told:
            token = _TOKEN.validate_json(told)
            self._known[hashed] = token.expires, token.actor()

    def _forget(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
        self._known, self._seen, self._fd = {}, None, None

    def _stamp(self) -> tuple[int, ...] | None:
        """What tells this file from an earlier one; None: none is known."""
        if self._ask is not None:
            return None if self._fd is None else _stamp_of(os.fstat(self._fd))
        try:
            return _stamp_of(self._file.path.stat())
        except FileNotFoundError:
            return ()


def _stamp_of(status: os.stat_result) -> tuple[int, ...]:
    """Another once the file was written, or moved away (ctime), or another was put in its place (links)."""
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_nlink
