"""Who is this, and where did they say so.

* `Identity` is what the rest of the gateway knows about a client.
* `JWTAuthenticator` and `FunctionAuthenticator` turn a bearer token into an `Identity`, or into None.
* `find_credentials` and `OriginPolicy` read the handshake; they are pure and decide nothing by themselves.
* `TokenAuthenticationBackend` puts the same tokens in front of the HTTP routes of a host application.
* `new_secret` and `issue_token` make tokens for development and tests.

A token is a password until it expires. No repr, log record or exception of this module contains one.
"""

from __future__ import annotations

import base64
import inspect
import ipaddress
import json
import logging
import math
import re
import secrets
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol, TypeGuard
from urllib.parse import unquote

import anyio
import anyio.to_thread
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jose import jwk, jws
from jose.utils import is_ssh_key
from starlette.authentication import AuthCredentials, AuthenticationBackend, AuthenticationError, BaseUser
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection

from .exceptions import SettingsError

__all__ = [
    "Authenticator",
    "Credentials",
    "FunctionAuthenticator",
    "Identity",
    "JWTAuthenticator",
    "OriginPolicy",
    "TokenAuthenticationBackend",
    "TokenUser",
    "bearer_from_header",
    "bearer_from_subprotocols",
    "find_credentials",
    "issue_token",
    "new_secret",
]

logger = logging.getLogger(__name__)

# Visible ASCII, which is wider than the b64token of RFC 6750, 2.1, because nuropb_gw's tokens are any string.
# White space stays out: two Authorization headers that a proxy joined ("a, Bearer b") are not one token.
_TOKEN = re.compile(r"[!-~]{1,8192}")


class _TokenError(Exception):
    """Why a token, or what a function said about it, is not valid. The message never quotes what was sent."""


class _Discreet(msgspec.Struct, frozen=True):
    """A struct whose reprs, including the one that the rich library reads, leave the secrets out."""

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        names = [name for name in self.__struct_fields__ if name not in ("token", "claims")]
        return [(name, getattr(self, name)) for name in names]

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({fields})"


class Identity(_Discreet, frozen=True, kw_only=True):
    """A client that has been authenticated.

    ``token`` is the token exactly as it was presented. ``claims`` is read-only (values nested in it are not
    copied). ``expires_at`` is in unix seconds, None when the identity does not expire; within the leeway of
    the `JWTAuthenticator` it may already be past.
    """

    user_id: str
    username: str
    token: str
    claims: Mapping[str, Any] = {}
    expires_at: float | None = None

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "claims", MappingProxyType(dict(self.claims)))

    def __hash__(self) -> int:
        return hash((self.user_id, self.token))


class Authenticator(Protocol):
    """Tells who a token belongs to."""

    async def __call__(self, token: str) -> Identity | None:
        """Return the identity, or None for any token that is not valid.

        It never raises for what a client sent. Cancellation passes through.
        """


# --- A function of the host application

_MAX_THREADS = 40  # as many as anyio has by default


