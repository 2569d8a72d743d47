"""The names in a client's certificate."""

from typing import Any, Final

_KINDS: Final = ("DNS", "email", "URI")


def names_of(certificate: dict[str, Any]) -> tuple[str, ...]:
    """Its subject alternative names of the kinds that can be given a role, as `ssl` tells them.

    Only those that have the form of their kind: a CA may check the domain of one kind, and not of another, so that an
    address or a URI that looks like a DNS name must not be taken for it.
    """
    names: list[tuple[str, Any]] = certificate.get("subjectAltName", ())
    return tuple(name for kind, name in names if kind in _KINDS and kind == _form(name))


def _form(name: str) -> str:
    if ":" in name:
        return "URI"
    return "email" if "@" in name else "DNS"
