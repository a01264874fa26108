"""Tokens, keys, credentials and origins: honest ones pass, hostile ones do not, and none is ever printed."""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import hmac
import json
import logging
import threading
from collections.abc import Awaitable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest
from anyio.lowlevel import checkpoint
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.authentication import AuthenticationError
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import Message
from starlette.websockets import WebSocket

from nuropb_gateway_asgi import authentication
from nuropb_gateway_asgi.authentication import (
    Authenticator,
    Credentials,
    FunctionAuthenticator,
    Identity,
    JWTAuthenticator,
    OriginPolicy,
    TokenAuthenticationBackend,
    bearer_from_header,
    bearer_from_subprotocols,
    find_credentials,
    issue_token,
    new_secret,
)
from nuropb_gateway_asgi.exceptions import SettingsError

NOW = 1_790_000_000
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


@pytest.fixture(scope="module", autouse=True)
def _stopped_clock() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(authentication, "time", SimpleNamespace(time=lambda: NOW))
        yield


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def public(key: PrivateKey, encoding: serialization.Encoding = PEM) -> bytes:
    return key.public_key().public_bytes(encoding, SPKI)


def private(key: PrivateKey, encoding: serialization.Encoding = PEM, password: bytes | None = None) -> bytes:
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password:
        encryption = serialization.BestAvailableEncryption(password)
    return key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, encryption)


def certificate(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "issuer.example")])
    start = datetime(2026, 1, 1, tzinfo=UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).serial_number(1)
    builder = builder.not_valid_before(start).not_valid_after(start + timedelta(days=1))
    return builder.public_key(key.public_key()).sign(key, hashes.SHA256())


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def as_json(value: object) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()


def signature(algorithm: str, key: object, message: bytes) -> bytes:
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(message, padding.PKCS1v15(), HASHES[algorithm[2:]])
    if isinstance(key, ec.EllipticCurvePrivateKey):
        r, s = decode_dss_signature(key.sign(message, ec.ECDSA(HASHES[algorithm[2:]])))
        size = (key.key_size + 7) // 8
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")
    assert isinstance(key, bytes | str)
    secret = key.encode() if isinstance(key, str) else key
    return hmac.digest(secret, message, getattr(hashlib, f"sha{algorithm[2:]}"))


def make(
    claims: object = CLAIMS, header: object = None, *, alg: str = "HS256", key: object = SECRET, **more: Any
) -> str:
    """Sign whatever is given, valid or not; ``more`` goes into the header."""
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
    """Sign a header and claims that are not spelled as they should be."""
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


HS = JWTAuthenticator(SECRET, ["HS256"], ISSUER, AUDIENCE)
RS = JWTAuthenticator(public(RSA_KEY), ["RS256"], ISSUER, AUDIENCE)
ES = JWTAuthenticator(public(P256_KEY), ["ES256"], ISSUER, AUDIENCE)
TOKEN = make()
HEAD, BODY, SIGNATURE = TOKEN.split(".")


# --- JSON web tokens

HONEST: dict[str, tuple[JWTAuthenticator, str]] = {
    "HS256": (HS, TOKEN),
    "HS384": (JWTAuthenticator(SECRET, ["HS384"]), make(alg="HS384")),
    "HS512 of several": (JWTAuthenticator(SECRET, ["HS256", "HS512"]), make(alg="HS512")),
    "RS256": (RS, make(alg="RS256", key=RSA_KEY)),
    "RS384": (JWTAuthenticator(public(RSA_KEY), ["RS384"]), make(alg="RS384", key=RSA_KEY)),
    "RS512": (JWTAuthenticator(public(RSA_KEY), ["RS512"]), make(alg="RS512", key=RSA_KEY)),
    "ES256": (ES, make(alg="ES256", key=P256_KEY)),
    "ES384": (JWTAuthenticator(public(P384_KEY)), make(alg="ES384", key=P384_KEY)),
    "ES512": (JWTAuthenticator(public(P521_KEY)), make(alg="ES512", key=P521_KEY)),
    "a list of audiences": (HS, make(claims(aud=["other", AUDIENCE]))),
    "any audience and issuer when none is configured": (JWTAuthenticator(SECRET), make(claims(aud=["x"]))),
    "no audience and issuer when none is configured": (JWTAuthenticator(SECRET), make(without("aud", "iss"))),
    "expired within the leeway": (HS, make(claims(exp=NOW - 9))),
    "not before within the leeway": (HS, make(claims(nbf=NOW + 10))),
    "issued within the leeway": (HS, make(claims(iat=NOW + 10))),
    "fractions of seconds": (HS, make(claims(exp=NOW + 0.5, iat=NOW - 0.5))),
    "no iat": (HS, make(without("iat"))),
    "no typ": (HS, make(header={"alg": "HS256"})),
    "an access token by its typ": (HS, make(typ="application/at+JWT")),
    "a kid": (HS, make(kid="2026-11")),
    "claims as deep as allowed": (HS, make(claims(realm=nested(7)))),
    "white space in the JSON": (HS, make(json.dumps(CLAIMS, indent=1).encode())),
    "an escaped character in the JSON": (HS, make(claims(name="\U0001f600"))),
    "a subject of 256 characters": (HS, make(claims(sub="alice", other="é" * 256))),
    "exactly 8192 characters": (HS, make(claims(pad="x" * 5949))),
}


@pytest.mark.parametrize(("authenticator", "token"), HONEST.values(), ids=HONEST)
async def test_honest_token_identifies_its_user(authenticator: JWTAuthenticator, token: str) -> None:
    identity = await authenticator(token)
    assert identity is not None
    assert (identity.user_id, identity.username, identity.token) == ("alice", "Alice", token)
    assert identity.expires_at == identity.claims["exp"]


def test_longest_honest_token_is_as_long_as_allowed() -> None:
    assert len(HONEST["exactly 8192 characters"][1]) == 8192


