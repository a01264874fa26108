"""Verifiers of signatures: python-jose's, and cryptography's for the algorithms that python-jose 3.5.0 lacks. Pure."""

from __future__ import annotations

from typing import Final, Protocol, cast

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa
from jose import jwk

__all__ = ["EDWARDS_ALGORITHMS", "PSS_ALGORITHMS", "Verifier", "make_verifier"]

_PSS_HASHES: Final = {"PS256": hashes.SHA256(), "PS384": hashes.SHA384(), "PS512": hashes.SHA512()}
PSS_ALGORITHMS: Final = tuple(_PSS_HASHES)
#: The algorithms of Ed25519: RFC 8037, 3.1, and RFC 9864, 2.2.
EDWARDS_ALGORITHMS: Final = ("EdDSA", "Ed25519")


class Verifier(Protocol):
    """A key for one algorithm."""

    def verify(self, message: bytes, signature: bytes, /) -> bool:
        """Return whether the key signed the message."""
        ...


def make_verifier(material: bytes, algorithm: str) -> Verifier:
    """Make the verifier of a secret or a PEM public key, which has to fit the algorithm."""
    if algorithm in PSS_ALGORITHMS:
        return _PSS(cast("rsa.RSAPublicKey", serialization.load_pem_public_key(material)), _PSS_HASHES[algorithm])
    if algorithm in EDWARDS_ALGORITHMS:
        return _Edwards(cast("ed25519.Ed25519PublicKey", serialization.load_pem_public_key(material)))
    verifier: Verifier = jwk.construct(material, algorithm)
    return verifier


class _PSS:
    def __init__(self, key: rsa.RSAPublicKey, digest: hashes.HashAlgorithm) -> None:
        self._key = key
        self._digest = digest
        # RFC 7518, 3.5: the salt is as long as the hash, and MGF1 uses the same hash.
        self._padding = padding.PSS(padding.MGF1(digest), digest.digest_size)

    def verify(self, message: bytes, signature: bytes) -> bool:
        try:
            self._key.verify(signature, message, self._padding, self._digest)
        except InvalidSignature:
            return False
        return True


class _Edwards:
    def __init__(self, key: ed25519.Ed25519PublicKey) -> None:
        self._key = key

    def verify(self, message: bytes, signature: bytes) -> bool:
        try:
            self._key.verify(signature, message)
        except InvalidSignature:
            return False
        return True
