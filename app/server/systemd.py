"""What systemd passes to the service and expects from it: sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3)."""

import contextlib
import os
import socket
from collections.abc import Mapping
from typing import Final

_FIRST_PASSED_FD: Final = 3  # SD_LISTEN_FDS_START


def passed_sockets(environment: Mapping[str, str] | None = None) -> list[socket.socket]:
    """The listening sockets that systemd passes to this process (socket activation). The caller owns them.

    Args:
        environment: Where LISTEN_PID and LISTEN_FDS are; None: this process's own.
    """
    variables = os.environ if environment is None else environment
    if variables.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = int(variables.get("LISTEN_FDS", "0"))
    sockets = [socket.socket(fileno=fd) for fd in range(_FIRST_PASSED_FD, _FIRST_PASSED_FD + count)]
    for each in sockets:
        each.set_inheritable(False)
    return sockets


def is_restarted(environment: Mapping[str, str] | None = None) -> bool:
    """Whether this process is a service of systemd, which can start it again.

    Args:
        environment: Where NOTIFY_SOCKET, INVOCATION_ID and SYSTEMD_EXEC_PID are; None: this process's own.
    """
    variables = os.environ if environment is None else environment
    if variables.get("NOTIFY_SOCKET"):
        return True
    # Whatever a service starts inherits INVOCATION_ID: so does a shell on a desktop. SYSTEMD_EXEC_PID: systemd 248.
    return "INVOCATION_ID" in variables and variables.get("SYSTEMD_EXEC_PID", str(os.getpid())) == str(os.getpid())


class Notifier:
    """Tells systemd the state of the service. Does nothing where systemd does not listen.

    It connects when it is made: after a switch of the user the process may not reach that socket any more.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        """Connect.

        Args:
            environment: Where NOTIFY_SOCKET, WATCHDOG_PID and WATCHDOG_USEC are; None: this process's own.
        """
        variables = os.environ if environment is None else environment
        self._socket: socket.socket | None = None
        address = variables.get("NOTIFY_SOCKET", "")
        if address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            with contextlib.suppress(OSError):
                self._socket.connect(f"\0{address[1:]}" if address.startswith("@") else address)
        is_watched = variables.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        timeout_microseconds = int(variables.get("WATCHDOG_USEC", "0")) if is_watched else 0
        # systemd kills the service if it hears nothing for the timeout, so it is notified twice within it. 0: never.
        self.watchdog_interval_seconds = timeout_microseconds / 2e6

    def notify(self, state: str) -> None:
        """Send a state, such as "READY=1" or "STOPPING=1". A failure is ignored."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.sendall(state.encode())

    def notify_watchdog(self) -> None:
        """Tell the watchdog that the service is alive. Due every `watchdog_interval_seconds`."""
        self.notify("WATCHDOG=1")

    def close(self) -> None:
        """Send nothing any more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
