"""JSON web tokens for the clients."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Callable
from typing import TypeAlias

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

__all__ = ["ALGORITHMS", "Keys", "Signer", "make_keys", "make_signer"]

#: Makes a token for a user, valid for an hour.
Signer: TypeAlias = Callable[[str], str]
#: Signing and verifying key: twice the same secret, or private and public key in PEM.
Keys: TypeAlias = tuple[str, str]

ALGORITHMS = ("HS256", "RS256")


def make_keys(algorithm: str) -> Keys:
    """Make a new secret, or a new RSA key pair of 2048 bits."""
    if algorithm == "HS256":
        secret = secrets.token_urlsafe(32)
        return secret, secret
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    own = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return own.decode(), public.decode()


def make_signer(algorithm: str, key: str) -> Signer:
    """Return a function that signs tokens with a key of :func:`make_keys`."""
    sign = _hmac(key) if algorithm == "HS256" else _rsa(key)
    head = _encode(json.dumps({"alg": algorithm, "typ": "JWT"}).encode())

    def make_token(user: str) -> str:
        now = int(time.time())
        claims = {"sub": user, "iat": now, "exp": now + 3600}
        signed = head + b"." + _encode(json.dumps(claims).encode())
        return (signed + b"." + _encode(sign(signed))).decode()

    return make_token


def _hmac(key: str) -> Callable[[bytes], bytes]:
    return lambda data: hmac.digest(key.encode(), data, hashlib.sha256)


def _rsa(key: str) -> Callable[[bytes], bytes]:
    private = serialization.load_pem_private_key(key.encode(), None)
    if not isinstance(private, rsa.RSAPrivateKey):
        raise TypeError("not an RSA key")
    return lambda data: private.sign(data, padding.PKCS1v15(), hashes.SHA256())


def _encode(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
