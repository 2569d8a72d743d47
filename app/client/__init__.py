"""The client: how Python talks to a running jumptable. It imports nothing of the service."""

from app.client.client import Client, default_url
from app.client.errors import JumptableError, Refused, Unexpected, Unreachable

__all__ = ["Client", "JumptableError", "Refused", "Unexpected", "Unreachable", "default_url"]