HOSTILE_HS: dict[str, str] = {
    # the form
    "empty": "",
    "one part": HEAD,
    "two parts": f"{HEAD}.{BODY}",
    "four parts": f"{TOKEN}.{SIGNATURE}",
    "five parts, as an encrypted token": f"{TOKEN}.{SIGNATURE}.{SIGNATURE}",
    "dots only": "..",
    "no header": f".{BODY}.{SIGNATURE}",
    "no claims": f"{HEAD}..{SIGNATURE}",
    "no signature": f"{HEAD}.{BODY}.",
    "8193 characters": make(claims(pad="x" * 5949)) + "x",
    "too long with a valid signature": make(claims(pad="x" * 9000)),
    "line break at the end": f"{TOKEN}\n",
    "space at the end": f"{TOKEN} ",
    "null character": f"{TOKEN}\0",
    "not ASCII": f"{TOKEN}é",
    "digits of another script": f"{HEAD}.{BODY}.{SIGNATURE[:-1]}٣",
    "lone surrogate": f"{TOKEN}\ud800",
    "Bearer in front": f"Bearer {TOKEN}",
    # base64url: python-jose 3.5.0 accepts all of these but the last
    "padding": f"{TOKEN}=",
    "padding in the header": sign(f"{HEAD}==.{BODY}"),
    "garbage in the header": sign(f"{HEAD}!.{BODY}"),
    "garbage in the claims": sign(f"{HEAD}.{BODY[:8]}****{BODY[8:]}"),
    "garbage after the signature": f"{TOKEN}!!!!",
    "garbage within the signature": f"{HEAD}.{BODY}.{SIGNATURE[:8]}****{SIGNATURE[8:]}",
    "unused trailing bits": respelled(TOKEN),
    "the other base64 alphabet": other_alphabet(),
    "impossible length": f"{HEAD}.{BODY}.A",
    # the signature
    "signature of another token": make(claims(sub="bob")).rpartition(".")[0] + f".{SIGNATURE}",
    "signature cut short": f"{HEAD}.{BODY}.{b64(hmac.digest(SECRET.encode(), b'', 'sha256')[:16])}",
    "signature all zero": f"{HEAD}.{BODY}.{b64(bytes(32))}",
    "another secret": make(key="another-secret-of-at-least-32-bytes!!"),
    "an empty secret": make(key=b""),
    # the header
    "alg none": f"{b64(as_json({'alg': 'none'}))}.{BODY}.",
    "alg none with a signature": make(header={"alg": "none"}),
    "alg None in capitals": make(header={"alg": "NONE"}),
    "alg missing": make(header={"typ": "JWT"}),
    "alg null": make(header={"alg": None}),
    "alg a number": make(header={"alg": 256}),
    "alg a boolean": make(header={"alg": True}),
    "alg a list": make(header={"alg": ["HS256"]}),
    "alg in lower case": make(header={"alg": "hs256"}),
    "alg part of an allowed one": make(header={"alg": "HS"}),
    "alg of the family but not allowed": make(alg="HS512"),
    "alg of another family": make(alg="RS256", key=RSA_KEY),
    "alg twice": make(header=b'{"alg":"none","alg":"HS256"}'),
    "crit": make(crit=["exp"]),
    "crit empty": make(crit=[]),
    "crit as a string": make(crit="exp"),
    "b64": make(b64=False),
    "zip": make(zip="DEF"),
    "jku": make(jku="https://evil.example/keys"),
    "jwk": make(jwk={"kty": "oct", "k": b64(SECRET.encode())}),
    "jwk as a string": make(jwk="{}"),
    "x5u": make(x5u="https://evil.example/cert"),
    "x5c": make(x5c="MIIB"),
    "nested header": make(kid={"a": 1}),
    "deeply nested header": make(header=b'{"alg":"HS256","a":' + b"[" * 400 + b"]" * 400 + b"}"),
    "header nested beyond recursion": make(header=b"[" * 5000),
    "header over 1 KiB": make(kid="k" * 1024),
    "header a list": make(header=["HS256"]),
    "header not JSON": make(header=b"HS256"),
    "header not UTF-8": make(header=b'{"alg":"HS256","kid":"\xff"}'),
    "header UTF-16": make(header='{"alg":"HS256"}'.encode("utf-16")),
    "header with a byte order mark": make(header=b'\xef\xbb\xbf{"alg":"HS256"}'),
    "typ of a logout token": make(typ="logout+jwt"),
    "typ a proof of possession": make(typ="dpop+jwt"),
    "typ a number": make(typ=1),
    "typ null": make(typ=None),
    # the claims as JSON
    "claims empty": make(b""),
    "claims a list": make([CLAIMS]),
    "claims a string": make("alice"),
    "claims null": make(None),
    "claims a number": make(1),
    "claims not UTF-8": make(b'{"sub":"\xff"}'),
    "claims with something after them": make(as_json(CLAIMS) + b"{}"),
    "claims too deep": make(claims(realm=nested(8))),
    "claims nested beyond recursion": make(b'{"a":' * 1000 + b"1" + b"}" * 1000),
    "sub twice": make(b'{"sub":"bob",' + as_json(CLAIMS)[1:]),
    "a claim twice inside another": make(b'{"realm":{"a":1,"a":2},' + as_json(CLAIMS)[1:]),
    "a claim twice by an escape": make(b'{"s\\u0075b":"bob",' + as_json(CLAIMS)[1:]),
    "a lone surrogate in a claim": make(claims(name="\ud800")),
    "a lone surrogate in a name": make(claims(**{"\udfff": 1})),
    "a control character in a claim": make(b'{"name":"\n",' + as_json(CLAIMS)[1:]),
    "NaN in a claim": make(claims(n=float("nan"))),
    "Infinity in a claim": make(claims(n=[float("-inf")])),
    "a number beyond all floats in a claim": make(b'{"n":1e999,' + as_json(CLAIMS)[1:]),
    "a number of 5000 digits": make(b'{"n":' + b"9" * 5000 + b"," + as_json(CLAIMS)[1:]),
    # exp, nbf, iat
    "no exp": make(without("exp")),
    "exp null": make(claims(exp=None)),
    "exp past the leeway": make(claims(exp=NOW - 10)),
    "exp zero": make(claims(exp=0)),
    "exp negative": make(claims(exp=-1)),
    "exp a boolean": make(claims(exp=True)),
    "exp a string": make(claims(exp=str(NOW + 60))),
    "exp a list": make(claims(exp=[NOW + 60])),
    "exp an object": make(claims(exp={"$date": NOW})),
    "exp NaN": make(claims(exp=float("nan"))),
    "exp Infinity": make(claims(exp=float("inf"))),
    "exp minus Infinity": make(claims(exp=float("-inf"))),
    "exp overflowing to infinity": make(b'{"exp":1e999,' + as_json(without("exp"))[1:]),
    "exp too big for a float": make(claims(exp=10**400)),
    "exp in milliseconds": make(claims(exp=(NOW + 60) * 1000)),
    "nbf in the future": make(claims(nbf=NOW + 11)),
    "nbf a string": make(claims(nbf=str(NOW))),
    "nbf null": make(claims(nbf=None)),
    "nbf a boolean": make(claims(nbf=False)),
    "iat in the future": make(claims(iat=NOW + 11)),
    "iat a string": make(claims(iat=str(NOW))),
    "iat a boolean": make(claims(iat=True)),
    "iat Infinity": make(claims(iat=float("-inf"))),
    # iss and aud
    "no iss": make(without("iss")),
    "another iss": make(claims(iss="https://evil.example")),
    "iss with a slash more": make(claims(iss=f"{ISSUER}/")),
    "iss a list": make(claims(iss=[ISSUER])),
    "no aud": make(without("aud")),
    "another aud": make(claims(aud="other")),
    "aud that contains ours": make(claims(aud=f"{AUDIENCE}-admin")),
    "aud part of ours": make(claims(aud=AUDIENCE[:3])),
    "aud an empty list": make(claims(aud=[])),
    "aud null": make(claims(aud=None)),
    "aud a list with a number": make(claims(aud=[AUDIENCE, 1])),
    "aud an object": make(claims(aud={AUDIENCE: 1})),
    # sub
    "no sub": make(without("sub")),
    "sub empty": make(claims(sub="")),
    "sub null": make(claims(sub=None)),
    "sub a number": make(claims(sub=1)),
    "sub a list": make(claims(sub=["alice"])),
    "sub over 256 characters": make(claims(sub="a" * 257)),
    "sub with a line break": make(claims(sub="alice\nadmin logged in")),
    "sub with a null character": make(claims(sub="alice\0")),
    "sub with a text direction mark": make(claims(sub="\u202eecila")),
}
HOSTILE_RS: dict[str, str] = {
    "the public key as the secret": make(alg="HS256", key=public(RSA_KEY)),
    "the public key in DER as the secret": make(alg="HS256", key=public(RSA_KEY, DER)),
    "another key": make(alg="RS256", key=RSA_OTHER),
    "another hash": make(alg="RS512", key=RSA_KEY),
    "another hash under the right name": make(header={"alg": "RS256"}, alg="RS512", key=RSA_KEY),
    "signature too short": f"{make(alg='RS256', key=RSA_KEY).rpartition('.')[0]}.{b64(bytes(255))}",
    "signature empty": f"{make(alg='RS256', key=RSA_KEY).rpartition('.')[0]}.",
    "a curve's signature": make(header={"alg": "RS256"}, alg="ES256", key=P256_KEY),
    "garbage after the signature": f"{make(alg='RS256', key=RSA_KEY)}!!!!",
}
HOSTILE_ES: dict[str, str] = {
    "the public key as the secret": make(alg="HS256", key=public(P256_KEY)),
    "zeros as the signature": f"{make(alg='ES256', key=P256_KEY).rpartition('.')[0]}.{b64(bytes(64))}",
    "signature in DER": der_signed(),
    "signature with a byte more": f"{make(alg='ES256', key=P256_KEY)}AA",
    "another curve": make(alg="ES384", key=P384_KEY),
    "another curve under the right name": make(header={"alg": "ES256"}, alg="ES384", key=P384_KEY),
    "alg none": make(header={"alg": "none"}, alg="ES256", key=P256_KEY),
}
HOSTILE = [
    pytest.param(authenticator, token, id=f"{family}: {name}")
    for family, authenticator, tokens in (
        ("HS", HS, HOSTILE_HS),
        ("RS", RS, HOSTILE_RS),
        ("ES", ES, HOSTILE_ES),
    )
    for name, token in tokens.items()
]


