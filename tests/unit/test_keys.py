"""Keys: what is taken for one, what it is used for, and that none is ever printed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from nuropb_gateway_asgi.authentication import JWTAuthenticator, issue_token, new_secret
from nuropb_gateway_asgi.exceptions import SettingsError
from tests.kit.token_table import clock_of_the_table
from tests.kit.tokens import (
    DER,
    NOW,
    P256_KEY,
    P384_KEY,
    P521_KEY,
    PEM,
    PKCS1,
    RSA_KEY,
    RSA_OTHER,
    RSA_SMALL,
    SECRET,
    b64,
    certificate,
    make,
    private,
    public,
)


@pytest.fixture(scope="module", autouse=True)
def _stopped_clock() -> Iterator[None]:
    with clock_of_the_table():
        yield


P256K1 = ec.generate_private_key(ec.SECP256K1())
ED25519 = ed25519.Ed25519PrivateKey.generate()
RSA_PEM = public(RSA_KEY)
RSA_LINE = "".join(RSA_PEM.decode().splitlines()[1:-1])
JWK = json.dumps({"kty": "RSA", "n": b64(bytes(256)), "e": "AQAB"})

GOOD_KEYS: dict[str, tuple[str | bytes, object, str]] = {
    "secret": (SECRET, SECRET, "HS256"),
    "secret in bytes": (SECRET.encode(), SECRET, "HS256"),
    "secret that is not text": (bytes(range(128, 160)), bytes(range(128, 160)), "HS256"),
    "secret not in ASCII": ("é" * 16, "é" * 16, "HS256"),
    "secret in base64": (b64(hashlib.sha256().digest()), b64(hashlib.sha256().digest()), "HS256"),
    "RSA as text": (RSA_PEM.decode(), RSA_KEY, "RS256"),
    "RSA with white space around": (b"\n " + RSA_PEM + b"\n\n", RSA_KEY, "RS256"),
    "RSA in PKCS 1": (RSA_KEY.public_key().public_bytes(PEM, PKCS1), RSA_KEY, "RS256"),
    "RSA certificate": (certificate(RSA_KEY).public_bytes(PEM), RSA_KEY, "RS256"),
    "P-256": (public(P256_KEY), P256_KEY, "ES256"),
    "P-256 certificate": (certificate(P256_KEY).public_bytes(PEM), P256_KEY, "ES256"),
    "P-384": (public(P384_KEY), P384_KEY, "ES384"),
    "P-521": (public(P521_KEY), P521_KEY, "ES512"),
}


@pytest.mark.parametrize(("key", "signer", "algorithm"), GOOD_KEYS.values(), ids=GOOD_KEYS)
async def test_key_verifies_with_the_algorithm_of_its_type_by_default(
    key: str | bytes, signer: object, algorithm: str
) -> None:
    assert await JWTAuthenticator(key)(make(alg=algorithm, key=signer)) is not None


BAD_KEYS: dict[str, tuple[str | bytes, list[str] | str | None, str]] = {
    "empty": ("", None, "32 bytes or more, this one has 0"),
    "secret of 31 bytes": ("x" * 31, None, "32 bytes or more, this one has 31"),
    "secret with a lone surrogate": ("x" * 40 + "\udc80", None, "not valid text"),
    "RSA of 1024 bits": (public(RSA_SMALL), None, "2048 bits or more, it has 1024"),
    "curve of Bitcoin": (public(P256K1), None, "on one of secp256r1"),
    "Ed25519": (public(ED25519), None, "must be an RSA key, or an EC key"),
    "RSA private key": (private(RSA_KEY), None, "private key; give the public key"),
    "EC private key": (private(P256_KEY), None, "private key; give the public key"),
    "encrypted private key": (private(RSA_KEY, PEM, b"x"), None, "private key; give the public key"),
    "private key beside the public one": (RSA_PEM + private(RSA_KEY), None, "private key"),
    "two public keys": (RSA_PEM + public(RSA_OTHER), None, "one PEM public key or certificate"),
    "certificate chain": (certificate(RSA_KEY).public_bytes(PEM) * 2, None, "one PEM public key"),
    "certificate request": (RSA_PEM.replace(b"PUBLIC KEY", b"CERTIFICATE REQUEST"), None, "not readable PEM"),
    "certificate that is none": (RSA_PEM.replace(b"PUBLIC KEY", b"CERTIFICATE"), None, "not readable PEM"),
    "PEM of garbage": (
        "-----BEGIN PUBLIC KEY-----\nZ2FyYmFnZQ==\n-----END PUBLIC KEY-----",
        None,
        "not readable PEM",
    ),
    "PEM with escaped line breaks": (RSA_PEM.replace(b"\n", b"\\n"), None, "line breaks"),
    "PEM without its end": (RSA_PEM[:-40], None, "not readable PEM"),
    "PEM without its beginning": (RSA_PEM[40:], None, "one PEM public key"),
    "PEM with four dashes": (RSA_PEM.replace(b"-----", b"---- "), None, "one PEM public key"),
    "public key in DER": (public(RSA_KEY, DER), None, "not in PEM"),
    "public key in PKCS 1 DER": (RSA_KEY.public_key().public_bytes(DER, PKCS1), None, "not in PEM"),
    "EC public key in DER": (public(P256_KEY, DER), None, "not in PEM"),
    "certificate in DER": (certificate(RSA_KEY).public_bytes(DER), None, "not in PEM"),
    "private key in DER": (private(RSA_KEY, DER), None, "not in PEM"),
    "encrypted private key in DER": (private(RSA_KEY, DER, b"x"), None, "not in PEM"),
    "public key in base64 on one line": (RSA_LINE, None, "not in PEM"),
    "public key in base64 on many lines": ("\n".join(RSA_PEM.decode().split("\n")[1:-2]), None, "not in PEM"),
    "public key in base64url": (b64(public(P256_KEY, DER)), None, "not in PEM"),
    "SSH key": (
        RSA_KEY.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH),
        None,
        "not in PEM",
    ),
    "JSON web key": (JWK, None, "JSON web key"),
    "JSON web key set": (f' {{"keys": [{JWK}]}}', None, "JSON web key"),
    "no algorithm": (SECRET, [], "must be a list with some of HS256"),
    "algorithm as a string": (SECRET, "HS256", "must be a list"),
    "algorithm none": (SECRET, ["none"], "must be a list with some of HS256"),
    "algorithm of another case": (SECRET, ["hs256"], "must be a list with some of"),
    "algorithm that python-jose lacks": (RSA_PEM, ["PS256"], "must be a list with some of"),
    "algorithm for encryption": (RSA_PEM, ["RSA-OAEP"], "must be a list with some of"),
    "secret for RSA": (SECRET, ["RS256"], "a secret, which is only for HS256, HS384, HS512"),
    "RSA for HMAC": (RSA_PEM, ["HS256"], "an RSA key, which is only for RS256, RS384, RS512"),
    "RSA for EC": (RSA_PEM, ["ES256"], "an RSA key, which is only for RS256"),
    "two families": (RSA_PEM, ["RS256", "HS256"], "an RSA key, which is only for RS256"),
    "curve for another algorithm": (public(P256_KEY), ["ES384"], "secp256r1, which is only for ES256"),
    "curve for two algorithms": (public(P384_KEY), ["ES256", "ES384"], "secp384r1, which is only for ES384"),
}


@pytest.mark.parametrize(("key", "algorithms", "message"), BAD_KEYS.values(), ids=BAD_KEYS)
def test_unusable_key_is_refused_in_one_line_that_does_not_contain_it(
    key: str | bytes, algorithms: list[str] | str | None, message: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        JWTAuthenticator(key, algorithms)
    text = str(caught.value)
    assert message in text
    assert "\n" not in text
    secret = key.decode("latin-1") if isinstance(key, bytes) else key
    assert not any(line in text for line in secret.splitlines() if len(line) > 10)


# --- development and tests


async def test_issued_token_is_valid_and_carries_its_claims() -> None:
    secret = new_secret()
    authenticator = JWTAuthenticator(secret, issuer="dev")
    identity = await authenticator(issue_token(secret, "7", username="al", lifetime=30, iss="dev", role="x"))
    assert identity is not None
    assert (identity.user_id, identity.username, identity.expires_at) == ("7", "al", NOW + 30)
    assert identity.claims["role"] == "x"
    plain = await authenticator(issue_token(secret, "7", iss="dev"))
    assert plain is not None
    assert (plain.username, plain.expires_at) == ("7", NOW + 3600)
    assert await authenticator(issue_token(secret, "7", iss="dev", lifetime=-11)) is None


def test_new_secret_is_long_enough_and_new() -> None:
    assert len(new_secret()) >= 32
    assert new_secret() != new_secret()
