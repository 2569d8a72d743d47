"""Datagrams between two processes over a unix socket, with file descriptors (SCM_RIGHTS, unix(7))."""

import array
import errno
import os
import socket
from collections.abc import Sequence
from typing import Final

MAX_FDS: Final = 253  # in one datagram: SCM_MAX_FD of include/net/scm.h


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


def send_with_fds(channel: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    """Send one datagram with any number of file descriptors up to MAX_FDS, which stay open in this process.

    Raises:
        OSError: As sendmsg(2).
    """
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    channel.sendmsg([data], ancillary)


def receive_with_fds(channel: socket.socket, size: int) -> tuple[bytes, list[int]]:
    """Receive one datagram with all of its file descriptors.

    Args:
        channel: As in `send`.
        size: The most bytes to return; the kernel drops the rest of a longer datagram.

    Returns:
        (the content, the fds that came with it). The caller owns the fds.

    Raises:
        OSError: As recvmsg(2); EMFILE where not all fds found room in this process.
    """
    data, ancillary, flags, _ = channel.recvmsg(size, socket.CMSG_SPACE(4 * MAX_FDS), socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    if flags & socket.MSG_CTRUNC:
        for fd in fds:
            os.close(fd)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return data, list(fds)
