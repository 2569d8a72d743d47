"""A network between browser and service that a test can cut."""

import contextlib
import socket
import threading
from collections.abc import Iterator

import httpx


class Cable:
    """Passes on connections to a service. `url` is where a browser finds it."""

    def __init__(self, listener: socket.socket, url: str) -> None:
        self._listener, self._upstream = listener, httpx.URL(url)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._is_cut = False
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    def cut(self) -> None:
        """End all connections, and each new one at once."""
        self._is_cut = True
        for each in list(self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """Let connections through again."""
        self._is_cut = False

    def accept(self) -> None:
        """Accept connections until the listener is shut down."""
        while True:
            try:
                there, _ = self._listener.accept()
            except OSError:
                break
            if self._is_cut:
                there.close()
                continue
            here = socket.create_connection((self._upstream.host, self._upstream.port or 80))
            self._sockets |= {there, here}
            for source, sink in ((there, here), (here, there)):
                thread = threading.Thread(target=self._pump, args=(source, sink))
                thread.start()
                self._threads.append(thread)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close every connection, and wait for the threads."""
        self.cut()
        for thread in self._threads:
            thread.join()
        for each in self._sockets:
            each.close()


@contextlib.contextmanager
def cable(url: str) -> Iterator[Cable]:
    """Lay a cable to the service with this url."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        laid = Cable(listener, url)
        thread = threading.Thread(target=laid.accept)
        thread.start()
        try:
            yield laid
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            laid.close()
