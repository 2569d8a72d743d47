"""What owns a file descriptor of the kernel."""

from typing import Self

from app.bpf.kernel import Kernel


class OwnedFd:
    """Owns an fd from its making until `close`; a context manager that closes at its end. Thread rule: see heirs."""

    def __init__(self, kernel: Kernel, fd: int) -> None:
        self._kernel = kernel
        self._fd: int | None = fd

    @property
    def fd(self) -> int:
        """The open fd. ValueError once closed."""
        if self._fd is None:
            message = f"this {type(self).__name__} is closed"
            raise ValueError(message)
        return self._fd

    def close(self) -> None:
        """Let go of the fd. Twice is fine."""
        if self._fd is not None:
            self._kernel.close(self._fd)
            self._fd = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