@pytest.mark.parametrize(("authenticator", "token"), HOSTILE)
async def test_hostile_token_identifies_nobody_and_is_not_logged(
    authenticator: JWTAuthenticator, token: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    assert await authenticator(token) is None
    (record,) = caplog.records
    assert record.levelno == logging.DEBUG  # a refusal with a reason, not an exception that fell through
    assert not any(part in caplog.text for part in token.split(".") if len(part) > 6)


@given(st.text() | st.text("abc.-_=", max_size=40).map(lambda text: f"{HEAD}.{text}"))
@settings(database=None, deadline=None)
async def test_any_text_as_a_token_identifies_nobody(text: str) -> None:
    assert await HS(text) is None


@given(st.integers(0, len(TOKEN) - 1), st.characters(min_codepoint=32, max_codepoint=127))
@settings(database=None, deadline=None)
async def test_token_with_one_character_changed_identifies_nobody(index: int, character: str) -> None:
    changed = TOKEN[:index] + character + TOKEN[index + 1 :]
    assert (await HS(changed) is None) == (changed != TOKEN)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda children: st.lists(children) | st.dictionaries(st.sampled_from([*CLAIMS, "nbf"]), children),
        max_leaves=8,
    )
)
@settings(database=None, deadline=None)
async def test_any_signed_json_is_judged_without_an_exception(value: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(authentication.logger, "error", lambda *args: pytest.fail(str(args)))
        await HS(make(json.dumps(value).encode("utf-8", "surrogatepass")))
        if isinstance(value, dict):
            await HS(make(CLAIMS | value))


async def test_user_and_name_come_from_the_configured_claims() -> None:
    authenticator = JWTAuthenticator(SECRET, user_claim="email", username_claim="nick")
    identity = await authenticator(make(claims(email="a@example.com", nick="Al")))
    assert identity is not None
    assert (identity.user_id, identity.username) == ("a@example.com", "Al")
    assert await authenticator(make()) is None
    assert await authenticator(make(claims(email=1))) is None
    assert await authenticator(make({"email": "a@example.com", "exp": NOW + 60})) is None


@pytest.mark.parametrize("name", [None, "", 1, ["Alice"], "a\nb", "a" * 257])
async def test_username_is_the_user_id_when_the_token_has_none_that_can_be_shown(name: object) -> None:
    identity = await HS(make(claims(preferred_username=name)))
    assert identity is not None
    assert identity.username == "alice"


async def test_no_leeway_means_none() -> None:
    authenticator = JWTAuthenticator(SECRET, leeway=0)
    assert await authenticator(make(claims(exp=NOW))) is None
    assert await authenticator(make(claims(exp=NOW + 1))) is not None
    assert await authenticator(make(claims(nbf=NOW + 1))) is None
    assert await authenticator(make(claims(nbf=NOW, iat=NOW))) is not None


@pytest.mark.parametrize("aud", [1, None, [1], {"gateway": 1}])
async def test_malformed_audience_is_refused_even_when_none_is_configured(aud: object) -> None:
    assert await JWTAuthenticator(SECRET)(make(claims(aud=aud))) is None


async def test_unexpected_exception_refuses_the_token_and_is_logged_by_its_type(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verify(compact: object) -> None:
        raise MemoryError(TOKEN)

    authenticator = JWTAuthenticator(SECRET)
    monkeypatch.setattr(authenticator, "_key", SimpleNamespace(verify=verify))
    assert await authenticator(TOKEN) is None
    assert caplog.messages == ["Token refused after an unexpected MemoryError"]
    assert TOKEN not in caplog.text


# --- Keys

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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"issuer": ""}, "JWT_ISSUER"),
        ({"audience": ""}, "JWT_AUDIENCE"),
        ({"user_claim": ""}, "JWT_USER_CLAIM"),
        ({"username_claim": ""}, "JWT_USERNAME_CLAIM"),
        ({"leeway": -1}, "JWT_LEEWAY"),
        ({"leeway": float("nan")}, "JWT_LEEWAY"),
        ({"leeway": float("inf")}, "JWT_LEEWAY"),
    ],
)
def test_setting_that_would_switch_a_check_off_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        JWTAuthenticator(SECRET, **arguments)


