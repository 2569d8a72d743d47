"""Datagrams between two processes over a unix socket, each with at most one file descriptor (SCM_RIGHTS, unix(7))."""

import array
import errno
import os
import socket


def send(channel: socket.socket, data: bytes, fd: int | None = None) -> None:
    """Send one datagram.

    Args:
        channel: A socket that keeps the bounds of messages (SOCK_SEQPACKET).
        data: The content.
        fd: Goes with the datagram; stays open in this process.

    Raises:
        OSError: As sendmsg(2); EPIPE where the other end is closed.
    """
    ancillary = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
    channel.sendmsg([data], ancillary)


def receive(channel: socket.socket, size: int) -> tuple[bytes, int | None]:
    """Receive one datagram.

    Args:
        channel: As in `send`.
        size: The most bytes to return; the kernel drops the rest of a longer datagram, and all fds but the first.

    Returns:
        (the content, the fd that came with it or None). The caller owns the fd. The content is empty where the other
        end is closed, and for an empty datagram.

    Raises:
        OSError: As recvmsg(2); EMFILE where an fd came, but this process may open no more.
    """
    data, ancillary, flags, _ = channel.recvmsg(size, socket.CMSG_LEN(4), socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    if flags & socket.MSG_CTRUNC and not fds:  # the kernel has dropped it: unix(7)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return data, fds[0] if fds else None
