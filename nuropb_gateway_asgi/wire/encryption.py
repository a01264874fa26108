"""NuroPb's encryption of message bodies. Pure.

A body is ``base64(RSA-OAEP(K)) + "." + base64(Fernet(K, json))``, where K is a new Fernet key for every call. The
response is encrypted with the same K. Its first part is encrypted for the service itself; the caller ignores it.
"""

from __future__ import annotations

import binascii
import functools
from base64 import b64decode, b64encode
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

__all__ = ["UndecryptableMessage", "decrypt_call", "decrypt_reply", "encrypt", "load_public_key"]


class UndecryptableMessage(ValueError):
    """A body that cannot be decrypted, or a key that cannot be used."""


#: Bits. OAEP with SHA-256 around the 44 bytes of a K needs 880.
_SMALLEST_KEY: Final = 1024
_OAEP = padding.OAEP(mgf=padding.MGF1(algorithm=hashes.SHA256()), algorithm=hashes.SHA256(), label=None)


@functools.lru_cache(maxsize=128)
def load_public_key(pem: str) -> rsa.RSAPublicKey:
    """Read the RSA key in ``pem``. Raises UndecryptableMessage if there is none."""
    try:
        key = serialization.load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UndecryptableMessage("the service's public key cannot be read") from error
    if not isinstance(key, rsa.RSAPublicKey):
        raise UndecryptableMessage("the service's public key is not an RSA key")
    if key.key_size < _SMALLEST_KEY:
        raise UndecryptableMessage("the service's public key is too short")
    return key


def encrypt(body: bytes, public_key: rsa.RSAPublicKey, key: bytes | None = None) -> tuple[bytes, bytes]:
    """Encrypt a body; return ``(K, encrypted body)``. For a response, ``key`` is the K of its request."""
    key = Fernet.generate_key() if key is None else key
    encrypted_key = public_key.encrypt(key, _OAEP)
    return key, b64encode(encrypted_key) + b"." + b64encode(Fernet(key).encrypt(body))


def decrypt_reply(body: bytes, key: bytes) -> bytes:
    """Decrypt the response to a call that was encrypted with ``key``. Raises UndecryptableMessage."""
    _, _, encrypted = body.partition(b".")
    return _decrypt(encrypted, key)


def decrypt_call(body: bytes, private_key: Any) -> tuple[bytes, bytes]:
    """Decrypt a request; return ``(K, body)``. Raises UndecryptableMessage."""
    encrypted_key, _, encrypted = body.partition(b".")
    try:
        key: bytes = private_key.decrypt(b64decode(encrypted_key, validate=True), _OAEP)
    except (ValueError, binascii.Error) as error:
        raise UndecryptableMessage("the message is not for this key") from error
    return key, _decrypt(encrypted, key)


def _decrypt(encrypted: bytes, key: bytes) -> bytes:
    try:
        return Fernet(key).decrypt(b64decode(encrypted, validate=True))
    except (InvalidToken, ValueError, binascii.Error) as error:
        raise UndecryptableMessage("the message cannot be decrypted") from error
