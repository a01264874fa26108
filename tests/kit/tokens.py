"""Tokens of every kind, honest and hostile, made without the code that is tested."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

#: The time in tests that use these tokens, so late that no real clock takes them for expired.
NOW: Final = 4_000_000_000
SECRET = "a-secret-for-tests-of-at-least-32-bytes"
ISSUER = "https://issuer.example"
AUDIENCE = "gateway"
CLAIMS: dict[str, Any] = {
    "iss": ISSUER,
    "aud": AUDIENCE,
    "sub": "alice",
    "preferred_username": "Alice",
    "iat": NOW,
    "exp": NOW + 60,
}
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
RSA_OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
RSA_SMALL = rsa.generate_private_key(public_exponent=65537, key_size=1024)
P256_KEY = ec.generate_private_key(ec.SECP256R1())
P384_KEY = ec.generate_private_key(ec.SECP384R1())
P521_KEY = ec.generate_private_key(ec.SECP521R1())
ED25519_KEY = ed25519.Ed25519PrivateKey.generate()
ED25519_OTHER = ed25519.Ed25519PrivateKey.generate()
HASHES: dict[str, hashes.HashAlgorithm] = {
    "256": hashes.SHA256(),
    "384": hashes.SHA384(),
    "512": hashes.SHA512(),
}

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
PEM = serialization.Encoding.PEM
DER = serialization.Encoding.DER
PKCS1 = serialization.PublicFormat.PKCS1
SPKI = serialization.PublicFormat.SubjectPublicKeyInfo


def public(key: PrivateKey, encoding: serialization.Encoding = PEM) -> bytes:
    return key.public_key().public_bytes(encoding, SPKI)


def private(key: PrivateKey, encoding: serialization.Encoding = PEM, password: bytes | None = None) -> bytes:
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password:
        encryption = serialization.BestAvailableEncryption(password)
    return key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, encryption)


def certificate(key: PrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "issuer.example")])
    start = datetime(2026, 1, 1, tzinfo=UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).serial_number(1)
    builder = builder.not_valid_before(start).not_valid_after(start + timedelta(days=1))
    return builder.public_key(key.public_key()).sign(
        key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    )


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def as_json(value: object) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()


def signature(algorithm: str, key: object, message: bytes) -> bytes:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(message)
    if isinstance(key, rsa.RSAPrivateKey) and algorithm.startswith("PS"):
        return pss(key, message, HASHES[algorithm[2:]])
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(message, padding.PKCS1v15(), HASHES[algorithm[2:]])
    if isinstance(key, ec.EllipticCurvePrivateKey):
        r, s = decode_dss_signature(key.sign(message, ec.ECDSA(HASHES[algorithm[2:]])))
        size = (key.key_size + 7) // 8
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")
    assert isinstance(key, bytes | str)
    secret = key.encode() if isinstance(key, str) else key
    return hmac.digest(secret, message, getattr(hashlib, f"sha{algorithm[2:]}"))


def pss(
    key: rsa.RSAPrivateKey,
    message: bytes,
    digest: hashes.HashAlgorithm,
    *,
    salt: int | None = None,
    mask: hashes.HashAlgorithm | None = None,
) -> bytes:
    """Sign with RSA-PSS, by default as RFC 7518, 3.5 wants it."""
    return key.sign(
        message, padding.PSS(padding.MGF1(mask or digest), digest.digest_size if salt is None else salt), digest
    )


def pss_signed(**odd: Any) -> str:
    """Return a PS256 token with an odd padding."""
    message = make(alg="PS256", key=RSA_KEY).rpartition(".")[0]
    return f"{message}.{b64(pss(RSA_KEY, message.encode(), hashes.SHA256(), **odd))}"


def malleated() -> str:
    """Return an Ed25519 token whose second number is larger by the order of the group, which is the same signature."""
    message, _, signed = make(alg="EdDSA", key=ED25519_KEY).rpartition(".")
    data = base64.urlsafe_b64decode(signed + "=" * (-len(signed) % 4))
    order = 2**252 + 27742317777372353535851937790883648493
    return f"{message}.{b64(data[:32] + (int.from_bytes(data[32:], 'little') + order).to_bytes(32, 'little'))}"


def make(
    claims: object = CLAIMS, header: object = None, *, alg: str = "HS256", key: object = SECRET, **more: Any
) -> str:
    """Sign these claims, valid or not; ``more`` is added to the header."""
    head = {"alg": alg, "typ": "JWT", **more} if header is None else header
    message = f"{b64(as_json(head))}.{b64(as_json(claims))}"
    return f"{message}.{b64(signature(alg, key, message.encode()))}"


def claims(**changes: Any) -> dict[str, Any]:
    return CLAIMS | changes


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in CLAIMS.items() if name not in names}


def nested(depth: int) -> Any:
    return [] if depth == 1 else [nested(depth - 1)]


def sign(message: str) -> str:
    """Sign an encoded header and claims, which may be misspelled."""
    return f"{message}.{b64(signature('HS256', SECRET, message.encode()))}"


def respelled(token: str) -> str:
    """Change only the unused bits at the end of a 32 byte signature: python-jose 3.5.0 accepts it."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return token[:-1] + alphabet[alphabet.index(token[-1]) + 1]


