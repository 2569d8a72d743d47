"""Datagrams between two processes, each with a file descriptor beside it (SCM_RIGHTS, unix(7))."""

import array
import socket


def send(channel: socket.socket, data: bytes, fd: int | None = None) -> None:
    """One datagram. OSError."""
    beside = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
    channel.sendmsg([data], beside)


def receive(channel: socket.socket, size: int) -> tuple[bytes, int | None]:
    """One datagram and the fd beside it, which is the caller's; what does not fit is dropped. OSError."""
    data, beside, _, _ = channel.recvmsg(size, socket.CMSG_LEN(4), socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, content in beside:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, fds[0] if fds else None
