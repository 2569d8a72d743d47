"""jumptable: an HTTP API for eBPF program arrays."""

__all__ = ["__version__"]


def __getattr__(name: str) -> str:
    """`__version__`; asked for when it is wanted, as that takes 40 ms, which the keeper does not want."""
    if name != "__version__":
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    from importlib.metadata import version  # noqa: PLC0415

    return version("jumptable")
