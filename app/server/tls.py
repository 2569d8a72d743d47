"""TLS for the listening socket. Certificates that change on disk count without a restart."""

import contextlib
import os
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import structlog

_CHECK_INTERVAL_SECONDS: Final = 1.0
_MAX_FILE_BYTES: Final = 1 << 20

log = structlog.get_logger()


def open_file(file: Path) -> int:
    """Open a file for reading; the caller owns the fd."""
    return os.open(file, os.O_RDONLY | os.O_CLOEXEC)


class TlsError(Exception):
    """The files cannot be used. The text is one line: why, and the remedy."""


class Tls:
    """The TLS context of the next handshake, made from the files as they are now. Thread rule: one event loop."""

    def __init__(
        self, certificate: Path, key: Path, client_ca: Path | None = None, opener: Callable[[Path], int] = open_file
    ) -> None:
        """Load the files.

        Args:
            certificate: The certificate with its chain, in PEM.
            key: Its key in PEM, without a password.
            client_ca: The CA of client certificates, in PEM. Clients may connect without one. None: none is asked for.
            opener: Opens one of these files, and returns an fd that this object closes.

        Raises:
            TlsError: The files cannot be used.
        """
        self._opener = opener
        self._files = [certificate, key, *([] if client_ca is None else [client_ca])]
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._checked_at, self._loaded_stamps = time.monotonic(), self._stamps()
        self._current = self._load()
        # The context that the server listens with. The callback replaces it at the beginning of each handshake: OpenSSL
        # calls it also for clients that send no server name (RFC 6066, 3).
        self.context = self._load()
        self.context.sni_callback = self._use_current

    def current(self) -> ssl.SSLContext:
        """The context for a new connection. It is loaded again after a file has changed.

        The old one stays in use where the new files cannot be used.
        """
        now = time.monotonic()
        if now - self._checked_at >= _CHECK_INTERVAL_SECONDS:
            self._checked_at = now
            stamps = self._stamps()
            if stamps != self._loaded_stamps:
                self._loaded_stamps = stamps
                try:
                    self._current = self._load()
                    log.info("the certificate was loaded again", file=str(self._certificate))
                except TlsError as error:
                    log.warning("the old certificate stays in use", reason=str(error))
        return self._current

    def _use_current(
        self, handshake: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _context: ssl.SSLContext
    ) -> None:
        handshake.context = self.current()

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            with self._readable_copy(self._certificate) as certificate, self._readable_copy(self._key) as key:
                context.load_cert_chain(certificate, key, password=lambda: b"")
            if self._client_ca is not None:
                with self._readable_copy(self._client_ca) as client_ca:
                    context.load_verify_locations(client_ca)
                context.verify_mode = ssl.CERT_OPTIONAL
        except (OSError, ValueError) as error:
            files = ", ".join(str(file) for file in self._files)
            message = f"tls: {files}: {error}: name PEM files that belong together, the key without a password"
            raise TlsError(message) from error
        return context

    @contextlib.contextmanager
    def _readable_copy(self, file: Path) -> Iterator[str]:
        """The path of a copy in memory. `ssl` takes only paths, and this process may not open the file itself."""
        copy = os.memfd_create(file.name)
        try:
            with os.fdopen(self._opener(file), "rb") as content:
                os.write(copy, content.read(_MAX_FILE_BYTES))
            yield f"/proc/self/fd/{copy}"
        finally:
            os.close(copy)

    def _stamps(self) -> list[tuple[int, int] | None]:
        """For each file what changes when the file does; None: it cannot be opened."""
        stamps: list[tuple[int, int] | None] = []
        for file in self._files:
            try:
                with os.fdopen(self._opener(file), "rb") as content:
                    stat = os.fstat(content.fileno())
                stamps.append((stat.st_mtime_ns, stat.st_ino))
            except OSError:
                stamps.append(None)
        return stamps
