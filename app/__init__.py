"""jumptable: an HTTP API for eBPF program arrays."""

__all__ = ["__version__"]


def __getattr__(name: str) -> str:
    """Look `__version__` up only when it is used: that takes 40 ms, and the keeper does not need it."""
    if name != "__version__":
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    from importlib.metadata import version  # noqa: PLC0415

    return version("jumptable")