class FunctionAuthenticator:
    """Asks a function of the host application, nuropb_gw's ``authorise_from_token(token) -> dict | None``.

    The function may be synchronous, asynchronous, or return an awaitable. Its dict has ``user_id`` (a string
    or an int), and may have ``username`` and ``expires_at`` or ``exp`` (unix seconds, a datetime, or an ISO
    8601 string; UTC when it has no time zone); the rest becomes the claims, except ``bearer_token``.

    The log never has the message of an exception of the function, because it may quote the token: a warning
    has the type, and at debug level follows where it was raised.
    """

    def __init__(
        self, function: Callable[[str], Mapping[str, Any] | Awaitable[Mapping[str, Any] | None] | None]
    ) -> None:
        self._function: Callable[[str], Any] = function
        self._is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
        # Of its own, because the host's synchronous endpoints live on anyio's default limiter.
        self._limiter = anyio.CapacityLimiter(_MAX_THREADS)
        self._places = threading.Semaphore(_MAX_THREADS)

    async def __call__(self, token: str) -> Identity | None:
        """Return the identity, or None: a falsy or expired answer, one that is not usable, or an exception.

        Cancellation takes effect at once. A synchronous function, which runs in a worker thread, goes on until
        it returns, unheard; while 40 of them are running, cancelled or not, other calls wait or are refused.
        """
        if not _TOKEN.fullmatch(token):
            return None
        try:
            if self._is_async:
                answer = self._function(token)
            else:
                answer = await anyio.to_thread.run_sync(self._run, token, abandon_on_cancel=True, limiter=self._limiter)
            if inspect.isawaitable(answer):
                answer = await answer
            return _identity_from_answer(token, answer) if answer else None
        except _TokenError as exc:
            logger.warning("The authentication function gave no usable answer: %s", exc)
        except Exception as exc:
            logger.warning("The authentication function raised %s", type(exc).__name__)
            if logger.isEnabledFor(logging.DEBUG):
                logger.debug("It was raised here:\n%s", "".join(traceback.format_tb(exc.__traceback__)))
        return None

    def _run(self, token: str) -> Any:
        # anyio frees the limiter when a call is cancelled, not when its thread is done. Without a count of
        # their own, clients that come and go would add a thread each while a function hangs.
        if not self._places.acquire(blocking=False):
            raise _TokenError(f"{_MAX_THREADS} earlier calls have not returned yet")
        try:
            return self._function(token)
        finally:
            self._places.release()


def _identity_from_answer(token: str, answer: object) -> Identity | None:
    if not isinstance(answer, Mapping):
        raise _TokenError("it is not a dict")
    claims = dict(answer)
    # nuropb_gw's functions put the token itself here.
    claims.pop("bearer_token", None)
    user_id = claims.pop("user_id", None)
    if type(user_id) is int:
        user_id = str(user_id)
    if not _is_name(user_id):
        raise _TokenError("user_id is not a printable string of 1 to 256 characters")
    username = claims.pop("username", None)
    exp = claims.pop("exp", None)
    expires_at = claims.pop("expires_at", None)
    expires_at = _unix_seconds(exp if expires_at is None else expires_at)
    if expires_at is not None and expires_at <= time.time():
        return None
    return Identity(
        user_id=user_id,
        username=username if _is_name(username) else user_id,
        token=token,
        claims=claims,
        expires_at=expires_at,
    )


