"""A table of honest and hostile tokens: the verifier, the peculiarity of the token, the token.

The verifiers: ``HS`` has a secret, ``RS`` and ``ES`` a public key, ``SET`` the keys of a provider. All of them want the
same issuer and audience. ``ISSUERS`` has that provider, a second one with another key under the same ``kid``, and a
third issuer with a secret. The others are for one row each.
"""

from __future__ import annotations

import contextlib
import hmac
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from types import SimpleNamespace
from typing import Final, NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA1

from nuropb_gateway_asgi import IssuersAuthenticator, JWTAuthenticator, KeySet
from nuropb_gateway_asgi.authentication import Authenticator, function_authenticator, jwt_authenticator
from nuropb_gateway_asgi.authentication.fetching import Document
from nuropb_gateway_asgi.authentication.keys import development
from tests.kit.tokens import (
    AUDIENCE,
    CLAIMS,
    DER,
    ED25519_KEY,
    ED25519_OTHER,
    ISSUER,
    NOW,
    P256_KEY,
    P384_KEY,
    P521_KEY,
    RSA_KEY,
    RSA_OTHER,
    SECRET,
    as_json,
    b64,
    claims,
    cut,
    der_signed,
    jwk,
    key_set,
    make,
    malleated,
    nested,
    other_alphabet,
    pss_signed,
    public,
    respelled,
    sign,
    signed_with,
    without,
)

__all__ = ["HONEST", "HOSTILE", "KEY_SET", "Row", "clock_of_the_table", "verifiers"]

TOKEN: Final = make()
HEAD, BODY, SIGNATURE = TOKEN.split(".")
RS_TOKEN: Final = make(alg="RS256", key=RSA_KEY)
ES_TOKEN: Final = make(alg="ES256", key=P256_KEY)
#: The order of P-256. Both numbers of a signature have to be smaller.
ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
RSA_LINE: Final = "".join(public(RSA_KEY).decode().splitlines()[1:-1])

KEY_SET: Final = key_set(
    jwk(RSA_KEY, "rsa", use="sig", alg="RS256"),
    jwk(P256_KEY, "p256", key_ops=["verify"]),
    jwk(P384_KEY, "p384"),
    jwk(P521_KEY, "Schlüssel 521"),
    jwk(ED25519_KEY, "ed25519", alg="EdDSA"),
    jwk(RSA_KEY, "pss", alg="PS256"),
)


def provided(
    claims: object = CLAIMS, *, kid: object = "rsa", key: object = RSA_KEY, alg: str = "RS256", **more: object
) -> str:
    """Return a token of the provider, unchanged or with a peculiarity."""
    return make(claims, alg=alg, key=key, kid=kid, **more)


#: A second provider, whose key has the ``kid`` of the first one's, and an issuer with a secret.
PARTNER: Final = "https://partner.example/"
OWN: Final = "own"
PARTNER_KEY_SET: Final = key_set(jwk(RSA_OTHER, "rsa", alg="RS256"), jwk(P256_KEY, "only partner", alg="ES256"))


def partners(changes: Mapping[str, object] | None = None, *, key: object = RSA_OTHER) -> str:
    """Return a token of the second provider, unchanged or with a peculiarity."""
    own = {"iss": PARTNER, "aud": "partners", "uid": "alice", "sub": "some number"}
    return provided(claims(**own | dict(changes or {})), key=key)


class Row(NamedTuple):
    verifier: str
    name: str
    token: str


def _fixed() -> dict[str, JWTAuthenticator]:
    return {
        "HS": JWTAuthenticator(SECRET, ["HS256"], ISSUER, AUDIENCE),
        "RS": JWTAuthenticator(public(RSA_KEY), ["RS256"], ISSUER, AUDIENCE),
        "ES": JWTAuthenticator(public(P256_KEY), ["ES256"], ISSUER, AUDIENCE),
        "HS384": JWTAuthenticator(SECRET, ["HS384"], ISSUER, AUDIENCE),
        "HS256 and HS512": JWTAuthenticator(SECRET, ["HS256", "HS512"], ISSUER, AUDIENCE),
        "RS384": JWTAuthenticator(public(RSA_KEY), ["RS384"], ISSUER, AUDIENCE),
        "RS512": JWTAuthenticator(public(RSA_KEY), ["RS512"], ISSUER, AUDIENCE),
        "ES384": JWTAuthenticator(public(P384_KEY), None, ISSUER, AUDIENCE),
        "ES512": JWTAuthenticator(public(P521_KEY), None, ISSUER, AUDIENCE),
        "PS256": JWTAuthenticator(public(RSA_KEY), ["PS256"], ISSUER, AUDIENCE),
        "PS384": JWTAuthenticator(public(RSA_KEY), ["PS384"], ISSUER, AUDIENCE),
        "PS512": JWTAuthenticator(public(RSA_KEY), ["PS512"], ISSUER, AUDIENCE),
        "EdDSA": JWTAuthenticator(public(ED25519_KEY), None, ISSUER, AUDIENCE),
        "Ed25519": JWTAuthenticator(public(ED25519_KEY), ["Ed25519"], ISSUER, AUDIENCE),
        "several audiences": JWTAuthenticator(SECRET, None, ISSUER, ["other", AUDIENCE]),
        "client": JWTAuthenticator(SECRET, None, ISSUER, client_id=["app", "spa"]),
        "audience or client": JWTAuthenticator(SECRET, None, ISSUER, AUDIENCE, client_id="app"),
        "user claim": JWTAuthenticator(SECRET, None, ISSUER, AUDIENCE, user_claim="uid"),
        "anybody's": JWTAuthenticator(SECRET),
    }


