"""jumptable: an HTTP API for eBPF program arrays."""

from importlib.metadata import version

__version__ = version("jumptable")
