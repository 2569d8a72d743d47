"""TLS on the listening socket: the certificate and the clients' CA as the files are now, without a restart."""

import contextlib
import os
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import structlog

_LOOK_SECONDS: Final = 1.0
_MAX_FILE: Final = 1 << 20  # bytes

log = structlog.get_logger()


def open_file(file: Path) -> int:
    """An fd to read it. OSError."""
    return os.open(file, os.O_RDONLY | os.O_CLOEXEC)


class TlsError(Exception):
    """Why these files cannot be used, in one line."""


class Tls:
    """The context for the next handshake: made anew where a file has changed. Thread rule: one event loop."""

    def __init__(
        self, certificate: Path, key: Path, client_ca: Path | None = None, opened: Callable[[Path], int] = open_file
    ) -> None:
        """`client_ca`: of the certificates that clients may show; they need not; `opened`: gives an fd. TlsError."""
        self._opened = opened
        self._files = [certificate, key, *([] if client_ca is None else [client_ca])]
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._looked, self._seen = time.monotonic(), self._stamps()
        self._current = self._made()
        # What listens; each handshake goes on with the one of now, as asked for at its beginning (RFC 6066, 3).
        self.context = self._made()
        self.context.sni_callback = self._choose

    def _made(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            with self._copy(self._certificate) as certificate, self._copy(self._key) as key:
                context.load_cert_chain(certificate, key, password=lambda: b"")
            if self._client_ca is not None:
                with self._copy(self._client_ca) as client_ca:
                    context.load_verify_locations(client_ca)
                context.verify_mode = ssl.CERT_OPTIONAL
        except (OSError, ValueError) as error:
            files = ", ".join(str(file) for file in self._files)
            message = f"tls: {files}: {error}: name PEM files that belong together, the key without a password"
            raise TlsError(message) from error
        return context

    @contextlib.contextmanager
    def _copy(self, file: Path) -> Iterator[str]:
        """A path to the same content that this process may open itself (`ssl` takes nothing else)."""
        copy = os.memfd_create(file.name)
        try:
            with os.fdopen(self._opened(file), "rb") as content:
                os.write(copy, content.read(_MAX_FILE))
            yield f"/proc/self/fd/{copy}"
        finally:
            os.close(copy)

    def _choose(self, handshake: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _context: ssl.SSLContext) -> None:
        handshake.context = self.current()

    def current(self) -> ssl.SSLContext:
        """The context as the files are now; where they cannot be used, as they were."""
        now = time.monotonic()
        if now - self._looked >= _LOOK_SECONDS:
            self._looked = now
            stamps = self._stamps()
            if stamps != self._seen:
                self._seen = stamps
                try:
                    self._current = self._made()
                    log.info("the certificate was loaded anew", file=str(self._certificate))
                except TlsError as error:
                    log.warning("the old certificate stays in use", reason=str(error))
        return self._current

    def _stamps(self) -> list[tuple[int, int] | None]:
        stamps: list[tuple[int, int] | None] = []
        for file in self._files:
            try:
                with os.fdopen(self._opened(file), "rb") as content:
                    stat = os.fstat(content.fileno())
                stamps.append((stat.st_mtime_ns, stat.st_ino))
            except OSError:
                stamps.append(None)
        return stamps
