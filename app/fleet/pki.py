"""Certificates of the fleet: its own authority, and certificates for etcd's members, its servers and its nodes.

Keys are of the curve P-256. The CommonName of a client's certificate is its user in etcd. Certificates of members have
none: etcd's own gateway connects with them, and would be taken for that user.
"""

import datetime as dt
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_DAYS: Final = 3650
_CLOCKS_DIFFER: Final = dt.timedelta(minutes=5)


class PkiError(Exception):
    """A file holds no such key or certificate. The text is one line: which file, and the remedy."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and its key, in PEM."""

    certificate: bytes
    key: bytes


class Authority:
    """Signs certificates. Whoever has its key can be anybody in etcd."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate, self._key = certificate, key

    @classmethod
    def create(cls) -> Self:
        """Return a new authority."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "jumptable fleet")])
        usage = x509.KeyUsage(
            digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
            key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
        )  # fmt: skip
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        certificate = (
            _builder(name, name, key.public_key(), AUTHORITY_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(identifier, critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key)

    @classmethod
    def read(cls, certificate: Path, key: Path) -> Self:
        """Return the authority of these files, in PEM, the key without a password.

        Raises:
            PkiError: They hold no such thing.
            OSError: One cannot be read.
        """
        try:
            found = load_pem_private_key(key.read_bytes(), password=None)
            authority = x509.load_pem_x509_certificate(certificate.read_bytes())
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            message = f"{certificate} and {key} are no authority: jumptable fleet init makes one ({error})"
            raise PkiError(message) from error
        if not isinstance(found, ec.EllipticCurvePrivateKey) or found.public_key() != authority.public_key():
            message = f"{key} is not the key of {certificate}: name the two that jumptable fleet init has made"
            raise PkiError(message)
        return cls(authority, found)

    def to_pem(self) -> Issued:
        """Return the authority's own certificate and key."""
        return _issued(self._certificate, self._key)

    def for_client(self, user: str, days: int) -> Issued:
        """Return a certificate for a client of etcd.

        Args:
            user: Its user in etcd, which becomes the CommonName.
            days: For how long it is valid.
        """
        return self._issue(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, user)]), (), days)

    def for_member(self, hosts: Sequence[str], days: int) -> Issued:
        """Return a certificate for a member of etcd, which is a server, and a client of the other members.

        Args:
            hosts: Its addresses and names.
            days: For how long it is valid.
        """
        return self._issue(x509.Name([]), hosts, days)

    def _issue(self, name: x509.Name, hosts: Sequence[str], days: int) -> Issued:
        key = ec.generate_private_key(ec.SECP256R1())
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if hosts else [])]
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = (
            _builder(name, self._certificate.subject, key.public_key(), days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(issuer, critical=False)
        )
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName(map(_general_name, hosts)), critical=True)
        return _issued(builder.sign(self._key, hashes.SHA256()), key)


def _builder(name: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS_DIFFER)
        .not_valid_after(now + dt.timedelta(days=days))
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        return x509.DNSName(host)


def _issued(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Issued:
    return Issued(
        certificate.public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )


def write_new(file: Path, content: bytes, *, is_secret: bool = False) -> None:
    """Write a file that must not be there yet.

    Args:
        file: Its path.
        content: Its content.
        is_secret: Only its owner may read it. All others may be read by everybody, whatever the umask is.

    Raises:
        OSError: It is there, or it cannot be written.
    """
    with open(file, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as out:
        out.write(content)
        if not is_secret:
            os.fchmod(out.fileno(), 0o644)
