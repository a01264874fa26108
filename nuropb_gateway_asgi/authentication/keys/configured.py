"""The key of the setting ``JWT_KEY``: a PEM public key or certificate, or a secret. Pure."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from jose.utils import is_ssh_key

from ...exceptions import SettingsError
from ..strict_json import Unacceptable
from .key import HMAC_ALGORITHMS, Key, PublicKey, check_algorithms, check_public_key, describe, is_slow, to_pem

__all__ = ["read_key"]


def read_key(key: str | bytes, algorithms: Sequence[str] | None = None) -> Key:
    """Read a PEM public key or certificate, or a secret of at least 32 bytes.

    ``algorithms`` can only narrow the algorithms that fit the key. The default is HS256, RS256, EdDSA or the one of
    the key's curve. Raises SettingsError, whose message never contains the key.
    """
    try:
        data = key.encode("utf-8") if isinstance(key, str) else key
    except UnicodeEncodeError:
        # Without a cause: the exception holds the key.
        raise SettingsError("JWT_KEY: not valid text; expected PEM or a secret in UTF-8") from None
    public_key = None
    if b"-----" in data or b"BEGIN " in data:
        public_key = _read_pem(data)
        kind, fitting = describe(public_key)
        data = to_pem(public_key)
    else:
        _check_secret(data)
        kind, fitting = "a secret", HMAC_ALGORITHMS
    algorithms = fitting[:1] if algorithms is None else check_algorithms(algorithms)
    if not set(algorithms) <= set(fitting):
        raise SettingsError(f"JWT_ALGORITHMS: JWT_KEY is {kind}, which is only for {', '.join(fitting)}")
    return Key(data, algorithms, is_slow=public_key is not None and is_slow(public_key))


def _read_pem(data: bytes) -> PublicKey:
    if b"PRIVATE KEY-" in data:
        raise SettingsError("JWT_KEY: a private key; give the public key, because the gateway only verifies")
    if data.count(b"-----BEGIN ") != 1:
        raise SettingsError("JWT_KEY: not one PEM block; expected a single PEM public key or certificate")
    public_key: object
    try:
        if b"-----BEGIN CERTIFICATE-" in data:
            # python-jose 3.5.0 reads the certificate of an RSA key, but not that of an EC key.
            public_key = x509.load_pem_x509_certificate(data).public_key()
        else:
            public_key = serialization.load_pem_public_key(data)
    except Exception as exc:  # ValueError, UnsupportedAlgorithm, InvalidVersion: the same to the operator
        raise SettingsError("JWT_KEY: the PEM cannot be read; check that its line breaks are real ones") from exc
    try:
        return check_public_key(public_key)
    except Unacceptable as exc:
        raise SettingsError(f"JWT_KEY: {exc}") from exc


def _check_secret(data: bytes) -> None:
    # If a public key were the secret, everybody could sign. python-jose 3.5.0 notices PEM and SSH, but neither DER nor
    # base64 without the lines around it, which is how identity providers display their keys.
    if is_ssh_key(data) or _is_der(data) or _is_der(_base64_decode(data)):
        raise SettingsError("JWT_KEY: a key in another format than PEM; give a PEM public key")
    if data.lstrip().startswith(b"{") and b'"kty"' in data:
        raise SettingsError("JWT_KEY: a JSON web key; give a PEM public key")
    if len(data) < 32:  # RFC 7518, 3.2: the size of SHA-256
        size = f"{len(data)} {'byte' if len(data) == 1 else 'bytes'}"
        raise SettingsError(f"JWT_KEY: the secret has {size}; expected 32 bytes or more")


def _base64_decode(data: bytes) -> bytes:
    text = b"".join(data.split()).rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
    with suppress(ValueError):
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    return b""


def _is_der(data: bytes) -> bool:
    for load in (
        serialization.load_der_public_key,
        x509.load_der_x509_certificate,
        partial(serialization.load_der_private_key, password=None),
    ):
        try:
            load(data)
        except ValueError:
            continue
        except Exception:
            return True  # recognised, but encrypted (TypeError) or of an unsupported kind
        return True
    return False
