"""The names in a client's certificate."""

from typing import Any, Final

_KINDS: Final = ("DNS", "email", "URI")


def names_of(certificate: dict[str, Any]) -> tuple[str, ...]:
    """The subject alternative names of a certificate that can be given a role: DNS, e-mail and URI.

    A name counts only if it has the form of its kind. A CA may verify the domain of a DNS name, but not that of an
    e-mail address or a URI: such a name must not be taken for a DNS name that looks alike.

    Args:
        certificate: As `ssl.SSLObject.getpeercert()` returns it.
    """
    names: list[tuple[str, Any]] = certificate.get("subjectAltName", ())
    return tuple(name for kind, name in names if kind in _KINDS and kind == _kind_by_form(name))


def _kind_by_form(name: str) -> str:
    if ":" in name:
        return "URI"
    return "email" if "@" in name else "DNS"
