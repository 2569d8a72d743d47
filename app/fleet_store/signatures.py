"""Signatures of what nodes are to hold (Ed25519, RFC 8032), so that a node need not trust etcd or another node.

A signed value is the signature in base64, a line break, and the document. It stays readable with etcdctl, and the bytes
that were signed are the bytes that are read: nothing is encoded a second time.
"""

import base64
import binascii
from pathlib import Path
from typing import Final, Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

# Comes before what is signed, so that a signature counts for nothing else that the same key may sign.
DESIRED_TABLE: Final = b"jumptable/v1/desired-table\0"
DRY_RUN: Final = b"jumptable/v1/dry-run\0"
_SIGNATURE_BYTES: Final = 64


class BadSignature(Exception):
    """The value is not signed by the fleet's key. The text is one line."""


class BadKey(Exception):
    """The file holds no such key. The text is one line: which file, and the remedy."""


class Signer:
    """Signs with the fleet's private key. Only the fleet's server has one."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def generate(cls) -> Self:
        """Return a signer with a new key."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def read(cls, file: Path) -> Self:
        """Return a signer with the key of a file, in PEM (PKCS 8), without a password.

        Raises:
            BadKey: The file holds no such key.
            OSError: It cannot be read.
        """
        try:
            key = load_pem_private_key(file.read_bytes(), password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            message = f"{file} holds no private key: openssl genpkey -algorithm ed25519 makes one ({error})"
            raise BadKey(message) from error
        if not isinstance(key, Ed25519PrivateKey):
            message = f"{file} holds a key of another kind: openssl genpkey -algorithm ed25519 makes one"
            raise BadKey(message)
        return cls(key)

    def to_pem(self) -> bytes:
        """Return the private key as `read` takes it."""
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def verifier(self) -> "Verifier":
        """Return the verifier of what this signer signs."""
        return Verifier([self._key.public_key()])

    def sign(self, purpose: bytes, document: bytes) -> bytes:
        """Return the signed value of a document.

        Args:
            purpose: DESIRED_TABLE or DRY_RUN.
            document: Its bytes.
        """
        return base64.b64encode(self._key.sign(purpose + document)) + b"\n" + document


class Verifier:
    """Checks signatures with public keys. Several keys count, so that the fleet's key can be replaced."""

    def __init__(self, keys: list[Ed25519PublicKey]) -> None:
        self._keys = keys

    @classmethod
    def read(cls, files: list[Path]) -> Self:
        """Return a verifier with the public keys of files, in PEM.

        Raises:
            BadKey: A file holds no such key.
            OSError: It cannot be read.
        """
        keys = []
        for file in files:
            try:
                key = load_pem_public_key(file.read_bytes())
            except (ValueError, UnsupportedAlgorithm) as error:
                message = f"{file} holds no public key: openssl pkey -pubout makes one of the private key ({error})"
                raise BadKey(message) from error
            if not isinstance(key, Ed25519PublicKey):
                message = f"{file} holds a key of another kind; the fleet signs with Ed25519"
                raise BadKey(message)
            keys.append(key)
        return cls(keys)

    def to_pem(self) -> bytes:
        """Return the first public key as `read` takes it."""
        return self._keys[0].public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def document(self, purpose: bytes, value: bytes) -> bytes:
        """Return the document of a signed value.

        Args:
            purpose: DESIRED_TABLE or DRY_RUN: what it must have been signed for.
            value: The signed value.

        Raises:
            BadSignature: None of the keys has signed it for this.
        """
        line, _, document = value.partition(b"\n")
        try:
            signature = base64.b64decode(line, validate=True)
        except binascii.Error as error:
            raise BadSignature("it does not begin with a signature") from error
        if len(signature) == _SIGNATURE_BYTES and any(
            _verifies(key, signature, purpose + document) for key in self._keys
        ):
            return document
        raise BadSignature("the signature is not by the fleet's key, or something has changed what it signed")


def _verifies(key: Ed25519PublicKey, signature: bytes, message: bytes) -> bool:
    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True


def unverified_document(value: bytes) -> bytes:
    """Return the document of a signed value without a look at its signature: for who reads what it wrote itself."""
    return value.partition(b"\n")[2]
