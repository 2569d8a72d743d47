"""Loads object files by way of the keeper."""

import contextlib
import errno
import socket
from collections.abc import Sequence

from app.keeper.client import KEEPER_ENDED, KEEPER_HANGS, TIMEOUT_SECONDS, KeeperClient
from app.keeper.messages import Op
from app.loader.files import sealed
from app.loader.messages import MAX_ANSWER_BYTES, LoadAnswer, LoadRequest, ObjectLimits
from app.sandbox.channel import receive_with_fds, send_with_fds


class KeeperLoader:
    """Reads and loads object files by way of the keeper. Thread rule: any thread but that of an event loop."""

    def __init__(self, keeper: KeeperClient, limits: ObjectLimits) -> None:
        """Ask this keeper, which knows these limits."""
        self._keeper = keeper
        self._limits = limits
        self._channels: set[socket.socket] = set()
        self._is_closed = False

    def seal(self, content: bytes) -> int:
        """Return the fd of sealed memory with this content."""
        return sealed(content)

    def read_file(self, path: str) -> int:
        """Return the fd of sealed memory with the content of a file.

        Raises:
            OSError: As `app.loader.files.read_file`, or as `KeeperClient.ask`.
        """
        return self._keeper.open(Op.READ_OBJECT, text=path)

    def load(self, request: LoadRequest, elf: int, maps: Sequence[int]) -> tuple[LoadAnswer, list[int]]:
        """Load an object file, as `app.loader.client.DirectLoader.load` does.

        Raises:
            OSError: As `KeeperClient.ask`; EBUSY: the keeper loads as many as it can already; EPERM: the file was not
                read by the keeper, and may not be uploaded; EPIPE: the keeper has ended.
        """
        channel, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with channel:
            with other:
                send_with_fds(channel, request.dump(), [elf, *maps])
                self._keeper.ask(Op.LOAD_OBJECT, fd=other.fileno())
            channel.settimeout(self._limits.timeout + TIMEOUT_SECONDS)
            self._channels.add(channel)
            try:
                content, fds = (b"", []) if self._is_closed else receive_with_fds(channel, MAX_ANSWER_BYTES)
            except TimeoutError as failure:
                raise OSError(errno.ETIMEDOUT, KEEPER_HANGS) from failure
            finally:
                self._channels.discard(channel)
        if content:
            return LoadAnswer.load(content), fds
        if self._is_closed:
            raise OSError(errno.ESHUTDOWN, "the loader is closed")
        raise OSError(errno.EPIPE, KEEPER_ENDED)

    def close(self) -> None:
        """Wait no longer for what is being loaded."""
        self._is_closed = True
        for channel in list(self._channels):
            with contextlib.suppress(OSError):
                channel.shutdown(socket.SHUT_RDWR)