@contextlib.asynccontextmanager
async def verifiers() -> AsyncIterator[Mapping[str, Authenticator]]:
    """Run all verifiers, by name."""

    async def fetch(url: str) -> Document:
        return Document(PARTNER_KEY_SET if "partner" in url else KEY_SET, None)

    def keys(url: str) -> KeySet:
        return KeySet(url, fetch=fetch, clock=lambda: NOW)

    issuers = IssuersAuthenticator(
        [
            JWTAuthenticator(keys("https://issuer.example/keys"), None, ISSUER, AUDIENCE),
            JWTAuthenticator(
                keys("https://partner.example/keys"),
                None,
                PARTNER,
                "partners",
                user_claim="uid",
                user_prefix="partner:",
            ),
            JWTAuthenticator(SECRET, ["HS256"], OWN, user_prefix="own:"),
        ]
    )
    async with JWTAuthenticator(keys("https://issuer.example/keys"), None, ISSUER, AUDIENCE) as authenticator, issuers:
        yield {**_fixed(), "SET": authenticator, "ISSUERS": issuers}


@contextlib.contextmanager
def clock_of_the_table() -> Iterator[None]:
    """Stop the clock of the modules that check and issue tokens."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (jwt_authenticator, function_authenticator, development):
            patch.setattr(module, "time", SimpleNamespace(time=lambda: NOW))
        yield


HONEST: Final = [
    Row("HS", "HS256", TOKEN),
    Row("HS384", "HS384", make(alg="HS384")),
    Row("HS256 and HS512", "HS512 of several", make(alg="HS512")),
    Row("RS", "RS256", make(alg="RS256", key=RSA_KEY)),
    Row("RS384", "RS384", make(alg="RS384", key=RSA_KEY)),
    Row("RS512", "RS512", make(alg="RS512", key=RSA_KEY)),
    Row("ES", "ES256", make(alg="ES256", key=P256_KEY)),
    Row("ES384", "ES384", make(alg="ES384", key=P384_KEY)),
    Row("ES512", "ES512", make(alg="ES512", key=P521_KEY)),
    *(Row(alg, alg, make(alg=alg, key=RSA_KEY)) for alg in ("PS256", "PS384", "PS512")),
    *(Row(alg, alg, make(alg=alg, key=ED25519_KEY)) for alg in ("EdDSA", "Ed25519")),
    Row("SET", "EdDSA by its kid", make(alg="EdDSA", key=ED25519_KEY, kid="ed25519")),
    Row("SET", "EdDSA without a kid, as one key fits", make(alg="EdDSA", key=ED25519_KEY)),
    Row("SET", "PS256 by its kid", provided(kid="pss", alg="PS256")),
    Row("several audiences", "one of them", TOKEN),
    Row("several audiences", "one of them among others", make(claims(aud=["x", "other"]))),
    Row("client", "no aud, its client_id", make(without("aud") | {"client_id": "app"})),
    Row("client", "no aud, its azp", make(without("aud") | {"azp": "spa"})),
    Row("client", "client_id and azp", make(without("aud") | {"client_id": "app", "azp": "app"})),
    Row("client", "an aud, and its client_id", make(claims(client_id="app"))),
    Row("audience or client", "the audience", TOKEN),
    Row("audience or client", "the audience, of another client", make(claims(client_id="other"))),
    Row("audience or client", "no aud, its client_id", make(without("aud") | {"client_id": "app"})),
    Row("user claim", "no sub", make(without("sub") | {"uid": "alice"})),
    Row("user claim", "a sub", make(claims(sub="0815", uid="alice"))),
    Row("HS", "a list of audiences", make(claims(aud=["other", AUDIENCE]))),
    Row("anybody's", "any audience and issuer when none is configured", make(claims(aud=["x"]))),
    Row("anybody's", "no audience and issuer when none is configured", make(without("aud", "iss"))),
    Row("HS", "expired within the leeway", make(claims(exp=NOW - 9))),
    Row("HS", "not before within the leeway", make(claims(nbf=NOW + 10))),
    Row("HS", "issued within the leeway", make(claims(iat=NOW + 10))),
    Row("HS", "fractions of seconds", make(claims(exp=NOW + 0.5, iat=NOW - 0.5))),
    Row("HS", "no iat", make(without("iat"))),
    Row("HS", "no typ", make(header={"alg": "HS256"})),
    Row("HS", "an access token by its typ", make(typ="application/at+JWT")),
    Row("HS", "a kid", make(kid="2026-11")),
    Row("HS", "claims as deep as allowed", make(claims(realm=nested(7)))),
    Row("HS", "white space in the JSON", make(json.dumps(CLAIMS, indent=1).encode())),
    Row("HS", "an escaped character in the JSON", make(claims(name="\U0001f600"))),
    Row("HS", "a subject of 256 characters", make(claims(sub="alice", other="é" * 256))),
    Row("HS", "exactly 16384 characters", make(claims(pad="x" * 12093))),
    Row("HS", "of 200 groups", make(claims(groups=[f"5f0c1fa5-6d40-4f0a-8b1b-{n:012}" for n in range(200)]))),
    Row("HS", "a kid that names nothing: there is one key", make(kid="../../dev/null")),
    Row("HS", "white space within a name", make(claims(preferred_username="Alice", nick="a b"))),
    Row("HS", "a date of today, and one long ago", make(claims(nbf=0, iat=1))),
    # the keys of a provider
    Row("SET", "RS256 by its kid", provided()),
    Row("ISSUERS", "of the first issuer", provided()),
    Row("SET", "RS256 without a kid, as one key fits", RS_TOKEN),
    Row("SET", "ES256 by its kid", make(alg="ES256", key=P256_KEY, kid="p256")),
    Row("SET", "ES384 by its kid, away from the event loop", make(alg="ES384", key=P384_KEY, kid="p384")),
    Row("SET", "ES512 by a kid that is not in ASCII", make(alg="ES512", key=P521_KEY, kid="Schlüssel 521")),
    Row("SET", "ES512 by a kid in another spelling of JSON", make(alg="ES512", key=P521_KEY, kid="Schl\u00fcssel 521")),
]

HOSTILE: Final = [
    # the form
    Row("HS", "empty", ""),
    Row("HS", "one part", HEAD),
    Row("HS", "two parts", f"{HEAD}.{BODY}"),
    Row("HS", "four parts", f"{TOKEN}.{SIGNATURE}"),
    Row("HS", "five parts, as an encrypted token", f"{TOKEN}.{SIGNATURE}.{SIGNATURE}"),
    Row("HS", "dots only", ".."),
    Row("HS", "no header", f".{BODY}.{SIGNATURE}"),
    Row("HS", "no claims", f"{HEAD}..{SIGNATURE}"),
    Row("HS", "no signature", f"{HEAD}.{BODY}."),
    Row("HS", "16385 characters", make(claims(pad="x" * 12093)) + "x"),
    Row("HS", "too long with a valid signature", make(claims(pad="x" * 13000))),
    Row("HS", "line break at the end", f"{TOKEN}\n"),
    Row("HS", "space at the end", f"{TOKEN} "),
    Row("HS", "null character", f"{TOKEN}\0"),
    Row("HS", "not ASCII", f"{TOKEN}é"),
    Row("HS", "digits of another script", f"{HEAD}.{BODY}.{SIGNATURE[:-1]}٣"),
    Row("HS", "lone surrogate", f"{TOKEN}\ud800"),
    Row("HS", "Bearer in front", f"Bearer {TOKEN}"),
    Row("HS", "line break within", f"{HEAD}.\n{BODY}.{SIGNATURE}"),
    Row("HS", "carriage return and line break at the end", f"{TOKEN}\r\n"),
    Row("HS", "tab in front", f"\t{TOKEN}"),
    Row("HS", "a letter that only looks like one of base64", f"{HEAD}.{BODY}.{SIGNATURE[:-1]}\u0410"),
    Row("HS", "dots of another script", f"{HEAD}\u2024{BODY}\u2024{SIGNATURE}"),
    Row("HS", "two tokens", f"{TOKEN},{TOKEN}"),
    Row("HS", "the JSON form of RFC 7515", json.dumps({"protected": HEAD, "payload": BODY, "signature": SIGNATURE})),
    # base64url: python-jose 3.5.0 accepts all of these but the last
    Row("HS", "padding", f"{TOKEN}="),
    Row("HS", "padding in the header", sign(f"{HEAD}==.{BODY}")),
    Row("HS", "garbage in the header", sign(f"{HEAD}!.{BODY}")),
    Row("HS", "garbage in the claims", sign(f"{HEAD}.{BODY[:8]}****{BODY[8:]}")),
    Row("HS", "garbage after the signature", f"{TOKEN}!!!!"),
    Row("HS", "garbage within the signature", f"{HEAD}.{BODY}.{SIGNATURE[:8]}****{SIGNATURE[8:]}"),
    Row("HS", "unused trailing bits", respelled(TOKEN)),
    Row("HS", "the other base64 alphabet", other_alphabet()),
    Row("HS", "impossible length", f"{HEAD}.{BODY}.A"),
    # the signature
    Row("HS", "signature of another token", make(claims(sub="bob")).rpartition(".")[0] + f".{SIGNATURE}"),
    Row("HS", "signature cut short", f"{HEAD}.{BODY}.{b64(hmac.digest(SECRET.encode(), b'', 'sha256')[:16])}"),
    Row("HS", "signature all zero", f"{HEAD}.{BODY}.{b64(bytes(32))}"),
    Row("HS", "another secret", make(key="another-secret-of-at-least-32-bytes!!")),
    Row("HS", "an empty secret", make(key=b"")),
    Row("HS", "signature with a byte more", f"{HEAD}.{BODY}.{SIGNATURE}AA"),
    Row(
        "HS",
        "signature in hexadecimal",
        f"{HEAD}.{BODY}.{hmac.digest(SECRET.encode(), f'{HEAD}.{BODY}'.encode(), 'sha256').hex()}",
    ),
    Row(
        "HS", "signed without the header", f"{HEAD}.{BODY}.{b64(hmac.digest(SECRET.encode(), BODY.encode(), 'sha256'))}"
    ),
    Row("HS", "signed with the secret and a line break", make(key=f"{SECRET}\n")),
    # the header
    Row("HS", "alg none", f"{b64(as_json({'alg': 'none'}))}.{BODY}."),
    Row("HS", "alg none with a signature", make(header={"alg": "none"})),
    Row("HS", "alg None in capitals", make(header={"alg": "NONE"})),
    Row("HS", "alg None, mixed", make(header={"alg": "nOnE"})),
    Row("HS", "alg empty", make(header={"alg": ""})),
    Row("HS", "alg with a space", make(header={"alg": "HS256 "})),
    Row("HS", "alg with a null character", make(header={"alg": "HS256\0"})),
    Row("HS", "alg with a letter that only looks like it", make(header={"alg": "H\u0405256"})),
    Row("HS", "alg missing", make(header={"typ": "JWT"})),
    Row("HS", "alg null", make(header={"alg": None})),
    Row("HS", "alg a number", make(header={"alg": 256})),
    Row("HS", "alg a boolean", make(header={"alg": True})),
    Row("HS", "alg a list", make(header={"alg": ["HS256"]})),
    Row("HS", "alg in lower case", make(header={"alg": "hs256"})),
    Row("HS", "alg part of an allowed one", make(header={"alg": "HS"})),
    Row("HS", "alg of the family but not allowed", make(alg="HS512")),
    Row("HS", "alg of another family", make(alg="RS256", key=RSA_KEY)),
    Row("HS", "alg twice", make(header=b'{"alg":"none","alg":"HS256"}')),
    Row("HS", "crit", make(crit=["exp"])),
    Row("HS", "crit empty", make(crit=[])),
    Row("HS", "crit as a string", make(crit="exp")),
    Row("HS", "b64", make(b64=False)),
    Row("HS", "b64 as it always is", make(b64=True)),
    Row("HS", "zip", make(zip="DEF")),
    Row("HS", "jku", make(jku="https://evil.example/keys")),
    Row("HS", "jwk", make(jwk={"kty": "oct", "k": b64(SECRET.encode())})),
    Row("HS", "jwk as a string", make(jwk="{}")),
    Row("HS", "x5u", make(x5u="https://evil.example/cert")),
    Row("HS", "x5c", make(x5c="MIIB")),
    Row("HS", "nested header", make(kid={"a": 1})),
    Row("HS", "kid a list", make(kid=["a"])),
    Row("HS", "kid null", make(kid=None)),
    Row("HS", "kid a number", make(kid=1)),
    Row("HS", "kid twice", make(header=b'{"alg":"HS256","kid":"a","kid":"b"}')),
    Row("HS", "x5t of nothing that is known is no harm, x5u is", make(x5t="AAAA", x5u="file:///etc/passwd")),
    Row("HS", "enc of an encrypted token", make(header={"alg": "dir", "enc": "A256GCM"})),
    Row("HS", "header with a line break as it is", make(header=b'{"alg":"HS256","kid":"\n"}')),
    Row("HS", "deeply nested header", make(header=b'{"alg":"HS256","a":' + b"[" * 400 + b"]" * 400 + b"}")),
    Row("HS", "header nested beyond recursion", make(header=b"[" * 5000)),
    Row("HS", "header over 1 KiB", make(kid="k" * 1024)),
    Row("HS", "header a list", make(header=["HS256"])),
    Row("HS", "header not JSON", make(header=b"HS256")),
    Row("HS", "header not UTF-8", make(header=b'{"alg":"HS256","kid":"\xff"}')),
    Row("HS", "header UTF-16", make(header='{"alg":"HS256"}'.encode("utf-16"))),
    Row("HS", "header with a byte order mark", make(header=b'\xef\xbb\xbf{"alg":"HS256"}')),
    Row("HS", "typ of a logout token", make(typ="logout+jwt")),
    Row("HS", "typ a proof of possession", make(typ="dpop+jwt")),
    Row("HS", "typ a number", make(typ=1)),
    Row("HS", "typ null", make(typ=None)),
    # the claims as JSON
    Row("HS", "claims empty", make(b"")),
    Row("HS", "claims a list", make([CLAIMS])),
    Row("HS", "claims a string", make("alice")),
    Row("HS", "claims null", make(None)),
    Row("HS", "claims a number", make(1)),
    Row("HS", "claims not UTF-8", make(b'{"sub":"\xff"}')),
    Row("HS", "claims with something after them", make(as_json(CLAIMS) + b"{}")),
    Row("HS", "claims too deep", make(claims(realm=nested(8)))),
    Row("HS", "claims nested beyond recursion", make(b'{"a":' * 1000 + b"1" + b"}" * 1000)),
    Row("HS", "sub twice", make(b'{"sub":"bob",' + as_json(CLAIMS)[1:])),
    Row("HS", "a claim twice inside another", make(b'{"realm":{"a":1,"a":2},' + as_json(CLAIMS)[1:])),
    Row("HS", "a claim twice by an escape", make(b'{"s\\u0075b":"bob",' + as_json(CLAIMS)[1:])),
    Row("HS", "a lone surrogate in a claim", make(claims(name="\ud800"))),
    Row("HS", "a lone surrogate in a name", make(claims(**{"\udfff": 1}))),
    Row("HS", "a control character in a claim", make(b'{"name":"\n",' + as_json(CLAIMS)[1:])),
    Row("HS", "NaN in a claim", make(claims(n=float("nan")))),
    Row("HS", "Infinity in a claim", make(claims(n=[float("-inf")]))),
    Row("HS", "a number beyond all floats in a claim", make(b'{"n":1e999,' + as_json(CLAIMS)[1:])),
    Row("HS", "a number of 5000 digits", make(b'{"n":' + b"9" * 5000 + b"," + as_json(CLAIMS)[1:])),
    # exp, nbf, iat
    Row("HS", "no exp", make(without("exp"))),
    Row("HS", "exp null", make(claims(exp=None))),
    Row("HS", "exp past the leeway", make(claims(exp=NOW - 10))),
    Row("HS", "exp zero", make(claims(exp=0))),
    Row("HS", "exp negative", make(claims(exp=-1))),
    Row("HS", "exp a boolean", make(claims(exp=True))),
    Row("HS", "exp a string", make(claims(exp=str(NOW + 60)))),
    Row("HS", "exp a list", make(claims(exp=[NOW + 60]))),
    Row("HS", "exp an empty string", make(claims(exp=""))),
    Row("HS", "exp a date", make(claims(exp="2096-10-02T07:06:40Z"))),
    Row("HS", "exp in hexadecimal", make(b'{"exp":0xEE6B2800,' + as_json(without("exp"))[1:])),
    Row("HS", "exp with a plus", make(b'{"exp":+4000000060,' + as_json(without("exp"))[1:])),
    Row("HS", "exp with a leading zero", make(b'{"exp":04000000060,' + as_json(without("exp"))[1:])),
    Row("HS", "exp with another name", make(claims(EXP=NOW + 60) | {"exp": NOW - 60})),
    Row("HS", "exp twice", make(b'{"exp":4000000060,' + as_json(claims(exp=1))[1:])),
    Row("HS", "exp an object", make(claims(exp={"$date": NOW}))),
    Row("HS", "exp NaN", make(claims(exp=float("nan")))),
    Row("HS", "exp Infinity", make(claims(exp=float("inf")))),
    Row("HS", "exp minus Infinity", make(claims(exp=float("-inf")))),
    Row("HS", "exp overflowing to infinity", make(b'{"exp":1e999,' + as_json(without("exp"))[1:])),
    Row("HS", "exp too big for a float", make(claims(exp=10**400))),
    Row("HS", "exp in milliseconds", make(claims(exp=(NOW + 60) * 1000))),
    Row("HS", "nbf in the future", make(claims(nbf=NOW + 11))),
    Row("HS", "nbf a string", make(claims(nbf=str(NOW)))),
    Row("HS", "nbf null", make(claims(nbf=None))),
    Row("HS", "nbf a boolean", make(claims(nbf=False))),
    Row("HS", "iat in the future", make(claims(iat=NOW + 11))),
    Row("HS", "iat a string", make(claims(iat=str(NOW)))),
    Row("HS", "iat a boolean", make(claims(iat=True))),
    Row("HS", "iat Infinity", make(claims(iat=float("-inf")))),
    # iss and aud
    Row("HS", "no iss", make(without("iss"))),
    Row("HS", "another iss", make(claims(iss="https://evil.example"))),
    Row("HS", "iss with more in front", make(claims(iss=f"https://evil.example/{ISSUER}"))),
    Row("HS", "iss with more behind", make(claims(iss=f"{ISSUER}.evil.example"))),
    Row("HS", "iss cut short", make(claims(iss=ISSUER[:-1]))),
    Row("HS", "iss in capitals", make(claims(iss=ISSUER.upper()))),
    Row("HS", "iss without TLS", make(claims(iss=ISSUER.replace("https", "http")))),
    Row("HS", "iss with a space", make(claims(iss=f"{ISSUER} "))),
    Row("HS", "iss null", make(claims(iss=None))),
    Row("HS", "iss with a slash more", make(claims(iss=f"{ISSUER}/"))),
    Row("HS", "iss a list", make(claims(iss=[ISSUER]))),
    Row("HS", "no aud", make(without("aud"))),
    Row("HS", "another aud", make(claims(aud="other"))),
    Row("HS", "aud that contains ours", make(claims(aud=f"{AUDIENCE}-admin"))),
    Row("HS", "aud part of ours", make(claims(aud=AUDIENCE[:3]))),
    Row("HS", "aud an empty list", make(claims(aud=[]))),
    Row("HS", "aud a list of others", make(claims(aud=["a", "b"]))),
    Row("HS", "aud a list within a list", make(claims(aud=[[AUDIENCE]]))),
    Row("HS", "aud a list with null", make(claims(aud=[AUDIENCE, None]))),
    Row("HS", "aud as text with commas", make(claims(aud=f"other,{AUDIENCE}"))),
    Row("HS", "aud in capitals", make(claims(aud=AUDIENCE.upper()))),
    Row("HS", "aud empty", make(claims(aud=""))),
    Row("HS", "aud true", make(claims(aud=True))),
    Row("HS", "aud null", make(claims(aud=None))),
    Row("HS", "aud a list with a number", make(claims(aud=[AUDIENCE, 1]))),
    Row("HS", "aud an object", make(claims(aud={AUDIENCE: 1}))),
    Row("several audiences", "none of them", make(claims(aud="third"))),
    Row("several audiences", "both in one text", make(claims(aud=f"other,{AUDIENCE}"))),
    Row("several audiences", "a part of one", make(claims(aud="othe"))),
    Row("several audiences", "no aud", make(without("aud"))),
    Row("several audiences", "no aud, and a client_id with its name", make(without("aud") | {"client_id": "other"})),
    # client_id and azp
    Row("HS", "no aud, but a client_id", make(without("aud") | {"client_id": AUDIENCE, "azp": AUDIENCE})),
    Row("client", "no client_id", make(without("aud"))),
    Row("client", "no client_id, but an aud with its name", make(claims(aud="app"))),
    Row("client", "another client_id", make(without("aud") | {"client_id": "other"})),
    Row("client", "another azp", make(without("aud") | {"azp": "other"})),
    Row("client", "its client_id, but another azp", make(without("aud") | {"client_id": "app", "azp": "other"})),
    Row("client", "its azp, but another client_id", make(without("aud") | {"client_id": "other", "azp": "app"})),
    Row("client", "its azp, but client_id null", make(without("aud") | {"client_id": None, "azp": "app"})),
    Row("client", "client_id empty", make(without("aud") | {"client_id": ""})),
    Row("client", "client_id a list", make(without("aud") | {"client_id": ["app"]})),
    Row("client", "client_id an object", make(without("aud") | {"client_id": {"app": 1}})),
    Row("client", "client_id true", make(without("aud") | {"client_id": True})),
    Row("client", "client_id in capitals", make(without("aud") | {"client_id": "APP"})),
    Row("client", "client_id with a space", make(without("aud") | {"client_id": "app "})),
    Row("client", "client_id as text with commas", make(without("aud") | {"client_id": "app,spa"})),
    Row("client", "client_id within another claim", make(without("aud") | {"act": {"client_id": "app"}})),
    Row("client", "client_id of another spelling", make(without("aud") | {"clientId": "app", "cid": "app"})),
    Row("client", "client_id twice", make(b'{"client_id":"other",' + as_json(claims(client_id="app"))[1:])),
    Row("client", "aud null", make(claims(aud=None, client_id="app"))),
    Row("client", "another iss", make(claims(iss="https://evil.example", client_id="app"))),
    Row("audience or client", "another aud, but its client_id", make(claims(aud="other", client_id="app"))),
    Row("audience or client", "an aud without an entry, but its client_id", make(claims(aud=[], client_id="app"))),
    Row("audience or client", "aud null, but its client_id", make(claims(aud=None, client_id="app"))),
    Row("audience or client", "aud empty, but its client_id", make(claims(aud="", client_id="app"))),
    Row("audience or client", "no aud and no client_id", make(without("aud"))),
    Row("audience or client", "no aud, another client_id", make(without("aud") | {"client_id": AUDIENCE})),
    # sub, and another claim in its place
    Row("user claim", "no user claim", TOKEN),
    Row("user claim", "neither sub nor user claim", make(without("sub"))),
    Row("user claim", "sub null", make(claims(sub=None, uid="alice"))),
    Row("user claim", "sub empty", make(claims(sub="", uid="alice"))),
    Row("user claim", "sub a number", make(claims(sub=7, uid="alice"))),
    Row("user claim", "sub with a line break", make(claims(sub="a\nb", uid="alice"))),
    Row("user claim", "user claim null", make(without("sub") | {"uid": None})),
    Row("user claim", "user claim empty", make(without("sub") | {"uid": ""})),
    Row("user claim", "user claim a number", make(without("sub") | {"uid": 7})),
    Row("user claim", "user claim a list", make(without("sub") | {"uid": ["alice"]})),
    Row("user claim", "user claim with a line break", make(without("sub") | {"uid": "alice\nbob"})),
    Row("user claim", "user claim over 256 characters", make(without("sub") | {"uid": "a" * 257})),
    Row("user claim", "user claim twice", make(b'{"uid":"bob",' + as_json(claims(uid="alice"))[1:])),
    Row("HS", "no sub, but another claim", make(without("sub") | {"uid": "alice"})),
    Row("HS", "no sub", make(without("sub"))),
    Row("HS", "sub empty", make(claims(sub=""))),
    Row("HS", "sub null", make(claims(sub=None))),
    Row("HS", "sub a number", make(claims(sub=1))),
    Row("HS", "sub a list", make(claims(sub=["alice"]))),
    Row("HS", "sub over 256 characters", make(claims(sub="a" * 257))),
    Row("HS", "sub with a line break", make(claims(sub="alice\nadmin logged in"))),
    Row("HS", "sub with a null character", make(claims(sub="alice\0"))),
    Row("HS", "sub with a text direction mark", make(claims(sub="\u202eecila"))),
    Row("RS", "the public key as the secret", make(alg="HS256", key=public(RSA_KEY))),
    Row("RS", "the public key in DER as the secret", make(alg="HS256", key=public(RSA_KEY, DER))),
    Row("RS", "the public key in base64 as the secret", make(alg="HS256", key=RSA_LINE)),
    Row(
        "RS",
        "the modulus as the secret",
        make(alg="HS256", key=RSA_KEY.public_key().public_numbers().n.to_bytes(256, "big")),
    ),
    Row("RS", "the public key as the secret under the right name", make(header={"alg": "RS256"}, key=public(RSA_KEY))),
    Row("RS", "alg of RSA-PSS", make(header={"alg": "PS256"}, alg="RS256", key=RSA_KEY)),
    Row("RS", "signature of zeros", f"{RS_TOKEN.rpartition('.')[0]}.{b64(bytes(256))}"),
    Row("RS", "signature of 1", f"{RS_TOKEN.rpartition('.')[0]}.{b64(bytes(255) + bytes([1]))}"),
    Row("RS", "signature cut short", cut(RS_TOKEN, 128)),
    Row("RS", "signature larger than the modulus", f"{RS_TOKEN.rpartition('.')[0]}.{b64(bytes([255]) * 256)}"),
    Row("RS", "the key within the header", make(alg="RS256", key=RSA_OTHER, jwk=jwk(RSA_OTHER))),
    Row("RS", "another key", make(alg="RS256", key=RSA_OTHER)),
    Row("RS", "another hash", make(alg="RS512", key=RSA_KEY)),
    Row("RS", "another hash under the right name", make(header={"alg": "RS256"}, alg="RS512", key=RSA_KEY)),
    Row("RS", "signature too short", f"{make(alg='RS256', key=RSA_KEY).rpartition('.')[0]}.{b64(bytes(255))}"),
    Row("RS", "signature empty", f"{make(alg='RS256', key=RSA_KEY).rpartition('.')[0]}."),
    Row("RS", "a curve's signature", make(header={"alg": "RS256"}, alg="ES256", key=P256_KEY)),
    Row("RS", "garbage after the signature", f"{make(alg='RS256', key=RSA_KEY)}!!!!"),
    Row("ES", "the public key as the secret", make(alg="HS256", key=public(P256_KEY))),
    Row("ES", "zeros as the signature", f"{make(alg='ES256', key=P256_KEY).rpartition('.')[0]}.{b64(bytes(64))}"),
    Row("ES", "signature in DER", der_signed()),
    Row("ES", "signature with a byte more", f"{make(alg='ES256', key=P256_KEY)}AA"),
    Row("ES", "another curve", make(alg="ES384", key=P384_KEY)),
    Row("ES", "another curve under the right name", make(header={"alg": "ES256"}, alg="ES384", key=P384_KEY)),
    Row("ES", "alg none", make(header={"alg": "none"}, alg="ES256", key=P256_KEY)),
    Row("ES", "alg none without a signature", f"{b64(as_json({'alg': 'none'}))}.{BODY}."),
    # Java accepted all of these zeros for a while (CVE-2022-21449)
    Row("ES", "r and s zero", signed_with(P256_KEY, 0, 0)),
    Row("ES", "r zero", signed_with(P256_KEY, 0, 1)),
    Row("ES", "s zero", signed_with(P256_KEY, 1, 0)),
    Row("ES", "r and s one", signed_with(P256_KEY, 1, 1)),
    Row("ES", "r and s the order", signed_with(P256_KEY, ORDER, ORDER)),
    Row("ES", "r zero, s the order", signed_with(P256_KEY, 0, ORDER)),
    Row("ES", "r beyond the order", signed_with(P256_KEY, ORDER + 1, 1)),
    Row("ES", "r and s as large as can be", signed_with(P256_KEY, 2**256 - 1, 2**256 - 1)),
    Row("ES", "numbers with leading zeros", signed_with(P256_KEY, 1, 1, size=33)),
    Row("ES", "signature of one byte", cut(ES_TOKEN, 1)),
    Row("ES", "r alone", cut(ES_TOKEN, 32)),
    Row("ES", "signature cut by a byte", cut(ES_TOKEN, -1)),
    Row("ES", "signature cut by two bytes, which leaves halves", cut(ES_TOKEN, -2)),
    Row("ES", "signature empty", cut(ES_TOKEN, 0)),
    Row("ES", "another key", make(alg="ES256", key=ec.generate_private_key(ec.SECP256R1()))),
    Row("ES", "the curve of Bitcoin", make(alg="ES256", key=ec.generate_private_key(ec.SECP256K1()))),
    Row("ES", "the public key in DER as the secret", make(alg="HS256", key=public(P256_KEY, DER))),
    Row("ES", "alg of an RSA key", make(alg="RS256", key=RSA_KEY)),
    # RSA-PSS and Ed25519
    Row("RS", "a signature of RSA-PSS under the right name", make(header={"alg": "RS256"}, alg="PS256", key=RSA_KEY)),
    Row("RS", "a token of RSA-PSS", make(alg="PS256", key=RSA_KEY)),
    Row("PS256", "a token of RS256", RS_TOKEN),
    Row("PS256", "a signature of RS256 under the right name", make(header={"alg": "PS256"}, alg="RS256", key=RSA_KEY)),
    Row("PS256", "another hash", make(alg="PS512", key=RSA_KEY)),
    Row("PS256", "another hash under the right name", make(header={"alg": "PS256"}, alg="PS384", key=RSA_KEY)),
    Row("PS256", "no salt", pss_signed(salt=0)),
    Row("PS256", "a longer salt", pss_signed(salt=64)),
    Row("PS256", "another hash for the mask", pss_signed(mask=SHA1())),
    Row("PS256", "another key", make(alg="PS256", key=RSA_OTHER)),
    Row("PS256", "signature of zeros", f"{make(alg='PS256', key=RSA_KEY).rpartition('.')[0]}.{b64(bytes(256))}"),
    Row("PS256", "signature cut by a byte", cut(make(alg="PS256", key=RSA_KEY), -1)),
    Row("PS256", "signature empty", cut(make(alg="PS256", key=RSA_KEY), 0)),
    Row("PS256", "the public key as the secret", make(alg="HS256", key=public(RSA_KEY))),
    Row("EdDSA", "another key", make(alg="EdDSA", key=ED25519_OTHER)),
    Row("EdDSA", "another name of the algorithm", make(alg="Ed25519", key=ED25519_KEY)),
    Row("Ed25519", "another name of the algorithm", make(alg="EdDSA", key=ED25519_KEY)),
    Row("EdDSA", "Ed448", make(header={"alg": "Ed448"}, alg="EdDSA", key=ED25519_KEY)),
    Row("EdDSA", "a second spelling of the signature", malleated()),
    Row("EdDSA", "signature of zeros", f"{make(alg='EdDSA', key=ED25519_KEY).rpartition('.')[0]}.{b64(bytes(64))}"),
    Row(
        "EdDSA",
        "signature by the neutral point",
        f"{make(alg='EdDSA', key=ED25519_KEY).rpartition('.')[0]}.{b64(bytes([1]) + bytes(63))}",
    ),
    Row("EdDSA", "signature cut by a byte", cut(make(alg="EdDSA", key=ED25519_KEY), -1)),
    Row("EdDSA", "signature with a byte more", f"{make(alg='EdDSA', key=ED25519_KEY)[:-1]}AAA"),
    Row("EdDSA", "signature empty", cut(make(alg="EdDSA", key=ED25519_KEY), 0)),
    Row("EdDSA", "the public key as the secret", make(alg="HS256", key=public(ED25519_KEY))),
    Row("EdDSA", "the point as the secret", make(alg="HS256", key=ED25519_KEY.public_key().public_bytes_raw())),
    Row("EdDSA", "the key within the header", make(alg="EdDSA", key=ED25519_OTHER, jwk=jwk(ED25519_OTHER))),
    Row("EdDSA", "a curve's signature", make(header={"alg": "EdDSA"}, alg="ES256", key=P256_KEY)),
    Row("EdDSA", "alg none", make(header={"alg": "none"}, alg="EdDSA", key=ED25519_KEY)),
    # the keys of a provider
    Row("SET", "PS256 with the kid of RS256", provided(alg="PS256")),
    Row("SET", "RS256 with the kid of PS256", provided(kid="pss")),
    Row("SET", "EdDSA of another key", make(alg="EdDSA", key=ED25519_OTHER, kid="ed25519")),
    Row("SET", "no such kid", provided(kid="rsb")),
    Row("SET", "kid empty", provided(kid="")),
    Row("SET", "kid in capitals", provided(kid="RSA")),
    Row("SET", "kid with a space", provided(kid="rsa ")),
    Row("SET", "kid a path", make(alg="HS256", key=b"", kid="../../../../dev/null")),
    Row("SET", "kid a query", make(alg="HS256", key=b"key", kid="x' UNION SELECT 'key")),
    Row("SET", "kid a command", provided(kid="rsa|id")),
    Row("SET", "kid a URL", make(alg="RS256", key=RSA_OTHER, kid="https://evil.example/key")),
    Row("SET", "kid a name of Python's", provided(kid="__class__")),
    Row("SET", "kid as long as a header may be", provided(kid="k" * 980)),
    Row("SET", "kid longer than a header may be", provided(kid="k" * 5000)),
    Row("SET", "kid not in the same form of Unicode", make(alg="ES512", key=P521_KEY, kid="Schlu\u0308ssel 521")),
    Row("SET", "kid with a lone surrogate", provided(kid="\ud800")),
    Row("SET", "kid null", provided(kid=None)),
    Row("SET", "kid a list", provided(kid=["rsa"])),
    Row("SET", "kid a number", provided(kid=0)),
    Row("SET", "kid true", provided(kid=True)),
    Row("SET", "kid twice", make(b"{}", header=b'{"alg":"RS256","kid":"rsa","kid":"p256"}', alg="RS256", key=RSA_KEY)),
    Row("SET", "kid of another key", provided(kid="p256")),
    Row("SET", "kid of the key of another curve", make(alg="ES256", key=P256_KEY, kid="p384")),
    Row("SET", "kid of ours, key of another", provided(key=RSA_OTHER)),
    Row("SET", "kid and key of another within the header", provided(key=RSA_OTHER, jwk=jwk(RSA_OTHER))),
    Row("SET", "kid and a set of another", provided(key=RSA_OTHER, jku="https://evil.example/keys")),
    Row("SET", "no kid, key of another", make(alg="RS256", key=RSA_OTHER)),
    Row("SET", "no kid, no key for its alg", make(alg="RS512", key=RSA_KEY)),
    Row("SET", "alg that the key could have, but has not", provided(alg="RS512")),
    Row("SET", "alg none", make(header={"alg": "none", "kid": "rsa"}, alg="RS256", key=RSA_KEY)),
    Row("SET", "the public key as the secret", make(alg="HS256", key=public(RSA_KEY), kid="rsa")),
    Row("SET", "the public key in DER as the secret", make(alg="HS256", key=public(RSA_KEY, DER), kid="rsa")),
    Row("SET", "the JSON web key as the secret", make(alg="HS256", key=as_json(jwk(RSA_KEY, "rsa")), kid="rsa")),
    Row("SET", "the whole key set as the secret", make(alg="HS256", key=KEY_SET, kid="rsa")),
    Row(
        "SET",
        "r and s zero, away from the event loop",
        f"{make(alg='ES384', key=P384_KEY, kid='p384').rpartition('.')[0]}.{b64(bytes(96))}",
    ),
    Row("ISSUERS", "iss of the second, key of the first", partners(key=RSA_KEY)),
    Row("ISSUERS", "iss of the first, key of the second", provided(key=RSA_OTHER)),
    Row(
        "ISSUERS",
        "iss of the first, kid and key that only the second has",
        provided(kid="only partner", key=P256_KEY, alg="ES256"),
    ),
    Row("ISSUERS", "iss of the third, key of the first", provided(claims(iss=OWN))),
    Row("ISSUERS", "iss of the first, secret of the third", make(kid="rsa")),
    Row(
        "ISSUERS", "the public key of the first as the secret of the third", make(claims(iss=OWN), key=public(RSA_KEY))
    ),
    Row("ISSUERS", "no iss", provided(without("iss"))),
    Row("ISSUERS", "iss null", provided(claims(iss=None))),
    Row("ISSUERS", "iss of nobody", provided(claims(iss="https://evil.example"))),
    Row("ISSUERS", "iss in capitals", provided(claims(iss=ISSUER.upper()))),
    Row("ISSUERS", "iss with a slash", provided(claims(iss=f"{ISSUER}/"))),
    Row("ISSUERS", "iss without its slash", partners({"iss": PARTNER.rstrip("/")})),
    Row("ISSUERS", "iss a list of both", provided(claims(iss=[ISSUER, PARTNER]))),
    Row("ISSUERS", "iss an object", provided(claims(iss={"iss": ISSUER}))),
    Row(
        "ISSUERS",
        "iss twice",
        provided(as_json(CLAIMS)[:-1] + b',"iss":' + as_json(PARTNER) + b"}"),
    ),
    Row("ISSUERS", "iss in the header alone", provided(without("iss"), iss=ISSUER)),
    Row("ISSUERS", "aud of the first at the second", partners({"aud": AUDIENCE})),
    Row("ISSUERS", "aud of the second at the first", provided(claims(aud="partners"))),
    Row("ISSUERS", "without the user claim of the second", partners({"uid": None})),
    Row("ISSUERS", "a user of the second, named by the first", provided(claims(sub="partner:alice"))),
    Row("ISSUERS", "a user of the third, named by the first", provided(claims(sub="own:alice"))),
    Row("ISSUERS", "a user id too long with its prefix", partners({"uid": "u" * 250})),
    Row("SET", "expired", provided(claims(exp=NOW - 10))),
    Row("SET", "another iss", provided(claims(iss=f"{ISSUER}/"))),
    Row("SET", "another aud", provided(claims(aud="other"))),
]