def other_alphabet() -> str:
    message, _, signed = next(token for n in range(99) if "-" in (token := make(claims(n=n)))).rpartition(".")
    return f"{message}.{signed.replace('-', '+').replace('_', '/')}"


def der_signed() -> str:
    message = make(alg="ES256", key=P256_KEY).rpartition(".")[0]
    return f"{message}.{b64(P256_KEY.sign(message.encode(), ec.ECDSA(hashes.SHA256())))}"


def signed_with(key: ec.EllipticCurvePrivateKey, r: int, s: int, size: int | None = None) -> str:
    """Return a token for P-256 with these two numbers as its signature."""
    size = (key.key_size + 7) // 8 if size is None else size
    message = make(alg="ES256", key=key).rpartition(".")[0]
    return f"{message}.{b64(r.to_bytes(size, 'big') + s.to_bytes(size, 'big'))}"


def cut(token: str, size: int) -> str:
    """Return the token with the first ``size`` bytes of its signature; a negative size cuts bytes off."""
    message, _, signed = token.rpartition(".")
    return f"{message}.{b64(base64.urlsafe_b64decode(signed + '=' * (-len(signed) % 4))[:size])}"


# --- key sets


def number(value: int, size: int | None = None) -> str:
    """Encode a number as in a JSON web key, without leading zeros or with ``size`` bytes."""
    return b64(value.to_bytes((value.bit_length() + 7) // 8 if size is None else size, "big"))


def jwk(key: PrivateKey, kid: str | None = None, **more: Any) -> dict[str, Any]:
    """Return the public key as a JSON web key; ``more`` adds or replaces members."""
    named = {} if kid is None else {"kid": kid}
    if isinstance(key, rsa.RSAPrivateKey):
        numbers = key.public_key().public_numbers()
        return {"kty": "RSA", "n": number(numbers.n), "e": number(numbers.e), **named, **more}
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return {"kty": "OKP", "crv": "Ed25519", "x": b64(key.public_key().public_bytes_raw()), **named, **more}
    point = key.public_key().public_numbers()
    size = (key.key_size + 7) // 8
    curve = f"P-{key.key_size}"
    return {"kty": "EC", "crv": curve, "x": number(point.x, size), "y": number(point.y, size), **named, **more}


def private_jwk(key: PrivateKey, kid: str, **more: Any) -> dict[str, Any]:
    """Return the private key as a JSON web key, for the signer."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        size = (key.key_size + 7) // 8
        return jwk(key, kid, d=number(key.private_numbers().private_value, size), **more)
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return jwk(key, kid, d=b64(key.private_bytes_raw()), **more)
    numbers = key.private_numbers()
    parts = {"d": numbers.d, "p": numbers.p, "q": numbers.q, "dp": numbers.dmp1, "dq": numbers.dmq1, "qi": numbers.iqmp}
    return jwk(key, kid, **{name: number(value) for name, value in parts.items()}, **more)


def key_set(*keys: object) -> bytes:
    """Return the document with these keys that a provider publishes."""
    return as_json({"keys": list(keys)})
