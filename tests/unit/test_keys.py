"""Keys: accepted and refused ones, their algorithms; no error text contains a key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from nuropb_gateway_asgi.authentication import JWTAuthenticator, issue_token, new_secret
from nuropb_gateway_asgi.authentication.keys import read_key, read_key_set
from nuropb_gateway_asgi.authentication.strict_json import Unacceptable
from nuropb_gateway_asgi.authentication.tokens import parse_compact
from nuropb_gateway_asgi.exceptions import SettingsError, TokenExpired
from tests.kit.token_table import clock_of_the_table
from tests.kit.tokens import (
    DER,
    ISSUER,
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
    SPKI,
    as_json,
    b64,
    certificate,
    jwk,
    key_set,
    make,
    number,
    private,
    private_jwk,
    public,
)


@pytest.fixture(scope="module", autouse=True)
def _stopped_clock() -> Iterator[None]:
    with clock_of_the_table():
        yield


def public_rsa(n: int, e: int) -> bytes:
    numbers = rsa.RSAPublicNumbers(e, n).public_key()
    return numbers.public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


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
    "Ed25519": (public(ED25519), ED25519, "EdDSA"),
    "Ed25519 certificate": (certificate(ED25519).public_bytes(PEM), ED25519, "EdDSA"),
}


@pytest.mark.parametrize(("key", "signer", "algorithm"), GOOD_KEYS.values(), ids=GOOD_KEYS)
async def test_key_verifies_with_the_algorithm_of_its_type_by_default(
    key: str | bytes, signer: object, algorithm: str
) -> None:
    assert await JWTAuthenticator(key)(make(alg=algorithm, key=signer)) is not None


BAD_KEYS: dict[str, tuple[str | bytes, list[str] | str | None, str]] = {
    "empty": ("", None, "the secret has 0 bytes; expected 32 bytes or more"),
    "secret of 31 bytes": ("x" * 31, None, "the secret has 31 bytes; expected 32 bytes or more"),
    "secret with a lone surrogate": ("x" * 40 + "\udc80", None, "not valid text"),
    "RSA of 1024 bits": (public(RSA_SMALL), None, "the RSA key has 1024 bits; at least 2048 are required"),
    "RSA of 8200 bits": (public_rsa(2**8199 + 1, 65537), None, "the RSA key has 8200 bits; at most 8192 are accepted"),
    "RSA with an exponent as long as its modulus": (
        public_rsa(2**2047 + 1, 2**2046 + 1),
        None,
        "not a usual RSA key",
    ),
    "curve of Bitcoin": (public(P256K1), None, "on one of secp256r1"),
    "Ed448": (
        ed448.Ed448PrivateKey.generate().public_key().public_bytes(PEM, SPKI),
        None,
        "neither an RSA key nor an EC key",
    ),
    "Ed25519 of small order": (
        ed25519.Ed25519PublicKey.from_public_bytes(bytes([1]) + bytes(31)).public_bytes(PEM, SPKI),
        None,
        "a point of small order",
    ),
    "Ed25519 for an algorithm of RSA": (public(ED25519), ["RS256"], "JWT_KEY is an Ed25519 key"),
    "RSA private key": (private(RSA_KEY), None, "private key; give the public key"),
    "EC private key": (private(P256_KEY), None, "private key; give the public key"),
    "encrypted private key": (private(RSA_KEY, PEM, b"x"), None, "private key; give the public key"),
    "private key beside the public one": (RSA_PEM + private(RSA_KEY), None, "private key"),
    "two public keys": (
        RSA_PEM + public(RSA_OTHER),
        None,
        "expected a single PEM public key or certificate",
    ),
    "certificate chain": (certificate(RSA_KEY).public_bytes(PEM) * 2, None, "not one PEM block"),
    "certificate request": (RSA_PEM.replace(b"PUBLIC KEY", b"CERTIFICATE REQUEST"), None, "the PEM cannot be read"),
    "certificate that is none": (RSA_PEM.replace(b"PUBLIC KEY", b"CERTIFICATE"), None, "the PEM cannot be read"),
    "PEM of garbage": (
        "-----BEGIN PUBLIC KEY-----\nZ2FyYmFnZQ==\n-----END PUBLIC KEY-----",
        None,
        "the PEM cannot be read",
    ),
    "PEM with escaped line breaks": (RSA_PEM.replace(b"\n", b"\\n"), None, "line breaks"),
    "PEM without its end": (RSA_PEM[:-40], None, "the PEM cannot be read"),
    "PEM without its beginning": (RSA_PEM[40:], None, "not one PEM block"),
    "PEM with four dashes": (RSA_PEM.replace(b"-----", b"---- "), None, "not one PEM block"),
    "public key in DER": (public(RSA_KEY, DER), None, "another format than PEM"),
    "public key in PKCS 1 DER": (RSA_KEY.public_key().public_bytes(DER, PKCS1), None, "another format than PEM"),
    "EC public key in DER": (public(P256_KEY, DER), None, "another format than PEM"),
    "certificate in DER": (certificate(RSA_KEY).public_bytes(DER), None, "another format than PEM"),
    "private key in DER": (private(RSA_KEY, DER), None, "another format than PEM"),
    "encrypted private key in DER": (private(RSA_KEY, DER, b"x"), None, "another format than PEM"),
    "public key in base64 on one line": (RSA_LINE, None, "another format than PEM"),
    "public key in base64 on many lines": (
        "\n".join(RSA_PEM.decode().split("\n")[1:-2]),
        None,
        "another format than PEM",
    ),
    "public key in base64url": (b64(public(P256_KEY, DER)), None, "another format than PEM"),
    "SSH key": (
        RSA_KEY.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH),
        None,
        "another format than PEM",
    ),
    "JSON web key": (JWK, None, "JSON web key"),
    "JSON web key set": (f' {{"keys": [{JWK}]}}', None, "JSON web key"),
    "no algorithm": (SECRET, [], "expected some of HS256"),
    "algorithm as a string": (SECRET, "HS256", "not a list of known algorithms"),
    "algorithm none": (SECRET, ["none"], "expected some of HS256"),
    "algorithm of another case": (SECRET, ["hs256"], "expected some of"),
    "algorithm that python-jose lacks": (RSA_PEM, ["ES256K"], "expected some of"),
    "algorithm for encryption": (RSA_PEM, ["RSA-OAEP"], "expected some of"),
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
    with pytest.raises(TokenExpired):
        await authenticator(issue_token(secret, "7", iss="dev", lifetime=-11))


def test_new_secret_is_long_enough_and_new() -> None:
    assert len(new_secret()) >= 32
    assert new_secret() != new_secret()


# --- the keys of a provider

P256_OTHER = ec.generate_private_key(ec.SECP256R1())
N = RSA_KEY.public_key().public_numbers().n


def odd_rsa(n: int = N, e: int = 65537, **more: Any) -> dict[str, Any]:
    return {"kty": "RSA", "kid": "odd", "n": number(n), "e": number(e), **more}


GOOD_JWKS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "RSA without alg": (jwk(RSA_KEY, "k"), ("RS256",)),
    "RSA with alg": (jwk(RSA_KEY, "k", alg="RS512"), ("RS512",)),
    "RSA for signatures": (jwk(RSA_KEY, "k", use="sig"), ("RS256",)),
    "RSA to verify, among other things": (jwk(RSA_KEY, "k", key_ops=["sign", "verify"]), ("RS256",)),
    "RSA with more to it": (jwk(RSA_KEY, "k", x5c=["MIIB"], x5t="AAAA", exp=1, issuer=ISSUER), ("RS256",)),
    "RSA with a zero in front": (jwk(RSA_KEY, "k", n=number(N, 257)), ("RS256",)),
    "RSA with the exponent 3": (odd_rsa(e=3), ("RS256",)),
    "RSA with the largest exponent": (odd_rsa(e=2**32 - 1), ("RS256",)),
    "RSA of 8192 bits": (odd_rsa(n=2**8191 + 1), ("RS256",)),
    "P-256": (jwk(P256_KEY, "k"), ("ES256",)),
    "P-384": (jwk(P384_KEY, "k", alg="ES384"), ("ES384",)),
    "P-521": (jwk(P521_KEY, "k"), ("ES512",)),
    "Ed25519": (jwk(ED25519, "k"), ("EdDSA",)),
    "Ed25519 with alg": (jwk(ED25519, "k", alg="EdDSA"), ("EdDSA",)),
    "Ed25519 with the newer alg": (jwk(ED25519, "k", alg="Ed25519"), ("Ed25519",)),
    "RSA with alg of RSA-PSS": (jwk(RSA_KEY, "k", alg="PS384"), ("PS384",)),
    "without a kid": (jwk(RSA_KEY), ("RS256",)),
    "with an empty kid": (jwk(RSA_KEY, ""), ("RS256",)),
}


@pytest.mark.parametrize(("entry", "algorithms"), GOOD_JWKS.values(), ids=GOOD_JWKS)
def test_a_key_of_a_set_has_the_algorithm_that_it_is_made_for(
    entry: dict[str, Any], algorithms: tuple[str, ...]
) -> None:
    ring, ignored = read_key_set(key_set(entry))
    assert ignored == []
    (key,) = ring.keys
    assert (key.kid, key.algorithms) == (entry.get("kid"), algorithms)


@pytest.mark.parametrize(
    ("entry", "allowed", "algorithms"),
    [
        (jwk(RSA_KEY), ["RS256", "RS512", "ES256"], ("RS256", "RS512")),
        (jwk(RSA_KEY), ["RS384"], ("RS384",)),
        (jwk(RSA_KEY), ["PS256", "RS256"], ("RS256", "PS256")),
        (jwk(ED25519), ["EdDSA"], ("EdDSA",)),
        (jwk(ED25519), ["RS256"], None),
        (jwk(RSA_KEY, alg="RS384"), ["RS384", "RS512"], ("RS384",)),
        (jwk(P256_KEY), ["RS256", "ES256"], ("ES256",)),
        (jwk(RSA_KEY, alg="RS384"), ["RS256"], None),
        (jwk(RSA_KEY), ["ES256"], None),
        (jwk(P384_KEY), ["ES256"], None),
    ],
)
def test_algorithms_that_are_given_narrow_what_the_keys_are_for(
    entry: dict[str, Any], allowed: list[str], algorithms: tuple[str, ...] | None
) -> None:
    ring, ignored = read_key_set(key_set(entry), allowed)
    assert [key.algorithms for key in ring.keys] == ([] if algorithms is None else [algorithms])
    assert [key.reason for key in ignored] == ([] if algorithms else ["its alg is not accepted"])


ODD_JWKS: dict[str, tuple[object, str]] = {
    "no object": ("key", "it is not an object"),
    "null": (None, "it is not an object"),
    "a list": ([jwk(RSA_OTHER, "odd")], "it is not an object"),
    "empty": ({}, "its kty is neither RSA nor EC"),
    **{
        f"Ed25519 of small order {name}": (jwk(ED25519, "odd", x=b64(bytes.fromhex(point))), "of small order")
        for name, point in {
            "1": "01" + "00" * 31,
            "2": "ec" + "ff" * 30 + "7f",
            "4": "00" * 32,
            "4, with a sign": "00" * 31 + "80",
            "8": "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
            "8, with a sign": "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
            "1, in another spelling": "ee" + "ff" * 30 + "7f",
        }.items()
    },
    "Ed25519 too short": (jwk(ED25519, "odd", x=b64(bytes(31))), "its numbers are invalid"),
    "Ed25519 without a point": ({"kty": "OKP", "crv": "Ed25519", "kid": "odd"}, "its x is missing"),
    "Ed25519 as a curve of EC": (jwk(ED25519, "odd", kty="EC"), "its curve is not one of"),
    "Ed448": (jwk(ED25519, "odd", crv="Ed448"), "its curve is not Ed25519"),
    "X25519": (jwk(ED25519, "odd", crv="X25519"), "its curve is not Ed25519"),
    "a private Ed25519 key": (jwk(ED25519, "odd", d=b64(bytes(32))), "it shows its private part"),
    "alg of Ed25519 for RSA": (jwk(RSA_OTHER, "odd", alg="EdDSA"), "its alg is not accepted"),
    "nested": (jwk(RSA_OTHER, "odd", x5c=[[[[[[[1]]]]]]]), "it is nested too deeply"),
    "nested deeply, and no object": ([[[[[[[[[[1]]]]]]]]]], "it is nested too deeply"),
    "NaN": (jwk(RSA_OTHER, "odd", exp=float("nan")), "it is not strict JSON"),
    "a lone surrogate": (jwk(RSA_OTHER, "\ud800"), "it is not strict JSON"),
    "kty in small letters": (jwk(RSA_OTHER, "odd", kty="rsa"), "its kty is neither"),
    "kty a list": (jwk(RSA_OTHER, "odd", kty=["RSA"]), "its kty is neither"),
    "a secret": ({"kty": "oct", "kid": "odd", "k": b64(SECRET.encode())}, "it shows its private part"),
    "a secret without its text": ({"kty": "oct", "kid": "odd"}, "its kty is neither"),
    "a secret that looks like RSA": (jwk(RSA_OTHER, "odd", k=b64(SECRET.encode())), "it shows its private part"),
    "a private RSA key": (private_jwk(RSA_OTHER, "odd"), "it shows its private part"),
    "a private EC key": (private_jwk(P256_OTHER, "odd"), "it shows its private part"),
    "for encryption": (jwk(RSA_OTHER, "odd", use="enc"), "it is not for signatures"),
    "use null": (jwk(RSA_OTHER, "odd", use=None), "it is not for signatures"),
    "use a list": (jwk(RSA_OTHER, "odd", use=["sig"]), "it is not for signatures"),
    "key_ops without verify": (jwk(RSA_OTHER, "odd", key_ops=["encrypt"]), "it is not for signatures"),
    "key_ops empty": (jwk(RSA_OTHER, "odd", key_ops=[]), "it is not for signatures"),
    "key_ops a text": (jwk(RSA_OTHER, "odd", key_ops="verify"), "it is not for signatures"),
    "kid a number": (jwk(RSA_OTHER, kid=None) | {"kid": 1}, "its kid is not a string"),
    "kid null": (jwk(RSA_OTHER) | {"kid": None}, "its kid is not a string"),
    "alg of encryption": (jwk(RSA_OTHER, "odd", alg="RSA-OAEP"), "its alg is not accepted"),
    "alg of a secret": (jwk(RSA_OTHER, "odd", alg="HS256"), "its alg is not accepted"),
    "alg of another curve": (jwk(P256_OTHER, "odd", alg="ES384"), "its alg is not accepted"),
    "alg none": (jwk(RSA_OTHER, "odd", alg="none"), "its alg is not accepted"),
    "alg null": (jwk(RSA_OTHER, "odd", alg=None), "its alg is not accepted"),
    "alg a list": (jwk(RSA_OTHER, "odd", alg=["RS256"]), "its alg is not accepted"),
    "n missing": ({"kty": "RSA", "e": "AQAB"}, "its n is missing"),
    "n empty": (jwk(RSA_OTHER, "odd", n=""), "its n is missing"),
    "n a number": (jwk(RSA_OTHER, "odd", n=N), "its n is missing"),
    "n in another base64": (jwk(RSA_OTHER, "odd", n="++++"), "base64url"),
    "n with padding": (jwk(RSA_OTHER, "odd", n=jwk(RSA_OTHER)["n"] + "=="), "base64url"),
    "RSA of 1024 bits": (jwk(RSA_SMALL, "odd"), "the RSA key has 1024 bits; at least 2048 are required"),
    "RSA of 2047 bits": (odd_rsa(n=2**2046 + 1), "the RSA key has 2047 bits; at least 2048 are required"),
    "RSA of 8193 bits": (odd_rsa(n=2**8192 + 1), "the RSA key has 8193 bits; at most 8192 are accepted"),
    "RSA of 200000 bits": (odd_rsa(n=2**200000 + 1), "the RSA key has 200001 bits; at most 8192 are accepted"),
    "RSA with an even modulus": (odd_rsa(n=N + 1), "not a usual RSA key"),
    "RSA with the exponent 1": (odd_rsa(e=1), "not a usual RSA key"),
    "RSA with an even exponent": (odd_rsa(e=65536), "not a usual RSA key"),
    "RSA with an exponent of 33 bits": (odd_rsa(e=2**32 + 1), "not a usual RSA key"),
    "RSA with an exponent as long as its modulus": (odd_rsa(e=N - 2), "not a usual RSA key"),
    "the curve of Bitcoin": (jwk(P256_OTHER, "odd", crv="secp256k1"), "its curve is not one of P-256, P-384, P-521"),
    "no curve": ({"kty": "EC", "x": "AA", "y": "AA"}, "its curve is not one of"),
    "curve a list": (jwk(P256_OTHER, "odd", crv=["P-256"]), "its curve is not one of"),
    "another curve": (jwk(P256_OTHER, "odd", crv="P-384"), "its numbers are invalid"),
    "not on its curve": (jwk(P256_OTHER, "odd", y=jwk(P256_KEY)["y"]), "its numbers are invalid"),
    "the point at infinity": (
        jwk(P256_OTHER, "odd", x=b64(bytes(32)), y=b64(bytes(32))),
        "its numbers are invalid",
    ),
    "x beyond the field": (jwk(P256_OTHER, "odd", x=number(2**256 - 1)), "its numbers are invalid"),
    "x very long": (jwk(P256_OTHER, "odd", x=number(2**9999)), "its numbers are invalid"),
    "x missing": ({"kty": "EC", "crv": "P-256", "y": "AA"}, "its x is missing"),
}


@pytest.mark.parametrize(("entry", "reason"), ODD_JWKS.values(), ids=ODD_JWKS)
def test_an_odd_key_is_ignored_and_harms_none_of_the_others(entry: object, reason: str) -> None:
    ring, ignored = read_key_set(key_set(jwk(RSA_KEY, "rsa"), entry, jwk(P256_KEY, "p256")))
    assert [key.kid for key in ring.keys] == ["rsa", "p256"]
    (odd,) = ignored
    assert odd.position == 2
    assert reason in odd.reason
    assert odd.shows_secret == (reason == "it shows its private part")
    ring.keys[0].verify(parse_compact(make(alg="RS256", key=RSA_KEY)))
    ring.keys[1].verify(parse_compact(make(alg="ES256", key=P256_KEY)))


@pytest.mark.parametrize(
    "entry",
    [b'{"kty":"RSA","kty":"RSA"}', b'{"kid":"\xff"}', b'{"a":{"b":1,"b":2}}', b"1e999", b"-Infinity", b"1" * 5000],
)
def test_a_key_that_is_not_strict_json_spoils_no_other(entry: bytes) -> None:
    keys = [as_json(jwk(RSA_KEY, "rsa")), entry, as_json(jwk(P256_KEY, "p256"))]
    ring, ignored = read_key_set(b'{"keys":[' + b",".join(keys) + b"]}")
    assert [key.kid for key in ring.keys] == ["rsa", "p256"]
    assert [(key.position, key.reason) for key in ignored] == [(2, "it is not strict JSON")]


def test_a_kid_of_two_keys_is_neithers() -> None:
    ring, ignored = read_key_set(
        key_set(jwk(RSA_KEY, "a"), jwk(RSA_OTHER, "b"), jwk(P256_KEY, "a"), jwk(P384_KEY, "c"))
    )
    assert [key.kid for key in ring.keys] == ["b", "c"]
    assert [(key.position, key.reason) for key in ignored] == [
        (1, "another key has the same kid"),
        (3, "another key has the same kid"),
    ]


def test_a_key_that_cannot_be_used_takes_its_kid_from_none() -> None:
    ring, _ = read_key_set(key_set(jwk(RSA_OTHER, "a", use="enc"), jwk(RSA_KEY, "a"), {"kty": "oct", "kid": "a"}))
    assert [key.kid for key in ring.keys] == ["a"]


def test_the_same_key_twice_is_one() -> None:
    ring, ignored = read_key_set(key_set(jwk(RSA_KEY, "a"), jwk(RSA_KEY, "a", use="sig"), jwk(RSA_KEY, "b")))
    assert [key.kid for key in ring.keys] == ["a", "b"]
    assert [(key.position, key.reason) for key in ignored] == [(2, "it is a duplicate")]


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (b"", "not strict JSON"),
        (b"<html>", "not strict JSON"),
        (b"[]", "not an object"),
        (b"{}", "no list of keys"),
        (b'{"keys":{}}', "no list of keys"),
        (b'{"keys":null}', "no list of keys"),
        (b'{"keys":[],"keys":[]}', "not strict JSON"),
        (b'{"keys":[]}{}', "not strict JSON"),
        (b'\xef\xbb\xbf{"keys":[]}', "not strict JSON"),
        (b'{"keys":[' + b"[" * 5000, "not strict JSON"),
        (key_set(*[jwk(P256_KEY, str(position)) for position in range(501)]), "more than 500 keys"),
    ],
)
def test_what_is_no_key_set_is_refused(document: bytes, reason: str) -> None:
    with pytest.raises(Unacceptable, match=reason):
        read_key_set(document)


def test_a_set_may_have_500_keys_and_none() -> None:
    ring, _ = read_key_set(key_set(*[jwk(RSA_KEY, str(position)) for position in range(500)]))
    assert len(ring.keys) == 500
    assert read_key_set(b'{"keys":[]}')[0].keys == ()


@pytest.mark.parametrize(
    ("keys", "token", "kid"),
    [
        ([jwk(RSA_KEY, "a"), jwk(P256_KEY, "b")], make(alg="RS256", key=RSA_KEY), "a"),
        ([jwk(RSA_KEY, "a"), jwk(RSA_OTHER, "b")], make(alg="RS256", key=RSA_KEY, kid="a"), "a"),
        ([jwk(RSA_KEY), jwk(P256_KEY, "b")], make(alg="RS256", key=RSA_KEY), None),
        ([jwk(RSA_KEY, "a", alg="RS512"), jwk(RSA_OTHER, "b")], make(alg="RS512", key=RSA_KEY), "a"),
    ],
)
def test_a_key_is_found_by_the_kid_or_as_the_only_one_that_fits(
    keys: list[dict[str, Any]], token: str, kid: str | None
) -> None:
    key = read_key_set(key_set(*keys))[0].find(parse_compact(token))
    assert key is not None
    assert key.kid == kid
    key.verify(parse_compact(token))


@pytest.mark.parametrize(
    ("keys", "alg"),
    [([jwk(RSA_KEY, "a"), jwk(RSA_OTHER, "b")], "RS256"), ([jwk(P256_KEY, "a")], "RS256"), ([], "RS256")],
)
def test_a_token_without_a_kid_is_refused_unless_one_key_fits(keys: list[dict[str, Any]], alg: str) -> None:
    with pytest.raises(Unacceptable, match="the token has no kid, and not exactly one key fits"):
        read_key_set(key_set(*keys))[0].find(parse_compact(make(alg=alg, key=RSA_KEY)))


def test_a_kid_that_names_nothing_finds_nothing_and_no_key_without_a_name() -> None:
    ring, _ = read_key_set(key_set(jwk(RSA_KEY)))
    assert ring.find(parse_compact(make(alg="RS256", key=RSA_KEY, kid="a"))) is None
    assert ring.find(parse_compact(make(alg="RS256", key=RSA_KEY, kid=""))) is None


@pytest.mark.parametrize(
    ("entry", "is_slow"),
    [
        (jwk(RSA_KEY), False),
        (odd_rsa(n=2**4095 + 1), False),  # of 4096 bits
        (odd_rsa(n=2**4096 + 1), True),
        (jwk(P256_KEY), False),
        (jwk(P384_KEY), True),
        (jwk(P521_KEY), True),
    ],
)
def test_what_takes_long_is_not_for_the_event_loop(entry: dict[str, Any], is_slow: bool) -> None:
    assert read_key_set(key_set(entry))[0].keys[0].is_slow is is_slow


def test_a_given_key_is_as_slow_as_one_of_a_set() -> None:
    assert [read_key(key).is_slow for key in (SECRET, public(RSA_KEY), public(P256_KEY), public(P384_KEY))] == [
        False,
        False,
        False,
        True,
    ]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=4), children, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([*jwk(RSA_KEY, "k"), *jwk(P256_KEY), "use", "key_ops", "alg"]), JSON_VALUES))
@settings(database=None)
def test_any_key_is_read_or_ignored_without_an_exception(changes: dict[str, Any]) -> None:
    for good in (jwk(RSA_KEY, "k"), jwk(P256_KEY, "k")):
        ring, ignored = read_key_set(key_set(good | changes, jwk(P384_KEY, "other")))
        assert len(ring.keys) + len(ignored) == 2
