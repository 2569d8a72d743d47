"""TLS on the listening socket: the certificate and the clients' CA as the files are now, without a restart."""

import ssl
import time
from pathlib import Path
from typing import Final

import structlog

_LOOK_SECONDS: Final = 1.0

log = structlog.get_logger()


class TlsError(Exception):
    """Why these files cannot be used, in one line."""


class Tls:
    """The context for the next handshake: made anew where a file has changed. Thread rule: one event loop."""

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None = None) -> None:
        """`client_ca`: of the certificates that clients may show; they need not. TlsError."""
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
            context.load_cert_chain(self._certificate, self._key, password=lambda: b"")
            if self._client_ca is not None:
                context.load_verify_locations(self._client_ca)
                context.verify_mode = ssl.CERT_OPTIONAL
        except (OSError, ValueError) as error:
            files = ", ".join(str(file) for file in self._files)
            message = f"tls: {files}: {error}: name PEM files that belong together, the key without a password"
            raise TlsError(message) from error
        return context

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
                stat = file.stat()
                stamps.append((stat.st_mtime_ns, stat.st_ino))
            except OSError:
                stamps.append(None)
        return stamps