# --- Identity


def test_identity_does_not_show_its_token_or_claims() -> None:
    identity = Identity(user_id="7", username="al", token=TOKEN, claims={"ssn": "078-05"}, expires_at=1.5)
    assert repr(identity) == "Identity(user_id='7', username='al', expires_at=1.5)"
    shown = f"{identity} {identity.__rich_repr__()} {Credentials(TOKEN, 'header')!r}"
    assert TOKEN not in shown
    assert "078-05" not in shown


def test_identity_cannot_be_changed() -> None:
    source = {"role": "user"}
    identity = Identity(user_id="7", username="al", token="t", claims=source)
    source["role"] = "admin"
    assert identity.claims == {"role": "user"}
    with pytest.raises(TypeError):
        identity.claims["role"] = "admin"  # type: ignore[index]
    with pytest.raises(AttributeError):
        identity.user_id = "8"  # type: ignore[misc]
    assert {identity: 1}[Identity(user_id="7", username="al", token="t", claims={"role": "user"})] == 1


# --- A function of the host application


def legacy_authorise(token: str) -> dict[str, Any] | None:
    """As nuropb_gw's own stub."""
    if token != "accesstokentest1":
        return None
    return {"session_id": "s", "bearer_token": token, "user_id": "al@example.com", "username": "al"}


async def async_authorise(token: str) -> Mapping[str, Any] | None:
    await checkpoint()
    return legacy_authorise(token)


class Service:
    async def __call__(self, token: str) -> Mapping[str, Any] | None:
        return await async_authorise(token)

    def method(self, token: str) -> Mapping[str, Any] | None:
        return legacy_authorise(token)


def returns_awaitable(token: str) -> Awaitable[Mapping[str, Any] | None]:
    return async_authorise(token)


@pytest.mark.parametrize(
    "function",
    [
        legacy_authorise,
        async_authorise,
        Service(),
        Service().method,
        returns_awaitable,
        functools.partial(async_authorise),
        functools.partial(Service()),
    ],
)
async def test_function_of_nuropb_gw_identifies_its_user(function: Any) -> None:
    authenticator: Authenticator = FunctionAuthenticator(function)
    identity = await authenticator("accesstokentest1")
    assert identity is not None
    assert (identity.user_id, identity.username) == ("al@example.com", "al")
    assert (identity.token, identity.claims) == ("accesstokentest1", {"session_id": "s"})
    assert await authenticator("accesstokentest2") is None