def _unix_seconds(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise _TokenError("expires_at is not an ISO 8601 date") from None
    if isinstance(value, datetime):
        value = (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    return _numeric_date(value, "expires_at")


def _is_name(value: object) -> TypeGuard[str]:
    # Names go into log lines and message headers, where a line break or a direction mark could forge one.
    return isinstance(value, str) and 1 <= len(value) <= 256 and value.isprintable()


# --- JSON web tokens


class JWTAuthenticator:
    """Verifies JSON web tokens (RFC 7519) in the compact form (RFC 7515) with one key.

    python-jose checks the signature; the rules around it are here because python-jose 3.5.0 has none, or
    looser ones. ``key`` is a PEM public key or certificate, or a secret of at least 32 bytes.
    ``algorithms`` can only narrow what fits the key, and defaults to HS256, RS256 or the one of the key's
    curve. ``issuer`` and ``audience`` must be in the token when they are given. ``leeway`` is the tolerated
    clock difference, in seconds. ``user_claim`` must be in the token, and so must ``sub`` and ``exp``.

    Raises SettingsError when a value cannot be used; its message never contains the key.
    """

    def __init__(
        self,
        key: str | bytes,
        algorithms: Sequence[str] | None = None,
        issuer: str | None = None,
        audience: str | None = None,
        leeway: float = 10,
        user_claim: str = "sub",
        username_claim: str = "preferred_username",
    ) -> None:
        # An empty variable in a deployment must not quietly switch a check off.
        for name, value in {
            "JWT_ISSUER": issuer,
            "JWT_AUDIENCE": audience,
            "JWT_USER_CLAIM": user_claim,
            "JWT_USERNAME_CLAIM": username_claim,
        }.items():
            if value == "":
                raise SettingsError(f"{name}: it is empty; give a value, or do not set it")
        if not (math.isfinite(leeway) and leeway >= 0):
            raise SettingsError("JWT_LEEWAY: it must be a number of seconds, 0 or more")
        self._key = _VerificationKey(key, algorithms)
        self._issuer = issuer
        self._audience = audience
        self._leeway = leeway
        self._user_claim = user_claim
        self._username_claim = username_claim

    async def __call__(self, token: str) -> Identity | None:
        """Return the identity that the token proves, or None. It does not wait, so it cannot be cancelled."""
        try:
            compact = _parse_compact(token)
            self._key.verify(compact)
            return self._identity(token, _parse_object(compact.payload, "claims", max_depth=8))
        except _TokenError as exc:
            logger.debug("Token refused: %s", exc)
        except Exception as exc:
            # A gap in the rules of this module must refuse the token, not take the connection's task down.
            logger.error("Token refused after an unexpected %s", type(exc).__name__)
        return None

    def _identity(self, token: str, claims: dict[str, Any]) -> Identity:
        now = time.time()
        if "exp" not in claims:  # optional in RFC 7519, 4.1.4; a token without an end is of no use here
            raise _TokenError("exp is missing")
        expires_at = _numeric_date(claims["exp"], "exp")
        if now >= expires_at + self._leeway:
            raise _TokenError("it has expired")
        # RFC 7519, 4.1.5. It leaves iat to the application: one from the future is a wrong clock or issuer.
        for name in ("nbf", "iat"):
            if name in claims and now < _numeric_date(claims[name], name) - self._leeway:
                raise _TokenError(f"{name} is in the future")
        if self._issuer is not None and claims.get("iss") != self._issuer:
            raise _TokenError("iss is not the configured issuer")
        self._check_audience(claims)
        user_id = claims.get(self._user_claim)
        if not (_is_name(claims.get("sub")) and _is_name(user_id)):
            raise _TokenError("sub or the user claim is not a printable string of 1 to 256 characters")
        username = claims.get(self._username_claim)
        return Identity(
            user_id=user_id,
            username=username if _is_name(username) else user_id,
            token=token,
            claims=claims,
            expires_at=expires_at,
        )

    def _check_audience(self, claims: dict[str, Any]) -> None:
        audiences = claims.get("aud", [])
        if isinstance(audiences, str):  # RFC 7519, 4.1.3: one audience may stand alone
            audiences = [audiences]
        if not (isinstance(audiences, list) and all(isinstance(audience, str) for audience in audiences)):
            raise _TokenError("aud is not a string or a list of strings")
        if self._audience is not None and self._audience not in audiences:
            raise _TokenError("aud does not contain the configured audience")


class _Compact(msgspec.Struct, frozen=True):
    """A token in the compact form, taken apart. Nothing in it has been verified."""

    header: dict[str, Any]
    payload: bytes
    signing_input: bytes
    signature: bytes


# crit and b64 change what is signed (RFC 7515, 4.1.11; RFC 7797) and zip what is meant; the others let a
# token bring its own key (RFC 8725, 3.10). python-jose 3.5.0 ignores all of them.
_REFUSED_HEADERS = frozenset(["crit", "b64", "zip", "jku", "jwk", "x5u", "x5c"])


def _parse_compact(token: str) -> _Compact:
    """Take a token apart without trusting it, or raise _TokenError."""
    if not _TOKEN.fullmatch(token):
        raise _TokenError("it is empty, too long, or has characters that do not belong there")
    parts = token.split(".")
    if len(parts) != 3:
        raise _TokenError("it does not have three parts")
    header_data, payload, signature = map(_base64url_decode, parts)
    if len(header_data) > 1024:
        raise _TokenError("the header is longer than 1 KiB")
    header = _parse_object(header_data, "header", max_depth=1)
    if not _REFUSED_HEADERS.isdisjoint(header):
        raise _TokenError("the header has a parameter that is not accepted")
    # RFC 8725, 3.11: logout tokens, proofs and the like from the same issuer are not access tokens.
    typ = header.get("typ", "JWT")
    if not isinstance(typ, str) or typ.lower().removeprefix("application/") not in ("jwt", "at+jwt"):
        raise _TokenError("typ is not JWT or at+jwt")
    return _Compact(header, payload, token[: token.rindex(".")].encode("ascii"), signature)


def _base64url_decode(part: str) -> bytes:
    # RFC 7515, 2 and RFC 4648, 3.5. Python's decoder, which python-jose 3.5.0 uses, skips foreign characters,
    # takes padding and ignores unused trailing bits. Only the one text that an encoder writes is accepted.
    try:
        data = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except ValueError:
        raise _TokenError("it is not base64url") from None
    if base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii") != part:
        raise _TokenError("it is not canonical base64url")
    return data


def _parse_object(data: bytes, what: str, max_depth: int) -> dict[str, Any]:
    """Read JSON that means the same to everybody: RFC 8259 without duplicate names and lone surrogates."""
    try:
        text = data.decode("utf-8")
        value = _json_decoder.decode(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # raises for a lone surrogate
    except (ValueError, RecursionError):  # python-jose 3.5.0 lets the latter out, before any signature check
        raise _TokenError(f"the {what} is not strict JSON") from None
    if not isinstance(value, dict):
        raise _TokenError(f"the {what} is not an object")
    if not _is_within(value, max_depth):
        raise _TokenError(f"the {what} is nested too deeply")
    return value


def _is_within(value: object, max_depth: int) -> bool:
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return True
    return max_depth > 0 and all(_is_within(child, max_depth - 1) for child in value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # RFC 7519, 4 allows the last duplicate to win; then two readers can see two different users.
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError
    return result


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):  # 1e999, and with parse_constant NaN and Infinity
        raise ValueError
    return value


_json_decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite)


def _numeric_date(value: object, name: str) -> float:
    """Return unix seconds (RFC 7519, 2, NumericDate) before the year 10000; milliseconds are after it."""
    # True is an int. python-jose 3.5.0 fails with TypeError for a list and with OverflowError for Infinity.
    if not (isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 253402300800):
        raise _TokenError(f"{name} is not a date in seconds")
    return value


# --- Keys

_HMAC = ("HS256", "HS384", "HS512")
_RSA = ("RS256", "RS384", "RS512")
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}  # RFC 7518, 3.4
_ALGORITHMS = (*_HMAC, *_RSA, *_CURVES.values())


class _VerificationKey:
    """A key with the algorithms it is for (RFC 8725, 3.1); the algorithm never comes from the token alone.

    A key set is a dict of these by ``kid``; a single key does not look at the ``kid``.
    """

    def __init__(self, key: str | bytes, algorithms: Sequence[str] | None) -> None:
        data, kind, fitting = _read_key(key)
        if algorithms is None:
            algorithms = fitting[:1]
        # python-jose 3.5.0 takes a string and looks for the name anywhere inside it.
        if isinstance(algorithms, str) or not algorithms or not set(algorithms) <= set(_ALGORITHMS):
            raise SettingsError(f"JWT_ALGORITHMS: it must be a list with some of {', '.join(_ALGORITHMS)}")
        if not set(algorithms) <= set(fitting):
            raise SettingsError(f"JWT_ALGORITHMS: JWT_KEY is {kind}, which is only for {', '.join(fitting)}")
        self._keys = {algorithm: jwk.construct(data, algorithm) for algorithm in algorithms}

    def verify(self, compact: _Compact) -> None:
        key = self._keys.get(compact.header.get("alg", ""))
        if key is None:
            raise _TokenError("alg is not the key's")
        if not key.verify(compact.signing_input, compact.signature):
            raise _TokenError("the signature is wrong")


def _read_key(key: str | bytes) -> tuple[bytes, str, Sequence[str]]:
    """Return the key as python-jose takes it, what it is in words, and the algorithms that fit it."""
    try:
        data = key.encode("utf-8") if isinstance(key, str) else key
    except UnicodeEncodeError:
        # Without a cause: the exception holds the key.
        raise SettingsError("JWT_KEY: it is not valid text") from None
    if b"-----" in data or b"BEGIN " in data:
        return _read_pem(data)
    _check_secret(data)
    return data, "a secret", _HMAC


def _read_pem(data: bytes) -> tuple[bytes, str, Sequence[str]]:
    if b"PRIVATE KEY-" in data:
        raise SettingsError("JWT_KEY: it is a private key; give the public key, the gateway only verifies")
    if data.count(b"-----BEGIN ") != 1:
        raise SettingsError("JWT_KEY: it must be one PEM public key or certificate")
    public_key: object
    try:
        if b"-----BEGIN CERTIFICATE-" in data:
            # python-jose 3.5.0 reads the certificate of an RSA key, but not that of an EC key.
            public_key = x509.load_pem_x509_certificate(data).public_key()
        else:
            public_key = serialization.load_pem_public_key(data)
    except Exception as exc:  # ValueError, UnsupportedAlgorithm, InvalidVersion: the same to the operator
        raise SettingsError("JWT_KEY: it is not readable PEM; are its line breaks real?") from exc
    if isinstance(public_key, rsa.RSAPublicKey):
        if public_key.key_size < 2048:  # RFC 7518, 3.3
            raise SettingsError(f"JWT_KEY: an RSA key needs 2048 bits or more, it has {public_key.key_size}")
        return _spki(public_key), "an RSA key", _RSA
    if isinstance(public_key, ec.EllipticCurvePublicKey) and public_key.curve.name in _CURVES:
        return _spki(public_key), f"an EC key on {public_key.curve.name}", (_CURVES[public_key.curve.name],)
    raise SettingsError(f"JWT_KEY: it must be an RSA key, or an EC key on one of {', '.join(_CURVES)}")


def _spki(public_key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey) -> bytes:
    return public_key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _check_secret(data: bytes) -> None:
    # With a public key as the secret, everybody can sign. python-jose 3.5.0 notices PEM and SSH, but not
    # DER, nor base64 without the lines around it, which is how identity providers display their keys.
    if is_ssh_key(data) or _is_der(data) or _is_der(_base64_decode(data)):
        raise SettingsError("JWT_KEY: it is a key, but not in PEM; give a PEM public key")
    if data.lstrip().startswith(b"{") and b'"kty"' in data:
        raise SettingsError("JWT_KEY: it is a JSON web key; give a PEM public key")
    if len(data) < 32:  # RFC 7518, 3.2: the size of SHA-256
        raise SettingsError(f"JWT_KEY: a secret needs 32 bytes or more, this one has {len(data)}")


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
            return True  # it was recognised: encrypted (TypeError), or of a kind that is not supported
        return True
    return False


# --- Where a token is looked for


class Credentials(_Discreet, frozen=True):
    """What a handshake says about the client. ``token`` and ``channel`` are None unless they can be used.

    ``channel`` is "header", "subprotocol" or "cookie". ``malformed`` (something is there but not readable)
    and ``conflict`` (there are several that differ) mean: refuse. ``legacy`` tells that the header has the
    form ``Bearer :`` of nuropb_gw's clients.
    """

    token: str | None = None
    channel: str | None = None
    conflict: bool = False
    malformed: bool = False
    legacy: bool = False


def find_credentials(headers: Headers, subprotocols: Sequence[str], cookie_name: str | None = None) -> Credentials:
    """Look for a token in the Authorization header, the subprotocols and the cookie, in this order.

    All of them are read: tokens that differ are a conflict, because a proxy in front and the gateway behind
    it could each believe another one. The query string is never read: it ends up in logs (RFC 6750, 5.3).
    """
    authorizations = headers.getlist("authorization")
    found = [("header", bearer_from_header(value)) for value in authorizations]
    found += [("subprotocol", token) for token in _subprotocol_tokens(subprotocols)]
    if cookie_name is not None:
        found += [("cookie", _token_from_cookie(value)) for value in _cookie_values(headers, cookie_name)]
    if not found:
        return Credentials()
    tokens = {token for _, token in found}
    conflict = len(tokens) > 1 or len(set(authorizations)) > 1
    malformed = None in tokens
    if conflict or malformed:
        return Credentials(conflict=conflict, malformed=malformed)
    channel, token = found[0]
    match = _BEARER.match(authorizations[0]) if authorizations else None
    return Credentials(token, channel, legacy=match is not None and match[1] is not None)


# Everything it can repeat is delimited, and the token is not part of it: linear in what a client sends.
_BEARER = re.compile(r"[ \t]*bearer(?:[ \t]*(:)|[ \t])[ \t]*", re.ASCII | re.IGNORECASE)


def bearer_from_header(value: str) -> str | None:
    """Return the token of ``Bearer <token>``, or of nuropb_gw's ``Bearer :<token>`` and ``Bearer:<token>``.

    RFC 6750, 2.1; the case of the scheme does not matter (RFC 9110, 11.1). None for another scheme, and for
    a token that is not 1 to 8192 visible ASCII characters.
    """
    match = _BEARER.match(value)
    return None if match is None else _checked(value[match.end() :].rstrip(" \t"))


_SUBPROTOCOL = "base64url.bearer.nuropb."


def bearer_from_subprotocols(subprotocols: Sequence[str]) -> str | None:
    """Return the token of ``base64url.bearer.nuropb.<base64url of the token, without padding>``.

    Browsers cannot set a header on a WebSocket; Kubernetes has this form for them. None when there is no such
    subprotocol, it is not readable, or there are several that differ.
    """
    tokens = set(_subprotocol_tokens(subprotocols))
    return tokens.pop() if len(tokens) == 1 else None


def _subprotocol_tokens(subprotocols: Sequence[str]) -> Iterator[str | None]:
    for subprotocol in subprotocols:
        if subprotocol.startswith(_SUBPROTOCOL):
            try:
                yield _checked(_base64url_decode(subprotocol.removeprefix(_SUBPROTOCOL)).decode("latin-1"))
            except _TokenError:
                yield None


def _cookie_values(headers: Headers, name: str) -> Iterator[str]:
    # Starlette's parser keeps one of several cookies of the same name. A site on a sibling domain can plant
    # one (RFC 6265, 8.6), so that all of them have to be seen.
    for header in headers.getlist("cookie"):
        for pair in header.split(";"):
            key, separator, value = pair.partition("=")
            if separator and key.strip() == name:
                yield value


def _token_from_cookie(value: str) -> str | None:
    if len(value) > 8192:  # no browser keeps one of more than 4096 bytes, and decoding takes its time
        return None
    value = unquote(value.strip())
    if len(value) >= 2 and value[0] == value[-1] == '"':
        value = value[1:-1]
    return bearer_from_header(value) or _checked(value)


def _checked(token: str) -> str | None:
    return token if _TOKEN.fullmatch(token) else None


# --- Where a browser may come from

_Origin = tuple[str, str, int | None]

_ORIGIN = re.compile(
    r"([a-z][a-z0-9+.-]*)://([a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(?::(0|[1-9][0-9]{0,4}))?",
    re.ASCII | re.IGNORECASE,
)
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


class OriginPolicy:
    """Which origins (RFC 6454) may connect: ``scheme://host[:port]``, compared exactly after normalisation.

    The case of scheme and host and the default port do not matter. ``https://.example.com`` allows the
    subdomains of example.com, not itself. ``*`` allows everything; nothing else allows ``null``, which
    sandboxed frames and local files send. ``loopback`` adds http and https on this machine, at any port.

    Raises SettingsError for an entry that is not one of these.
    """

    def __init__(self, allowed: Sequence[str], *, loopback: bool = False) -> None:
        if isinstance(allowed, str):
            raise SettingsError("ALLOWED_ORIGINS: it must be a list")
        self._allows_any = "*" in allowed
        self._allows_loopback = loopback
        self._exact: set[_Origin] = set()
        self._subdomains: set[_Origin] = set()
        for entry in allowed:
            if entry != "*":
                self._add(entry)

    @classmethod
    def loopback(cls) -> OriginPolicy:
        """Return the policy for development: only pages served from this machine."""
        return cls([], loopback=True)

    @property
    def allows_any(self) -> bool:
        """Whether the policy has the entry ``*``; cookies must not be trusted then."""
        return self._allows_any

    def allows(self, origin: str) -> bool:
        """Return whether a page of this origin, the value of an Origin header, may connect."""
        if self._allows_any:
            return True
        parsed = _parse_origin(origin)
        if parsed is None:
            return False
        scheme, host, port = parsed
        if self._allows_loopback and scheme in ("http", "https") and host in _LOOPBACK:
            return True
        return parsed in self._exact or any(
            scheme == allowed_scheme and port == allowed_port and host.endswith(f".{domain}")
            for allowed_scheme, domain, allowed_port in self._subdomains
        )

    def _add(self, entry: str) -> None:
        is_domain = "://." in entry
        origin = _parse_origin(entry.replace("://.", "://", 1))
        if origin is None or (is_domain and _is_address(origin[1])):
            raise SettingsError(
                f"ALLOWED_ORIGINS: {entry!r} is not an origin; allowed: *, scheme://host, scheme://host:port "
                "and scheme://.domain for its subdomains; no path, and international names in the xn-- form"
            )
        (self._subdomains if is_domain else self._exact).add(origin)


def _is_address(host: str) -> bool:
    # Addresses have no subdomains: those of 0.0.1 would be 10.0.0.1 and all that end like it.
    return host.endswith("]") or host.rpartition(".")[2].isdecimal()


def _parse_origin(origin: str) -> _Origin | None:
    # No host name is longer than 255 characters (RFC 1035, 2.3.4).
    match = _ORIGIN.fullmatch(origin) if len(origin) <= 300 else None
    if match is None:
        return None
    scheme, host, port_digits = match[1].lower(), match[2].lower(), match[3]
    if host.startswith("["):
        try:
            host = f"[{ipaddress.IPv6Address(host[1:-1])}]"
        except ValueError:
            return None
    port = int(port_digits) if port_digits else {"http": 80, "https": 443}.get(scheme)
    return None if port is not None and port > 65535 else (scheme, host, port)


# --- The HTTP routes of a host application


class TokenUser(BaseUser):
    """``request.user`` of an authenticated request. ``identity`` is the user id, as Starlette has it."""

    def __init__(self, full_identity: Identity) -> None:
        self.full_identity = full_identity

    @property
    def is_authenticated(self) -> bool:
        """Always True."""
        return True

    @property
    def display_name(self) -> str:
        """The username."""
        return self.full_identity.username

    @property
    def identity(self) -> str:
        """The user id."""
        return self.full_identity.user_id


class TokenAuthenticationBackend(AuthenticationBackend):
    """Lets the gateway's tokens in at the host's own routes, with Starlette's AuthenticationMiddleware.

    The cookie is read for GET and HEAD requests only, as in nuropb_gw: browsers attach it to what other
    sites make them send, and neither forms nor WebSockets have a same-origin rule. Give the middleware an
    ``on_error`` that answers 401 with ``WWW-Authenticate: Bearer``; Starlette's own answers 400.
    """

    def __init__(self, authenticator: Authenticator, cookie_name: str | None = None) -> None:
        self._authenticator = authenticator
        self._cookie_name = cookie_name

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, TokenUser] | None:
        """Return the token's user with its scopes, or None when there is no token.

        Raises AuthenticationError when the token is invalid, unreadable, or contradicts another one.
        Cancellation passes through to the authenticator.
        """
        is_safe = conn.scope.get("method") in ("GET", "HEAD")  # a WebSocket has no method
        credentials = find_credentials(
            conn.headers, conn.scope.get("subprotocols", ()), self._cookie_name if is_safe else None
        )
        if credentials.conflict or credentials.malformed:
            raise AuthenticationError("Invalid bearer token")
        if credentials.token is None:
            return None
        identity = await self._authenticator(credentials.token)
        if identity is None:
            raise AuthenticationError("Invalid bearer token")
        return AuthCredentials(["authenticated", *_scopes(identity.claims)]), TokenUser(identity)


def _scopes(claims: Mapping[str, Any]) -> list[str]:
    scope = claims.get("scope", "")  # RFC 8693, 4.2: separated by spaces; some issuers write a list
    if isinstance(scope, str):
        return scope.split()
    return [item for item in scope if isinstance(item, str)] if isinstance(scope, list) else []


# --- Development and tests


def new_secret() -> str:
    """Return 256 random bits as printable text, for a key that lives as long as this process."""
    return secrets.token_urlsafe(32)


def issue_token(
    secret: str, user_id: str, *, username: str | None = None, lifetime: float = 3600, **claims: Any
) -> str:
    """Return an HS256 token that is valid for ``lifetime`` seconds; ``claims`` go in as they are."""
    now = int(time.time())
    payload = {"sub": user_id, "iat": now, "exp": now + lifetime}
    if username is not None:
        payload["preferred_username"] = username
    return jws.sign(payload | claims, secret, algorithm="HS256")
