"""What systemd gives and wants to be told: sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3)."""

import contextlib
import os
import socket
from collections.abc import Mapping
from typing import Final

_FIRST_FD: Final = 3


def given_listeners(environment: Mapping[str, str] | None = None) -> list[socket.socket]:
    """The sockets that systemd listens on for this process (socket activation), which are the caller's now."""
    told = os.environ if environment is None else environment
    if told.get("LISTEN_PID") != str(os.getpid()):
        return []
    given = [socket.socket(fileno=fd) for fd in range(_FIRST_FD, _FIRST_FD + int(told.get("LISTEN_FDS", "0")))]
    for each in given:
        each.set_inheritable(False)
    return given


class Notifier:
    """Who waits to be told how this process is, where anybody does; connected from the start, whoever it becomes."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        told = os.environ if environment is None else environment
        self._socket: socket.socket | None = None
        address = told.get("NOTIFY_SOCKET", "")
        if address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            with contextlib.suppress(OSError):
                self._socket.connect(f"\0{address[1:]}" if address.startswith("@") else address)
        # Twice within the time after which systemd takes the process for hung, and ends it.
        is_watched = told.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.interval = int(told.get("WATCHDOG_USEC", "0")) / 2e6 if is_watched else 0.0  # s; 0: nobody watches

    def tell(self, state: str) -> None:
        """Tell it, as "READY=1"."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.sendall(state.encode())

    def close(self) -> None:
        """Tell nothing any more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