LATER = datetime.fromtimestamp(NOW + 60, UTC)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"user_id": "7"}, ("7", "7", None)),
        ({"user_id": 7}, ("7", "7", None)),
        ({"user_id": 0}, ("0", "0", None)),
        ({"user_id": "7", "username": None}, ("7", "7", None)),
        ({"user_id": "7", "username": 8}, ("7", "7", None)),
        ({"user_id": "7", "exp": NOW + 60}, ("7", "7", NOW + 60)),
        ({"user_id": "7", "expires_at": NOW + 0.5, "exp": 1}, ("7", "7", NOW + 0.5)),
        ({"user_id": "7", "expires_at": None, "exp": None}, ("7", "7", None)),
        ({"user_id": "7", "expires_at": LATER}, ("7", "7", NOW + 60)),
        ({"user_id": "7", "expires_at": LATER.replace(tzinfo=None)}, ("7", "7", NOW + 60)),
        ({"user_id": "7", "expires_at": LATER.isoformat()}, ("7", "7", NOW + 60)),
        ({"user_id": "7", "expires_at": f"{LATER:%Y-%m-%dT%H:%M:%S}Z"}, ("7", "7", NOW + 60)),
    ],
)
async def test_answer_of_the_function_is_read(answer: dict[str, Any], expected: tuple[object, ...]) -> None:
    identity = await FunctionAuthenticator(lambda token: answer)("t")
    assert identity is not None
    assert (identity.user_id, identity.username, identity.expires_at) == expected
    assert identity.claims == {}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, None),
        ({}, None),
        (False, None),
        ({"user_id": "7", "exp": NOW}, None),
        (True, "it is not a dict"),
        ("alice", "it is not a dict"),
        ({"username": "al"}, "user_id"),
        ({"user_id": None}, "user_id"),
        ({"user_id": ""}, "user_id"),
        ({"user_id": True}, "user_id"),
        ({"user_id": 1.5}, "user_id"),
        ({"user_id": "a\nb"}, "user_id"),
        ({"user_id": "7", "exp": "soon"}, "expires_at"),
        ({"user_id": "7", "exp": True}, "expires_at"),
        ({"user_id": "7", "exp": float("nan")}, "expires_at"),
        ({"user_id": "7", "expires_at": [NOW]}, "expires_at"),
    ],
)
async def test_answer_that_names_nobody_or_is_not_usable_gives_none(
    answer: Any, reason: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    assert await FunctionAuthenticator(lambda token: answer)("t") is None
    if reason is None:
        assert not caplog.records
    else:
        assert f"no usable answer: {reason}" in caplog.text


@pytest.mark.parametrize("token", ["", " ", "a b", "a\n", "\0", "é", "\ud800", "x" * 8193])
async def test_function_is_not_asked_about_what_cannot_be_a_token(token: str) -> None:
    def function(token: str) -> None:
        pytest.fail("it was asked")

    assert await FunctionAuthenticator(function)(token) is None


@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO])
@pytest.mark.parametrize("is_async", [True, False])
async def test_exception_of_the_function_gives_none_and_its_message_is_not_logged(
    is_async: bool, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    def raises(token: str) -> None:
        try:
            raise KeyError(token)
        except KeyError as exc:
            raise PermissionError(f"{token} is not known") from exc

    async def async_raises(token: str) -> None:
        raises(token)

    caplog.set_level(level)
    assert await FunctionAuthenticator(async_raises if is_async else raises)("t0p-s3cret") is None
    assert "raised PermissionError" in caplog.text
    assert ("in raises" in caplog.text) == (level == logging.DEBUG)
    assert "t0p-s3cret" not in caplog.text


async def test_synchronous_function_does_not_run_in_the_event_loop() -> None:
    threads = []

    def function(token: str) -> None:
        threads.append(threading.current_thread())

    await FunctionAuthenticator(function)("t")
    assert threads != [threading.current_thread()]


async def test_cancelling_ends_an_asynchronous_function() -> None:
    ended = []

    async def function(token: str) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(token)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(FunctionAuthenticator(function), "t")
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert ended == ["t"]


async def test_cancelling_does_not_wait_for_a_synchronous_function() -> None:
    entered, release = threading.Event(), threading.Event()
    returned = []

    def function(token: str) -> None:
        entered.set()
        release.wait(10)
        returned.append(token)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(FunctionAuthenticator(function), "t")
        await anyio.to_thread.run_sync(entered.wait, 10)
        tasks.cancel_scope.cancel()
    assert returned == []
    release.set()


async def test_function_that_hangs_does_not_get_more_threads_by_cancelling(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(authentication, "_MAX_THREADS", 1)
    entered, release = threading.Event(), threading.Event()

    def function(token: str) -> dict[str, Any]:
        if token == "hang":
            entered.set()
            release.wait(10)
        return {"user_id": token}

    authenticator = FunctionAuthenticator(function)
    assert await authenticator("a") is not None
    assert await authenticator("b") is not None
    task = asyncio.create_task(authenticator("hang"))
    await anyio.to_thread.run_sync(entered.wait, 10)
    task.cancel()  # as asyncio.timeout does: a shield of anyio would not stop it
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await authenticator("c") is None
    assert "1 earlier calls have not returned yet" in caplog.text
    release.set()


# --- Where a token is looked for


@pytest.mark.parametrize(
    ("value", "token"),
    [
        ("Bearer abc", "abc"),
        ("bearer abc", "abc"),
        ("BEARER abc", "abc"),
        ("Bearer   abc", "abc"),
        ("Bearer\tabc", "abc"),
        (" Bearer abc ", "abc"),
        ("Bearer :abc", "abc"),
        ("Bearer : abc", "abc"),
        ("Bearer:abc", "abc"),
        ("bearer: abc", "abc"),
        ("Bearer a:b", "a:b"),
        ("Bearer " + "x" * 8192, "x" * 8192),
        ("Bearer " + "x" * 8193, None),
        ("Bearer", None),
        ("Bearer ", None),
        ("Bearer :", None),
        ("Bearer:", None),
        ("Bearerabc", None),
        ("Bearer abc def", None),
        ("Bearer abc, Bearer def", None),
        ("Bearer abc\r\nX: y", None),
        ("Bearer é", None),
        ("Bearer\u00a0abc", None),
        ("Basic dXNlcjpwYXNz", None),
        ("Token Bearer abc", None),
        ("abc", None),
        ("", None),
    ],
)
def test_bearer_from_header(value: str, token: str | None) -> None:
    assert bearer_from_header(value) == token


def offer(token: bytes) -> str:
    return f"base64url.bearer.nuropb.{b64(token)}"


@pytest.mark.parametrize(
    ("subprotocols", "token"),
    [
        ([], None),
        (["nuropb.v1"], None),
        (["nuropb.v1", offer(b"abc")], "abc"),
        ([offer(b"abc"), "nuropb.v1"], "abc"),
        ([offer(b"abcd"), offer(b"abcd")], "abcd"),
        ([offer(b"abc"), offer(b"abd")], None),
        ([offer(b"")], None),
        ([offer(b"a b")], None),
        ([offer(b"a\n")], None),
        ([offer(b"\xff\xfe")], None),
        ([offer(b"x" * 8193)], None),
        ([offer(b"abcd") + "=="], None),
        ([offer(b"abcd")[:-1] + "B"], None),
        (["base64url.bearer.nuropb.a"], None),
        (["base64url.bearer.nuropb.YWJj!"], None),
        (["base64url.bearer.nuropb.é"], None),
        (["Base64url.Bearer.Nuropb.YWJj"], None),
        (["base64url.bearer.authorization.k8s.io.YWJj"], None),
    ],
)
def test_bearer_from_subprotocols(subprotocols: list[str], token: str | None) -> None:
    assert bearer_from_subprotocols(subprotocols) == token


NOTHING = Credentials()
MALFORMED = Credentials(malformed=True)
CONFLICT = Credentials(conflict=True)
BOTH = Credentials(conflict=True, malformed=True)


def header(*values: str) -> list[tuple[str, str]]:
    return [("Authorization", value) for value in values]


def cookie(*values: str) -> list[tuple[str, str]]:
    return [("Cookie", value) for value in values]


@pytest.mark.parametrize(
    ("headers", "subprotocols", "expected"),
    [
        # none
        ([], [], NOTHING),
        ([("X-Authorization", "Bearer abc"), ("Proxy-Authorization", "Bearer abc")], ["nuropb.v1"], NOTHING),
        (cookie("other=abc; Authorization2=abc; authorization=abc; Authorization"), [], NOTHING),
        # the header
        (header("Bearer abc"), [], Credentials("abc", "header")),
        (header("Bearer :abc"), [], Credentials("abc", "header", legacy=True)),
        (header("Bearer:abc"), [], Credentials("abc", "header", legacy=True)),
        (header("Bearer abc", "Bearer abc"), [], Credentials("abc", "header")),
        (header("Bearer abc", "Bearer abd"), [], CONFLICT),
        (header("Bearer abc", "bearer abc"), [], CONFLICT),
        (header("Basic dXNlcjpwYXNz"), [], MALFORMED),
        (header("Basic dXNlcjpwYXNz", "Basic dXNlcg=="), [], BOTH),
        (header("Basic dXNlcjpwYXNz", "Bearer abc"), [], BOTH),
        (header("Bearer abc, Bearer abd"), [], MALFORMED),
        (header(""), [], MALFORMED),
        # the subprotocol
        ([], [offer(b"abc")], Credentials("abc", "subprotocol")),
        ([], ["nuropb.v1", offer(b"abc"), offer(b"abc")], Credentials("abc", "subprotocol")),
        ([], [offer(b"abc"), offer(b"abd")], CONFLICT),
        ([], [offer(b"")], MALFORMED),
        ([], [offer(b"abc"), offer(b"a b")], BOTH),
        # the cookie
        (cookie("Authorization=abc"), [], Credentials("abc", "cookie")),
        (cookie("a=b; Authorization=abc ;c"), [], Credentials("abc", "cookie")),
        (cookie("a=b", "Authorization=abc"), [], Credentials("abc", "cookie")),
        (cookie('Authorization="abc"'), [], Credentials("abc", "cookie")),
        (cookie("Authorization=Bearer abc"), [], Credentials("abc", "cookie")),
        (cookie('Authorization="Bearer :abc"'), [], Credentials("abc", "cookie")),
        (cookie("Authorization=Bearer%20abc"), [], Credentials("abc", "cookie")),
        (cookie("Authorization=%22abc%22"), [], Credentials("abc", "cookie")),
        (cookie("Authorization=ab=="), [], Credentials("ab==", "cookie")),
        (cookie("Authorization=bearer-of-rings"), [], Credentials("bearer-of-rings", "cookie")),
        (cookie("Authorization=abc; Authorization=abc"), [], Credentials("abc", "cookie")),
        (cookie("Authorization=abc; Authorization=abd"), [], CONFLICT),
        (cookie("Authorization=abc", "Authorization=abd"), [], CONFLICT),
        (cookie("Authorization="), [], MALFORMED),
        (cookie('Authorization=""'), [], MALFORMED),
        (cookie('Authorization="'), [], Credentials('"', "cookie")),
        (cookie("Authorization=a b"), [], MALFORMED),
        (cookie("Authorization=a%0Ab"), [], MALFORMED),
        (cookie("Authorization=%FF"), [], MALFORMED),
        (cookie("Authorization=" + "%61" * 3000), [], MALFORMED),
        # several
        (header("Bearer abc") + cookie("Authorization=abc"), [offer(b"abc")], Credentials("abc", "header")),
        (cookie("Authorization=abc"), [offer(b"abc")], Credentials("abc", "subprotocol")),
        (header("Bearer abc"), [offer(b"abd")], CONFLICT),
        (header("Bearer abc") + cookie("Authorization=abd"), [], CONFLICT),
        (cookie("Authorization=abd"), [offer(b"abc")], CONFLICT),
        (header("Basic dXNlcjpwYXNz"), [offer(b"abc")], BOTH),
        (header("Bearer abc") + cookie("Authorization="), [], BOTH),
    ],
)
def test_find_credentials(headers: list[tuple[str, str]], subprotocols: list[str], expected: Credentials) -> None:
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    assert find_credentials(Headers(raw=raw), subprotocols, "Authorization") == expected


def test_cookie_is_not_read_unless_it_has_a_name() -> None:
    assert find_credentials(Headers({"Cookie": "Authorization=abc; =abc"}), []) == NOTHING


@given(st.text(st.characters(max_codepoint=255)), st.text(st.characters(max_codepoint=255)), st.text())
@settings(database=None, deadline=None)
def test_credentials_that_are_refused_have_no_token(authorization: str, jar: str, subprotocol: str) -> None:
    headers = Headers({"Authorization": authorization, "Cookie": f"t={jar}"})
    credentials = find_credentials(headers, [f"base64url.bearer.nuropb.{subprotocol}"], "t")
    refused = credentials.conflict or credentials.malformed
    assert refused == (credentials.token is None) == (credentials.channel is None)


# --- Origins


@pytest.mark.parametrize(
    ("allowed", "origin", "expected"),
    [
        ([], "https://a.example", False),
        (["https://a.example"], "https://a.example", True),
        (["https://a.example"], "HTTPS://A.Example", True),
        (["HTTPS://A.Example"], "https://a.example", True),
        (["https://a.example"], "https://a.example:443", True),
        (["https://a.example:443"], "https://a.example", True),
        (["http://a.example"], "http://a.example:80", True),
        (["http://a.example"], "http://a.example:443", False),
        (["https://a.example"], "http://a.example", False),
        (["https://a.example"], "https://a.example:8443", False),
        (["https://a.example:8443"], "https://a.example:8443", True),
        (["https://a.example:8443"], "https://a.example", False),
        (["https://a.example"], "https://b.a.example", False),
        (["https://a.example"], "https://a.example.evil.example", False),
        (["https://a.example"], "https://evil-a.example", False),
        (["https://a.example"], "https://a.example@evil.example", False),
        (["https://a.example"], "https://evil.example/https://a.example", False),
        (["https://a.example"], "https://a.example/", False),
        (["https://a.example"], "https://a.example.", False),
        (["https://a.example"], "https://a.example:", False),
        (["https://a.example"], "https://a.example:0443", False),
        (["https://a.example"], "https://a.example:65979", False),
        (["https://a.example"], " https://a.example", False),
        (["https://a.example"], "https://a.example\n", False),
        (["https://a.example"], "https://a.example https://b.example", False),
        (["https://k.example"], "https://\u212a.example", False),
        (["https://a.example"], "a.example", False),
        (["https://a.example"], "null", False),
        (["https://a.example"], "", False),
        (["https://.example"], f"https://{'a.' * 200}example", False),
        (["https://xaxexample"], "https://xa.example", False),
        (["https://a.example", "https://b.example"], "https://b.example", True),
        (["https://xn--mnchen-3ya.example"], "https://xn--mnchen-3ya.example", True),
        (["https://[2001:DB8:0::1]:8443"], "https://[2001:db8::1]:8443", True),
        (["https://[2001:db8::1]"], "https://[2001:db8::2]", False),
        (["https://[2001:db8::1]"], "https://[:::]", False),
        (["http://192.0.2.1:8080"], "http://192.0.2.1:8080", True),
        (["capacitor://localhost"], "capacitor://localhost", True),
        (["capacitor://localhost"], "ionic://localhost", False),
        (["https://.example.com"], "https://a.example.com", True),
        (["https://.example.com"], "https://b.a.example.com:443", True),
        (["https://.Example.com"], "https://A.example.com", True),
        (["https://.example.com"], "https://example.com", False),
        (["https://.example.com"], "https://.example.com", False),
        (["https://.example.com"], "https://..example.com", False),
        (["https://.example.com"], "https://evil-example.com", False),
        (["https://.example.com"], "https://evilexample.com", False),
        (["https://.example.com"], "https://a.example.com.evil.example", False),
        (["https://.example.com"], "http://a.example.com", False),
        (["https://.example.com"], "https://a.example.com:8443", False),
        (["https://.example.com:8443"], "https://a.example.com:8443", True),
        (["https://.example.com:8443"], "http://a.example.com:8443", False),
        (["https://.example.com", "https://example.com"], "https://example.com", True),
        (["*"], "https://a.example", True),
        (["*"], "null", True),
        (["*"], "anything at all", True),
        (["https://a.example", "*"], "https://b.example", True),
    ],
)
def test_origins(allowed: list[str], origin: str, expected: bool) -> None:
    policy = OriginPolicy(allowed)
    assert policy.allows(origin) is expected
    assert policy.allows_any is ("*" in allowed)


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("http://localhost", True),
        ("https://LOCALHOST:5173", True),
        ("http://127.0.0.1:8000", True),
        ("http://[::1]:3000", True),
        ("http://[0:0:0:0:0:0:0:1]", True),
        ("http://app.localhost", False),
        ("http://localhost.evil.example", False),
        ("http://127.0.0.2", False),
        ("http://0.0.0.0:8000", False),
        ("ftp://localhost", False),
        ("https://a.example", False),
        ("null", False),
    ],
)
def test_loopback_origins(origin: str, expected: bool) -> None:
    assert OriginPolicy.loopback().allows(origin) is expected
    assert OriginPolicy([]).allows(origin) is False
    assert not OriginPolicy.loopback().allows_any


def test_loopback_can_be_added_to_other_origins() -> None:
    policy = OriginPolicy(["https://a.example"], loopback=True)
    assert policy.allows("https://a.example")
    assert policy.allows("http://localhost:5173")


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "a.example",
        "//a.example",
        "https://",
        "https://a.example/",
        "https://a.example/path",
        "https://a.example?x=1",
        "https://a.example#x",
        "https://user@a.example",
        "https://a.example:",
        "https://a.example:port",
        "https://a.example:65536",
        "https://a.example:-1",
        "https://a b.example",
        "https://münchen.example",
        "https://*.example.com",
        "https://.",
        "https://..example.com",
        "https://.[::1]",
        "https://.0.0.1",
        "https://[::1",
        "https://[1.2.3]",
        "null",
        "**",
        "https://a.example,https://b.example",
    ],
)
def test_entry_that_is_not_an_origin_is_refused(entry: str) -> None:
    with pytest.raises(SettingsError, match="ALLOWED_ORIGINS") as caught:
        OriginPolicy(["https://ok.example", entry])
    assert repr(entry) in str(caught.value)


def test_origins_must_be_a_list() -> None:
    with pytest.raises(SettingsError, match="must be a list"):
        OriginPolicy("https://a.example")


# --- The HTTP routes of a host application


async def whoami(request: Request) -> Response:
    user = request.user
    return JSONResponse([user.is_authenticated, user.identity, user.display_name, request.auth.scopes])


async def whoami_socket(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_json([websocket.user.identity, websocket.auth.scopes])
    await websocket.close()


def host_app(cookie_name: str | None = "session") -> Starlette:
    backend = TokenAuthenticationBackend(JWTAuthenticator(SECRET), cookie_name)
    return Starlette(
        routes=[Route("/", whoami, methods=["GET", "POST"]), WebSocketRoute("/ws", whoami_socket)],
        middleware=[Middleware(AuthenticationMiddleware, backend=backend)],
    )


ANONYMOUS = [False, "", "", []]
ALICE = [True, "alice", "Alice", ["authenticated"]]


@pytest.mark.parametrize(
    ("method", "headers", "expected"),
    [
        ("GET", {}, ANONYMOUS),
        ("GET", {"Authorization": f"Bearer {TOKEN}"}, ALICE),
        ("POST", {"Authorization": f"Bearer :{TOKEN}"}, ALICE),
        ("GET", {"Cookie": f"session={TOKEN}"}, ALICE),
        ("POST", {"Cookie": f"session={TOKEN}"}, ANONYMOUS),
        ("GET", {"Cookie": f"other={TOKEN}"}, ANONYMOUS),
        ("GET", {"Sec-WebSocket-Protocol": offer(TOKEN.encode())}, ANONYMOUS),
        ("GET", {"Authorization": "Bearer wrong"}, None),
        ("GET", {"Authorization": "Basic dXNlcjpwYXNz"}, None),
        ("GET", {"Authorization": f"Bearer {TOKEN}", "Cookie": "session=other"}, None),
        ("GET", {"Cookie": "session="}, None),
    ],
)
async def test_host_application_knows_the_user_of_a_request(
    method: str, headers: dict[str, str], expected: list[Any] | None
) -> None:
    transport = httpx.ASGITransport(app=host_app())
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.request(method, f"/?token={TOKEN}", headers=headers)
    if expected is None:
        assert (response.status_code, response.text) == (400, "Invalid bearer token")
    else:
        assert (response.status_code, response.json()) == (200, expected)


@pytest.mark.parametrize(
    ("headers", "subprotocols", "expected"),
    [
        (header(f"Bearer {TOKEN}"), [], '["alice",["authenticated"]]'),
        ([], ["nuropb.v1", offer(TOKEN.encode())], '["alice",["authenticated"]]'),
        (cookie(f"session={TOKEN}"), [], '["",[]]'),
        (header("Bearer wrong"), [], None),
    ],
)
async def test_host_application_knows_the_user_of_a_websocket(
    headers: list[tuple[str, str]], subprotocols: list[str], expected: str | None
) -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    raw = [(name.lower().encode(), value.encode()) for name, value in headers]
    scope = {"type": "websocket", "path": "/ws", "headers": raw, "subprotocols": subprotocols}
    await host_app()(scope, receive, send)
    if expected is None:
        assert [message["type"] for message in sent] == ["websocket.close"]
    else:
        assert sent[1] == {"type": "websocket.send", "text": expected}


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("read write", ["read", "write"]),
        (" read  ", ["read"]),
        (["read", 1, "write"], ["read", "write"]),
        ("", []),
        (None, []),
        (1, []),
        ({"read": 1}, []),
    ],
)
async def test_scopes_come_from_the_scope_claim(scope: object, expected: list[str]) -> None:
    backend = TokenAuthenticationBackend(JWTAuthenticator(SECRET))
    authorization = f"Bearer {make(claims(scope=scope))}".encode()
    conn = HTTPConnection({"type": "http", "method": "GET", "headers": [(b"authorization", authorization)]})
    result = await backend.authenticate(conn)
    assert result is not None
    credentials, user = result
    assert credentials.scopes == ["authenticated", *expected]
    assert user.full_identity.user_id == "alice"


async def test_host_application_gets_the_same_error_for_every_reason() -> None:
    backend = TokenAuthenticationBackend(JWTAuthenticator(SECRET))
    for value in (b"Bearer wrong", b"Basic x", f"Bearer {make(claims(exp=1))}".encode()):
        conn = HTTPConnection({"type": "http", "method": "GET", "headers": [(b"authorization", value)]})
        with pytest.raises(AuthenticationError, match=r"^Invalid bearer token$"):
            await backend.authenticate(conn)


# --- Development and tests


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
